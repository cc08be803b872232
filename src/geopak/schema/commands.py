"""The configuration of every command but training: what may be in it, and what goes together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from geopak.errors import ConfigError, GeopakError, nearest_name
from geopak.geo.cell_settings import CellSettings
from geopak.options import Count, Natural, NotNegative, PartOf, Positive, Problem, Range, Share
from geopak.schema.loading import Augmentation, CacheChoice, augmentation_strengths
from geopak.schema.model import ModelOptions
from geopak.schema.paths import Paths
from geopak.schema.preparation import (
    ExecutorSettings,
    IndoorSettings,
    ProvinceSettings,
    QualitySettings,
    ShardSettings,
    SplitSettings,
    Thresholds,
    ValidationSettings,
)
from geopak.schema.region import RegionOptions
from geopak.schema.rendering import Landscape, PhotoSetConfig
from geopak.schema.training import DecodingOptions, DecodingRule, Phase

# Of PyTorch: cpu, cuda:1, or the number of a GPU.
Device = str | Natural
# Rows of a photo table have these columns, under one of some names.
Column = Literal[
    "id", "path", "latitude", "longitude", "province", "source", "license", "author",
    "captured_at", "url", "width", "height", "album", "accuracy_km",
]  # fmt: skip
# Of predictions, by the ending of their file; none: JSON.
ANSWER_FORMATS = (".csv", ".parquet", ".json", ".jsonl", ".geojson", ".kml", ".html")
Columns = Mapping[Column, str | list[str] | None]
# Of the table of cells that lies beside a published checkpoint.
CellColumn = Literal[
    "cell_id", "province", "province_id", "latitude", "longitude", "radius_km", "count"
]


@dataclass(frozen=True)
class EvaluateConfig:
    """``conf/evaluate.yaml``."""

    paths: Paths
    ckpt: str | None
    name: str
    split: Literal["train", "val", "test"]
    root: str
    prepared: str
    shards: str | None
    feature_cache: CacheChoice
    feature_folder: str
    other_set: bool
    abstain_below: Share | None
    out: str | None
    bootstrap_resamples: Count
    seed: Natural
    device: Device | None
    batch_size: Count
    num_workers: Natural
    retrieval: bool

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        if self.shards is not None and str(self.feature_cache).lower() == "true":
            yield Problem("feature_cache", "feature_cache=true is for photo files, not for shards=")
        uncached = str(self.feature_cache).lower() == "false"
        if self.retrieval and (self.shards is not None or uncached):
            yield Problem(
                "retrieval",
                "retrieval=true keeps features of all train photos in the feature cache, and needs "
                "their files",
                "Leave out shards= and feature_cache=false.",
            )


@dataclass(frozen=True)
class CalibrateConfig:
    """``conf/calibrate.yaml``."""

    paths: Paths
    ckpt: str | None
    name: str
    root: str
    prepared: str
    shards: str | None
    feature_cache: CacheChoice
    feature_folder: str
    train_photos: Annotated[int, Range(least=3)]
    out: str | None
    seed: Natural
    device: Device | None
    batch_size: Count
    num_workers: Natural

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        if self.shards is not None and str(self.feature_cache).lower() == "true":
            yield Problem("feature_cache", "feature_cache=true is for photo files, not for shards=")


@dataclass(frozen=True)
class ExportConfig:
    """``conf/export.yaml``."""

    paths: Paths
    ckpt: str | None
    name: str
    format: Literal["onnx", "safetensors"]
    out: str | None
    precision: Literal["float32", "float16", "int8"]
    rule: DecodingRule | None
    coverage: Annotated[float, Range(above=0, below=1)] | None
    per_province: bool
    check_photos: Count
    prepared: str | None
    root: str | None
    val_photos: Count
    report: str | None
    license: str | None
    seed: Natural

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        if self.format == "safetensors":
            for key, plain in (("precision", "float32"), ("rule", None)):
                if getattr(self, key) != plain:
                    yield Problem(
                        key,
                        f"{key}={getattr(self, key)} is for format=onnx: format=safetensors keeps "
                        "the model as it is",
                    )
        if (self.prepared is None) != (self.root is None):
            yield Problem(
                "prepared",
                "prepared= is the set that the model was trained on and root= the folder of its "
                "photos: both or none",
            )


@dataclass(frozen=True)
class PredictConfig:
    """``conf/predict.yaml``; a name of digits alone arrives as a number in a list."""

    paths: Paths
    images: str | int | list[str | int]
    ckpt: str | None
    name: str
    rule: DecodingRule | None
    coverage: Annotated[float, Range(above=0, below=1)] | None
    per_province: bool
    abstain_below: Share
    map: str | None
    why: str | None
    prepared: str | None
    root: str
    feature_folder: str
    out: str | None
    overwrite: bool
    gps: bool
    thumbnail_px: Natural
    progress_bar: bool
    device: Device | None
    precision: Literal["auto", "float32", "bfloat16"]
    batch_size: Count

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        for key, path in (("map", self.map), ("why", self.why)):
            if path and isinstance(self.images, list) and len(self.images) > 1:
                yield Problem(key, f"{key}= draws one photo, images= names {len(self.images)}")
        if self.prepared and not self.why:
            yield Problem(
                "prepared",
                "prepared= adds train photos to the picture of why=, which is not asked for",
            )
        suffix = os.path.splitext(self.out or "")[1].lower()
        if suffix and suffix not in ANSWER_FORMATS:
            known = ", ".join(ANSWER_FORMATS)
            yield Problem(
                "out",
                f"out={self.out} has an unknown format",
                f"Known: {known}.{nearest_name(suffix, ANSWER_FORMATS)}",
            )


@dataclass(frozen=True)
class ImportConfig:
    """``conf/import_geopak.yaml`` with its groups."""

    paths: Paths
    region: RegionOptions
    model: ModelOptions
    decoding: DecodingOptions
    phase: Phase
    checkpoint: str
    cells: str
    columns: Mapping[CellColumn, str | None]
    prepared: str | None
    prepared_out: str | None
    out: str
    overwrite: bool

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        if (self.prepared is None) != (self.prepared_out is None):
            yield Problem(
                "prepared_out",
                "prepared= and prepared_out= go together: a prepared set, and the folder for it "
                "with the imported cells",
            )
        if self.model.cell_heads != "per_province" or self.model.fusion.kind != "gated":
            yield Problem(
                "model",
                "the published architecture has model.cell_heads=per_province and "
                "model.fusion.kind=gated",
            )


@dataclass(frozen=True)
class AppConfig:
    """``conf/app.yaml``."""

    paths: Paths
    ckpt: str | None
    name: str
    host: str
    port: Annotated[int, Range(least=0, most=65535)]
    hosts: list[str]
    rule: DecodingRule | None
    coverage: Annotated[float, Range(above=0, below=1)] | None
    per_province: bool
    abstain_below: Share
    root: str
    prepared: str | None
    feature_folder: str
    max_mb: Annotated[float, Range(above=0, most=2000)]
    # Pillow opens no larger pictures than twice its own limit.
    max_megapixels: Annotated[float, Range(above=0, most=178)]
    max_photos: Count
    max_batch_mb: Annotated[float, Range(above=0, most=20_000)]
    timeout_s: Annotated[float, Range(above=0, most=86_400)]
    max_waiting: Count
    keep_minutes: Annotated[float, Range(above=0, most=1_000_000)]
    device: Device | None
    precision: Literal["auto", "float32", "bfloat16"]
    batch_size: Count

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        if self.max_batch_mb < self.max_mb:
            yield Problem(
                "max_batch_mb",
                f"max_batch_mb={self.max_batch_mb:g} is less than max_mb={self.max_mb:g}",
            )


@dataclass(frozen=True)
class PrepareConfig:
    """``conf/prepare.yaml`` with its groups."""

    paths: Paths
    region: RegionOptions
    columns: Columns
    split: SplitSettings
    executor: ExecutorSettings
    thresholds: Thresholds
    root: str
    tables: list[str]
    folders: list[str]
    out: str
    work: str | None
    seed: Natural
    validation: ValidationSettings
    provinces: ProvinceSettings
    quality: QualitySettings
    indoor: IndoorSettings
    cells: CellSettings

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        if not self.tables and not self.folders:
            yield Problem(
                "tables", "tables and folders are both empty: there are no photos",
                "Name a table, tables=[FILE], or a folder of photos, folders=[FOLDER].",
            )  # fmt: skip
        for province in self.region.region().provinces:
            for urban in (True, False):
                try:
                    self.cells.cap_km(province, urban)
                except GeopakError as error:
                    yield Problem.of(f"region.provinces.{province.key}", error)
                    break


@dataclass(frozen=True)
class DoctorConfig:
    """``conf/doctor.yaml``."""

    paths: Paths
    thresholds: Thresholds
    root: str
    prepared: str
    against: str | None


@dataclass(frozen=True)
class LeaksConfig:
    """``conf/leaks.yaml``."""

    paths: Paths
    columns: Columns
    table: str
    root: str
    hash_photos: bool
    train: str
    held_out: list[str]
    distances_km: list[NotNegative]
    near_duplicate_bits: Annotated[int, Range(least=0, most=32)]
    out: str | None
    workers: Count | None


@dataclass(frozen=True, kw_only=True)
class ShardsConfig(ShardSettings):
    """``conf/shards.yaml``."""

    paths: Paths
    executor: ExecutorSettings
    root: str
    prepared: str
    out: str
    seed: Natural


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig(PhotoSetConfig):
    """``conf/synthetic.yaml`` with its groups."""

    paths: Paths
    region: RegionOptions
    landscape: Landscape | None = None
    out: str
    workers: Count | None
    overwrite: bool
    contact_sheet: Natural

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        yield from _landscape_problems(self.landscape, self.region)


def _landscape_problems(landscape: Landscape | None, region: RegionOptions) -> Iterator[Problem]:
    if landscape is None:
        return
    try:
        landscape.check_region(region.region())
    except ConfigError as error:
        yield Problem.of("landscape", error)


@dataclass(frozen=True)
class PretrainConfig:
    """``conf/pretrain.yaml``."""

    paths: Paths
    model: ModelOptions
    encoder: Literal["semantic", "scene"]
    seed: Natural
    num_scenes: Count
    num_val_scenes: Count
    difficulty: NotNegative
    load_margin: Annotated[float, Range(least=1)]
    epochs: Count
    batch_size: Count
    lr: Positive
    warmup: Annotated[float, Range(least=0, below=1)]
    weight_decay: NotNegative
    gradient_clip: Positive
    number_weight: NotNegative
    augmentation: Annotated[dict[str, Any], PartOf(Augmentation)]
    threads: Count
    workers: Count
    out: str

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        if self.batch_size > self.num_scenes:
            yield Problem(
                "batch_size",
                f"batch_size={self.batch_size} is more than num_scenes={self.num_scenes}: an epoch "
                "would have no batch",
            )
        try:
            augmentation_strengths(self.augmentation)
        except ConfigError as error:
            yield Problem.of("augmentation", error)


@dataclass(frozen=True)
class DemoConfig:
    """``conf/demo.yaml``; the overrides of the steps are checked when each is composed."""

    paths: Paths
    region: RegionOptions
    plain_names: Mapping[str, str]
    suffix: str
    name: str
    root: str
    synthetic: Sequence[str]
    prepare: Sequence[str]
    calibrate: Sequence[str]
    evaluate: Sequence[str]
    train: Mapping[Literal[0, 1, 2], list[str]]
    landscape: Landscape | None = field(default=None)

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        yield from _landscape_problems(self.landscape, self.region)
        if missing := sorted({0, 1, 2} - set(self.train)):
            yield Problem("train", f"train lacks phase {missing[0]}")


@dataclass(frozen=True)
class CompareConfig:
    """``conf/compare.yaml``."""

    paths: Paths
    runs: list[str]
    baseline: str | None
    split: Literal["train", "val", "test"]
    rule: DecodingRule | None
    evaluate: bool
    evaluate_with: list[str]
    unfinished: Literal["refuse", "skip"]
    out: str
    resamples: Count
    seed: Natural


@dataclass(frozen=True)
class WorkspaceConfig:
    """``conf/workspace.yaml``."""

    region: RegionOptions
    paths: Paths
    project: str
    entity: str | None
    name: str


@dataclass(frozen=True)
class SweepConfig:
    """``conf/sweep.yaml``."""

    paths: Paths
    folder: str | None
    name: str


@dataclass(frozen=True)
class AblationsConfig:
    """``conf/ablations.yaml``; the overrides of the runs are checked when each is composed."""

    paths: Paths
    name: str
    root: str
    variants: list[str]
    retrieval: bool
    seeds: list[Natural]
    phases: list[Literal[0, 1, 2]]
    jobs: Count
    threads: Count
    train: Mapping[Literal[0, 1, 2], list[str]]
    evaluate: list[str]
    page: str | None
