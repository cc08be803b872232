"""Distances to borders against a naive search over densely sampled edges."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely.geometry import Polygon, box

from geopak.geo.borders import Borders
from geopak.geo.boundaries import Outlines
from geopak.geo.distance import haversine_km_array


def naive_km(polygons: list[Polygon], latlon_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nearest of points every 22 m at most along the edges."""
    samples = np.concatenate(
        [shapely.get_coordinates(shapely.segmentize(p, 2e-4)) for p in polygons]
    )
    return np.array([haversine_km_array(point, samples[:, ::-1]).min() for point in latlon_deg])


@settings(max_examples=30)
@given(
    lat=st.floats(-70, 70),
    lon=st.floats(-180, 180),
    corners=st.lists(st.tuples(st.floats(0, 0.6), st.floats(0, 0.6)), min_size=3, max_size=6),
    points=st.lists(st.tuples(st.floats(-0.3, 0.9), st.floats(-0.3, 0.9)), min_size=1, max_size=8),
)
def test_agrees_with_the_naive_search(
    lat: float, lon: float, corners: list[tuple[float, float]], points: list[tuple[float, float]]
) -> None:
    hull = shapely.MultiPoint(np.add(corners, (lon, lat))).convex_hull
    if hull.geom_type != "Polygon" or hull.area < 1e-3:
        hull = box(lon, lat, lon + 0.3, lat + 0.2)
    where = np.add(points, (lat, lon))
    expected = naive_km([hull], where)
    # A tenth of a percent, or half the spacing of the naive search's points.
    tolerance = 2e-3 * expected + 0.012
    found = Borders([hull]).distance_km(where, 100.0)
    assert (np.abs(found - expected) <= tolerance).all()
    reach = float(np.median(expected))
    capped = Borders([hull]).distance_km(where, reach)
    assert (np.isfinite(capped) | (expected >= reach - tolerance)).all()
    assert (capped[np.isfinite(capped)] <= reach).all()
    np.testing.assert_array_equal(capped[np.isfinite(capped)], found[np.isfinite(capped)])


@pytest.mark.parametrize("lat", [0.0, 35.0, -60.0, 75.0])
@pytest.mark.parametrize("max_km", [1.0, 30.0])
def test_a_percent_at_any_latitude(lat: float, max_km: float) -> None:
    polygons = [box(10, lat, 11, lat + 1), box(11, lat, 12, lat + 0.5)]
    rng = np.random.default_rng(3)
    where = rng.uniform((lat - 0.2, 9.8), (lat + 1.2, 12.2), (120, 2))
    expected = naive_km(polygons, where)
    found = Borders(polygons).distance_km(where, max_km)
    clear = np.abs(expected - max_km) > 0.01 * max_km
    np.testing.assert_array_equal(np.isfinite(found)[clear], (expected < max_km)[clear])
    near = np.isfinite(found)
    np.testing.assert_allclose(found[near], expected[near], rtol=0.01, atol=0.012)


def test_nothing_but_numbers_in_reach_has_a_distance() -> None:
    borders = Borders([box(0, 0, 1, 1)])
    where = np.array([[0.5, 0.001], [0.5, 50.0], [np.nan, 0.5], [0.5, np.nan], [np.inf, 0.0]])
    found = borders.distance_km(where, 5.0)
    assert found[0] == pytest.approx(0.1112, rel=1e-3)
    assert np.isinf(found[1:]).all()
    assert borders.distance_km(np.zeros((0, 2)), 5.0).shape == (0,)
    assert borders.distance_km(where[:1], 0.0).tolist() == [np.inf]
    assert borders.distance_km(np.array([[0.0, 0.0]]), 0.0).tolist() == [0.0]


@pytest.mark.parametrize("max_km", [0.01, 2.0, 60.0, 9000.0, np.inf])
def test_no_point_near_an_edge_is_passed_over(max_km: float) -> None:
    """The same distances as without the coarse picture of where edges are."""
    polygons = [box(10, 50, 19, 58), Polygon([(19, 50), (30, 61), (19, 58)])]
    borders = Borders(polygons)
    rng = np.random.default_rng(1)
    along = shapely.line_interpolate_point(polygons[1].exterior, rng.uniform(0, 40, 3000))
    near = shapely.get_coordinates(along)[:, ::-1] + rng.normal(0, 0.3, (3000, 2))
    where = np.concatenate((near, rng.uniform((-90, -180), (90, 180), (1000, 2))))
    everywhere = borders.distance_km(where, np.inf)
    found = borders.distance_km(where, max_km)
    assert np.isfinite(everywhere).all()
    np.testing.assert_array_equal(found, np.where(everywhere <= max_km, everywhere, np.inf))


def test_chunks_change_nothing() -> None:
    borders = Borders([box(0, 0, 1, 1)])
    where = np.random.default_rng(0).uniform(-0.1, 1.1, (101, 2))
    whole = borders.distance_km(where, 20.0)
    np.testing.assert_array_equal(borders.distance_km(where, 20.0, chunk=7), whole)


def test_holes_and_parts_have_borders() -> None:
    ring = Polygon(box(0, 0, 3, 3).exterior.coords, [box(1, 1, 2, 2).exterior.coords])
    borders = Borders([shapely.union(ring, box(5, 5, 6, 6))])
    found = borders.distance_km(np.array([[1.5, 1.01], [5.99, 5.5]]), 5.0)
    np.testing.assert_allclose(found, 1.112, rtol=1e-3)


def test_across_the_antimeridian() -> None:
    outlines = Outlines((box(179, -18, 180, -16), box(180, -18, 182, -16)))
    where = [[-17.0, 179.99], [-17.0, -179.99], [-17.0, 178.99], [-17.0, -177.99], [-17.0, 0.0]]
    found = outlines.border_distance_km(where, 3.0)
    np.testing.assert_allclose(found[:4], 1.063, rtol=2e-3)
    assert np.isinf(found[4])


def test_distance_to_a_province_that_a_point_is_not_in() -> None:
    outlines = Outlines((box(0, 0, 1, 1), box(1, 0, 2, 1)))
    where = [[0.5, 0.5], [0.5, 0.9], [0.5, 1.5], [0.5, 1.5]]
    found = outlines.away_km(where, [0, 1, 0, 1])
    np.testing.assert_allclose(found, [0, 11.12, 55.6, 0], rtol=1e-3)
