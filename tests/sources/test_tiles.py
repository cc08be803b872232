"""Tiles cover a province wholly, none is without any of it, and splitting ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon, Polygon

from geopak.geo.boundaries import Outlines
from geopak.geo.distance import haversine_km_array
from geopak.sources.tiles import Tile, cover, parts

degrees = st.floats(-1, 1)


@st.composite
def provinces(draw: st.DrawFn) -> Polygon | MultiPolygon:
    """Stars of up to ten degrees anywhere, some beyond 180, some in two pieces."""
    pieces = []
    for _ in range(draw(st.integers(1, 2))):
        lat, lon = draw(st.floats(-75, 75)), draw(st.floats(-190, 200))
        corners = draw(st.integers(3, 9))
        reach = [draw(st.floats(0.01, 10)) for _ in range(corners)]
        angle = [2 * math.pi * k / corners for k in range(corners)]
        ring = [
            (lon + r * math.cos(a), max(-89.9, min(89.9, lat + r * math.sin(a))))
            for r, a in zip(reach, angle, strict=True)
        ]
        pieces.append(Polygon(ring).buffer(0))
    whole = shapely.union_all(pieces)
    return whole if not whole.is_empty else shapely.box(0, 0, 1, 1)


def leaves(polygon: Polygon | MultiPolygon, tile: Tile, smallest_km: float) -> list[Tile]:
    if tile.side_km <= smallest_km:
        return [tile]
    return [leaf for part in parts(tile, polygon) for leaf in leaves(polygon, part, smallest_km)]


def in_frame(polygon: Polygon | MultiPolygon, tiles: list[Tile]) -> None:
    """The tiles cover the polygon, overlap nowhere, and each has some of it."""
    boxes = [tile.polygon for tile in tiles]
    assert polygon.difference(shapely.union_all(boxes)).area < 1e-9
    assert sum(box.area for box in boxes) == pytest.approx(shapely.union_all(boxes).area)
    assert all(shapely.intersects(polygon, box) for box in boxes)


@settings(max_examples=60)
@given(provinces(), st.floats(30, 800))
def test_cover_is_whole_without_overlap_and_within_the_radius(
    polygon: Polygon | MultiPolygon, radius_km: float
) -> None:
    tiles = list(cover(polygon, radius_km))
    in_frame(polygon, tiles)
    assert all(tile.radius_km <= radius_km for tile in tiles)
    assert tiles == list(cover(polygon, radius_km))


@settings(max_examples=30)
@given(provinces())
def test_leaves_of_splitting_cover_the_province(polygon: Polygon | MultiPolygon) -> None:
    roots = cover(polygon)
    found = [leaf for root in roots for leaf in leaves(polygon, root, 120.0)]
    in_frame(polygon, found)


@settings(max_examples=60)
@given(provinces(), st.integers(0, 2**32 - 1))
def test_every_point_of_a_province_is_in_a_box_that_is_asked_for(
    polygon: Polygon | MultiPolygon, seed: int
) -> None:
    tiles = cover(polygon, 200.0)
    west, south, east, north = polygon.bounds
    rng = np.random.default_rng(seed)
    lon, lat = rng.uniform(west, east, 50), rng.uniform(south, north, 50)
    inside = shapely.intersects_xy(polygon, lon, lat)
    for longitude, latitude in zip(lon[inside], lat[inside], strict=True):
        usual = (longitude + 180) % 360 - 180
        hits = [s <= latitude <= n and w <= usual <= e for s, w, n, e in (t.box_deg for t in tiles)]
        assert any(hits)
    for s, w, n, e in (t.box_deg for t in tiles):
        assert -90 <= s < n <= 90
        assert -180 <= w < e <= 180


@settings(max_examples=80)
@given(st.integers(-89, 88), st.integers(-180, 179), st.integers(1, 10**6), st.integers(1, 10**6))
def test_circle_covers_its_tile(south: int, west: int, high: int, wide: int) -> None:
    tile = Tile(south * 10**6, west * 10**6, south * 10**6 + high, west * 10**6 + wide)
    s, w, n, e = tile.box_deg
    grid = np.stack(np.meshgrid(np.linspace(s, n, 9), np.linspace(w, e, 9)), -1).reshape(-1, 2)
    distance = haversine_km_array(np.array(tile.center_deg), grid)
    assert distance.max() <= tile.radius_km
    # And is not much larger than needed.
    assert tile.radius_km <= 1.01 * distance.max() + 1e-6


@settings(max_examples=60)
@given(st.integers(-90 * 10**6, 89 * 10**6), st.integers(1, 3000), st.integers(1, 3000))
def test_splitting_ends_and_loses_no_ground(south: int, high: int, wide: int) -> None:
    tile = Tile(south, 7, south + high, 7 + wide)
    steps = 0
    while smaller := tile.split():
        area = sum((p.north - p.south) * (p.east - p.west) for p in smaller)
        assert area == (tile.north - tile.south) * (tile.east - tile.west)
        tile = smaller[-1]
        steps += 1
    assert steps <= 26
    assert (tile.north - tile.south, tile.east - tile.west) == (1, 1)


def test_a_province_across_the_antimeridian_is_asked_for_on_both_sides() -> None:
    fiji = shapely.box(177.0, -19.0, 181.5, -16.0)
    boxes = [tile.box_deg for tile in cover(fiji)]
    assert boxes == [(-19.0, 177.0, -16.0, 180.0), (-19.0, -180.0, -16.0, -178.5)]
    outlines = Outlines((fiji,))
    inside = outlines.province_of([[-17.0, -179.0], [-17.0, 179.0]])
    assert inside.tolist() == [0, 0]


def test_long_tiles_are_halved_across() -> None:
    assert len(Tile(0, 0, 10**6, 10**7).split()) == 2
    assert len(Tile(0, 0, 10**6, 10**6).split()) == 4
    # A degree of longitude is short in the north.
    assert len(Tile(80 * 10**6, 0, 81 * 10**6, 10**7).split()) == 4


def test_parts_far_from_the_province_are_dropped() -> None:
    corner = Polygon([(0, 0), (0.2, 0), (0, 0.2)])
    assert parts(Tile(0, 0, 10**6, 10**6), corner) == (Tile(0, 0, 500_000, 500_000),)


def test_a_point_like_province_has_a_tile() -> None:
    (tile,) = cover(Polygon([(1, 1), (1, 1.0000001), (1.0000001, 1)]))
    assert tile.polygon.area > 0


def test_a_box_of_no_area_is_refused() -> None:
    with pytest.raises(ValueError, match="no area"):
        Tile(0, 0, 0, 5)
