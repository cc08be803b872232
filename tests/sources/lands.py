"""Made-up lands: points at random in them, and what of a list lies inside."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

import numpy as np
import shapely
from numpy.typing import NDArray

from geopak.geo.boundaries import Outlines
from geopak.geo.region import Province, Region


class Placed(Protocol):
    """What has a place, in degrees."""

    @property
    def latitude(self) -> float: ...
    @property
    def longitude(self) -> float: ...


Thing = TypeVar("Thing", bound=Placed)


def scattered(
    rng: np.random.Generator,
    count: int,
    box: tuple[float, float, float, float],
    clustered: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latitudes and longitudes at random, half of them close together as in a town.

    Args:
        rng: of the random numbers.
        count: how many.
        box: south, west, north, east.
        clustered: half lie in a hundredth of the box.
    """
    south, west, north, east = box
    lat, lon = rng.uniform(south, north, count), rng.uniform(west, east, count)
    if clustered:
        town = count // 2
        lat[:town] = south + (north - south) * (0.4 + 0.1 * rng.random(town))
        lon[:town] = west + (east - west) * (0.7 + 0.1 * rng.random(town))
    return lat, lon


def region_of(lands: tuple[shapely.Polygon | shapely.MultiPolygon, ...]) -> Region:
    """A region whose provinces are the lands: p0, p1, …"""
    return Region("land", "Land", tuple(Province(f"p{k}", f"P{k}") for k in range(len(lands))))


def inside(
    lands: tuple[shapely.Polygon | shapely.MultiPolygon, ...], things: Iterable[Thing]
) -> list[Thing]:
    """Those that lie in one of the lands, by looking at every one."""
    every = list(things)
    where = Outlines(lands).province_of([[t.latitude, t.longitude] for t in every])
    return [thing for thing, province in zip(every, where, strict=True) if province >= 0]


def with_changes(entry: dict[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A stand-in's entry with other values of fields; ``None`` takes one away."""
    for key, value in changes:
        if value is None:
            entry.pop(key, None)
        else:
            entry[key] = value
    return entry
