"""What ends a training whose loss or gradient is no longer a finite number."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from geopak.checkpoint import CHECKPOINT_FOLDER, LAST_NAME
from geopak.errors import TrainingError
from geopak.health import RECORD_NAME, add_to_record
from geopak.models.sharding import is_sharded
from geopak.types import Batch

if TYPE_CHECKING:
    from geopak.task import GeolocationTask

# Names in a message; the record has them all.
_SHOWN = 8


@dataclass
class Step:
    """An optimizer step that has not been looked at yet.

    Attributes:
        epoch, number: counted from 1.
        batches: with the unweighted loss terms of each.
        values: (2,) sum of the batches' losses, and norm of the gradient.
        is_first: of this process: the weights are as they were loaded.
        copied: when ``values`` have reached the CPU; ``None``: they are there.
    """

    epoch: int
    number: int
    batches: list[tuple[Batch, dict[str, Tensor]]]
    values: Tensor
    is_first: bool = False
    copied: torch.cuda.Event | None = None

    def read(self) -> tuple[float, float]:
        """Loss and gradient norm; waits for this step, not for those after it."""
        if self.copied is not None:
            self.copied.synchronize()
        loss, norm = self.values.tolist()
        return loss, norm


@dataclass
class Finding:
    """What a process knows of a step that went wrong.

    Attributes:
        terms: loss terms that are not finite, and their values.
        gradients: parameters whose gradient is not finite while the loss is.
        weights: parameters that were not finite before the step.
        guilty: rows of photos that are so by themselves.
        rows: of all photos of the step.
        is_loss_finite: as far as this process saw.
        is_first: the weights are as they were loaded.
    """

    terms: dict[str, str] = field(default_factory=dict)
    gradients: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    guilty: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    is_loss_finite: bool = True
    is_first: bool = False

    def merged(self, other: Finding) -> Finding:
        """Both, without repetition."""

        def both(name: str) -> list[Any]:
            return list(dict.fromkeys([*getattr(self, name), *getattr(other, name)]))

        return Finding(
            terms=self.terms | other.terms,
            gradients=both("gradients"),
            weights=both("weights"),
            guilty=both("guilty"),
            rows=both("rows"),
            is_loss_finite=self.is_loss_finite and other.is_loss_finite,
            is_first=self.is_first or other.is_first,
        )


class FiniteWatch(L.Callback):
    """Stops a training at the first loss or gradient that is not finite, before it does harm.

    One number a step decides, the sum of the loss and the norm that clipping needs anyway. On a
    GPU nothing waits for it: it is read one look later, and until then the optimizer leaves out
    every step after the bad one by itself, where it is fused. No checkpoint is written in between.

    Under 16-mixed the loss scaler makes infinite gradients on purpose and leaves out their steps:
    there only the loss is watched, and that the scaler does not give up.

    Processes stop together: the norm is the same in all. A loss that is not finite in one of them
    while the gradient is finite is agreed on before validation and checkpoints.

    Args:
        every_n_steps: steps between looks, on a GPU. So many batches are held in memory.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        self.every_n_steps = every_n_steps
        self._open: list[tuple[Batch, dict[str, Tensor], Tensor]] = []
        self._batch: Batch | None = None
        self._waiting: deque[Step] = deque()
        self._suspect: Step | None = None
        self._bad: Tensor | None = None
        self._is_first = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        terms = cast("GeolocationTask", pl_module).loss_terms
        self._open.append((cast(Batch, self._batch), terms, loss.detach()))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        opened, self._open = self._open, []
        if not opened:
            return
        task = cast("GeolocationTask", pl_module)
        loss = opened[0][2] if len(opened) == 1 else torch.stack([o[2] for o in opened]).sum()
        scaled = trainer.precision == "16-mixed"
        norm = torch.zeros_like(loss) if scaled else task.gradient_norm(optimizer)
        step = Step(
            trainer.current_epoch + 1,
            trainer.global_step + 1,
            [(batch, terms) for batch, terms, _ in opened],
            torch.stack((loss.float(), norm.float())),
            self._is_first,
        )
        self._is_first = False
        if not step.values.is_cuda:
            self._judge(trainer, task, step)
            return
        if not scaled and not is_sharded(task.model):
            self._hold_back(optimizer, step.values)
        step.values = step.values.to("cpu", non_blocking=True)
        step.copied = torch.cuda.Event()
        step.copied.record()
        if step.number % self.every_n_steps == 0:
            self._look(trainer, task)
        self._waiting.append(step)

    def _hold_back(self, optimizer: Optimizer, values: Tensor) -> None:
        """Makes a fused optimizer leave out this step and all after it, if values are not finite.

        ``found_inf`` is how a loss scaler asks for it; no one has to wait for the answer.
        """
        bad = (~values.isfinite()).any().float()
        self._bad = bad if self._bad is None else torch.maximum(self._bad, bad)
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = self._bad  # type: ignore[attr-defined]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() < 1e-6:
            raise TrainingError(
                f"Training stopped after epoch {trainer.current_epoch + 1}: the loss scaler of "
                f"16-mixed has fallen to {scaler.get_scale():.1e}, since no scale makes the "
                "gradients finite, and next to no step is taken. Use trainer.precision=bf16-mixed "
                "or 32-true, or lower rates (phase.lr.heads)."
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.agree(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Raising here leaves the file as it is.
        self.agree(trainer, pl_module)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        # A checkpoint on the way out must not ask the other processes.
        self._waiting.clear()
        self._suspect = None

    def agree(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks at every step so far, with all processes.

        Raises:
            TrainingError: one was not finite.
        """
        task = cast("GeolocationTask", pl_module)
        self._look(trainer, task)
        if trainer.world_size > 1:
            suspected = torch.tensor(float(self._suspect is not None), device=task.device)
            if trainer.strategy.reduce(suspected, reduce_op="sum").item():
                self._stop(trainer, task, self._suspect)

    def _look(self, trainer: L.Trainer, task: GeolocationTask) -> None:
        while self._waiting:
            self._judge(trainer, task, self._waiting.popleft())

    def _judge(self, trainer: L.Trainer, task: GeolocationTask, step: Step) -> None:
        loss, norm = step.read()
        if not math.isfinite(loss):
            self._suspect = self._suspect or step
        # What one process alone sees must not stop it while the others wait for it.
        if not math.isfinite(norm) or (self._suspect and trainer.world_size == 1):
            self._stop(trainer, task, self._suspect or step)

    def _stop(self, trainer: L.Trainer, task: GeolocationTask, step: Step | None) -> None:
        self._waiting.clear()
        finding = diagnose(task, step) if step else Finding()
        epoch, number = (step.epoch, step.number) if step else (trainer.current_epoch + 1, 0)
        if trainer.world_size > 1:
            found: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(found, (epoch, number, finding))
            epoch, number, finding = found[0]
            for _, theirs, other in found[1:]:
                number, finding = max(number, theirs), finding.merged(other)
        photos = trainer.datamodule.prepared.photos  # type: ignore[attr-defined]
        streams = trainer.datamodule.options.shards is not None  # type: ignore[attr-defined]
        names = {
            row: f"{photos['id'].iloc[row]}" + ("" if streams else f" ({photos['path'].iloc[row]})")
            for row in {*finding.rows, *finding.guilty}
        }
        last = Path(trainer.default_root_dir) / CHECKPOINT_FOLDER / f"{LAST_NAME}.ckpt"
        message = describe(
            finding, epoch, number, names, last if last.is_file() else None, trainer.precision
        )
        if trainer.is_global_zero:
            entry = {
                "epoch": epoch,
                "step": number,
                "terms": finding.terms,
                "gradients": finding.gradients,
                "weights": finding.weights,
                "photos_to_blame": [names[row] for row in finding.guilty],
                "photos_of_the_step": [names[row] for row in finding.rows],
            }
            add_to_record(Path(trainer.default_root_dir), "stops", [entry])
        raise TrainingError(message)


def _not_finite(named: Iterable[tuple[str, Tensor | None]]) -> list[str]:
    return [
        name
        for name, value in named
        if value is not None and value.is_floating_point() and not bool(value.isfinite().all())
    ]


def diagnose(task: GeolocationTask, step: Step) -> Finding:
    """Finds what in a step is not finite: term, parameters, photos.

    Each photo goes through the model by itself, without dropout, at the weights of before the step.

    Args:
        task: its weights are those of before the step.
        step: whose loss or gradient is not finite.
    """
    model = task.model
    finding = Finding(weights=_not_finite(model.state_dict(keep_vars=True).items()))
    finding.rows = [row for batch, _ in step.batches for row in batch["row"].tolist()]
    for _, terms in step.batches:
        finding.terms |= {n: f"{float(terms[n])}" for n in _not_finite(terms.items())}
    loss, _ = step.read()
    finding.is_loss_finite, finding.is_first = math.isfinite(loss), step.is_first
    live = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # On a GPU these are of a later step, but the names are the same where the cause is.
    finding.gradients = (
        [] if not math.isfinite(loss) else _not_finite((n, p.grad) for n, p in live.items())
    )
    task.eval()
    by_gradient = math.isfinite(loss) and not is_sharded(model)
    for batch, _ in step.batches:
        for index, row in enumerate(batch["row"].tolist()):
            one = cast(Batch, {k: cast(Tensor, v)[index : index + 1] for k, v in batch.items()})
            with (
                task.trainer.precision_plugin.forward_context(),
                torch.set_grad_enabled(by_gradient),
            ):
                value, _ = task.compute_loss(one)
            finite = bool(value.total.isfinite())
            if finite and by_gradient:
                gradients = torch.autograd.grad(value.total, list(live.values()), allow_unused=True)
                finite = not _not_finite(zip(live, gradients, strict=True))
            if not finite and row not in finding.guilty:
                finding.guilty.append(row)
    return finding


def describe(
    finding: Finding,
    epoch: int,
    step: int,
    names: Mapping[int, str],
    last: Path | None,
    precision: str,
) -> str:
    """The message that ends a training: what, where, whose fault, and what to do.

    Args:
        finding: of all processes.
        epoch, step: counted from 1; a step of 0 is unknown.
        names: of the photos, by row.
        last: the checkpoint to go on from; ``None``: there is none yet.
        precision: of the trainer.
    """
    where = f"epoch {epoch}" + (f", step {step}" if step else "")
    if finding.terms:
        terms = ", ".join(f"{name} = {value}" for name, value in finding.terms.items())
        what = f"the loss is not finite: {terms}"
    elif not finding.is_loss_finite:
        what = "the total loss is not finite, though every term is: see the weights loss.*"
    elif finding.gradients:
        what = f"the gradient is not finite, of {_listed(finding.gradients)}"
    else:
        what = "the gradient is too large for its norm to be a number"
    lines = [f"Training stopped in {where}: {what}."]
    if finding.weights:
        lines.append(f"Weights were not finite before this step: {_listed(finding.weights)}.")
        remedy = (
            "The checkpoint that this run started from is broken: start from another "
            "(init_from=), or train the phase before again."
            if finding.is_first
            else "The step before was too large: lower the learning rates (phase.lr.heads, "
            "phase.lr.semantic, phase.lr.scene)."
        )
    elif finding.guilty and len(set(finding.guilty)) < len(set(finding.rows)):
        lines.append(f"Photos to blame: {_listed([names[r] for r in finding.guilty])}.")
        remedy = (
            "Look at these photos and their rows of the photo table; take them out and prepare "
            "again. If they are sound, delete the feature cache (data.feature_folder), or lower "
            "the learning rates."
        )
    else:
        all_guilty = "Every photo of the batch alone has the same"
        none_guilty = "No photo of the batch alone has the same"
        lines.append(
            f"{all_guilty if finding.guilty else none_guilty}: "
            f"{_listed([names[r] for r in dict.fromkeys(finding.rows)])}."
        )
        remedy = (
            "Lower the learning rates (phase.lr.heads, phase.lr.semantic, phase.lr.scene), let "
            "them rise slowly (phase.warmup=0.05), or clip more (trainer.gradient_clip_val)."
        )
        if precision != "32-true":
            remedy += f" Or trainer.precision=32-true instead of {precision}."
    lines.append(remedy)
    if last:
        lines.append(f"{last} is of before this step: resume_from= goes on from there.")
    return "\n".join(lines)


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    more = f" and {rest} more, see {RECORD_NAME}" if rest > 0 else ""
    return ", ".join(names[:_SHOWN]) + more
