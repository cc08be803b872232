"""The checkpoint within an epoch: after which batches it is written, and in one piece."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from geopak.callbacks import MidEpochCheckpoint


class Trainer(SimpleNamespace):
    """Writes its step instead of a checkpoint."""

    def save_checkpoint(self, path: Path) -> None:
        path.write_text(str(self.step))


def contents(folder: Path, every: int, batches: int, **trainer: Any) -> list[str | None]:
    """What ``last.ckpt`` holds after every batch of an epoch."""
    callback = MidEpochCheckpoint(folder, every)
    found: list[str | None] = []
    for step in range(batches):
        stub = Trainer(num_training_batches=batches, step=step, is_global_zero=True, **trainer)
        callback.on_train_batch_end(stub, None, None, None, step)  # type: ignore[arg-type]
        assert [path.name for path in folder.iterdir()] in ([], ["last.ckpt"])
        found.append(callback.path.read_text() if callback.path.is_file() else None)
    return found


@pytest.mark.parametrize(
    ("every", "batches", "expected"),
    [
        (1, 4, ["0", "1", "2", "2"]),
        (2, 5, [None, "1", "1", "3", "3"]),
        # Not after the last batch: the epoch's own checkpoint follows its validation.
        (2, 4, [None, "1", "1", "1"]),
        (9, 3, [None, None, None]),
    ],
)
def test_it_is_written_after_every_so_many_batches_but_the_last(
    tmp_path: Path, every: int, batches: int, expected: list[str | None]
) -> None:
    assert contents(tmp_path, every, batches) == expected
