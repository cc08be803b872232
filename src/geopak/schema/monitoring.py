"""What watches a training: loggers, health checks, and the searches before it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from geopak.errors import ConfigError, nearest_name

MODES = ("auto", "offline", "online")


@dataclass(frozen=True)
class CsvLogger:
    """Metrics as CSV files in the run's folder."""

    kind: Literal["csv"]


@dataclass(frozen=True)
class WandbOptions:
    """``conf/logger/wandb.yaml``.

    Args:
        project: of W&B.
        kind: ``wandb``.
        entity: user or team; ``None``: the default of the API key.
        group: that runs of one experiment share.
        name: of the run.
        mode: ``offline``; ``online``; ``auto``: online where an API key is configured.
        tags: beside those of the model, the region and the phase.
        log_checkpoints: whether ``best`` and ``last`` become model artifacts.
        figures_every_n_epochs: how often figures and the table of photos are made; always at the
            end.
        table_photos: of each kind (best, worst, random) in the table.
        init_timeout_s: the longest that the start waits for the server.
        call_timeout_s: the longest that a training waits for W&B's own process.
        finish_timeout_s: the longest that the end waits for uploads.

    Raises:
        ConfigError: a value that cannot work.
    """

    project: str
    group: str
    name: str
    entity: str | None = None
    mode: str = "auto"
    tags: tuple[str, ...] = ()
    log_checkpoints: bool = True
    figures_every_n_epochs: int = 5
    table_photos: int = 8
    init_timeout_s: float = 30.0
    call_timeout_s: float = 30.0
    finish_timeout_s: float = 600.0
    kind: Literal["wandb"] = "wandb"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(
                f"logger.mode={self.mode!r} is unknown.{nearest_name(self.mode, MODES)} "
                f"Known: {', '.join(MODES)}."
            )
        for key in (
            "figures_every_n_epochs",
            "table_photos",
            "init_timeout_s",
            "call_timeout_s",
            "finish_timeout_s",
        ):
            if not getattr(self, key) > 0:
                raise ConfigError(f"logger.{key}={getattr(self, key)} must be more than 0.")


@dataclass(frozen=True)
class HealthOptions:
    """When to stop and when to warn; ``None`` switches a check off.

    Attributes:
        check_every_n_steps: steps between two looks at whether loss and gradients are finite, on a
            GPU; elsewhere every step is looked at.
        after_epochs: the first epoch that may be warned of.
        repeat_epochs: a warning is repeated after so many epochs.
        province_collapse: of a province, both recall and predictions per photo below this.
        province_min_photos: provinces with fewer val photos are not judged.
        province_swallow: share of all other provinces' photos that a province takes.
        auxiliary_share: of the total loss, over an epoch.
        offset_bound: mean length of the true cell's offset, as a share of its bound.
        gate_extreme: mean weight of either encoder in the fusion.
        gate_flat_extreme: the same, where the gate says the same of every photo.
        gate_flat_std: standard deviation over photos below which it does.
    """

    check_every_n_steps: int | None = 1
    after_epochs: int = 2
    repeat_epochs: int = 5
    province_collapse: float | None = 0.05
    province_min_photos: int = 5
    province_swallow: float | None = 0.8
    auxiliary_share: float | None = 0.5
    offset_bound: float | None = 0.9
    gate_extreme: float | None = 0.02
    gate_flat_extreme: float | None = 0.1
    gate_flat_std: float = 0.005

    def __post_init__(self) -> None:
        if self.check_every_n_steps is not None and self.check_every_n_steps < 1:
            raise ConfigError(
                f"callbacks.health.check_every_n_steps={self.check_every_n_steps} must be at least "
                "1, or null: not at all."
            )
        for name in ("after_epochs", "repeat_epochs", "province_min_photos"):
            if getattr(self, name) < 1:
                raise ConfigError(f"callbacks.health.{name}={getattr(self, name)}: at least 1.")
        for name in (
            "province_collapse", "province_swallow", "auxiliary_share", "offset_bound",
            "gate_extreme", "gate_flat_extreme", "gate_flat_std",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"callbacks.health.{name}={value} must lie between 0 and 1.")


@dataclass(frozen=True)
class LearningRateSearch:
    """A range test of the learning rate (Smith, 2017).

    Attributes:
        kind: ``lr``.
        min_lr, max_lr: of the first optimizer group, that of the heads.
        num_steps: optimizer steps from one to the other.
    """

    kind: Literal["lr"] = "lr"
    min_lr: float = 1e-6
    max_lr: float = 1.0
    num_steps: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.min_lr < self.max_lr < math.inf:
            raise ConfigError(
                f"finder.min_lr={self.min_lr} and finder.max_lr={self.max_lr}: the first must be "
                "above 0 and below the second."
            )
        if self.num_steps < 20:
            raise ConfigError(f"finder.num_steps={self.num_steps} must be at least 20.")


@dataclass(frozen=True)
class BatchSizeSearch:
    """A search for the largest batch that fits into memory.

    Attributes:
        kind: ``batch_size``.
        max_batch_size: the largest that is tried.
        steps_per_trial: optimizer steps with each.
    """

    kind: Literal["batch_size"] = "batch_size"
    max_batch_size: int = 1024
    steps_per_trial: int = 3

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "steps_per_trial"):
            if getattr(self, name) < 1:
                raise ConfigError(f"finder.{name}={getattr(self, name)} must be at least 1.")
