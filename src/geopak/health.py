"""What warns of a training that learns badly, and the record of it in the run folder."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from geopak.data.atomic import write_json
from geopak.geo.distance import haversine_km
from geopak.models.decode import REGRESSION
from geopak.models.fusion import GatedFusion
from geopak.schema.monitoring import HealthOptions

if TYPE_CHECKING:
    from geopak.task import GeolocationTask

log = logging.getLogger(__name__)

RECORD_NAME = "health.json"
# A cell of one place has no room for an offset; float32 degrees tell metres apart.
_SMALLEST_BOUND_KM = 0.05


def add_to_record(folder: Path, section: str, entries: Sequence[Mapping[str, Any]]) -> None:
    """Appends to a section of the run folder's ``health.json``; one that is broken is made anew."""
    path = folder / RECORD_NAME
    record: dict[str, list[Any]] = {"warnings": [], "stops": []}
    if path.is_file():
        try:
            record |= json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            log.warning("%s cannot be read and is written anew", path)
    record[section] = [*record[section], *entries]
    write_json(path, record)


@dataclass
class Vitals:
    """What a validation says about the health of a model.

    Attributes:
        predicted, true, hits: (P,) photos per province: given to it, of it, and both.
        offset_ratio: mean length of the true cell's offset as a share of its bound; ``None``: not
            measured.
        gate_mean, gate_std: weight of the scene encoder, over photos; ``None``: no gate.
        auxiliary_share: of the total loss since the last validation; ``None``: not in use.
    """

    predicted: list[int]
    true: list[int]
    hits: list[int]
    offset_ratio: float | None = None
    gate_mean: float | None = None
    gate_std: float | None = None
    auxiliary_share: float | None = None


@dataclass(frozen=True)
class HealthWarning:
    """Something that a user should look at.

    Attributes:
        kind: ``province_collapse``, ``province_swallow``, ``auxiliary_share``, ``offset_bound`` or
            ``gate_stuck``.
        value: what was measured.
        message: what it means and what to try.
    """

    kind: str
    value: float
    message: str


class ValidationVitals(Metric):
    """Counts of provinces, offsets and gates of a validation, over all processes.

    Args:
        num_provinces: P.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = None

    predicted: Tensor
    true: Tensor
    hits: Tensor
    offset_sum: Tensor
    offset_count: Tensor
    gate: list[Tensor]

    def __init__(self, num_provinces: int) -> None:
        super().__init__()
        for name in ("predicted", "true", "hits"):
            zeros = torch.zeros(num_provinces, dtype=torch.long)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")
        self.add_state("offset_sum", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("offset_count", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("gate", default=[], dist_reduce_fx="cat")

    def update(
        self,
        province_logits: Tensor,
        province_id: Tensor,
        offset_ratio: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            province_logits: (B, P).
            province_id: (B,) true province.
            offset_ratio: (M,) lengths of offsets as shares of their bounds.
            gate: (B,) weight of the scene encoder.
        """
        size = len(self.predicted)
        chosen = province_logits.argmax(-1)
        self.predicted += torch.bincount(chosen, minlength=size)
        self.true += torch.bincount(province_id, minlength=size)
        self.hits += torch.bincount(province_id[chosen == province_id], minlength=size)
        if offset_ratio is not None:
            self.offset_sum += offset_ratio.float().sum()
            self.offset_count += offset_ratio.numel()
        if gate is not None:
            self.gate.append(gate.detach().float().flatten())

    def compute(self) -> Vitals:
        """Over every photo seen."""
        gate = torch.cat(self.gate) if isinstance(self.gate, list) and self.gate else self.gate
        has_gate = isinstance(gate, Tensor) and gate.numel() > 0
        count = int(self.offset_count)
        return Vitals(
            predicted=self.predicted.tolist(),
            true=self.true.tolist(),
            hits=self.hits.tolist(),
            offset_ratio=float(self.offset_sum) / count if count else None,
            gate_mean=float(cast(Tensor, gate).mean()) if has_gate else None,
            gate_std=float(cast(Tensor, gate).std(correction=0)) if has_gate else None,
        )


def find_warnings(
    vitals: Vitals, provinces: Sequence[str], options: HealthOptions
) -> list[HealthWarning]:
    """What is not as it should be, at most one warning of a kind.

    Args:
        vitals: of a validation.
        provinces: names, in class-index order.
        options: the thresholds.
    """
    found = [
        _collapsed(vitals, provinces, options),
        _swallowed(vitals, provinces, options),
        _auxiliary(vitals, options),
        _offset(vitals, options),
        _gate(vitals, options),
    ]
    return [warning for warning in found if warning]


def _collapsed(
    vitals: Vitals, provinces: Sequence[str], options: HealthOptions
) -> HealthWarning | None:
    limit = options.province_collapse
    if limit is None:
        return None
    collapsed = [
        f"{name} (predicted {predicted} times, right {hits} times, of {true} photos)"
        for name, predicted, true, hits in zip(
            provinces, vitals.predicted, vitals.true, vitals.hits, strict=True
        )
        if true >= options.province_min_photos and max(predicted, hits) < limit * true
    ]
    if not collapsed:
        return None
    return HealthWarning(
        "province_collapse",
        len(collapsed),
        f"collapsed: {', '.join(collapsed)}. The model has given up the province: all its photos "
        "are placed in others. Give it more photos of a batch "
        "(region.provinces.<key>.batch_quota, data.sampling=balanced) or more weight "
        "(loss.class_weight_beta nearer to 1), or lower phase.lr.heads.",
    )


def _swallowed(
    vitals: Vitals, provinces: Sequence[str], options: HealthOptions
) -> HealthWarning | None:
    limit, total = options.province_swallow, sum(vitals.true)
    if limit is None:
        return None
    for name, predicted, true, hits in zip(
        provinces, vitals.predicted, vitals.true, vitals.hits, strict=True
    ):
        others = total - true
        share = (predicted - hits) / others if others else 0.0
        if others >= options.province_min_photos and share > limit:
            return HealthWarning(
                "province_swallow",
                share,
                f"{name} takes {share:.0%} of all other provinces' photos: the province head "
                "answers the same for everything. Look at the learning rate (phase.lr.heads lower, "
                "phase.warmup=0.05) and at the batches (data.sampling=balanced, "
                "region.provinces.<key>.batch_quota).",
            )
    return None


def _auxiliary(vitals: Vitals, options: HealthOptions) -> HealthWarning | None:
    share, limit = vitals.auxiliary_share, options.auxiliary_share
    if share is None or limit is None or share <= limit:
        return None
    return HealthWarning(
        "auxiliary_share",
        share,
        f"the auxiliary loss is {share:.0%} of the total: the gradient serves a head that no "
        "prediction uses. Lower loss.auxiliary, or raise loss.auxiliary_scale_km.",
    )


def _offset(vitals: Vitals, options: HealthOptions) -> HealthWarning | None:
    ratio, limit = vitals.offset_ratio, options.offset_bound
    if ratio is None or limit is None or ratio <= limit:
        return None
    return HealthWarning(
        "offset_bound",
        ratio,
        f"the offsets are {ratio:.0%} of their bound on average: nearly every photo is put at the "
        "edge of its cell, where the gradient is small. Raise "
        "region.provinces.<key>.offset_scale if cells are too narrow; otherwise lower loss.offset, "
        "raise loss.offset_scale_km or loss.offset_ramp_epochs.",
    )


def _gate(vitals: Vitals, options: HealthOptions) -> HealthWarning | None:
    mean, std = vitals.gate_mean, vitals.gate_std
    if mean is None or std is None:
        return None
    weaker = min(mean, 1 - mean)
    far = options.gate_extreme is not None and weaker < options.gate_extreme
    flat = options.gate_flat_extreme is not None and (
        weaker < options.gate_flat_extreme and std < options.gate_flat_std
    )
    if not far and not flat:
        return None
    unused = "scene" if mean < 0.5 else "semantic"
    return HealthWarning(
        "gate_stuck",
        mean,
        f"the fusion gate is stuck at {mean:.3f} (± {std:.3f} over photos): the {unused} encoder "
        "counts for next to nothing. Start it nearer to the middle (model.fusion.gate_bias=0) and "
        f"lower phase.lr.heads; or the {unused} encoder has nothing to say of these photos.",
    )


def _concerns(kind: str, task: GeolocationTask) -> bool:
    """Whether a training is about what a warning says: one may leave provinces out, say."""
    if kind == "auxiliary_share":
        return task.decoding.rule != REGRESSION
    if kind.startswith("province_"):
        return any(p.requires_grad for p in task.model.province_head.parameters())
    return True


class HealthWarnings(L.Callback):
    """Warns, on the terminal and in ``health.json``, of a training that learns badly.

    What it judges is logged as ``health/…`` after every validation.

    Args:
        options: the thresholds.
        provinces: names, in class-index order.
    """

    def __init__(self, options: HealthOptions, provinces: Sequence[str]) -> None:
        self.options = options
        self.provinces = tuple(provinces)
        self.vitals = ValidationVitals(len(self.provinces))
        self.warned: dict[str, int] = {}
        self._share: Tensor | None = None
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        return {"warned": dict(self.warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.warned = dict(state_dict["warned"])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.vitals.to(pl_module.device)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        share = cast("GeolocationTask", pl_module).loss_shares.get("auxiliary")
        if share is not None:
            self._share = share if self._share is None else self._share + share
            self._steps += 1

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking:
            return
        task = cast("GeolocationTask", pl_module)
        ratio = None
        if "offset" in task.loss.terms:
            cell_id = batch["cell_id"]
            bound_km = task.model.offset_bound_km[cell_id]
            length_km = haversine_km(
                outputs["teacher_forced_latlon_deg"].float(), task.model.cell_center_deg[cell_id]
            )
            ratio = (length_km / bound_km)[bound_km > _SMALLEST_BOUND_KM]
        output = outputs["output"]
        # Other ways of fusing weigh nothing, and say the same of every photo.
        gate = output.gate if isinstance(task.model.fusion, GatedFusion) else None
        self.vitals.update(output.province_logits, batch["province_id"], ratio, gate)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        vitals: Vitals = self.vitals.compute()
        self.vitals.reset()
        vitals = self._with_share(trainer, vitals)
        measured = {
            name: value
            for name in ("offset_ratio", "gate_mean", "gate_std", "auxiliary_share")
            if (value := getattr(vitals, name)) is not None
        }
        task = cast("GeolocationTask", pl_module)
        found = [
            warning
            for warning in find_warnings(vitals, self.provinces, self.options)
            if _concerns(warning.kind, task)
        ]
        metrics = {f"health/{name}": value for name, value in measured.items()}
        metrics["health/warnings"] = float(len(found))
        pl_module.log_dict(metrics, rank_zero_only=False)
        if trainer.is_global_zero:
            self._warn(trainer, found)

    def _with_share(self, trainer: L.Trainer, vitals: Vitals) -> Vitals:
        if self._share is None:
            return vitals
        # Every process has taken as many steps.
        share = trainer.strategy.reduce(self._share / self._steps, reduce_op="mean")
        self._share, self._steps = None, 0
        return replace(vitals, auxiliary_share=float(share))

    def _warn(self, trainer: L.Trainer, found: Sequence[HealthWarning]) -> None:
        epoch = trainer.current_epoch + 1
        if epoch < self.options.after_epochs:
            return
        fresh = [
            warning
            for warning in found
            if epoch - self.warned.get(warning.kind, -math.inf) >= self.options.repeat_epochs
        ]
        for warning in fresh:
            self.warned[warning.kind] = epoch
            log.warning("warning: epoch %d: %s", epoch, warning.message)
        if fresh:
            entries = [{"epoch": epoch, **vars(warning)} for warning in fresh]
            add_to_record(Path(trainer.default_root_dir), "warnings", entries)
