"""A stylised outdoor scene as a set of parameters. It knows nothing of any geography.

A :class:`Scene` says what there is to see, its :class:`Camera` under which circumstances it is
photographed. :mod:`geopak.render.scene_drawing` turns both into pixels,
:mod:`geopak.render.scene_prior` draws scenes at random, and :mod:`geopak.render.scene_targets` says
what an image encoder can learn to see in them.
"""

from __future__ import annotations

import colorsys
import dataclasses
from dataclasses import dataclass
from typing import get_args

from geopak.schema.rendering import Roof, Tree, Vehicle

RGB = tuple[float, float, float]

WEATHERS = ("clear", "overcast", "dust", "fog", "rain")
GROUNDS = ("soil", "sand", "grass", "crops", "paving")
WATERS = ("none", "river", "sea")
ROOFS: tuple[str, ...] = get_args(Roof)
TREES: tuple[str, ...] = get_args(Tree)
VEHICLES: tuple[str, ...] = get_args(Vehicle)
LANDMARKS = (
    "none",
    "minaret",
    "dome",
    "clock_tower",
    "water_tower",
    "arch",
    "obelisk",
    "fort",
    "mast",
)
SKYLINE_TERMS = 6
MAX_BANDS = 5


@dataclass(frozen=True)
class Camera:
    """The circumstances of one photo; they say nothing of what stands there.

    Attributes:
        horizon: height of the horizon, fraction of the image height from the top.
        roll: slope of the horizon, radians.
        zoom: magnification.
        gain: exposure factor.
        white_balance: factor per channel.
        gamma: exponent of the tone curve.
        clutter: number of foreign objects in front.
        daylight: 0 at dawn or dusk, 1 at noon.
        weather: one of ``WEATHERS``.
        noise: standard deviation of the sensor noise, of 255 grey levels.
    """

    horizon: float = 0.46
    roll: float = 0.0
    zoom: float = 1.0
    gain: float = 1.0
    white_balance: RGB = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    clutter: int = 0
    daylight: float = 1.0
    weather: str = "clear"
    noise: float = 3.0


@dataclass(frozen=True)
class Scene:
    """What there is to see. Colours are RGB in [0, 1]; sizes and shares are in [0, 1].

    Attributes:
        relief: height of the ridges behind, 1 being 0.4 of the image height.
        skyline: shape of the ridges, ``SKYLINE_TERMS`` cosine coefficients of about unit size.
        jagged: roughness of the ridges.
        snow: share of the ridges' height under snow.
        ridge_rgb, soil_rgb, vegetation_rgb: colours of the land.
        vegetation: share of the ground that plants cover.
        ground: one of ``GROUNDS``.
        row_slant, row_spacing: direction and distance of crop rows or paving joints.
        water: one of ``WATERS``.
        density: from wilderness (0) to the middle of a large city (1).
        wall_rgb, roof_rgb, stripe_rgb, plinth_rgb: colours of the buildings.
        roof: one of ``ROOFS``.
        glazing: share of glass in the walls; above 0.5 the windows are ribbons.
        stripes, windows: distance of painted stripes and of windows on a wall.
        plinth: height of the painted base of a wall.
        awning, awning_rgb, awning_trim_rgb: whether a shop has an awning, its two colours.
        tree, tree_rgb, tree_size, trees: kind, colour, size and abundance of trees.
        kerb_rgb, kerb_trim_rgb: the two colours of the kerb stones along the road.
        flags, flag_rgb: abundance and colour of pennants over the road.
        vehicle, vehicle_rgb, vehicle_trim_rgb: one of ``VEHICLES`` and its colours.
        landmark, landmark_rgb, landmark_trim_rgb: one of ``LANDMARKS`` and its colours.
        landmark_height, landmark_width, landmark_bands, landmark_flanks: its geometry; bands are
            0 to ``MAX_BANDS`` painted rings, flanks 0 to 2 small towers beside it.
        camera: circumstances of the photo.
    """

    relief: float
    skyline: tuple[float, ...]
    jagged: float
    snow: float
    ridge_rgb: RGB
    soil_rgb: RGB
    vegetation_rgb: RGB
    vegetation: float
    ground: str
    row_slant: float
    row_spacing: float
    water: str
    density: float
    wall_rgb: RGB
    roof_rgb: RGB
    stripe_rgb: RGB
    plinth_rgb: RGB
    roof: str
    glazing: float
    stripes: float
    windows: float
    plinth: float
    awning: bool
    awning_rgb: RGB
    awning_trim_rgb: RGB
    tree: str
    tree_rgb: RGB
    tree_size: float
    trees: float
    kerb_rgb: RGB
    kerb_trim_rgb: RGB
    flags: float
    flag_rgb: RGB
    vehicle: str
    vehicle_rgb: RGB
    vehicle_trim_rgb: RGB
    landmark: str
    landmark_rgb: RGB
    landmark_trim_rgb: RGB
    landmark_height: float
    landmark_width: float
    landmark_bands: int
    landmark_flanks: int
    camera: Camera = dataclasses.field(default_factory=Camera)


def hsv(hue: float, saturation: float, value: float) -> RGB:
    """RGB of a hue (taken modulo 1), saturation and value (clipped to [0, 1])."""
    return colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """The colour ``share`` of the way from ``a`` to ``b``."""
    rest = 1.0 - share
    return (rest * a[0] + share * b[0], rest * a[1] + share * b[1], rest * a[2] + share * b[2])
