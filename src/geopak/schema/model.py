"""The network's configuration: encoders, fusion, heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from geopak.errors import ConfigError
from geopak.options import Count, NotNegative, Positive, Range

# How a photo that is not square becomes one.
CROP, SQUEEZE = "crop", "squeeze"
FRAMINGS = (CROP, SQUEEZE)

Channels = tuple[float, float, float]
Deviations = tuple[Positive, Positive, Positive]


@dataclass(frozen=True)
class HeadSizes:
    """Widths of everything above the encoders; defaults are the published ones."""

    dim: Count = 512
    province_hidden: Count = 256
    cell_hidden_small: Count = 256
    cell_hidden_large: Count = 512
    cell_hidden_large_from: Count = 30
    cell_embedding: Count = 96
    province_embedding: Count = 32
    offset_hidden: Count = 256
    auxiliary_hidden: Count = 256
    dropout: Annotated[float, Range(least=0, below=1)] = 0.1


@dataclass(frozen=True)
class FusionOptions:
    """How both encoders' features become one; see :mod:`geopak.models.fusion`."""

    kind: Literal["gated", "mean", "concat", "semantic", "scene"]
    gate_bias: float


@dataclass(frozen=True)
class OffsetOptions:
    """What the offset head's output means and how it stays within the cell.

    Attributes:
        bound: ``smooth``: kilometres, see :func:`geopak.models.heads.bounded_offset_km`; ``clamp``:
            kilometres, cut at the bound; ``degrees``: added to the center's latitude and longitude,
            each cut by itself, see :func:`geopak.models.heads.clamped_offset_deg`; ``none``: no
            offset.
        bounded: when it is bounded: ``always``, or in ``training`` alone, as in the published
            model, whose predictions may lie outside their cells.
    """

    bound: Literal["smooth", "clamp", "degrees", "none"]
    bounded: Literal["always", "training"]

    def __post_init__(self) -> None:
        check_bounded(self.bound, self.bounded)


@dataclass(frozen=True)
class AuxiliaryOptions:
    """What the auxiliary head puts out.

    Attributes:
        output: ``region``: a position relative to the region's middle and extent; ``degrees``:
            latitude and longitude themselves, so that a new head starts at 0, 0.
    """

    output: Literal["region", "degrees"]


@dataclass(frozen=True)
class SemanticShape:
    """Arguments of :class:`geopak.models.encoders.SemanticEncoder`."""

    patch_size: Count
    width: Count
    layers: Count
    heads: Count
    quick_gelu: bool
    mean: Channels
    std: Deviations
    mlp_ratio: Positive = 4.0
    class_token: Literal["after_norm", "before_norm"] = "after_norm"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"model.semantic.shape.width={self.width} is not a multiple of "
                f"model.semantic.shape.heads={self.heads}."
            )


@dataclass(frozen=True)
class ClipSource:
    """Weights that open_clip fetches."""

    architecture: str
    tag: str


@dataclass(frozen=True)
class SemanticOptions:
    """The semantic encoder and its pretrained weights, a file or what open_clip fetches."""

    shape: SemanticShape
    checkpoint: str | None
    source: ClipSource | None


@dataclass(frozen=True)
class ResNetOptions:
    """Further arguments of ``timm.create_model`` for a ResNet."""

    layers: tuple[Count, Count, Count, Count] | None = None
    channels: tuple[Count, Count, Count, Count] | None = None
    stem_width: Count | None = None
    stem_type: str | None = None
    avg_down: bool | None = None
    output_stride: Count | None = None
    drop_path_rate: Annotated[float, Range(least=0, below=1)] | None = None


@dataclass(frozen=True)
class SceneShape:
    """Arguments of :class:`geopak.models.encoders.SceneEncoder`."""

    architecture: str
    options: ResNetOptions | None
    mean: Channels
    std: Deviations


@dataclass(frozen=True)
class SceneOptions:
    """The scene encoder and its pretrained weights."""

    shape: SceneShape
    checkpoint: str | None


@dataclass(frozen=True)
class EncoderRates:
    """Learning rates at which the encoders adapt."""

    semantic: NotNegative
    scene: NotNegative


@dataclass(frozen=True)
class ModelOptions:
    """The whole network.

    Attributes:
        name: for people.
        image_size: side of the square input, pixels.
        framing: the square that a photo is seen as: ``crop``: the one in its middle; ``squeeze``:
            all of it, narrowed along its longer side.
        pretrained: whether the encoders start from their pretrained weights.
        semantic, scene: the encoders.
        lr: rates at which they adapt in phase 2.
        fusion, sizes: of what is above them.
        cell_heads: one for every province, or a flat one over all cells.
        offset: within a cell.
        auxiliary: the coordinate beside the hierarchy.
    """

    name: str
    image_size: Count
    framing: Literal["crop", "squeeze"]
    pretrained: bool | None
    semantic: SemanticOptions
    scene: SceneOptions
    lr: EncoderRates
    fusion: FusionOptions
    cell_heads: Literal["per_province", "flat"]
    offset: OffsetOptions
    auxiliary: AuxiliaryOptions
    sizes: HeadSizes

    def __post_init__(self) -> None:
        check_patches(self.image_size, self.semantic.shape.patch_size)


def check_patches(image_size: int, patch_size: int) -> None:
    """Checks that whole patches fill the picture.

    Raises:
        ConfigError: they do not.
    """
    if image_size % patch_size:
        raise ConfigError(
            f"model.image_size={image_size} is not a multiple of "
            f"model.semantic.shape.patch_size={patch_size}."
        )


def check_bounded(bound: str, bounded: str) -> None:
    """Checks that an offset which is bounded in training alone has a bound that can be left out.

    Raises:
        ConfigError: it has none.
    """
    if bounded == "training" and bound not in ("clamp", "degrees"):
        raise ConfigError(
            f"model.offset.bounded=training is for model.offset.bound=clamp and degrees, not for "
            f"{bound}. Set model.offset.bounded=always."
        )
