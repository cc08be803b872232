"""What a training is: phase, loss, optimizer, trainer, loggers, callbacks and decoding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from geopak.errors import ConfigError, nearest_name
from geopak.options import Count, Natural, NotNegative, Positive, Range
from geopak.schema.monitoring import HealthOptions

ENCODERS = ("semantic", "scene")
LAST_STAGE = "last_stage"
# What a phase may train above the encoders: a partition of the parameters.
HEAD_GROUPS = (
    "projections", "gate", "province_head", "cell_heads", "embeddings", "offset_head",
    "auxiliary_head",
)  # fmt: skip
LOSS_TERMS = ("province", "cell", "offset", "auxiliary")
# The last looks at no hypothesis: it is the auxiliary head's coordinate.
DecodingRule = Literal[
    "mean", "argmax", "geometric_median", "max_within_km", "mean_of_degrees", "regression"
]
DECODING_RULES: tuple[str, ...] = get_args(DecodingRule)
# Distances that metrics ask for: which share of the photos is within?
THRESHOLDS_KM: tuple[float, ...] = (1, 5, 25, 200, 750)


def validation_metrics(province_keys: tuple[str, ...]) -> dict[str, str | None]:
    """What validation measures, each with ``min`` or ``max`` for the way it is better."""
    kilometres = ["median_km", "mean_km", "p90_km", "teacher_forced/median_km"]
    kilometres += ["urban/median_km", "rural/median_km"]
    shares = [f"within_{distance:g}km" for distance in THRESHOLDS_KM]
    shares += ["province_acc", "province_macro_acc", "cell_top1", "cell_top5"]
    for key in province_keys:
        kilometres.append(f"province/{key}/median_km")
        shares.append(f"province/{key}/acc")
    return {
        **{f"val/{name}": "min" for name in kilometres},
        **{f"val/{name}": "max" for name in shares},
        "val/gate_mean": None,
    }


@dataclass(frozen=True)
class Phase:
    """One of the sequential trainings.

    Attributes:
        index: its number, as in ``phase=2``.
        title: display name.
        parent: index of the phase that it starts from; ``None``: from the pretrained encoders.
        train: parameter groups above the encoders that train.
        unfreeze: how much of each encoder trains: a fraction of its blocks, or ``last_stage``.
        lr: peak learning rate of ``heads`` (everything above the encoders) and of each encoder.
        losses: loss terms in use.
        province_temperature: divides the province logits.
        monitor: validation metric that chooses the best checkpoint.
        monitor_mode: ``min`` or ``max``.
        epochs: number of epochs.
        schedule: ``constant`` or ``cosine``.
        warmup: share of all steps in which the rate rises linearly to its peak.
    """

    index: int
    title: str
    parent: int | None
    train: tuple[str, ...]
    unfreeze: Mapping[str, float | str]
    lr: Mapping[str, float]
    losses: tuple[str, ...]
    province_temperature: float
    monitor: str
    monitor_mode: str
    epochs: int
    schedule: str
    warmup: float

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine"):
            raise ConfigError(
                f"phase.schedule={self.schedule!r} is unknown. Known: constant, cosine."
            )
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"phase.warmup={self.warmup} must be at least 0 and below 1.")
        if self.index not in (0, 1, 2):
            raise ConfigError(f"phase.index={self.index}: known phases are 0, 1, 2.")
        if self.monitor_mode not in ("min", "max"):
            raise ConfigError(f"phase.monitor_mode={self.monitor_mode!r}: use min or max.")
        if self.epochs < 1:
            raise ConfigError(f"phase.epochs={self.epochs} must be at least 1.")
        for key, known in (("train", HEAD_GROUPS), ("losses", LOSS_TERMS)):
            for name in getattr(self, key):
                if name not in known:
                    raise ConfigError(
                        f"phase.{key} names {name!r}.{nearest_name(name, known)} "
                        f"Known: {', '.join(known)}."
                    )
        if not self.losses:
            raise ConfigError(f"phase.losses is empty. Known: {', '.join(LOSS_TERMS)}.")
        for group in ("heads", *ENCODERS):
            if group not in self.lr:
                raise ConfigError(f"phase.lr.{group} is missing.")
        for group, rate in self.lr.items():
            if not 0 <= rate < math.inf:
                raise ConfigError(f"phase.lr.{group}={rate} must be 0 or more.")
        for encoder, share in self.unfreeze.items():
            if encoder not in ENCODERS:
                raise ConfigError(f"phase.unfreeze.{encoder}: there is no such encoder.")
            if share != LAST_STAGE and (isinstance(share, str) or not 0 <= share <= 1):
                raise ConfigError(
                    f"phase.unfreeze.{encoder}={share} must be a fraction between 0 and 1 or "
                    f"{LAST_STAGE}."
                )


@dataclass(frozen=True)
class LossOptions:
    """Weights of the terms and what shapes them.

    Attributes:
        province, cell, offset, auxiliary: weights in the total; 0 takes a term out.
        offset_ramp_epochs: the offset's weight rises linearly to its full value at this epoch.
        offset_scale_km, auxiliary_scale_km: distances enter the total divided by these.
        class_weight_beta: β of the effective number of samples (Cui et al., 2019).
        soft_labels: the cell term's labels are spread over neighbours; ``False``: the true cell
            alone, so that the term is the cross-entropy.
        cell_target: the cells that the cell term compares, in which a probability is meant:
            ``province``: those of the true province, P(cell | province); ``region``: all,
            P(cell), which trains the province too. ``model.cell_heads=flat`` is the usual flat
            classifier with ``region``.
    """

    province: float = 0.5
    cell: float = 1.0
    offset: float = 1.0
    auxiliary: float = 0.1
    offset_ramp_epochs: int = 5
    offset_scale_km: float = 10.0
    auxiliary_scale_km: float = 100.0
    class_weight_beta: float = 0.999
    soft_labels: bool = True
    cell_target: Literal["province", "region"] = "province"

    def __post_init__(self) -> None:
        for name in LOSS_TERMS:
            if getattr(self, name) < 0:
                raise ConfigError(f"loss.{name} must not be negative.")
        for name in ("offset_scale_km", "auxiliary_scale_km"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"loss.{name} must be positive.")
        if not 0 <= self.class_weight_beta < 1:
            raise ConfigError("loss.class_weight_beta must be in [0, 1).")

    def used(self, terms: Sequence[str]) -> tuple[str, ...]:
        """Those of a phase's terms that have a weight.

        Raises:
            ConfigError: none has.
        """
        used = tuple(term for term in terms if getattr(self, term) > 0)
        if not used:
            raise ConfigError(
                "This phase has nothing to learn from: "
                f"{', '.join(f'loss.{term}=0' for term in terms)}. Give one of them a weight, or "
                "begin with another phase=."
            )
        return used


@dataclass(frozen=True)
class DecodingOptions:
    """How hypotheses are chosen and made into a coordinate.

    Attributes:
        rule: ``mean``, ``argmax``, ``geometric_median`` or ``max_within_km``; ``mean_of_degrees``,
            the mean as the published model takes it, not on the sphere; or ``regression``, the
            auxiliary head's coordinate, which looks at no hypothesis.
        top_provinces: provinces considered.
        top_cells: cells considered in each of them.
        within_km: radius of the rule ``max_within_km``.
        confidence_km: the confidence is the probability mass within this distance.
    """

    rule: str = "geometric_median"
    top_provinces: int = 2
    top_cells: int = 5
    within_km: float = 25.0
    confidence_km: float = 25.0

    def __post_init__(self) -> None:
        if self.rule not in DECODING_RULES:
            raise ConfigError(
                f"decoding.rule={self.rule!r} is not a rule."
                f"{nearest_name(self.rule, DECODING_RULES)} Known: {', '.join(DECODING_RULES)}."
            )
        if self.top_provinces < 1 or self.top_cells < 1:
            raise ConfigError("decoding.top_provinces and decoding.top_cells must be at least 1.")
        if self.within_km <= 0 or self.confidence_km <= 0:
            raise ConfigError("decoding.within_km and decoding.confidence_km must be positive.")


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW, and how the learning rates grow with the photos of a step.

    Attributes:
        weight_decay, betas, fused, eps, amsgrad: of ``torch.optim.AdamW``.
        lr_scaling: see :func:`geopak.phases.learning_rate_scale`.
        reference_batch: photos of the step that the rates were chosen for.
    """

    weight_decay: NotNegative
    betas: tuple[
        Annotated[float, Range(least=0, below=1)], Annotated[float, Range(least=0, below=1)]
    ]
    fused: bool
    lr_scaling: Literal["none", "linear", "sqrt"]
    reference_batch: Count
    eps: Positive = 1e-8
    amsgrad: bool = False


@dataclass(frozen=True)
class TrainerOptions:
    """Machine, precision and rhythm of a training; what has a default here needs a ``+`` to be set.

    Attributes:
        accelerator, devices, num_nodes, precision, gradient_clip_val, accumulate_grad_batches,
            log_every_n_steps, check_val_every_n_epoch, num_sanity_val_steps, deterministic,
            benchmark, sync_batchnorm: of Lightning's ``Trainer``; ``launcher``: as many devices and
            nodes as torchrun or Slurm has started.
        strategy: see :func:`geopak.ranks.build_strategy`.
        threads: of the CPU; ``None``: PyTorch's default.
        tf32: whether matrix products may be rounded to it.
        heartbeat_s, timeout_s: see :mod:`geopak.ranks`.
        compile: the encoders, see :mod:`geopak.models.compiling`.
        activation_checkpointing: see :mod:`geopak.models.activations`.
        max_epochs: the phase's epochs, if those are more; ``None``: no limit.
        limit_train_batches, limit_val_batches: batches of an epoch at the most, or a share of them.
        max_steps, max_time,
            val_check_interval, gradient_clip_algorithm, detect_anomaly, profiler: of Lightning's
            ``Trainer``, where given.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]
    devices: int | Literal["auto", "launcher"] | list[Natural]
    num_nodes: Count | Literal["launcher"]
    strategy: Literal["auto", "ddp", "fsdp", "ddp_spawn", "ddp_fork", "ddp_notebook"]
    precision: Literal[
        "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true",
        "transformer-engine", "transformer-engine-float16",
    ]  # fmt: skip
    gradient_clip_val: NotNegative | None
    accumulate_grad_batches: Count
    log_every_n_steps: Count
    check_val_every_n_epoch: Count
    num_sanity_val_steps: Annotated[int, Range(least=-1)]
    deterministic: bool | Literal["warn"]
    benchmark: bool | None
    sync_batchnorm: bool
    threads: Count | None
    tf32: bool
    heartbeat_s: Positive | None
    timeout_s: Positive
    compile: bool
    activation_checkpointing: bool
    max_epochs: Count | None
    limit_train_batches: Count | Annotated[float, Range(above=0, most=1)]
    limit_val_batches: Count | Annotated[float, Range(above=0, most=1)]
    max_steps: Annotated[int, Range(least=-1)] = -1
    max_time: str | None = None
    val_check_interval: Count | Annotated[float, Range(above=0, most=1)] | None = None
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    detect_anomaly: bool = False
    profiler: Literal["simple", "advanced", "pytorch"] | None = None


@dataclass(frozen=True)
class CallbackOptions:
    """What happens beside the steps.

    Attributes:
        progress_bar: shown on the terminal.
        early_stopping_patience: epochs without improvement before stopping; ``None``: never.
        checkpoint_every_n_batches: see :class:`geopak.callbacks.MidEpochCheckpoint`.
        health: what stops a training and what warns, see :mod:`geopak.health`.
    """

    progress_bar: bool
    early_stopping_patience: Count | None
    checkpoint_every_n_batches: Count | None
    health: HealthOptions
