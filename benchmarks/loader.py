"""Photos a second that training's loader serves: ``python -m benchmarks.loader``.

The data module's own loader with its balanced sampler, over JPEG files of several sizes, against

- bare decoding and resizing of the same files in as many processes, nothing else; and
- the usual way: a Pillow transform pipeline item by item (resized crop, jitter, blur, tensor,
  normalisation) in a ``DataLoader`` of as many workers.

All take turns; each is timed after its processes have given their first batches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from joblib.externals.loky import ProcessPoolExecutor
from PIL import Image
from simplejpeg import decode_jpeg
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.measure import conclusion, print_conclusions
from benchmarks.prepare import generated
from benchmarks.subjects import random_cells, random_set, train_config
from geopak import build
from geopak.data.worker_pools import ONE_THREAD

SIZES = {"320 x 240": (320, 240), "640 x 480": (640, 480), "1600 x 1200": (1600, 1200)}
NUM_FILES = 48
TARGET_OF_BARE, TARGET_OF_USUAL = 0.9, 1.5
BATCH = 64


def decode_and_resize(paths: list[str], size: int) -> int:
    """What no loader can do without."""
    torch.set_num_threads(1)
    for path in paths:
        pixels = decode_jpeg(Path(path).read_bytes(), "RGB", min_height=size, min_width=size)
        height, width = pixels.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = torch.from_numpy(pixels[top : top + side, left : left + side].copy())
        functional.interpolate(
            square.permute(2, 0, 1).unsqueeze(0), (size, size), mode="bilinear", antialias=True
        )
    return len(paths)


class UsualDataset(Dataset[Tensor]):
    """One photo at a time, transformed by Pillow."""

    def __init__(self, paths: list[str], size: int) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, (0.6, 1.0)),
                transforms.ColorJitter(0.2, 0.2, 0.2),
                transforms.RandomApply([transforms.GaussianBlur(3)], 0.1),
                transforms.ToTensor(),
                transforms.Normalize([0.5] * 3, [0.25] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            tensor: Tensor = self.transform(image.convert("RGB"))
        return tensor


def batches_per_second(loader: Any, num_batches: int, warmup: int) -> float:
    """Batches a second, after the first few."""
    iterator: Iterator[Any] = iter(loader)
    for _ in range(warmup):
        next(iterator)
    began = time.perf_counter()
    for _ in range(num_batches):
        next(iterator)
    return num_batches / (time.perf_counter() - began)


def measure(name: str, paths: list[Path], workers: int, rounds: int, batches: int) -> list[Any]:
    """All three ways over one kind of file."""
    cfg = train_config(
        "phase=1", "model=clip_places365", f"data.num_workers={workers}",
        "data.memory_cache=false", f"data.batches_per_epoch={batches + 4 * workers}",
    )  # fmt: skip
    region = build.build_region(cfg)
    prepared = random_set(region, random_cells(region), 4000)
    prepared.root = paths[0].parent
    prepared.photos["path"] = [paths[i % len(paths)].name for i in range(4000)]
    datamodule = build.build_datamodule(cfg, prepared, region, cfg.model.image_size)
    datamodule.setup("fit")
    size = round(cfg.model.image_size * cfg.data.load_margin)
    files = [str(paths[i % len(paths)]) for i in range(batches * BATCH)]
    usual = DataLoader(UsualDataset(files * 2, cfg.model.image_size), BATCH, num_workers=workers)

    def bare() -> float:
        parts = [files[i::workers] for i in range(workers)]
        with ProcessPoolExecutor(workers, env=ONE_THREAD) as pool:
            list(pool.map(decode_and_resize, [files[:4]] * workers, [size] * workers))
            began = time.perf_counter()
            list(pool.map(decode_and_resize, parts, [size] * workers))
            return len(files) / (time.perf_counter() - began)

    def ours() -> float:
        return BATCH * batches_per_second(datamodule.train_dataloader(), batches, 2 * workers)

    def usually() -> float:
        return BATCH * batches_per_second(usual, batches, 2 * workers)

    ways: dict[str, Callable[[], float]] = {"bare": bare, "ours": ours, "usual": usually}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, function in ways.items():
            found[way].append(function())
    rate = {way: statistics.median(rates) for way, rates in found.items()}
    common: dict[str, Any] = {"files": name, "workers": workers, "unit": "photos/s"}
    return [
        conclusion(
            "loader", rate["ours"], rate["bare"], TARGET_OF_BARE,
            case="against bare decoding and resizing", **common,
        ),
        conclusion(
            "loader", rate["ours"], rate["usual"], TARGET_OF_USUAL,
            case="against Pillow transforms item by item", **common,
        ),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as home:
        for name, size in SIZES.items():
            paths = generated(Path(home, name), size, NUM_FILES)
            lines += measure(name, paths, args.workers, args.rounds, args.batches)
    print_conclusions(lines)


if __name__ == "__main__":
    main()
