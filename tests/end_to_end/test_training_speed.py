"""Compiled and checkpointed training through the command, beside plain training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from geopak.checkpoint import read_checkpoint

from .conftest import TINY, run_command

# The last batch of validation is a smaller one.
SMALL = [
    "train", "phase=2", *TINY, "model.sizes.dropout=0", "name=speed", "phase.epochs=1",
    "data.batches_per_epoch=2", "data.batch_size=32", "phase.lr.heads=1e-4",
]  # fmt: skip


@pytest.fixture(scope="module")
def parent(home: Path) -> Path:
    made = run_command("train", "-m", "phase=0,1", *SMALL[2:], "data.batches_per_epoch=1")
    assert made.status == 0, made.text
    (best,) = (home / "outputs/speed/phase-1").glob("*/checkpoints/best.ckpt")
    return best


def trained(home: Path, *overrides: str) -> dict[str, Any]:
    """The checkpoint of a small phase 2."""
    folder = home / "outputs/speed/phase-2"
    before = set(folder.glob("*"))
    outcome = run_command(*SMALL, *overrides)
    assert outcome.status == 0, outcome.text
    (run,) = set(folder.glob("*")) - before
    return read_checkpoint(run / "checkpoints/last.ckpt")


@pytest.fixture(scope="module")
def plain(home: Path, parent: Path) -> dict[str, Any]:
    return trained(home)


def test_checkpointed_training_is_the_same(home: Path, plain: dict[str, Any]) -> None:
    found = trained(home, "trainer.activation_checkpointing=true")
    assert found["state_dict"].keys() == plain["state_dict"].keys()
    for name, value in plain["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, msg=name)


@pytest.mark.slow
def test_compiled_training_is_the_same_and_its_checkpoint_a_plain_one(
    home: Path, plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.compile

    def without_code(function: Callable[..., Any], **options: Any) -> Any:
        return original(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", without_code)
    found = trained(home, "trainer.compile=true", "trainer.activation_checkpointing=true")
    assert found["state_dict"].keys() == plain["state_dict"].keys()
    for name, value in plain["state_dict"].items():
        # AdamW's step of a gradient that is little more than rounding has its sign alone.
        torch.testing.assert_close(found["state_dict"][name], value, rtol=1e-3, atol=2e-3, msg=name)


def test_fsdp_refuses_to_compile(home: Path) -> None:
    refused = run_command(*SMALL, "trainer=fsdp", "trainer.compile=true")
    assert refused.status == 2
    assert "trainer.compile=true compiles whole encoders" in refused.text
