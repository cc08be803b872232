"""The configuration of ``geopak.train``, and which of its values do not go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from geopak.errors import ConfigError, nearest_name
from geopak.options import Natural, Problem
from geopak.schema.loading import LoadingOptions, batch_quotas
from geopak.schema.model import ModelOptions
from geopak.schema.monitoring import (
    BatchSizeSearch,
    CsvLogger,
    LearningRateSearch,
    WandbOptions,
)
from geopak.schema.paths import Paths
from geopak.schema.region import RegionOptions
from geopak.schema.training import (
    CallbackOptions,
    DecodingOptions,
    LossOptions,
    OptimizerOptions,
    Phase,
    TrainerOptions,
    validation_metrics,
)

# The parameters without which a loss term teaches nothing.
_HEAD_OF_TERM = {
    "province": "province_head",
    "cell": "cell_heads",
    "offset": "offset_head",
    "auxiliary": "auxiliary_head",
}


@dataclass(frozen=True, kw_only=True)
class DataOptions(LoadingOptions):
    """The photos to train from.

    Attributes:
        root: folder of the photos.
        prepared: folder of the prepared set.
    """

    root: str
    prepared: str


@dataclass(frozen=True)
class RerunOptions:
    """A run that is repeated, see :mod:`geopak.rerun`.

    Attributes:
        of: its folder.
        other_data: whether it may be repeated on another prepared set.
    """

    of: str | None
    other_data: bool


@dataclass(frozen=True)
class TrainConfig:
    """``conf/train.yaml`` with all its groups."""

    paths: Paths
    region: RegionOptions
    model: ModelOptions
    data: DataOptions
    loss: LossOptions
    optimizer: OptimizerOptions
    phase: Phase
    trainer: TrainerOptions
    logger: CsvLogger | WandbOptions | None
    callbacks: CallbackOptions
    decoding: DecodingOptions
    name: str
    seed: Natural
    init_from: str | None
    resume_from: str | None
    run_root: str
    require_parent: bool
    rerun: RerunOptions
    finder: LearningRateSearch | BatchSizeSearch | None

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        yield from self._phase()
        yield from self._start()
        yield from self._rhythm()
        yield from self._machine()
        if self.data.sampling == "balanced":
            try:
                batch_quotas(self.region.region(), self.data.batch_size)
            except ConfigError as error:
                yield Problem.of("data.batch_size", error)

    def _phase(self) -> Iterator[Problem]:
        phase = self.phase
        if phase.losses:
            try:
                used = self.loss.used(phase.losses)
            except ConfigError as error:
                yield Problem.of("loss", error)
                used = ()
            if "offset" in used and self.model.offset.bound == "none":
                yield Problem(
                    "model.offset.bound",
                    "model.offset.bound=none leaves the offset term nothing to train",
                    "Set loss.offset=0 too.",
                )
        for term in phase.losses:
            head = _HEAD_OF_TERM[term]
            if head not in phase.train:
                yield Problem(
                    "phase.losses",
                    f"phase.losses names {term!r}, and phase.train does not train its {head}",
                    f"Add {head} to phase.train, or take {term} out of phase.losses.",
                )
        if phase.index == 0 and "offset" in phase.losses:
            yield Problem(
                "phase.losses", "phase.losses names 'offset', and phase 0 makes none",
                "Train it in phase 1 or 2.",
            )  # fmt: skip
        keys = tuple(p.key for p in self.region.region().provinces)
        known = validation_metrics(keys)
        if phase.monitor not in known:
            names = [name for name in known if "/province/" not in name]
            yield Problem(
                "phase.monitor",
                f"phase.monitor={phase.monitor!r} is no metric of validation",
                f"{nearest_name(phase.monitor, known)} Known: {', '.join(names)}, "
                "val/province/<key>/median_km, val/province/<key>/acc.".strip(),
            )
        elif known[phase.monitor] not in (None, phase.monitor_mode):
            yield Problem(
                "phase.monitor_mode",
                f"phase.monitor_mode={phase.monitor_mode} would keep the worst of "
                f"phase.monitor={phase.monitor}",
                f"Set phase.monitor_mode={known[phase.monitor]}.",
            )

    def _start(self) -> Iterator[Problem]:
        if self.init_from and self.resume_from and self.resume_from != "auto":
            yield Problem(
                "resume_from",
                "resume_from goes on with an interrupted run, which has its weights, and init_from "
                "starts a new one",
                "Give one of them.",
            )
        elif self.init_from and self.phase.parent is None:
            yield Problem(
                "init_from",
                f"phase={self.phase.index} starts from the pretrained encoders and takes no "
                "init_from=",
            )

    def _rhythm(self) -> Iterator[Problem]:
        trainer, every = self.trainer, self.callbacks.checkpoint_every_n_batches
        epochs, key = self.phase.epochs, "phase.epochs"
        if trainer.max_epochs is not None and trainer.max_epochs < epochs:
            epochs, key = trainer.max_epochs, "trainer.max_epochs"
        if trainer.check_val_every_n_epoch > epochs:
            yield Problem(
                "trainer.check_val_every_n_epoch",
                f"trainer.check_val_every_n_epoch={trainer.check_val_every_n_epoch} is more than "
                f"{key}={epochs}: no epoch would be validated, none could be "
                "the best",
            )
        if every is not None and every % trainer.accumulate_grad_batches:
            yield Problem(
                "callbacks.checkpoint_every_n_batches",
                f"callbacks.checkpoint_every_n_batches={every} must be a multiple of "
                f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}, or null: "
                "gradients of half a step are in no checkpoint",
            )

    def _machine(self) -> Iterator[Problem]:
        trainer = self.trainer
        if trainer.accelerator == "cpu" and trainer.precision.startswith("16-"):
            yield Problem(
                "trainer.precision",
                f"trainer.precision={trainer.precision} needs a GPU, and "
                "trainer.accelerator is cpu",
                "Use 32-true or bf16-mixed there.",
            )
        if trainer.strategy == "fsdp" and self.data.feature_cache != "false":
            yield Problem(
                "data.feature_cache",
                "trainer.strategy=fsdp runs the whole model on every photo",
                "Set data.feature_cache=false, as trainer=fsdp does. Where the encoders are "
                "frozen, trainer=a100_multi with the cache is the faster choice.",
            )
        if trainer.strategy == "fsdp" and trainer.compile:
            yield Problem(
                "trainer.compile",
                "trainer.compile=true compiles whole encoders, which fsdp takes apart",
            )
