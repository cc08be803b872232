"""A home with a small rendered and prepared set, made once, and commands as a user types them."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

NUM_PHOTOS = 420
# Encoders of the shipped classes, far smaller; weights at random.
TINY = [
    "model.pretrained=null",
    "model.semantic.shape.width=32",
    "model.semantic.shape.layers=4",
    "model.semantic.shape.heads=2",
    "model.scene.shape.options.channels=[8,8,16,16]",
    "model.scene.shape.options.stem_width=8",
    "model.sizes.dim=48",
    "model.sizes.cell_hidden_small=32",
    "model.sizes.cell_hidden_large=32",
    "trainer=cpu",
    "callbacks.progress_bar=false",
    "data.batches_per_epoch=3",
    "trainer.log_every_n_steps=1",
    "phase.epochs=2",
]


@dataclass
class Outcome:
    """What a command left: its return value, exit status, and all that it printed."""

    value: Any
    status: int
    text: str


def run_command(command: str, *arguments: str) -> Outcome:
    """Runs ``python -m geopak.<command> <arguments>`` in this process, through its real main."""
    main = import_module(f"geopak.{command}").main
    text = io.StringIO()
    before = sys.argv
    sys.argv = [f"geopak.{command}", *arguments]
    status, value = 0, None
    handlers = logging.getLogger().handlers[:]
    try:
        with redirect_stdout(text), redirect_stderr(text):
            value = main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.argv = before
        logging.getLogger().handlers[:] = handlers
    return Outcome(value, status, text.getvalue())


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``$GEOPAK_HOME`` with rendered photos and their prepared set."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("home")
    before = os.environ.get("GEOPAK_HOME")
    os.environ["GEOPAK_HOME"] = str(folder)
    made = run_command(
        "synthetic",
        f"num_photos={NUM_PHOTOS}",
        "workers=1",
        "image.short_side_px=[72,80]",
        "contact_sheet=0",
    )
    assert made.status == 0, made.text
    prepared = run_command("prepare", "executor.workers=1")
    assert prepared.status == 0, prepared.text
    yield folder
    if before is None:
        del os.environ["GEOPAK_HOME"]
    else:
        os.environ["GEOPAK_HOME"] = before


@pytest.fixture(scope="session")
def phases(home: Path) -> dict[int, Path]:
    """All three phases trained with one multirun; phase -> best checkpoint."""
    outcome = run_command("train", "-m", "phase=0,1,2", "name=three", *TINY)
    assert outcome.status == 0, outcome.text
    found = {}
    for phase in (0, 1, 2):
        runs = home / "outputs/three" / f"phase-{phase}"
        (found[phase],) = runs.glob("*/checkpoints/best.ckpt")
    return found


@pytest.fixture
def command(home: Path) -> Callable[..., Outcome]:
    return run_command
