"""How a photo table becomes a prepared set, and from where on the doctor says something."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from geopak.errors import ConfigError, nearest_name

SPLIT_METHODS = ("places", "spatial_blocks", "random")
EXECUTORS = ("local", "dask")


@dataclass(frozen=True)
class ValidationSettings:
    """Which coordinates are believed.

    Attributes:
        min_decimals: fewest decimals of latitude and longitude as written, the more exact of the
            two (a trailing zero is often cut off); 2 decimals are about a kilometre. 0: any.
        max_photos_per_coordinate: most unrelated photos (of different authors or days) at one and
            the same coordinate; more of them were given the coordinate of a place name, not taken
            there. ``None``: any number.
        max_accuracy_km: rows whose ``accuracy_km`` is more are rejected; those that tell none are
            not. The default is the radius of the largest urban cell: a coordinate that is less
            exact may lie in the next cell. ``None``: any.
    """

    min_decimals: int = 2
    max_photos_per_coordinate: int | None = 30
    max_accuracy_km: float | None = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_decimals <= 15:
            raise ConfigError(
                f"validation.min_decimals is {self.min_decimals}; it must be 0 to 15."
            )
        limit = self.max_photos_per_coordinate
        if limit is not None and limit < 1:
            raise ConfigError(
                f"validation.max_photos_per_coordinate is {limit}; it must be at least 1, or null "
                "for no limit."
            )
        if self.max_accuracy_km is not None and not self.max_accuracy_km > 0:
            raise ConfigError(
                f"validation.max_accuracy_km is {self.max_accuracy_km}; it must be more than 0, or "
                "null for no limit."
            )


@dataclass(frozen=True)
class ProvinceSettings:
    """How photos are given to provinces.

    Attributes:
        border_km: photos closer than this to an outline are marked ``near_border``: the outlines
            may put them on the wrong side. About the outlines' own error is a good value.
    """

    border_km: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.border_km < math.inf:
            raise ConfigError(f"provinces.border_km={self.border_km} must not be negative.")


@dataclass(frozen=True)
class QualitySettings:
    """Which photos are good enough. A threshold of ``None`` switches its check off.

    What tells screenshots and documents was tuned on generated pictures (text, windows, chats,
    forms, scans, and photo-like ones: sky, snow, fog, night, twigs, walls, facades) and tried on a
    few real photos; both are heuristics, so look at what they reject.

    Attributes:
        min_side_px: fewest pixels of the shorter side.
        max_aspect: most that the longer side may be of the shorter: banners and strips of panoramas
            lose most of themselves when a square is cropped.
        min_contrast: least standard deviation of the grey values (0..255).
        min_sharpness: least variance of the Laplacian of the grey values, at no more than 256
            pixels of the longer side.
        max_text_lines: for documents: most changes between lines of text and gaps per pixel across
            the lines, in pictures half of which is one tone. Text has 0.13 to 0.4.
        max_flat_design: for screenshots: the most of a picture that may be four grey values, times
            how crisp its edges are, where edges are upright or level. Screens have 0.5 to 0.9.
        max_duplicate_km: equal files at places farther apart than this are all rejected, as no one
            can tell which place is right; ``None`` keeps the first.
        drop_exact_duplicates: drop files with the same bytes as an earlier photo.
        drop_near_duplicates: drop photos that look like an earlier one.
        near_duplicate_bits: two photos look alike when at most so many of the 256 bits of their
            perceptual hashes differ; what 16 and 24 catch is in :mod:`geopak.data.duplicates`.
    """

    min_side_px: int | None = 64
    max_aspect: float | None = 4.0
    min_contrast: float | None = 4.0
    min_sharpness: float | None = 4.0
    max_text_lines: float | None = 0.13
    max_flat_design: float | None = 0.45
    max_duplicate_km: float | None = 1.0
    drop_exact_duplicates: bool = True
    drop_near_duplicates: bool = True
    near_duplicate_bits: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.near_duplicate_bits <= 32:
            raise ConfigError(
                f"quality.near_duplicate_bits is {self.near_duplicate_bits}; it must be 0 to 32 "
                "of the 256 bits."
            )
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ConfigError(
                f"quality.max_aspect is {self.max_aspect}; it is longer side / shorter side, so at "
                "least 1. Set null to allow every shape."
            )
        for name in ("min_side_px", "min_contrast", "min_sharpness", "max_text_lines",
                     "max_flat_design", "max_duplicate_km"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(
                    f"quality.{name} is {value}; it must be at least 0, or null to switch it off."
                )


@dataclass(frozen=True)
class IndoorSettings:
    """The indoor filter; section ``indoor`` of the configuration. Without files it is off.

    Attributes:
        checkpoint: ``resnet50_places365.pth.tar``, or another file of such weights.
        categories: ``IO_places365.txt``: a line per class, its name and 1 (indoor) or 2 (outdoor).
        max_probability: photos that are indoors with more than this are rejected.
        device: such as ``cuda:1``; ``None`` for the first GPU where there is one.
        batch_size: photos that go through the network at a time.

    Raises:
        ConfigError: one file without the other, or a value out of range.
    """

    checkpoint: str | None = None
    categories: str | None = None
    max_probability: float = 0.5
    device: str | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        if (self.checkpoint is None) != (self.categories is None):
            here, missing = (
                ("indoor.checkpoint", "indoor.categories=IO_places365.txt")
                if self.categories is None
                else ("indoor.categories", "indoor.checkpoint=resnet50_places365.pth.tar")
            )
            raise ConfigError(
                f"{here} is set, but the indoor filter needs both files: add {missing}, or set "
                f"{here}=null to do without it."
            )
        if not 0 < self.max_probability <= 1:
            raise ConfigError(
                f"indoor.max_probability is {self.max_probability}; it must be above 0, and 1 at "
                "most."
            )
        if self.batch_size < 1:
            raise ConfigError(f"indoor.batch_size is {self.batch_size}; it must be at least 1.")

    @property
    def enabled(self) -> bool:
        return self.checkpoint is not None


@dataclass(frozen=True)
class SplitSettings:
    """How photos are split.

    Attributes:
        method: ``places``; ``spatial_blocks`` to hold whole blocks out, for which ``block_km`` and
            ``min_distance_km`` are to be large; or ``random`` to show by comparison how much a
            random split flatters.
        val_fraction: share of each province's photos wished for in val.
        test_fraction: share of each province's photos wished for in test.
        block_km: side of the blocks of ground that are drawn whole.
        min_distance_km: no train photo is this close to a val or test photo, no val photo this
            close to a test photo.
        max_group_share: photos tied to each other are held out, or trained on, as a whole up to
            this share of their province; larger groups are cut and the cut lined with ``buffer``.
        previous: an earlier prepared set, or a table with ``id`` and ``split``, whose val and test
            photos stay what they are; ``None``: nothing is kept but by the hash.
    """

    method: str = "places"
    val_fraction: float = 0.08
    test_fraction: float = 0.12
    block_km: float = 2.0
    min_distance_km: float = 0.25
    max_group_share: float = 0.005
    previous: str | None = None

    def __post_init__(self) -> None:
        if self.method not in SPLIT_METHODS:
            raise ConfigError(
                f"split.method is {self.method!r}; it must be one of {', '.join(SPLIT_METHODS)}."
            )
        if not (
            min(self.val_fraction, self.test_fraction) >= 0
            and self.val_fraction + self.test_fraction <= 0.8
        ):
            raise ConfigError(
                "split.val_fraction and split.test_fraction must not be negative and together at "
                f"most 0.8; they are {self.val_fraction} and {self.test_fraction}."
            )
        if not (0.001 <= self.block_km <= 5000 and 0 <= self.min_distance_km <= 5000):
            raise ConfigError(
                "split.block_km must be between 0.001 and 5000 and split.min_distance_km between 0 "
                f"and 5000; they are {self.block_km} and {self.min_distance_km}."
            )
        if not 0 <= self.max_group_share <= 0.5:
            raise ConfigError(
                f"split.max_group_share must be between 0 and 0.5; it is {self.max_group_share}."
            )


@dataclass(frozen=True)
class ExecutorSettings:
    """Where and how partitions are worked on; section ``executor`` of the configuration.

    Attributes:
        name: ``local`` (processes of this machine) or ``dask``.
        workers: processes; ``None`` for one per core. With 1 and ``local`` it is this very process,
            and an item that kills it ends the run.
        partition_size: most items of a partition.
        scheduler: address of a Dask scheduler; ``None`` for a cluster of ``workers`` processes on
            this machine that lives as long as the run.
        retries: how often a partition is tried again after its worker has died.
        items_per_worker: more than one local worker is only started if each gets so many items.

    Raises:
        ConfigError: a value out of range.
    """

    name: str = "local"
    workers: int | None = None
    partition_size: int = 256
    scheduler: str | None = None
    retries: int = 2
    items_per_worker: int = 1500

    def __post_init__(self) -> None:
        if self.name not in EXECUTORS:
            raise ConfigError(
                f"executor.name={self.name} is none.{nearest_name(self.name, EXECUTORS)} "
                f"Known: {', '.join(EXECUTORS)}."
            )
        if self.scheduler is not None and self.name != "dask":
            raise ConfigError(
                f"executor.scheduler={self.scheduler} is an address for executor=dask; "
                f"this is executor={self.name}."
            )
        for key, least in (
            ("workers", 1), ("partition_size", 1), ("retries", 0), ("items_per_worker", 1),
        ):  # fmt: skip
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"executor.{key} is {value}; it must be at least {least}.")

    def in_this_process(self) -> ExecutorSettings:
        """The same partitions, worked on here: for a function that holds a model."""
        return replace(self, name="local", workers=1, scheduler=None)


@dataclass(frozen=True)
class Thresholds:
    """From where on something is said; the keys are those of ``thresholds`` in ``doctor.yaml``.

    Attributes:
        min_train_photos: fewest train photos of a province.
        min_test_photos: fewest test photos of a province.
        max_imbalance: most times that the fullest province has the train photos of the emptiest.
        max_sparse_share: largest share of a province's cells that are sparse.
        max_cell_share: largest share of a province's train photos in one cell.
        large_radius_km: a cell of this radius says little about a place.
        max_label_noise: largest share of labels that disagree with their coordinates, away from
            borders.
        max_border_share: largest share of photos close to a border.
        max_author_share: largest share of the photos from one author.
        max_source_share: largest share of the photos from one source.
        max_buffer_share: largest share of a province's photos set aside by the split.
        max_rejected_share: largest share of all rows that were rejected.
        far_from_train_km: a province is thinly covered when half of its test photos are farther
            than this from any train photo.
    """

    min_train_photos: int = 200
    min_test_photos: int = 50
    max_imbalance: float = 30.0
    max_sparse_share: float = 0.5
    max_cell_share: float = 0.3
    large_radius_km: float = 25.0
    max_label_noise: float = 0.01
    max_border_share: float = 0.1
    max_author_share: float = 0.1
    max_source_share: float = 0.8
    max_buffer_share: float = 0.1
    max_rejected_share: float = 0.2
    far_from_train_km: float = 25.0


@dataclass(frozen=True)
class ShardSettings:
    """How photos are cut into shards.

    Attributes:
        photos_per_shard: most photos of a shard.
        shard_mb: most of a shard in 10⁶ bytes, about; photos that are made smaller count as none.
        shorter_side_px: photos larger than this are made smaller and are JPEG then; ``None``: every
            photo keeps its own bytes.
        quality: of that JPEG.

    Raises:
        ConfigError: a value out of range.
    """

    photos_per_shard: int = 1000
    shard_mb: float = 32.0
    shorter_side_px: int | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        for key in ("photos_per_shard", "shorter_side_px"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key}={value} must be at least 1.")
        if not self.shard_mb > 0:
            raise ConfigError(f"shard_mb={self.shard_mb} must be more than 0.")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality={self.quality} must be from 1 to 100.")
