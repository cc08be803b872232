"""How photos become batches: sampling, caches, augmentation, and the quotas of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from geopak.errors import ConfigError
from geopak.geo.region import Region
from geopak.options import PartOf, Range, Share, options

CACHE_CHOICES = ("auto", "true", "false")
CacheChoice = bool | Literal["auto", "true", "false"]
FEATURE_DTYPES = ("float32", "float16", "bfloat16")
# Transforms that are refused unless they are meant, and why.
UNSAFE = {
    "horizontal_flip": "it mirrors script and the driving side",
    "rotation": "it breaks the horizon",
    "perspective": "it warps skylines and facades",
}


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random transforms, or ranges of them; null or 0 turns one off.

    Attributes:
        crop_scale, crop_ratio: ranges of a crop's share of the picture and of its shape.
        brightness, contrast, saturation, gamma: largest changes.
        fog, rain, overcast, blur: probabilities.
        noise: largest standard deviation.
        horizontal_flip: probability.
        rotation: degrees, at the most.
        perspective: distortion.
    """

    crop_scale: tuple[float, float] | None = (0.6, 1.0)
    crop_ratio: tuple[float, float] | None = (0.85, 1.18)
    brightness: Share | None = 0.2
    contrast: Share | None = 0.2
    saturation: Share | None = 0.2
    gamma: Share | None = 0.15
    fog: Share | None = 0.1
    rain: Share | None = 0.05
    overcast: Share | None = 0.1
    blur: Share | None = 0.1
    noise: Share | None = 0.02
    horizontal_flip: Share | None = 0.0
    rotation: Annotated[float, Range(least=0, most=180)] | None = 0.0
    perspective: Share | None = 0.0

    def __post_init__(self) -> None:
        for name, largest in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
            low, high = getattr(self, name) or (1.0, 1.0)
            if not 0 < low <= high <= largest:
                limit = "" if largest == math.inf else f" and up to {largest:g}"
                raise ConfigError(
                    f"data.augmentation.{name}={list(getattr(self, name))} must be a range "
                    f"[low, high] above 0{limit}."
                )


def augmentation_strengths(
    settings: Mapping[str, Any] | None = None, allow_unsafe: bool = False
) -> dict[str, Any]:
    """Every transform's strength, 0 where it is off; ranges as pairs.

    Args:
        settings: those that differ from the defaults of :class:`Augmentation`.
        allow_unsafe: permit the transforms that are not geography-safe.

    Raises:
        ConfigError: an unknown or refused transform, or a strength out of range.
    """
    chosen = options(Augmentation, settings or {}, "data.augmentation")
    for name, reason in UNSAFE.items():
        if getattr(chosen, name) and not allow_unsafe:
            raise ConfigError(
                f"data.augmentation.{name} is not geography-safe: {reason}. Remove it, or set "
                "data.allow_unsafe=true if you mean it."
            )
    strengths: dict[str, Any] = {}
    for f in fields(chosen):
        value = getattr(chosen, f.name)
        if f.name.startswith("crop_"):
            low, high = value or (1.0, 1.0)
            strengths[f.name] = (float(low), float(high))
        else:
            strengths[f.name] = float(value or 0)
    return strengths


def check_cache_choice(key: str, choice: str) -> None:
    """Checks the value of a key that says whether to cache.

    Raises:
        ConfigError: none of :data:`CACHE_CHOICES`.
    """
    if choice not in CACHE_CHOICES:
        raise ConfigError(f"{key}={choice!r}: use {', '.join(CACHE_CHOICES)}.")


@dataclass(frozen=True)
class LoadingOptions:
    """How photos become batches.

    Attributes:
        batch_size: photos a batch and device.
        batches_per_epoch: training batches of ``reference_batch`` photos an epoch, over all
            devices, see :func:`geopak.data.sampler.batches_per_rank`; ``None``: as many photos as
            there are.
        reference_batch: photos; ``None``: of ``batch_size``.
        sampling: ``balanced`` (quotas of the region) or ``random``.
        num_workers: loader processes; unused with the memory cache.
        memory_cache: keep decoded photos in memory: ``true``, ``false``, or ``auto`` (if they fit
            into ``memory_cache_gb``).
        memory_cache_gb: limit of ``auto``, in 10⁹ bytes.
        feature_cache: train from features that are encoded once, where the encoders are frozen:
            ``true``, ``false``, or ``auto`` (if the training would take more encodings).
        feature_views: augmented views of every train photo in the cache.
        feature_dtype: ``float32``, ``float16`` or ``bfloat16``, of the cache on disk.
        feature_draw: another number draws other views.
        feature_folder: of the caches; runs that share it share them.
        shards: folder or URL of tar shards that give the photos; ``None``: they are read from their
            files.
        shard_group: shards of a province that a loader process holds at a time, undecoded.
        load_margin: training photos are loaded this much larger than the model's input, so that
            random crops do not enlarge.
        augmentation: settings of :class:`geopak.data.augment.Augmenter`.
        allow_unsafe: permit transforms that are not geography-safe.
        seed: of sampling and augmentation.
    """

    batch_size: int = 64
    batches_per_epoch: int | None = 1300
    reference_batch: int | None = None
    sampling: str = "balanced"
    num_workers: int = 4
    memory_cache: CacheChoice = "auto"
    memory_cache_gb: float = 2.0
    feature_cache: CacheChoice = "auto"
    feature_views: int = 4
    feature_dtype: str = "float32"
    feature_draw: int = 0
    feature_folder: str = "features"
    shards: str | None = None
    shard_group: int = 2
    load_margin: float = 1.15
    augmentation: Annotated[dict[str, Any], PartOf(Augmentation)] = field(default_factory=dict)
    allow_unsafe: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"data.batch_size={self.batch_size} must be at least 1.")
        if self.batches_per_epoch is not None and self.batches_per_epoch < 1:
            raise ConfigError("data.batches_per_epoch must be at least 1, or null.")
        if self.reference_batch is not None and self.reference_batch < 1:
            raise ConfigError("data.reference_batch must be at least 1.")
        if self.sampling not in ("balanced", "random"):
            raise ConfigError(f"data.sampling={self.sampling!r}: use balanced or random.")
        if self.num_workers < 0:
            raise ConfigError(f"data.num_workers={self.num_workers} must be 0 or more.")
        for name in ("memory_cache", "feature_cache"):
            # YAML reads true and false as such, and auto as text.
            object.__setattr__(self, name, str(getattr(self, name)).lower())
            check_cache_choice(f"data.{name}", getattr(self, name))
        self._check_features()
        augmentation_strengths(self.augmentation, self.allow_unsafe)
        if self.load_margin < 1:
            raise ConfigError(f"data.load_margin={self.load_margin} must be at least 1.")
        if self.shard_group < 1:
            raise ConfigError(f"data.shard_group={self.shard_group} must be at least 1.")
        if self.shards is not None:
            self._check_streaming()

    def _check_features(self) -> None:
        """Raises a ConfigError where a feature cache's own settings are out of range."""
        if self.feature_views < 1:
            raise ConfigError(f"data.feature_views={self.feature_views} must be at least 1.")
        if self.feature_dtype not in FEATURE_DTYPES:
            raise ConfigError(
                f"data.feature_dtype={self.feature_dtype!r}: use {', '.join(FEATURE_DTYPES)}."
            )
        if self.feature_draw < 0:
            raise ConfigError(f"data.feature_draw={self.feature_draw} must be 0 or more.")

    def _check_streaming(self) -> None:
        """Raises a ConfigError where shards cannot do what is asked for."""
        if self.sampling != "balanced":
            raise ConfigError(
                f"data.sampling={self.sampling} needs photo files: shards give balanced batches "
                "alone. Use data.sampling=balanced, or data=photos."
            )
        for name in ("memory_cache", "feature_cache"):
            if getattr(self, name) == "true":
                raise ConfigError(
                    f"data.{name}=true needs photo files, and data=shards streams. Use "
                    f"data.{name}=false, or data=photos."
                )


def scaled_quotas(quotas: Sequence[int], batch_size: int) -> list[int] | None:
    """The same shares in a batch of another size; ``None`` where some photo would be cut."""
    total = sum(quotas)
    if any(quota * batch_size % total for quota in quotas):
        return None
    return [quota * batch_size // total for quota in quotas]


def batch_quotas(region: Region, batch_size: int) -> list[int]:
    """The photos per batch of every province.

    The region's quotas describe a batch of their sum (Pakistan's: 64). A batch of another size
    has the same shares, as long as they are whole photos: 32 of Pakistan are half of each quota.

    Raises:
        ConfigError: a batch size that the quotas cannot be scaled to, named with the nearest that
            they can.
    """
    described = [p.batch_quota for p in region.provinces]
    total = sum(described)
    if not total:
        raise ConfigError("Every region.provinces.<key>.batch_quota is 0: no batch has a photo.")
    quotas = scaled_quotas(described, batch_size)
    if quotas is None:
        listed = ", ".join(f"{p.key} {p.batch_quota}" for p in region.provinces)
        step = total // math.gcd(*described)
        below = batch_size // step * step
        nearest = f"{below} and {below + step}" if below else f"{step}"
        raise ConfigError(
            f"The batch quotas sum to {total}, not to data.batch_size={batch_size} "
            f"({listed}), and their shares of it are no whole photos. The nearest batch sizes that "
            f"work: {nearest}. Change data.batch_size or region.provinces.<key>.batch_quota."
        )
    return quotas
