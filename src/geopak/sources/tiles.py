"""Tiles that cover a province: what a source that answers by area is asked for, part by part.

A tile is a box of longitude and latitude with whole millionths of a degree as edges, the six
decimals that interfaces of maps read: what is asked is exactly what was meant, and the parts of a
tile meet without a gap or an overlap. Tiles count longitudes as the outlines do, beyond 180 for a
region across the antimeridian, but none reaches across it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import shapely
from shapely.geometry import MultiPolygon, Polygon

# Of geopak.geo.distance, which brings torch with it; a collector does without.
_EARTH_RADIUS_KM = 6371.0088
_KM_PER_DEGREE = _EARTH_RADIUS_KM * math.pi / 180
_MICRO = 1_000_000
_TURN = 360 * _MICRO
# Interfaces measure on another earth than the sphere here: by up to 0.4%, where it is flattened.
_CIRCLE_MARGIN = 1.005


@dataclass(frozen=True, order=True)
class Tile:
    """A box of ground.

    Attributes:
        south, west, north, east: edges in millionths of a degree; longitudes as the outlines have
            them.
    """

    south: int
    west: int
    north: int
    east: int

    def __post_init__(self) -> None:
        if not (self.south < self.north and self.west < self.east):
            raise ValueError(f"{self} has no area")

    @classmethod
    def of(cls, edges: Sequence[int]) -> Tile:
        """Inverse of :attr:`edges`."""
        south, west, north, east = edges
        return cls(int(south), int(west), int(north), int(east))

    @property
    def edges(self) -> list[int]:
        """South, west, north, east, for a query's parameters."""
        return [self.south, self.west, self.north, self.east]

    @property
    def box_deg(self) -> tuple[float, float, float, float]:
        """(south, west, north, east) in degrees, longitudes between -180 and 180."""
        turns = math.floor((self.west / _MICRO + 180) / 360)
        west, east = self.west - turns * _TURN, self.east - turns * _TURN
        return self.south / _MICRO, west / _MICRO, self.north / _MICRO, east / _MICRO

    @property
    def polygon(self) -> Polygon:
        """The box in degrees, longitudes as the outlines have them."""
        edges = (self.west, self.south, self.east, self.north)
        return shapely.box(*(edge / _MICRO for edge in edges))

    @property
    def height_km(self) -> float:
        """From south to north."""
        return (self.north - self.south) / _MICRO * _KM_PER_DEGREE

    @property
    def width_km(self) -> float:
        """From west to east where it is widest."""
        nearest = 0 if self.south < 0 < self.north else min(abs(self.south), abs(self.north))
        across = math.cos(math.radians(nearest / _MICRO)) * _KM_PER_DEGREE
        return (self.east - self.west) / _MICRO * across

    @property
    def side_km(self) -> float:
        """The longer side."""
        return max(self.height_km, self.width_km)

    @property
    def center_deg(self) -> tuple[float, float]:
        """Latitude, and longitude between -180 and 180."""
        south, west, north, east = self.box_deg
        return (south + north) / 2, (west + east) / 2

    @property
    def radius_km(self) -> float:
        """Of the circle around the center that covers the tile."""
        # No point is farther than a corner: along a meridian the farthest point is an end, and
        # along a parallel too, as the distance grows with the difference in longitude.
        latitude, longitude = self.center_deg
        south, west, north, _ = self.box_deg
        corners = ((south, west), (north, west))
        return _CIRCLE_MARGIN * max(
            _distance_km(latitude, longitude, *corner) for corner in corners
        )

    def split(self) -> tuple[Tile, ...]:
        """Its parts: quarters, or halves where one side is more than twice the other.

        From south-west to north-east; none for a tile that is a millionth of a degree wide.
        """
        high, wide = self.north - self.south, self.east - self.west
        halve_height = high >= 2 and self.height_km * 2 >= self.width_km
        halve_width = wide >= 2 and self.width_km * 2 >= self.height_km
        if not (halve_height or halve_width):
            halve_height, halve_width = high >= 2, wide >= 2
        if not (halve_height or halve_width):
            return ()
        rows = _halves(self.south, self.north) if halve_height else [(self.south, self.north)]
        columns = _halves(self.west, self.east) if halve_width else [(self.west, self.east)]
        return tuple(Tile(s, w, n, e) for s, n in rows for w, e in columns)


def parts(tile: Tile, polygon: Polygon | MultiPolygon) -> tuple[Tile, ...]:
    """The parts of a tile that touch a province.

    Args:
        tile: that holds too much.
        polygon: the province, longitude first.

    Returns:
        From south-west to north-east; none for a tile that cannot be split.
    """
    return tuple(part for part in tile.split() if shapely.intersects(polygon, part.polygon))


def cover(polygon: Polygon | MultiPolygon, largest_radius_km: float = math.inf) -> tuple[Tile, ...]:
    """Tiles that cover a province, as few as may be, none without any of it.

    Args:
        polygon: the province, longitude first, in degrees.
        largest_radius_km: the circle around a tile is no larger.

    Returns:
        In an order that is always the same.
    """
    west, south, east, north = polygon.bounds
    rows = _outer(south, north)
    first = [Tile(rows[0], w, rows[1], e) for w, e in _within_turns(*_outer(west, east))]
    return tuple(tile for root in first for tile in _cover(root, polygon, largest_radius_km))


def _cover(tile: Tile, polygon: Polygon | MultiPolygon, largest_km: float) -> Iterator[Tile]:
    if not shapely.intersects(polygon, tile.polygon):
        return
    smaller = tile.split() if tile.radius_km > largest_km else ()
    if not smaller:
        yield tile
    for part in smaller:
        yield from _cover(part, polygon, largest_km)


def _outer(low_deg: float, high_deg: float) -> tuple[int, int]:
    low, high = math.floor(low_deg * _MICRO), math.ceil(high_deg * _MICRO)
    return (low, high) if low < high else (low, low + 1)


def _within_turns(west: int, east: int) -> Iterator[tuple[int, int]]:
    """The stretch, cut where the antimeridian is."""
    half = _TURN // 2
    cuts = [cut for cut in range(-3 * half, 4 * half, _TURN) if west < cut < east]
    yield from zip([west, *cuts], [*cuts, east], strict=True)


def _halves(low: int, high: int) -> list[tuple[int, int]]:
    middle = (low + high) // 2
    return [(low, middle), (middle, high)]


def _distance_km(lat_a: float, lon_a: float, lat_b: float, lon_b: float) -> float:
    a, b = math.radians(lat_a), math.radians(lat_b)
    across = math.sin(math.radians(lon_b - lon_a) / 2) ** 2
    h = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * across
    return 2 * _EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, h)))
