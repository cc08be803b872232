"""The LightningModules: one shared step, one class per phase."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from geopak.errors import ConfigError
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.losses import GeolocationLoss, LossValue
from geopak.metrics import GeolocationMetrics
from geopak.models.decode import cell_rank, decode
from geopak.models.geolocator import Geolocator
from geopak.models.sharding import is_sharded, shard, whole
from geopak.phases import set_up_training, trainable_parameters
from geopak.schema.training import DecodingOptions, LossOptions, Phase
from geopak.types import Batch, ModelOutput

log = logging.getLogger(__name__)


def learning_rate_factor(step: int, total: int, schedule: str, warmup: float) -> float:
    """The share of the peak learning rate at a step.

    Args:
        step: optimizer steps done.
        total: optimizer steps of the whole training.
        schedule: ``constant``, or ``cosine`` down to zero after the warm-up.
        warmup: share of ``total`` in which the factor rises linearly.
    """
    rising = warmup * total
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - rising) / max(1.0, total - rising)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def total_norm(optimizer: Optimizer) -> Tensor:
    """Norm of the gradients of all parameters together; of a sharded model a sharded tensor."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return get_total_norm([p.grad for p in parameters if p.grad is not None])


class GeolocationTask(L.LightningModule):
    """What all phases share: freezing, step, validation, optimizer, and what a checkpoint carries.

    Args:
        model: the shared backbone; frozen and unfrozen here as the phase says.
        phase: what trains and how.
        region, cells: of the model.
        loss_options: weights of the loss terms.
        decoding: how validation makes coordinates.
        optimizer: arguments of AdamW but for the learning rates.
        encoders_pretrained: whether the encoders hold anything learned.
        identity: plain containers and tensors saved with every checkpoint, enough to rebuild the
            model and predict from the checkpoint alone.
        num_steps: optimizer steps of the whole training, for the learning-rate schedule. Asking
            the trainer would build its loaders before a resumed run knows its epoch.
    """

    cell_urban: Tensor

    def __init__(
        self,
        model: Geolocator,
        phase: Phase,
        region: Region,
        cells: CellTable,
        loss_options: LossOptions,
        decoding: DecodingOptions,
        optimizer: Mapping[str, Any],
        encoders_pretrained: bool,
        identity: dict[str, Any],
        num_steps: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.phase = phase
        self.decoding = decoding
        self.optimizer_options = dict(optimizer)
        self.identity = identity
        self.num_steps = num_steps
        self.trainable = set_up_training(model, phase, encoders_pretrained, loss_options)
        self.loss = GeolocationLoss(region, cells, loss_options, tuple(phase.losses))
        self.ramp_epochs = loss_options.offset_ramp_epochs
        self.val_metrics = GeolocationMetrics([p.key for p in region.provinces])
        # Of a model that has broken the mean is broken too, and says so.
        self.val_gate = MeanMetric(nan_strategy="disable")
        # Of the latest training batch, for whoever watches over the training.
        self.loss_terms: dict[str, Tensor] = {}
        self.loss_shares: dict[str, Tensor] = {}
        self._gradient_norm: Tensor | None = None
        self.register_buffer("cell_urban", torch.from_numpy(cells.urban.copy()), persistent=False)

    def learning_rates(self) -> dict[str, float]:
        """Peak learning rate of every optimizer group."""
        return {group: float(self.phase.lr[group]) for group in self.trainable}

    def locate_true_cell(self, output: ModelOutput, batch: Batch) -> Tensor | None:
        """(B, 2) degrees: the true cell's center + offset, where a phase trains the offset."""
        return None

    def answer(self, batch: Batch) -> ModelOutput:
        """What the model says of a batch of photos, or of their cached features."""
        if "features" in batch:
            return self.model.heads(batch["features"])
        output: ModelOutput = self.model(batch["image"])
        return output

    def compute_loss(self, batch: Batch) -> tuple[LossValue, ModelOutput]:
        """The one step behind training of every phase."""
        output = self.answer(batch)
        # Epochs count from 1: the first already trains the offset, gently.
        ramp = min(1.0, (self.current_epoch + 1) / max(1, self.ramp_epochs))
        return self.loss(output, batch, self.locate_true_cell(output, batch), ramp), output

    def is_logging_step(self) -> bool:
        """Whether what this step logs will be kept: logging costs as much as the heads do."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return (self.global_step + 1) % every == 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        value, output = self.compute_loss(batch)
        self.loss_terms = {name: term.detach() for name, term in value.terms.items()}
        self.loss_shares = value.shares
        if not self.is_logging_step():
            return value.total
        # Of all ranks; the terms and shares below are of the first rank's photos.
        self.log("train/loss", value.total, prog_bar=True, sync_dist=True)
        logged = {f"train/loss/{name}": term for name, term in self.loss_terms.items()}
        logged |= {f"train/share/{name}": share for name, share in value.shares.items()}
        self.log_dict({**logged, "train/gate_mean": output.gate.detach().mean()})
        return value.total

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Measures a batch.

        Returns:
            ``output`` of the model, ``decoded`` by the rule of ``decoding``, and
            ``teacher_forced_latlon_deg`` (B, 2), for callbacks.
        """
        output = self.answer(batch)
        decoded = decode(self.model, output, self.decoding)[self.decoding.rule]
        teacher_forced = self.model.locate(output.fused, batch["cell_id"])
        self.val_metrics.update(
            predicted_latlon_deg=decoded.latlon_deg,
            latlon_deg=batch["latlon_deg"],
            province_logits=output.province_logits,
            province_id=batch["province_id"],
            cell_rank=cell_rank(output, self.model.cell_province_id, batch["cell_id"]),
            teacher_forced_latlon_deg=teacher_forced,
            urban=self.cell_urban[batch["cell_id"]],
            row=batch["row"],
        )
        self.val_gate.update(output.gate)
        return {
            "output": output,
            "decoded": decoded,
            "teacher_forced_latlon_deg": teacher_forced,
        }

    def on_validation_epoch_end(self) -> None:
        metrics = {f"val/{name}": value for name, value in self.val_metrics.compute().items()}
        # Lightning's own mean over ranks is off where they have unequal numbers of photos.
        metrics["val/gate_mean"] = self.val_gate.compute()
        self.val_metrics.reset()
        self.val_gate.reset()
        self.log_dict(metrics, rank_zero_only=False)
        if not self.trainer.sanity_checking and self.trainer.is_global_zero:
            log.info(
                "epoch %d/%d: val median %.1f km, within 25 km %.1f%%, province macro %.1f%%",
                self.current_epoch + 1,
                self.phase.epochs,
                metrics["val/median_km"],
                100 * metrics["val/within_25km"],
                100 * metrics["val/province_macro_acc"],
            )

    def configure_model(self) -> None:
        # There is a mesh under the strategy fsdp only.
        if self.device_mesh is not None and not is_sharded(self.model):
            shard(self.model, self.device_mesh["data_parallel"])
            self.trainable = trainable_parameters(self.model)

    def gradient_norm(self, optimizer: Optimizer) -> Tensor:
        """Norm of the whole gradient of this step; clipping then takes it from here."""
        self._gradient_norm = total_norm(optimizer)
        return whole(self._gradient_norm)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning does, by a norm that is computed once, and under bf16-mixed too.

        Lightning refuses a fused AdamW under any mixed precision, for the sake of loss scaling;
        bfloat16 has the range of float32 and is not scaled.
        """
        norm, self._gradient_norm = self._gradient_norm, None
        by_norm = gradient_clip_algorithm in (None, "norm") and gradient_clip_val
        if by_norm and self.trainer.precision != "16-mixed":
            norm = total_norm(optimizer) if norm is None else norm
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            clip_grads_with_norm_(parameters, cast(float, gradient_clip_val), norm)
            return
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        rates = self.learning_rates()
        groups = [
            {"params": parameters, "lr": rates[name], "name": name}
            for name, parameters in self.trainable.items()
        ]
        optimizer = torch.optim.AdamW(groups, **self.optimizer_options)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(
                step, self.num_steps, self.phase.schedule, self.phase.warmup
            ),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["geopak"] = self.identity


class ProvincePretraining(GeolocationTask):
    """Phase 0: projections, gate and province head learn to tell provinces apart."""


class GeographicStructure(GeolocationTask):
    """Phase 1: all heads learn the hierarchy on top of frozen encoders."""

    def locate_true_cell(self, output: ModelOutput, batch: Batch) -> Tensor | None:
        if "offset" not in self.loss.terms:
            return None
        return self.model.locate(output.fused, batch["cell_id"])


class VisionAdaptation(GeographicStructure):
    """Phase 2: the encoders' top layers adapt with the heads, each at its own rate.

    Raises:
        ConfigError: ``phase.unfreeze`` leaves both encoders frozen.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not {"semantic", "scene"} & self.trainable.keys():
            raise ConfigError(
                "phase.unfreeze leaves both encoders frozen; that is phase 1. Give a fraction of "
                "blocks or last_stage."
            )


TASKS: dict[int, type[GeolocationTask]] = {
    0: ProvincePretraining,
    1: GeographicStructure,
    2: VisionAdaptation,
}
