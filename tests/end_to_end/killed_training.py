"""``geopak.train`` as users start it, which kills itself (SIGKILL) where a test says.

Run as ``python -m tests.end_to_end.killed_training`` with the arguments of ``geopak.train``.
Environment variables:

* ``KILL_AT_BATCH``: before training batch number so and so of the process.
* ``KILL_IN_WRITE``: when half of checkpoint number so and so of the process is written.
* ``SIGNAL_AT_BATCH``: no kill: sends itself ``SIGNAL`` (15, …) before that batch.
"""

from __future__ import annotations

import io
import os
import signal
from typing import Any

import torch

from geopak import checkpoint
from geopak.task import GeolocationTask
from geopak.train import main

batches, writes = 0, 0
before_batch, save = GeolocationTask.on_train_batch_start, torch.save


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_train_batch_start(self: GeolocationTask, batch: Any, batch_idx: int) -> Any:
    global batches
    batches += 1
    if str(batches) == os.environ.get("KILL_AT_BATCH"):
        kill()
    first = self.global_rank == 0
    if first and str(batches) == os.environ.get("SIGNAL_AT_BATCH"):
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
    return before_batch(self, batch, batch_idx)


def save_half(checkpoint: Any, file: Any, **options: Any) -> None:
    global writes
    writes += str(getattr(file, "name", "")).endswith(".partial")
    if str(writes) != os.environ.get("KILL_IN_WRITE"):
        save(checkpoint, file, **options)
        return
    whole = io.BytesIO()
    save(checkpoint, whole)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()
    kill()


GeolocationTask.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
checkpoint.torch.save = save_half  # type: ignore[attr-defined]

if __name__ == "__main__":
    main()
