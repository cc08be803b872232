"""A signal ends a training between two batches, after a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from geopak.checkpoint import LAST_NAME
from geopak.errors import StoppedBySignalError

# Of a terminal, of a scheduler that ends a job, and those by which Slurm (and submitit) announce
# the end of a job's time.
REQUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (signal.SIGINT, signal.SIGTERM, *REQUEUE_SIGNALS)


class StopAtSignal(Checkpoint):
    """Writes ``last.ckpt`` after the batch in which a signal came, and ends the run.

    After the last batch of an epoch the epoch's end is waited for, with its validation and its own
    checkpoint; after the last epoch the run simply finishes. All ranks end after the same batch,
    whichever of them the signal reached. What had handled the signal before is called then:
    submitit's handler puts the job into the queue again. In a job of Slurm that nothing of the
    kind looks after, ``scontrol requeue`` does.

    The process ends with status 128 + number of the signal: 143 after SIGTERM.

    Args:
        folder: of the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{LAST_NAME}.ckpt"
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Before Lightning sets its own.
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # After Lightning has set its own, which it takes away again at the end.
        if threading.current_thread() is not threading.main_thread():
            return
        if trainer.received_sigterm:
            self.received = signal.SIGTERM
        for number, before in self._before.items():
            if before is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self.received:
            raise KeyboardInterrupt
        self.received = number
        again = "; once more ends it at once" if number == signal.SIGINT else ""
        text = f"\n{signal.Signals(number).name}: ends after this batch{again}\n"
        # print is not made for signal handlers.
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        done = batch_idx + 1
        # Gradients of half a step are in no checkpoint; an epoch's own comes after its validation.
        between_steps = done % trainer.accumulate_grad_batches == 0
        if not between_steps or done >= trainer.num_training_batches:
            return
        if self._any_received(trainer):
            trainer.save_checkpoint(self.path)
            self._end(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Behind the callback that wrote last.ckpt.
        is_last = trainer.should_stop or trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        if not is_last and self._any_received(trainer):
            self._end(trainer)

    def _any_received(self, trainer: L.Trainer) -> bool:
        received = self.received is not None
        if trainer.world_size == 1:
            return received
        return trainer.strategy.reduce_boolean_decision(received, all=False)

    def _end(self, trainer: L.Trainer) -> None:
        number = trainer.strategy.broadcast(self.received) or self.received or signal.SIGTERM
        status = 128 + number
        if trainer.is_global_zero:
            print(
                f"\n{signal.Signals(number).name} ended the run after step {trainer.global_step}. "
                "Continue it with the same command and resume_from=auto, or with "
                f"resume_from={self.path}",
                file=sys.stderr,
                flush=True,
            )
        before = self._before.get(number)
        try:
            if callable(before) and before is not signal.default_int_handler:
                before(number, None)
            elif number in REQUEUE_SIGNALS and trainer.is_global_zero:
                requeue(os.environ)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else status
        # A rank that ends takes the others with it: not before the job is in the queue.
        trainer.strategy.barrier("stopped by a signal")
        launched_here = "LOCAL_RANK" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
        if launched_here and trainer.global_rank:
            # The rank that started this one must not take it for a failure.
            status = 0
        raise StoppedBySignalError(status)


def requeue(environ: Mapping[str, str]) -> None:
    """Puts this process's job of Slurm back into the queue; elsewhere does nothing.

    Args:
        environ: environment variables of this process.
    """
    job = environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        problem = done.stderr.strip() if done.returncode else None
    except OSError as error:
        problem = str(error)
    outcome = f"could not be put back into the queue: {problem}" if problem else "is in the queue"
    print(f"job {job} {outcome}", file=sys.stderr, flush=True)
