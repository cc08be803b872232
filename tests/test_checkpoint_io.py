"""Checkpoint files on the disk: whole, and the last beside the one before it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from geopak.checkpoint_io import AtomicCheckpointIO
from geopak.errors import CheckpointError


def content(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["step"])


def test_the_last_checkpoint_leaves_the_one_before(tmp_path: Path) -> None:
    io, last = AtomicCheckpointIO(), tmp_path / "run/checkpoints/last.ckpt"
    for step in range(3):
        io.save_checkpoint({"step": step}, last)
        assert content(last) == step
        io.save_checkpoint({"step": step}, last.with_name("best.ckpt"))
    assert content(last.with_name("last-previous.ckpt")) == 1
    names = ["best.ckpt", "last-previous.ckpt", "last.ckpt"]
    assert sorted(path.name for path in last.parent.iterdir()) == names


def test_a_file_that_may_be_broken_never_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "last-previous.ckpt"
    last.write_bytes(b"cut o")
    torch.save({"step": 1}, previous)
    io = AtomicCheckpointIO(continued_from=previous)
    io.save_checkpoint({"step": 2}, last)
    assert (content(previous), content(last)) == (1, 2)
    io.save_checkpoint({"step": 3}, last)
    assert (content(previous), content(last)) == (2, 3)

    io = AtomicCheckpointIO(continued_from=last)
    io.save_checkpoint({"step": 4}, last)
    assert (content(previous), content(last)) == (3, 4)


def test_a_file_system_without_links_keeps_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: Path) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    io, last = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    for step in range(2):
        io.save_checkpoint({"step": step}, last)
    assert (content(tmp_path / "last-previous.ckpt"), content(last)) == (0, 1)


def test_a_full_disk_leaves_the_checkpoint_before_and_no_part(tmp_path: Path) -> None:
    io, last = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"step": 0}, last)
    # Where every write fails for want of room.
    (tmp_path / "best.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"Cannot write the checkpoint .*best\.ckpt: "):
        io.save_checkpoint({"weights": torch.zeros(1 << 20)}, tmp_path / "best.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
