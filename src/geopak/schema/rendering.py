"""What a rendered photo set is: pictures, places, defects, and the world behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from geopak.errors import ConfigError, nearest_name
from geopak.geo.region import Region
from geopak.options import NotNegative, Positive, Share, options

DEFECTS = ("wrong_label", "outside", "swapped", "truncated", "duplicate", "near_duplicate")
# Kinds whose file is a copy of another photo's.
COPIES = ("duplicate", "near_duplicate")
Roof = Literal["flat", "gabled", "domed", "stepped"]
Tree = Literal["round", "palm", "conifer", "poplar", "scrub"]
Vehicle = Literal["none", "truck", "bus", "rickshaw", "car", "jeep"]
# So many style waves are used.
NUM_REGIONAL_DIALS = 14
NUM_LOCAL_DIALS = 10


def _require(good: bool, key: str, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{key} must be {wanted}.")


@dataclass(frozen=True)
class WorldConfig:
    """How the world encodes positions.

    Attributes:
        seed: of everything that is not given by the landscape.
        regional_km, local_km: wavelengths of the style waves, used in turn.
        num_regional, num_local: numbers of style waves.
        landmark_tile_km, landmark_detail_km: tiles of a landmark's kind and of its details.
        skyline_tile_km: distance of the nodes between which skylines are blended.
        snow_line_m: elevation above which ridges carry snow.
        style_mixing: chance that a wall, roof, tree or vehicle is of another province's style.
        vehicle_share, awning_share: chances that there is a vehicle and an awning.
        landmark_missing: chance at difficulty 1 that the landmark is not in the picture.
    """

    seed: int = 0
    regional_km: tuple[float, ...] = (900.0, 260.0)
    local_km: tuple[float, ...] = (80.0, 26.0)
    num_regional: int = 14
    num_local: int = 10
    landmark_tile_km: float = 28.0
    landmark_detail_km: float = 7.0
    skyline_tile_km: float = 40.0
    snow_line_m: float = 1900.0
    style_mixing: float = 0.25
    vehicle_share: float = 0.75
    awning_share: float = 0.7
    landmark_missing: float = 0.2

    def __post_init__(self) -> None:
        for name in ("regional_km", "local_km"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ConfigError(f"world.{name} must list positive wavelengths.")
        for name, least in (("num_regional", NUM_REGIONAL_DIALS), ("num_local", NUM_LOCAL_DIALS)):
            if getattr(self, name) < least:
                raise ConfigError(f"world.{name} must be at least {least}: so many are used.")
        for name in ("landmark_tile_km", "landmark_detail_km", "skyline_tile_km"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"world.{name} must be positive.")
        for name in ("style_mixing", "vehicle_share", "awning_share", "landmark_missing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"world.{name} must lie between 0 and 1.")


@dataclass(frozen=True)
class Bump:
    """A Gaussian hill of a field.

    Attributes:
        at: latitude and longitude of the top, degrees.
        height: value at the top, in the unit of the field.
        radius_km: standard deviations along and across.
        bearing_deg: direction of "along", clockwise from north.
    """

    at: tuple[float, float]
    height: float
    radius_km: tuple[Positive, Positive]
    bearing_deg: float = 0.0


@dataclass(frozen=True)
class ImageConfig:
    """Sizes and encoding of the files; ``aspects`` are width / height, equally often."""

    short_side_px: tuple[int, int] = (100, 168)
    aspects: tuple[float, ...] = (1.5, 1.3333, 1.0, 0.75)
    quality: int = 88
    photos_per_folder: int = 1000

    def __post_init__(self) -> None:
        low, high = self.short_side_px
        _require(16 <= low <= high, "image.short_side_px", "two sizes, 16 at least, smaller first")
        positive = bool(self.aspects) and min(self.aspects) > 0
        _require(positive, "image.aspects", "a list of positive numbers")
        _require(1 <= self.quality <= 95, "image.quality", "between 1 and 95")
        _require(self.photos_per_folder >= 1, "image.photos_per_folder", "at least 1")


@dataclass(frozen=True)
class PlacesConfig:
    """Where, by whom and when photos are taken; ``conf/synthetic.yaml`` explains each setting."""

    town_exponent: float = 0.55
    spots_per_town: int = 40
    spot_share: float = 0.6
    jitter_km: float = 0.25
    wilderness_share: float = 0.04
    wilderness_km: float = 25.0
    album_size: float = 2.5
    albums_per_author: float = 4.0
    traveller_share: float = 0.15
    years: tuple[int, int] = (2014, 2025)

    def __post_init__(self) -> None:
        _require(self.town_exponent >= 0, "places.town_exponent", "not negative")
        _require(self.spots_per_town >= 1, "places.spots_per_town", "at least 1")
        shares = self.spot_share >= 0 and self.wilderness_share >= 0
        _require(
            shares and self.spot_share + self.wilderness_share <= 1,
            "places.spot_share and places.wilderness_share",
            "not negative, and together at most 1",
        )
        _require(0 <= self.traveller_share <= 1, "places.traveller_share", "between 0 and 1")
        _require(self.jitter_km >= 0, "places.jitter_km", "not negative")
        _require(self.wilderness_km > 0, "places.wilderness_km", "positive")
        _require(self.album_size >= 1, "places.album_size", "at least 1")
        _require(self.albums_per_author >= 1, "places.albums_per_author", "at least 1")
        _require(1900 <= self.years[0] <= self.years[1], "places.years", "two years, first to last")


@dataclass(frozen=True)
class PhotoSetConfig:
    """What the photo set is; ``conf/synthetic.yaml`` explains each setting.

    Attributes:
        defects: number (if whole) or share of ``num_photos`` (if below 1) of each kind of
            ``DEFECTS``; kinds left out do not occur.
    """

    num_photos: int = 10_000
    seed: int = 0
    difficulty: float = 0.75
    image: ImageConfig = field(default_factory=ImageConfig)
    places: PlacesConfig = field(default_factory=PlacesConfig)
    defects: Mapping[str, float] = field(default_factory=dict)
    world: WorldConfig = field(default_factory=WorldConfig)

    def __post_init__(self) -> None:
        whole = isinstance(self.num_photos, int) and self.num_photos >= 1
        _require(whole, "num_photos", "a whole number, 1 at least")
        _require(self.seed >= 0, "seed", "not negative")
        _require(self.difficulty >= 0, "difficulty", "not negative")
        for kind, value in self.defects.items():
            if kind not in DEFECTS:
                raise ConfigError(
                    f"defects.{kind} is no kind of defect.{nearest_name(kind, DEFECTS)} "
                    f"Known: {', '.join(DEFECTS)}."
                )
            good = value >= 0 and (value < 1 or float(value).is_integer())
            _require(good, f"defects.{kind}", "a whole number, or a share below 1")
        total = sum(self.defect_counts().values())
        copies = sum(self.defect_counts()[kind] for kind in COPIES)
        # Every copy needs an original of its own that has no defect.
        if total + copies > self.num_photos:
            raise ConfigError(
                f"defects asks for {total} bad rows, {copies} of them copies of good ones, but "
                f"num_photos is {self.num_photos}. Lower defects.* or raise num_photos."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PhotoSetConfig:
        """Takes the settings it knows from the composed configuration of ``synthetic``.

        Raises:
            ConfigError: a value out of range, or an unknown setting in a section.
        """
        known = {f.name for f in fields(PhotoSetConfig)}
        return options(PhotoSetConfig, {k: v for k, v in config.items() if k in known}, "")

    def defect_counts(self) -> dict[str, int]:
        """Number of bad rows of every kind of ``DEFECTS``."""
        counts = {}
        for kind in DEFECTS:
            value = self.defects.get(kind, 0)
            counts[kind] = round(value * self.num_photos) if value < 1 else int(value)
        return counts


def parse_colour(where: str, value: str) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of ``#rrggbb``.

    Raises:
        ConfigError: it is no colour; names ``where``.
    """
    try:
        digits = value.removeprefix("#")
        if len(digits) != 6:
            raise ValueError
        red, green, blue = (int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4))
    except ValueError:
        raise ConfigError(f"{where}={value!r} is no colour. Write it as '#rrggbb'.") from None
    return red, green, blue


@dataclass(frozen=True)
class StyleOptions:
    """What of a province's style is given; the rest (``None``) follows from the world's seed."""

    walls: list[str] | None = None
    roof: Roof | None = None
    roof_rgb: str | None = None
    tree: Tree | None = None
    tree_rgb: str | None = None
    vehicles: list[Vehicle] | None = None
    vehicle_rgb: str | None = None
    vehicle_trim_rgb: str | None = None
    glazing: Share | None = None

    def __post_init__(self) -> None:
        for name in ("roof_rgb", "tree_rgb", "vehicle_rgb", "vehicle_trim_rgb"):
            if (colour := getattr(self, name)) is not None:
                parse_colour(name, colour)
        for colour in self.walls or ():
            parse_colour("walls", colour)


@dataclass(frozen=True)
class Landscape:
    """How a region looks, in broad strokes; ``None``: derived from the world's seed.

    Attributes:
        region: that it is of; ``None``: any.
        photo_shares: share of the photos per province; ``None``: by the population of its towns.
        relief, base_elevation_m: hills upon a plain, metres.
        aridity, base_aridity: from 0, lush, to 1, desert.
        rivers, coast: lines of (latitude, longitude), degrees.
        styles: per province.
    """

    region: str | None = None
    photo_shares: Mapping[str, NotNegative] | None = None
    relief: list[Bump] | None = None
    base_elevation_m: float = 0.0
    aridity: list[Bump] | None = None
    base_aridity: Share = 0.5
    rivers: list[list[tuple[float, float]]] | None = None
    coast: list[list[tuple[float, float]]] | None = None
    styles: Mapping[str, StyleOptions] | None = None

    def check_region(self, region: Region) -> None:
        """Checks that it is a landscape of the region.

        Raises:
            ConfigError: it is of another, or names a province that the region does not have.
        """
        if self.region not in (None, region.name):
            raise ConfigError(
                f"landscape.region={self.region!r} is not the region, which is {region.name!r}. "
                f"Choose landscape=derived, or write conf/landscape/{region.name}.yaml."
            )
        keys = [p.key for p in region.provinces]
        for section in ("photo_shares", "styles"):
            for key in getattr(self, section) or ():
                if key not in keys:
                    raise ConfigError(
                        f"landscape.{section}.{key}: the region has no such province."
                        f"{nearest_name(key, keys)} Known: {', '.join(keys)}."
                    )
