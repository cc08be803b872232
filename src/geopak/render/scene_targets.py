"""What an image encoder can learn to see in the picture of a scene."""

from __future__ import annotations

import math
from collections.abc import Callable

from geopak.render.scene import (
    GROUNDS,
    LANDMARKS,
    MAX_BANDS,
    ROOFS,
    TREES,
    VEHICLES,
    WATERS,
    WEATHERS,
    Scene,
)

KINDS = (
    "city",
    "town",
    "village",
    "farmland",
    "desert",
    "woodland",
    "snowy_mountains",
    "green_hills",
    "arid_ranges",
    "coast",
    "riverbank",
)


def scene_kind(scene: Scene) -> str:
    """The kind of scene, one of ``KINDS``, by the most telling thing in it."""
    if scene.density > 0.62:
        return "city"
    if scene.water == "sea":
        return "coast"
    if scene.water == "river":
        return "riverbank"
    if scene.density > 0.38:
        return "town"
    if scene.snow > 0 and scene.relief > 0.3:
        return "snowy_mountains"
    if scene.relief > 0.4:
        return "green_hills" if scene.vegetation > 0.45 else "arid_ranges"
    if scene.density > 0.15:
        return "village"
    if scene.ground == "crops":
        return "farmland"
    return "woodland" if scene.vegetation > 0.55 else "desert"


_COLOURED_IF: dict[str, Callable[[Scene], bool]] = {
    "soil": lambda s: s.ground != "paving",
    "vegetation": lambda s: s.vegetation > 0.1,
    "ridge": lambda s: s.relief > 0.1,
    "wall": lambda s: s.density > 0.08,
    "roof": lambda s: s.density > 0.08,
    "stripe": lambda s: s.density > 0.08,
    "plinth": lambda s: s.density > 0.08,
    "awning": lambda s: s.awning and s.density > 0.08,
    "awning_trim": lambda s: s.awning and s.density > 0.08,
    "tree": lambda s: s.trees > 0.1,
    "kerb": lambda s: True,
    "kerb_trim": lambda s: True,
    "flag": lambda s: s.flags > 0.35,
    "vehicle": lambda s: s.vehicle != "none",
    "vehicle_trim": lambda s: s.vehicle != "none",
    "landmark": lambda s: s.landmark != "none",
    "landmark_trim": lambda s: s.landmark != "none",
}
_SIZED_IF: dict[str, Callable[[Scene], bool]] = {
    "relief": lambda s: True,
    "snow": lambda s: True,
    "jagged": lambda s: s.relief > 0.1,
    "vegetation": lambda s: True,
    "density": lambda s: True,
    "row_slant": lambda s: s.ground in ("crops", "paving"),
    "row_spacing": lambda s: s.ground in ("crops", "paving"),
    "stripes": lambda s: s.density > 0.08,
    "windows": lambda s: s.density > 0.08,
    "plinth": lambda s: s.density > 0.08,
    "glazing": lambda s: s.density > 0.08,
    "trees": lambda s: True,
    "tree_size": lambda s: s.trees > 0.1,
    "flags": lambda s: True,
    "landmark_height": lambda s: s.landmark != "none",
    "landmark_width": lambda s: s.landmark != "none",
}
# The names of a categorical target's classes, in index order.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "weather": WEATHERS,
    "ground": GROUNDS,
    "water": WATERS,
    "roof": ROOFS,
    "tree": TREES,
    "vehicle": VEHICLES,
    "landmark": LANDMARKS,
    "landmark_bands": tuple(str(k) for k in range(MAX_BANDS + 1)),
    "landmark_flanks": ("0", "1", "2"),
    "awning": ("no", "yes"),
}
# What must be there for a category to be seen; the others always are.
_SEEN_IF: dict[str, Callable[[Scene], bool]] = {
    "roof": lambda s: s.density > 0.08,
    "tree": lambda s: s.trees > 0.1,
    "landmark_bands": lambda s: s.landmark != "none",
    "landmark_flanks": lambda s: s.landmark != "none",
    "awning": lambda s: s.density > 0.08,
}


def content_targets(scene: Scene) -> tuple[dict[str, float], dict[str, int]]:
    """What an encoder can be asked to see in the picture of a scene.

    Returns:
        Numbers: every colour as ``<thing>_r/g/b`` and every size, in [0, 1], and
        ``skyline_0...`` as :attr:`Scene.skyline`; NaN where the thing is not in the picture.
        Classes: indices into ``CATEGORIES[name]``; -1 where the thing is not in the picture.
        The keys are the same for every scene.
    """
    numbers: dict[str, float] = {}
    for thing, present in _COLOURED_IF.items():
        rgb = getattr(scene, f"{thing}_rgb") if present(scene) else (math.nan,) * 3
        numbers.update({f"{thing}_{channel}": v for channel, v in zip("rgb", rgb, strict=True)})
    for size, present in _SIZED_IF.items():
        numbers[size] = float(getattr(scene, size)) if present(scene) else math.nan
    for k, coefficient in enumerate(scene.skyline):
        numbers[f"skyline_{k}"] = coefficient if scene.relief > 0.1 else math.nan
    values = {
        "kind": scene_kind(scene),
        "weather": scene.camera.weather,
        "landmark_bands": str(scene.landmark_bands),
        "landmark_flanks": str(scene.landmark_flanks),
        "awning": "yes" if scene.awning else "no",
    }
    classes = {}
    for name, names in CATEGORIES.items():
        seen = name not in _SEEN_IF or _SEEN_IF[name](scene)
        classes[name] = names.index(values.get(name, getattr(scene, name, ""))) if seen else -1
    return numbers, classes
