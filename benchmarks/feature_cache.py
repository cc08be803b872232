"""What the feature cache saves: ``python -m benchmarks.feature_cache``.

A step of phase 1 at full size (ViT-B/16, ResNet-50, 699 cells, batch 64) through geopak's trainer:
from photos in memory, and from cached features on disk. And heads-only training in that trainer
against a bare PyTorch loop over the same tensors, a few steps of each by turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import conclusion, print_conclusions
from benchmarks.subjects import random_cells, random_set, train_config
from benchmarks.training import measure_steps
from geopak import build
from geopak.data.dataset import PhotoDataset
from geopak.data.feature_store import FeatureStore
from geopak.data.features import CachedFeatures, FeatureDataset

SPEEDUP = 500
SHARE_OF_BARE = 0.6
VIEWS = 4


def serve_features(datamodule: Any, home: Path, dim: int) -> None:
    """Gives the data module features of noise, written and mapped as real ones are."""
    rows = datamodule.train_rows
    store = FeatureStore(home, "noise", len(rows), VIEWS * dim, "float32", 256)
    generator = torch.Generator().manual_seed(0)
    for claim in store.claim_missing():
        with claim:
            size = store.rows_of(claim.chunk)
            store.write(
                claim.chunk, torch.randn(size.stop - size.start, store.dim, generator=generator)
            )
    values = store.open().view(len(rows), VIEWS, dim)
    position = torch.full((len(datamodule.prepared.photos),), -1)
    position[torch.from_numpy(rows)] = torch.arange(len(rows))
    dataset = PhotoDataset(datamodule.prepared, datamodule.image_size)
    cached = CachedFeatures(values, position)
    datamodule.datasets["train"] = FeatureDataset(dataset.truth, cached, datamodule._view_generator)
    datamodule.datasets["val"] = datamodule.datasets["train"]


def serve_photos(datamodule: Any) -> None:
    """Gives the data module photos of noise, in memory."""
    size = round(datamodule.image_size * datamodule.options.load_margin)
    dataset = PhotoDataset(datamodule.prepared, size)
    # All rows share a few pictures: only their number and size matter here.
    dataset.cache = torch.randint(0, 256, (64, 3, size, size), dtype=torch.uint8)
    dataset.position = torch.arange(len(dataset)) % 64
    datamodule.datasets = {"train": dataset, "val": dataset}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--model", default="clip_places365")
    parser.add_argument("--uncached-steps", type=int, default=2)
    args = parser.parse_args()
    overrides = (
        "phase=1", f"model={args.model}", f"data.batch_size={args.batch}",
        "callbacks.progress_bar=false", "trainer=cpu" if not torch.cuda.is_available() else
        "trainer=a100",
    )  # fmt: skip
    cfg = train_config(*overrides)
    region = build.build_region(cfg)
    cells = random_cells(region)
    prepared = random_set(region, cells, 4000)
    model = cfg.model
    dim = model.semantic.shape.width + 2048 if args.model == "clip_places365" else 352
    with tempfile.TemporaryDirectory() as home:
        cached = measure_steps(
            cfg, region, prepared, lambda d: serve_features(d, Path(home), dim), steps=20, turns=9
        )
    whole = measure_steps(
        train_config(*overrides), region, prepared, serve_photos, steps=1, turns=args.uncached_steps
    )
    common = {"model": args.model, "batch": args.batch, "cells": cells.num_cells}
    print_conclusions(
        [
            conclusion(
                "feature_cache", whole.trainer, cached.trainer, SPEEDUP,
                case="uncached step / cached step", unit="s", **common,
            ),
            conclusion(
                "feature_cache", cached.trainer, cached.bare, SHARE_OF_BARE, less_is_better=True,
                case="heads-only step: trainer / bare loop", unit="s", **common,
            ),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
