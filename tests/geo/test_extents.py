"""The ground of cells: fills provinces, overlaps nowhere, belongs to the nearest center."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from shapely.geometry import MultiPolygon, box

from geopak.geo.boundaries import Outlines
from geopak.geo.cells import NUM_NEIGHBOURS, CellTable
from geopak.geo.distance import EARTH_RADIUS_KM, haversine_km_array
from geopak.geo.extents import cell_areas_km2, cell_extents


def table(centers: list[list[tuple[float, float]]]) -> CellTable:
    """Cells at the centers, degrees, of each province."""
    province = np.repeat(np.arange(len(centers)), [len(c) for c in centers])
    n = len(province)
    return CellTable(
        province_id=province,
        center_latlon_deg=np.array([c for own in centers for c in own], float),
        radius_km=np.ones(n),
        count=np.ones(n, int),
        urban=np.zeros(n, bool),
        sparse=np.zeros(n, bool),
        neighbours=np.full((n, NUM_NEIGHBOURS), -1),
    )


def box_km2(west: float, south: float, east: float, north: float) -> float:
    """Area between two meridians and two parallels on the sphere."""
    height = np.sin(np.radians(north)) - np.sin(np.radians(south))
    return EARTH_RADIUS_KM**2 * np.radians(east - west) * height


def scattered(seed: int, west: float, south: float) -> list[tuple[float, float]]:
    rng = np.random.default_rng(seed)
    return [(south + 6 * rng.random(), west + 6 * rng.random()) for _ in range(25)]


@pytest.mark.parametrize("west", [64.0, 176.0])
def test_extents_fill_the_provinces_and_belong_to_the_nearest_center(west: float) -> None:
    """Two provinces side by side, the one in two parts; also across the antimeridian."""
    islands = MultiPolygon([box(west, 28, west + 6, 31), box(west, 32, west + 6, 34)])
    outlines = Outlines((islands, box(west + 6, 28, west + 12, 34)))
    cells = table([scattered(0, west, 28), scattered(1, west + 6, 28)])
    grounds = cell_extents(cells, outlines)
    areas = cell_areas_km2(cells, outlines)
    whole = box_km2(0, 28, 6, 31) + box_km2(0, 32, 6, 34) + box_km2(0, 28, 6, 34)
    assert areas.sum() == pytest.approx(whole, rel=1e-4)
    for province in (0, 1):
        own = [g for g, p in zip(grounds, cells.province_id, strict=True) if p == province]
        union = shapely.union_all(own)
        assert union.area == pytest.approx(outlines.polygons[province].area, rel=1e-3)
        assert sum(g.area for g in own) == pytest.approx(union.area, rel=1e-6)
    rng = np.random.default_rng(2)
    points = np.stack((rng.uniform(28, 34, 3000), rng.uniform(west, west + 12, 3000)), 1)
    province = outlines.province_of(points)
    points, province = points[province >= 0], province[province >= 0]
    nearest = cells.nearest(points, province)
    found = np.array(
        [
            shapely.intersects_xy(grounds[k], lon, lat)
            for k, (lat, lon) in zip(nearest, points, strict=True)
        ]
    )
    assert found.mean() > 0.998
    # The few others lie where two centers are all but equally near.
    for (lat, lon), p in zip(points[~found], province[~found], strict=True):
        away = np.sort(
            haversine_km_array((lat, lon), cells.center_latlon_deg[cells.province_id == p])
        )
        assert away[1] - away[0] < 0.01 * away[0]


def test_one_cell_has_its_province_and_of_twins_the_first_has_all() -> None:
    outlines = Outlines((box(60, 30, 62, 32), box(62, 30, 64, 32)))
    cells = table([[(31.0, 61.0)], [(31.0, 63.0), (31.0, 63.0), (31.5, 63.5)]])
    areas = cell_areas_km2(cells, outlines)
    assert areas[0] == pytest.approx(box_km2(60, 30, 62, 32), rel=1e-4)
    assert areas[2] == 0
    assert areas[1] + areas[3] == pytest.approx(areas[0], rel=1e-4)
    assert cell_extents(cells, outlines)[2].is_empty


def test_a_center_outside_the_outline_has_the_land_that_is_nearest_to_it() -> None:
    outlines = Outlines((box(60, 30, 62, 32),))
    areas = cell_areas_km2(table([[(31.0, 61.5), (31.0, 59.5)]]), outlines)
    assert areas[0] == pytest.approx(0.75 * areas.sum(), rel=0.02)
