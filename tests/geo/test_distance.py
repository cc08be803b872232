"""Distances, means and moves on the sphere against independent formulas, in value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod
from torch import Tensor

from geopak.geo.distance import (
    EARTH_RADIUS_KM,
    KM_PER_DEGREE,
    haversine_km,
    haversine_km_array,
    latlon_of_vectors,
    move_km,
    spherical_mean,
    spherical_mean_array,
    unit_vectors,
)

Point = tuple[float, float]
latitudes = st.floats(-90, 90, width=32) | st.sampled_from([-90.0, 0.0, 89.99999, 90.0])
longitudes = st.floats(-180, 180, width=32) | st.sampled_from([-180.0, 0.0, 90.0, 180.0])
points = st.tuples(latitudes, longitudes)
inner_points = st.tuples(st.floats(-80, 80), st.floats(-180, 180))
offsets = st.tuples(st.floats(-500, 500), st.floats(-500, 500))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
SPHERE = Geod(a=EARTH_RADIUS_KM * 1000, b=EARTH_RADIUS_KM * 1000)


def naive_km(a: Point, b: Point) -> float:
    """Vincenty's formula for the sphere, in Python floats."""
    lat_a, lon_a, lat_b, lon_b = (math.radians(v) for v in (*a, *b))
    d = lon_b - lon_a
    x = math.cos(lat_b) * math.sin(d)
    y = math.cos(lat_a) * math.sin(lat_b) - math.sin(lat_a) * math.cos(lat_b) * math.cos(d)
    z = math.sin(lat_a) * math.sin(lat_b) + math.cos(lat_a) * math.cos(lat_b) * math.cos(d)
    return EARTH_RADIUS_KM * math.atan2(math.hypot(x, y), z)


def tensor_km(a: Point, b: Point, dtype: torch.dtype = torch.float64) -> float:
    return float(haversine_km(torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)))


def gradients(function: Callable[..., Tensor], *values: Point, dtype: torch.dtype) -> list[Tensor]:
    leaves = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in values]
    function(*leaves).sum().backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@given(points, points)
def test_distance_of_tensors_and_arrays_is_vincentys(a: Point, b: Point) -> None:
    expected = naive_km(a, b)
    # Close to the antipode the haversine is 1, where half of all digits are lost.
    assert tensor_km(a, b) == pytest.approx(expected, abs=1e-3)
    assert float(haversine_km_array(a, b)) == pytest.approx(expected, abs=1e-3)
    abs_km = 0.03 if expected < 19_000 else 5
    assert tensor_km(a, b, torch.float32) == pytest.approx(expected, abs=abs_km)


def test_distance_is_that_of_pyproj_on_a_sphere_of_this_radius() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform((-90, -180), (90, 180), (2, 500, 2))
    _, _, metres = SPHERE.inv(a[:, 1], a[:, 0], b[:, 1], b[:, 0])
    np.testing.assert_allclose(haversine_km_array(a, b), metres / 1000, atol=1e-6)
    np.testing.assert_allclose(haversine_km(*map(torch.tensor, (a, b))), metres / 1000, atol=1e-4)


@given(points, points, points)
def test_distance_is_a_metric(a: Point, b: Point, c: Point) -> None:
    assert tensor_km(a, a) == 0
    assert tensor_km(a, b) == pytest.approx(tensor_km(b, a), abs=1e-6)
    assert tensor_km(a, c) <= tensor_km(a, b) + tensor_km(b, c) + 1e-4


@pytest.mark.parametrize("metres", [1, 3, 10, 100, 1000])
def test_float32_is_accurate_to_a_metre_over_short_distances(metres: float) -> None:
    rng = np.random.default_rng(int(metres))
    a = torch.tensor(rng.uniform((24, 61), (37, 77), (500, 2)), dtype=torch.float32)
    lat, lon = a.double().numpy().T
    lon, lat, _ = SPHERE.fwd(lon, lat, rng.uniform(0, 360, len(a)), np.full(len(a), metres))
    b = torch.tensor(np.stack((lat, lon), -1), dtype=torch.float32)
    # The truth is taken between the rounded coordinates: their rounding is not the formula's.
    expected = haversine_km_array(a.double(), b.double())
    assert np.abs(haversine_km(a, b).numpy() - expected).max() < 5e-4


def test_distance_broadcasts() -> None:
    a, b = torch.rand(4, 1, 2), torch.rand(3, 2)
    assert haversine_km(a, b).shape == (4, 3)
    assert haversine_km_array(a.numpy(), b.numpy()).shape == (4, 3)


@dtypes
@given(points, points)
def test_gradient_of_the_distance_is_finite_everywhere(
    dtype: torch.dtype, a: Point, b: Point
) -> None:
    assert all(g.isfinite().all() for g in gradients(haversine_km, a, b, dtype=dtype))


@dtypes
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((30.0, 70.0), (30.0, 70.0)),
        ((30.0, 70.0), (-30.0, -110.0)),
        ((0.0, 0.0), (0.0, 180.0)),
        ((90.0, 0.0), (89.99999, 180.0)),
        ((90.0, 0.0), (90.0, 180.0)),
        ((-90.0, 0.0), (90.0, 0.0)),
        ((10.0, -180.0), (10.0, 180.0)),
        ((30.0, 70.0), (30.0, 70.000004)),
    ],
    ids=["same", "antipode", "across", "at pole", "pole twice", "poles", "date line", "near"],
)
def test_value_and_gradient_are_finite_where_the_formula_degenerates(
    dtype: torch.dtype, a: Point, b: Point
) -> None:
    assert tensor_km(a, b, dtype) == pytest.approx(naive_km(a, b), abs=5e-3)
    for gradient in gradients(haversine_km, a, b, dtype=dtype):
        assert gradient.isfinite().all()
        # A degree is 111 km: beyond it a gradient would be rounding blown up.
        assert gradient.abs().max() < 1000


def test_gradient_of_the_distance_is_zero_at_zero_distance() -> None:
    assert all(
        (g == 0).all()
        for g in gradients(haversine_km, (30.0, 70.0), (30.0, 70.0), dtype=torch.float32)
    )


@pytest.mark.parametrize("km", [0.01, 1.0, 100.0])
def test_gradient_of_the_distance_has_the_length_of_a_degree(km: float) -> None:
    there = move_km(torch.tensor((30.0, 70.0)).double(), torch.tensor((km, 0.0)).double())
    _, gradient = gradients(haversine_km, (30.0, 70.0), tuple(there.tolist()), dtype=torch.float64)
    torch.testing.assert_close(
        gradient, torch.tensor([KM_PER_DEGREE, 0]).double(), rtol=1e-3, atol=1e-3
    )


@given(points)
def test_vectors_lead_back_to_the_point(point: Point) -> None:
    latlon = torch.tensor(point, dtype=torch.float64)
    vector = unit_vectors(latlon)
    assert float(vector.norm()) == pytest.approx(1)
    assert float(haversine_km(latlon_of_vectors(2.5 * vector), latlon)) < 1e-4


@dtypes
@pytest.mark.parametrize("vector", [(0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, -1.0)])
def test_coordinates_of_a_vector_are_finite_on_the_axis(
    dtype: torch.dtype, vector: tuple[float, float, float]
) -> None:
    leaf = torch.tensor(vector, dtype=dtype, requires_grad=True)
    latlon = latlon_of_vectors(leaf)
    latlon.sum().backward()
    assert latlon.detach().tolist() == pytest.approx([90 * vector[2], 0])
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@given(inner_points, offsets)
def test_move_goes_as_far_as_the_offset_and_in_its_direction(start: Point, offset: Point) -> None:
    moved = move_km(torch.tensor(start).double(), torch.tensor(offset).double())
    length = math.hypot(*offset)
    azimuth = math.degrees(math.atan2(offset[1], offset[0]))
    lon, lat, _ = SPHERE.fwd(start[1], start[0], azimuth, 1000 * length)
    assert tensor_km(tuple(moved.tolist()), (lat, lon)) < 1e-3
    assert tensor_km(start, tuple(moved.tolist())) == pytest.approx(length, abs=1e-3)


def test_move_in_float32_is_accurate_to_a_few_metres() -> None:
    rng = np.random.default_rng(1)
    start = torch.tensor(rng.uniform((24, 61), (37, 77), (500, 2))).float()
    offset = torch.tensor(rng.normal(0, 20, (500, 2))).float()
    exact = move_km(start.double(), offset.double())
    assert float(haversine_km(move_km(start, offset).double(), exact).max()) < 3e-3


@dtypes
@given(points, offsets | st.just((0.0, 0.0)))
def test_gradient_of_a_move_is_finite_everywhere(
    dtype: torch.dtype, start: Point, offset: Point
) -> None:
    assert all(g.isfinite().all() for g in gradients(move_km, start, offset, dtype=dtype))


def test_gradient_of_a_move_at_zero_offset_is_a_kilometre_in_degrees() -> None:
    start = torch.tensor([60.0, 70.0]).double()
    jacobian = torch.autograd.functional.jacobian(
        lambda offset: move_km(start, offset), torch.zeros(2).double()
    )
    expected = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double() / KM_PER_DEGREE
    torch.testing.assert_close(jacobian, expected, rtol=1e-6, atol=1e-9)


def test_mean_across_the_date_line_lies_on_it() -> None:
    mean = spherical_mean(torch.tensor([[10.0, 179.0], [10.0, -179.0]]))
    assert abs(float(mean[1])) == pytest.approx(180)
    assert float(mean[0]) == pytest.approx(10, abs=0.01)
    np.testing.assert_allclose(spherical_mean_array([[0, 179], [0, -178]]), [0, -179.5], atol=1e-9)


def test_weights_of_the_mean_count_points() -> None:
    latlon = torch.tensor([[30.0, 70.0], [31.0, 72.0]]).double()
    repeated = spherical_mean(latlon[[0, 0, 0, 1]])
    torch.testing.assert_close(spherical_mean(latlon, torch.tensor([3.0, 1.0])), repeated)
    torch.testing.assert_close(spherical_mean(latlon, torch.tensor([1.0, 0.0])), latlon[0])


@given(st.lists(inner_points, min_size=1, max_size=6), st.floats(-180, 180))
def test_mean_turns_with_the_globe(latlon: list[Point], turn: float) -> None:
    a = torch.tensor(latlon).double()
    if float(unit_vectors(a).mean(0).norm()) < 1e-3:
        return  # no direction is the mean of points all around
    b = a + torch.tensor([0, turn])
    moved = spherical_mean(a) + torch.tensor([0, turn])
    assert float(haversine_km(spherical_mean(b), moved)) < 1e-3
