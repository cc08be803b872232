import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.errors import ConfigError, PreparedSetError
from geopak.geo.cells import NUM_NEIGHBOURS
from geopak.geo.clustering import CellSettings, build_cells, urban_points
from geopak.geo.distance import haversine_km_array
from geopak.geo.region import Province, Region

SETTINGS = CellSettings()


def region_of(*targets, minimum=10):
    return Region(
        "toy",
        "Toyland",
        tuple(
            Province(f"p{k}", f"P{k}", min_cluster_size=minimum, min_samples=3, target_cells=target)
            for k, target in enumerate(targets)
        ),
    )


def town(rng, num, latlon, sigma_km=2.0):
    return np.asarray(latlon) + rng.normal(0, sigma_km / 111, (num, 2))


def check(points, province_id, region, options=SETTINGS):
    """Builds cells and holds every invariant; returns them."""
    cells, cell_id = build_cells(points, province_id, region, options)
    assert ((cell_id >= 0) & (cell_id < cells.num_cells)).all()
    assert (cells.province_id[cell_id] == province_id).all()
    assert (np.diff(cells.province_id) >= 0).all()
    assert set(cells.province_id) == set(range(region.num_provinces))
    assert (cells.count == np.bincount(cell_id, minlength=cells.num_cells)).all()
    assert (cells.count > 0).all()
    away = haversine_km_array(points, cells.center_latlon_deg[cell_id])
    radius = np.zeros(cells.num_cells)
    np.maximum.at(radius, cell_id, away)
    np.testing.assert_allclose(cells.radius_km, radius, rtol=1e-9, atol=1e-9)
    cap = np.where(cells.urban, options.urban_radius_cap_km, options.rural_radius_cap_km)
    assert (cells.radius_km <= cap).all()
    minimum = np.array([p.min_cluster_size for p in region.provinces])[cells.province_id]
    assert (cells.sparse == (cells.count < minimum)).all()
    check_neighbours(cells)
    return cells, cell_id


def check_neighbours(cells):
    for cell in range(cells.num_cells):
        own = np.flatnonzero(cells.province_id == cells.province_id[cell])
        others = own[own != cell]
        away = haversine_km_array(cells.center_latlon_deg[others], cells.center_latlon_deg[cell])
        listed = cells.neighbours[cell][cells.neighbours[cell] >= 0]
        assert len(listed) == min(NUM_NEIGHBOURS, len(others)) == len(set(listed))
        assert set(listed) <= set(others)
        to_listed = haversine_km_array(
            cells.center_latlon_deg[listed], cells.center_latlon_deg[cell]
        )
        np.testing.assert_allclose(to_listed, np.sort(away)[: len(listed)], atol=1e-5)


def test_two_provinces_of_towns():
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [town(rng, 120, (27, 68)), town(rng, 80, (27.8, 68.9)), town(rng, 60, (33, 73))]
    )
    province_id = np.repeat([0, 1], [200, 60])
    cells, _ = check(points, province_id, region_of(8, 4))
    assert cells.urban.any()
    assert cells.num_cells <= 2 * 12


GRID = np.stack(np.meshgrid(np.linspace(30, 31, 20), np.linspace(70, 71, 20)), -1).reshape(-1, 2)
ADVERSARIAL = {
    "all equal": np.full((100, 2), (25.0, 67.0)),
    "two points": np.array([[25.0, 67.0], [26.0, 68.0]]),
    "two places": np.repeat([[25.0, 67.0], [25.001, 67.0]], 50, axis=0),
    "one photo": np.array([[25.0, 67.0]]),
    "three photos": np.array([[25.0, 67.0], [25.1, 67.0], [29.0, 70.0]]),
    "far outlier": np.concatenate([np.full((99, 2), (25.0, 67.0)), [[36.0, 76.0]]]),
    "a line": np.stack((np.linspace(25, 36, 300), np.linspace(62, 76, 300)), 1),
    "a fine line": np.stack((np.linspace(25, 25.4, 300), np.full(300, 67.0)), 1),
    "dense grid": GRID,
    "fine grid": (GRID - 30.5) * 0.2 + 30.5,
    "date line": np.stack((np.zeros(40), np.where(np.arange(40) % 2, 179.99, -179.99)), 1),
}


@pytest.mark.parametrize("points", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_adversarial_layouts(points):
    cells, cell_id = check(points, np.zeros(len(points), int), region_of(5))
    order = np.random.default_rng(0).permutation(len(points))
    again, again_id = build_cells(points[order], np.zeros(len(points), int), region_of(5), SETTINGS)
    assert again.fingerprint() == cells.fingerprint()
    assert (again_id == cell_id[order]).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 150), st.integers(1, 12), st.booleans())
def test_invariants_on_random_layouts(seed, num, target, coarse):
    rng = np.random.default_rng(seed)
    centers = rng.uniform((25, 62), (36, 76), (rng.integers(1, 6), 2))
    spread_km = rng.choice([0.1, 2, 20, 200], num)
    noise = rng.normal(0, 1, (num, 2)) * spread_km[:, None] / 111
    points = centers[rng.integers(len(centers), size=num)] + noise
    points = np.round(points, 1 if coarse else 6)
    province_id = rng.integers(0, 2, num) if num > 20 else np.zeros(num, int)
    region = region_of(*[target] * (province_id.max() + 1), minimum=int(rng.integers(1, 20)))
    options = CellSettings(urban_places=int(rng.integers(1, 15)))
    cells, cell_id = check(points, province_id, region, options)
    order = rng.permutation(num)
    again, again_id = build_cells(points[order], province_id[order], region, options)
    assert again.fingerprint() == cells.fingerprint()
    assert (again_id == cell_id[order]).all()
    for spot in np.unique(points, axis=0):
        for province in range(region.num_provinces):
            same = (points == spot).all(1) & (province_id == province)
            assert len(set(cell_id[same])) <= 1


def test_target_is_reached_where_photos_and_cap_allow():
    points = town(np.random.default_rng(1), 400, (31.5, 74.3), sigma_km=1.5)
    province_id = np.zeros(400, int)
    for target, expected in ((6, 6), (1000, 40)):
        cells, _ = check(points, province_id, region_of(target))
        assert 0.7 * expected <= cells.num_cells <= expected
        assert not cells.sparse.any()


def test_most_photos_are_in_the_cell_with_the_nearest_center():
    rng = np.random.default_rng(2)
    points = np.concatenate([town(rng, 300, (25 + k, 67 + k), 6) for k in range(3)])
    cells, cell_id = check(points, np.zeros(900, int), region_of(40))
    assert (cells.nearest(points, np.zeros(900, int)) == cell_id).mean() > 0.85


def test_urban_counts_places_not_photos():
    monument = np.full((5000, 2), (27.3, 68.1))
    streets = np.array([31.5, 74.3]) + np.stack(
        np.meshgrid(np.arange(5), np.arange(5)), -1
    ).reshape(-1, 2) * (0.8 / 111)
    urban = urban_points(np.concatenate([monument, streets]), SETTINGS)
    assert not urban[:5000].any()
    assert urban[5000:].all()


def test_a_province_without_photos_is_named():
    with pytest.raises(PreparedSetError, match=r"No train photo in P1\..*add photos there"):
        build_cells([[25.0, 67.0]], [0], region_of(3, 3), SETTINGS)


@pytest.mark.parametrize("bad", [{"urban_radius_cap_km": 0}, {"urban_places": 0}])
def test_settings_are_checked(bad):
    with pytest.raises(ConfigError, match=f"cells.{next(iter(bad))} must be"):
        CellSettings(**bad)
