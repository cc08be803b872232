"""Every experiment and sweep that is shipped is composed, checked and built, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from geopak import build
from geopak.callbacks import MidEpochCheckpoint
from geopak.checkpoint import BEST_NAME
from geopak.cli import CONFIG_DIR, compose
from geopak.data.datamodule import GeopakDataModule
from geopak.geo.boundaries import Outlines
from geopak.options import plain
from geopak.trainer import build_trainer

from .conftest import TINY

CHOICES = [
    f"{group}={path.relative_to(CONFIG_DIR / group).with_suffix('').as_posix()}"
    for group in ("experiment", "sweep")
    for path in sorted((CONFIG_DIR / group).rglob("*.yaml"))
]
# Whatever model an experiment takes, its encoders become as small as TINY's.
SMALL = [
    *(o for o in TINY if not o.startswith(("model.scene.shape", "phase.epochs"))),
    "model.image_size=64",
    "model.scene.shape.architecture=resnet18",
    "++model.scene.shape.options={layers: [1, 1, 1, 1], channels: [8, 8, 16, 16], stem_width: 8}",
]


def test_there_are_experiments_to_build() -> None:
    assert "experiment=pakistan" in CHOICES


@pytest.mark.parametrize("choice", CHOICES)
def test_it_is_composed_and_built(home: Path, tmp_path: Path, choice: str) -> None:
    root = home / "data/synthetic"
    cfg = compose(
        "train",
        ["phase=1", choice, *SMALL, f"data.root={root}", f"data.prepared={root}/prepared",
         "callbacks.checkpoint_every_n_batches=1"],
    )  # fmt: skip
    region = build.build_region(cfg)
    phase = build.build_phase(cfg)
    prepared = build.build_prepared(cfg, region)
    trainer = build_trainer(cfg, phase, tmp_path)
    datamodule = build.build_datamodule(cfg, prepared, region, cfg.model.image_size)
    model = build.build_model(plain(cfg.model), region, prepared.cells)
    outlines = Outlines.of_region(region)
    task = build.build_task(
        cfg, model, phase, region, prepared.cells, outlines, False, datamodule.num_batches
    )
    assert isinstance(datamodule, GeopakDataModule)
    assert trainer.max_epochs == phase.epochs
    assert task.num_steps == phase.epochs * datamodule.num_batches
    assert task.learning_rates()
    assert trainer.checkpoint_callback is not None
    assert trainer.checkpoint_callback.filename == BEST_NAME  # type: ignore[attr-defined]
    assert any(isinstance(c, MidEpochCheckpoint) for c in trainer.callbacks)  # type: ignore[attr-defined]
