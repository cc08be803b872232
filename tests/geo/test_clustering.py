"""Geocells hold every invariant on layouts made to break them, and in any order of the photos."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geopak.errors import ConfigError, PreparedSetError
from geopak.geo.cells import NUM_NEIGHBOURS, CellTable
from geopak.geo.clustering import CellBuild, CellSettings, build_cells
from geopak.geo.density import DenseClusters, sample_rows
from geopak.geo.distance import haversine_km_array
from geopak.geo.invariants import check_invariants
from geopak.geo.region import Province, Region, UrbanRule
from geopak.geo.urban import urban_points

Points = NDArray[np.float64]
SETTINGS = CellSettings()


def region_of(*targets: int, minimum: int = 10, urban: UrbanRule | None = None) -> Region:
    provinces = tuple(
        Province(f"p{k}", f"P{k}", min_cluster_size=minimum, min_samples=3, target_cells=target)
        for k, target in enumerate(targets)
    )
    return Region("toy", "Toyland", provinces, urban=urban or UrbanRule())


def town(
    rng: np.random.Generator, num: int, latlon: tuple[float, float], sigma_km: float = 2.0
) -> Points:
    return np.asarray(latlon) + rng.normal(0, sigma_km / 111, (num, 2))


def naive_km(a: Points, b: Points) -> float:
    """Vincenty's formula for the sphere, in Python floats."""
    lat_a, lon_a, lat_b, lon_b = (math.radians(v) for v in (*a, *b))
    east = lon_b - lon_a
    across = math.cos(lat_b) * math.sin(east)
    along = math.cos(lat_a) * math.sin(lat_b) - math.sin(lat_a) * math.cos(lat_b) * math.cos(east)
    dot = math.sin(lat_a) * math.sin(lat_b) + math.cos(lat_a) * math.cos(lat_b) * math.cos(east)
    return 6371.0088 * math.atan2(math.hypot(across, along), dot)


def build(
    points: Points,
    province_id: NDArray[np.int64],
    region: Region,
    options: CellSettings = SETTINGS,
    shuffle: int = 0,
) -> CellBuild:
    """Builds cells, holds every invariant, and builds them again from the shuffled photos."""
    made = build_cells(points, province_id, region, options)
    wrong = check_invariants(made.cells, made.cell_id, points, province_id, region, options)
    assert wrong == []
    before = made.before
    assert (
        np.bincount(before.province_id, before.count, region.num_provinces)
        == np.bincount(province_id, minlength=region.num_provinces)
    ).all()
    assert (np.bincount(before.province_id, before.is_noise) <= 1).all()
    order = np.random.default_rng(shuffle).permutation(len(points))
    again = build_cells(points[order], province_id[order], region, options)
    assert again.cells.fingerprint() == made.cells.fingerprint()
    assert (again.cell_id == made.cell_id[order]).all()
    for field in dataclasses.fields(before):
        np.testing.assert_array_equal(
            getattr(again.before, field.name), getattr(before, field.name)
        )
    return made


def grid(num: int, step_km: float, at: tuple[float, float] = (30.0, 70.0)) -> Points:
    steps = np.stack(np.meshgrid(np.arange(num), np.arange(num)), -1).reshape(-1, 2)
    return np.asarray(at) + steps * step_km / 111


TOWN = town(np.random.default_rng(7), 60, (25.0, 67.0))
LAYOUTS: dict[str, Points] = {
    "all equal": np.full((100, 2), (25.0, 67.0)),
    "one photo": np.array([[25.0, 67.0]]),
    "two points": np.array([[25.0, 67.0], [26.0, 68.0]]),
    "two places": np.repeat([[25.0, 67.0], [25.001, 67.0]], 50, axis=0),
    "three photos": np.array([[25.0, 67.0], [25.1, 67.0], [29.0, 70.0]]),
    "far outlier": np.concatenate([np.full((99, 2), (25.0, 67.0)), [[36.0, 76.0]]]),
    "outlier of a town": np.concatenate([TOWN, [[-54.8, -68.3]]]),
    "antipode of a town": np.concatenate([TOWN, [[-25.0, -113.0]], -TOWN[:1] + [[0, -180]]]),
    "antipodes, equally many": np.repeat([[0.0, 0.0], [0.0, 180.0]], 30, axis=0),
    "a tetrahedron": np.repeat(
        [[90.0, 0.0], [-19.4712206, 0.0], [-19.4712206, 120.0], [-19.4712206, -120.0]], 20, axis=0
    ),
    "a line": np.stack((np.linspace(25, 36, 300), np.linspace(62, 76, 300)), 1),
    "a line along a street": np.stack((np.linspace(25, 25.4, 300), np.full(300, 67.0)), 1),
    "a line along the equator": np.stack((np.zeros(200), np.linspace(-3, 3, 200)), 1),
    "coarse grid": grid(20, 6.0),
    "fine grid": grid(20, 1.0),
    "very fine grid": grid(20, 0.03),
    "date line": np.stack((np.zeros(40), np.where(np.arange(40) % 2, 179.99, -179.99)), 1),
    "on the date line": np.repeat([[10.0, 180.0], [10.0, -180.0], [10.0, 179.9]], 20, axis=0),
    "around the pole": np.stack((np.full(90, 89.9), np.linspace(-180, 176, 90)), 1),
    "at the pole": np.stack((np.full(50, 90.0), np.linspace(-180, 180, 50)), 1),
    "across the south pole": np.stack(
        (np.linspace(-90, -89, 60), np.where(np.arange(60) % 2, 20, -160)), 1
    ),
    "zeros of both signs": np.repeat([[0.0, 0.0], [-0.0, -0.0], [0.0, -0.0]], 15, axis=0),
    "thousands of copies": np.concatenate(
        [np.full((3000, 2), (25.0, 67.0)), np.full((2000, 2), (25.03, 67.0)), TOWN]
    ),
    "a lone town and hamlets": np.concatenate(
        [TOWN, grid(6, 30.0, (26.0, 68.0)), grid(2, 3.0, (28.0, 69.0))]
    ),
}


@pytest.mark.parametrize("points", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("target", [1, 5, 100])
def test_adversarial_layouts(points: Points, target: int) -> None:
    build(points, np.zeros(len(points), np.int64), region_of(target))


@pytest.mark.parametrize("points", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_adversarial_layouts_when_only_a_sample_is_clustered(points: Points) -> None:
    points = np.concatenate([points, points, TOWN, TOWN])
    options = CellSettings(max_clustered_points=100)
    build(points, np.zeros(len(points), np.int64), region_of(5), options)


@pytest.mark.parametrize("caps", [(0.01, 0.01), (0.05, 50.0), (50.0, 5.0), (5.0, 3000.0)], ids=str)
def test_caps_of_any_size_hold(caps: tuple[float, float]) -> None:
    rng = np.random.default_rng(3)
    points = np.concatenate([TOWN, town(rng, 80, (25.5, 67.5), 20), LAYOUTS["three photos"]])
    urban, rural = caps
    general = CellSettings(urban_radius_cap_km=urban, rural_radius_cap_km=rural)
    build(points, np.zeros(len(points), np.int64), region_of(10), general)
    own = dataclasses.replace(
        region_of(10).provinces[0], urban_radius_cap_km=urban, rural_radius_cap_km=rural
    )
    of_province = dataclasses.replace(region_of(10), provinces=(own,))
    build(points, np.zeros(len(points), np.int64), of_province)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    num=st.integers(1, 200),
    target=st.integers(1, 12),
    decimals=st.sampled_from([0, 1, 3, 6]),
    where=st.sampled_from([(30.0, 70.0), (0.0, 180.0), (89.0, 0.0), (-70.0, -179.0)]),
    sampled=st.booleans(),
)
def test_invariants_on_random_layouts(
    seed: int, num: int, target: int, decimals: int, where: tuple[float, float], sampled: bool
) -> None:
    rng = np.random.default_rng(seed)
    centers = where + rng.uniform(-5, 5, (rng.integers(1, 6), 2))
    spread_km = rng.choice([0.1, 2, 20, 200], num)
    points = centers[rng.integers(len(centers), size=num)]
    points = points + rng.normal(0, 1, (num, 2)) * spread_km[:, None] / 111
    points = np.round(points, decimals)
    points[:, 0] = np.clip(points[:, 0], -90, 90)
    points[:, 1] = (points[:, 1] + 180) % 360 - 180
    province_id = rng.integers(0, 2, num) if num > 20 else np.zeros(num, np.int64)
    region = region_of(
        *[target] * (int(province_id.max()) + 1),
        minimum=int(rng.integers(1, 20)),
        urban=UrbanRule(places=int(rng.integers(1, 15))),
    )
    options = CellSettings(max_clustered_points=100 if sampled else 100_000)
    build(points, province_id, region, options, shuffle=seed)


def test_radii_neighbours_and_urban_flags_are_those_of_loops() -> None:
    rng = np.random.default_rng(5)
    parts = [town(rng, 50, (27 + 0.2 * k, 68), 3) for k in range(6)] + [town(rng, 40, (30, 70), 60)]
    points = np.concatenate(parts)
    region = region_of(40)
    made = build(points, np.zeros(len(points), np.int64), region)
    cells = made.cells
    radius_km = [0.0] * cells.num_cells
    squares: dict[tuple[int, int], list[int]] = {}
    side = math.degrees(0.5 / 6371.0088)
    for k, (point, cell) in enumerate(zip(points, made.cell_id, strict=True)):
        km = naive_km(point, cells.center_latlon_deg[cell])
        radius_km[cell] = max(radius_km[cell], km)
        band = math.floor(point[0] / side)
        width = side / math.cos(math.radians((band + 0.5) * side))
        squares.setdefault((band, math.floor(point[1] / width)), []).append(k)
    np.testing.assert_allclose(cells.radius_km, radius_km, atol=1e-6)
    middles = {}
    for band, column in squares:
        width = side / math.cos(math.radians((band + 0.5) * side))
        middles[band, column] = np.array([(band + 0.5) * side, (column + 0.5) * width])
    in_town = [0] * cells.num_cells
    for square, photos in squares.items():
        around = sum(naive_km(middles[square], other) <= 5.0 for other in middles.values())
        for photo in photos:
            in_town[made.cell_id[photo]] += around >= 12
    assert cells.urban.tolist() == [
        2 * town >= count for town, count in zip(in_town, cells.count.tolist(), strict=True)
    ]
    for cell in range(cells.num_cells):
        others = [k for k in range(cells.num_cells) if k != cell]
        others.sort(
            key=lambda k: naive_km(cells.center_latlon_deg[cell], cells.center_latlon_deg[k])
        )
        assert cells.neighbours[cell].tolist() == others[:NUM_NEIGHBOURS]


def test_two_provinces_of_towns() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate(
        [town(rng, 120, (27, 68)), town(rng, 80, (27.8, 68.9)), town(rng, 60, (33, 73))]
    )
    made = build(points, np.repeat([0, 1], [200, 60]), region_of(8, 4))
    assert made.cells.urban.any()
    assert made.cells.num_cells <= 2 * 12
    assert made.cells.province_start(2).tolist()[0] == 0


def test_target_is_reached_where_photos_and_cap_allow() -> None:
    points = town(np.random.default_rng(1), 400, (31.5, 74.3), sigma_km=1.5)
    for target, expected in ((6, 6), (1000, 40)):
        cells = build(points, np.zeros(400, np.int64), region_of(target)).cells
        assert 0.7 * expected <= cells.num_cells <= expected
        assert not cells.sparse.any()


def test_most_photos_are_in_the_cell_with_the_nearest_center() -> None:
    rng = np.random.default_rng(2)
    points = np.concatenate([town(rng, 300, (25 + k, 67 + k), 6) for k in range(3)])
    made = build(points, np.zeros(900, np.int64), region_of(40))
    nearest = made.cells.nearest(points, np.zeros(900, np.int64))
    assert (nearest == made.cell_id).mean() > 0.85


def test_a_hamlet_among_full_cells_is_shared_out() -> None:
    # Four full squares of streets, 7 km apart, and five photos between them: no full cell can
    # take all five within 5 km, together they can.
    corners = [(0.0, 0.0), (0.0, 7.0), (7.0, 0.0), (7.0, 7.0)]
    towns = [grid(6, 0.6, (30 + n / 111, 70 + e / 96)) for n, e in corners]
    between = np.array([30.0, 70.0]) + (
        np.array([[5.0, 1.5], [5.0, 8.5], [1.5, 5.0], [8.5, 5.0], [5.2, 5.2]]) / [111, 96]
    )
    points = np.concatenate([*towns, between])
    made = build(points, np.zeros(len(points), np.int64), region_of(4, minimum=20))
    assert not made.cells.sparse.any()


def test_clusters_before_the_rules_have_their_noise_as_one() -> None:
    rng = np.random.default_rng(4)
    scattered = rng.uniform((25, 62), (36, 76), (8, 2))
    points = np.concatenate([*(town(rng, 60, (25 + k, 67 + k), 1) for k in range(6)), scattered])
    made = build(points, np.zeros(368, np.int64), region_of(4))
    before = made.before
    assert before.is_noise.sum() == 1
    assert before.radius_km[before.is_noise].max() > 300 > 50 >= made.cells.radius_km.max()
    assert (~before.is_noise).sum() >= 2


def test_urban_counts_places_not_photos() -> None:
    monument = np.full((5000, 2), (27.3, 68.1))
    points = np.concatenate([monument, grid(5, 0.8, (31.5, 74.3))])
    urban = urban_points(points, UrbanRule())
    assert not urban[:5000].any()
    assert urban[5000:].all()
    assert urban_points(np.zeros((0, 2)), UrbanRule()).tolist() == []


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_a_sample_is_the_same_for_any_order_and_knows_copies_apart(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    points = np.round(rng.uniform(25, 26, (300, 2)), int(rng.integers(0, 7)))
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    shuffled = points[rng.permutation(300)]
    again = shuffled[np.lexsort((shuffled[:, 1], shuffled[:, 0]))]
    rows = sample_rows(ordered, size)
    assert len(rows) == size == len(set(rows.tolist()))
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(ordered[rows], again[sample_rows(again, size)])


def test_a_sample_is_spread_evenly_over_the_photos() -> None:
    points = np.repeat(grid(50, 1.0), 8, axis=0)
    points = points[np.lexsort((points[:, 1], points[:, 0]))]
    rows = sample_rows(points, 5000)
    share, _ = np.histogram(rows, bins=10, range=(0, 20_000))
    assert (np.abs(share - 500) < 5 * np.sqrt(500)).all()
    copies = np.bincount(rows % 8)
    assert (np.abs(copies - 625) < 5 * np.sqrt(625)).all()


def test_towns_are_found_in_a_sample_too() -> None:
    rng = np.random.default_rng(8)
    points = np.concatenate([town(rng, 2000, (25 + k, 67 + k), 1) for k in range(5)])
    points = points[np.lexsort((points[:, 1], points[:, 0]))]
    dense = DenseClusters(points, min_cluster_size=400, min_samples=50, max_points=1000)
    assert dense.is_sampled
    found = dense.nearest_cluster(np.array([[25.0 + k, 67.0 + k] for k in range(5)]))
    assert len(set(found.tolist())) == 5


def test_a_province_without_photos_is_named() -> None:
    with pytest.raises(PreparedSetError, match=r"No train photo in P1\..*add photos there"):
        build_cells([[25.0, 67.0]], [0], region_of(3, 3), SETTINGS)


def test_a_coordinate_that_is_no_number_is_named_by_row() -> None:
    with pytest.raises(PreparedSetError, match=r"1 train photos have no finite.* row 1"):
        build_cells([[25.0, 67.0], [np.nan, 67.0]], [0, 0], region_of(3), SETTINGS)


@pytest.mark.parametrize(
    "bad",
    [
        {"urban_radius_cap_km": 0},
        {"rural_radius_cap_km": math.nan},
        {"grain_km": 0},
        {"max_clustered_points": 10},
        {"merge_candidates": 0},
        {"settle_rounds": -1},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"cells.{next(iter(bad))} must be"):
        CellSettings(**bad)  # type: ignore[arg-type]


def test_a_cap_of_a_province_below_what_can_be_kept_is_refused() -> None:
    small = dataclasses.replace(region_of(3).provinces[0], urban_radius_cap_km=0.001)
    region = dataclasses.replace(region_of(3), provinces=(small,))
    with pytest.raises(ConfigError, match=r"provinces\.p0: radius caps must be at least"):
        build_cells([[25.0, 67.0]], [0], region, SETTINGS)


# --- the checker itself ---------------------------------------------------------------------------

Change = Callable[[CellTable], dict[str, NDArray]]  # type: ignore[type-arg]


def _swapped_neighbours(cells: CellTable) -> NDArray[np.int64]:
    return cells.neighbours[:, [1, 0, 2, 3, 4, 5, 6, 7]]


CORRUPTIONS: dict[str, Change] = {
    "wrong count": lambda c: {"count": c.count + (np.arange(c.num_cells) == 1)},
    "radius that is not": lambda c: {"radius_km": c.radius_km * 1.001},
    "larger than their radius cap": lambda c: {"urban": ~c.urban, "radius_km": c.radius_km + 46},
    "center that is not the mean": lambda c: {"center_latlon_deg": c.center_latlon_deg + 1e-6},
    "wrong urban flag": lambda c: {"urban": ~c.urban},
    "wrong sparse flag": lambda c: {"sparse": ~c.sparse},
    "farther neighbour before": lambda c: {"neighbours": _swapped_neighbours(c)},
    "none, twice, or too few": lambda c: {
        "neighbours": np.where(c.neighbours == 3, 2, c.neighbours)
    },
    "of another province": lambda c: {"province_id": np.zeros_like(c.province_id)},
}


@pytest.fixture(scope="module")
def checked() -> tuple[CellBuild, Points, NDArray[np.int64], Region]:
    rng = np.random.default_rng(6)
    points = np.concatenate([town(rng, 60, (25 + k / 3, 67), 4) for k in range(12)])
    province_id = np.repeat([0, 1], [660, 60])
    region = region_of(40, 40)
    return build(points, province_id, region), points, province_id, region


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_the_checker_tells_what_is_wrong(
    checked: tuple[CellBuild, Points, NDArray[np.int64], Region], what: str
) -> None:
    made, points, province_id, region = checked
    changed = dataclasses.replace(made.cells, **CORRUPTIONS[what](made.cells))
    wrong = check_invariants(changed, made.cell_id, points, province_id, region, SETTINGS)
    assert any(what in line for line in wrong), wrong


def test_the_checker_tells_a_nearer_cell_that_is_not_listed(
    checked: tuple[CellBuild, Points, NDArray[np.int64], Region],
) -> None:
    made, points, province_id, region = checked
    neighbours = made.cells.neighbours.copy()
    own = np.flatnonzero(made.cells.province_id == 0)
    away = haversine_km_array(
        made.cells.center_latlon_deg[own], made.cells.center_latlon_deg[own[0]]
    )
    neighbours[own[0]] = own[np.argsort(away)[2:10]]
    changed = dataclasses.replace(made.cells, neighbours=neighbours)
    wrong = check_invariants(changed, made.cell_id, points, province_id, region, SETTINGS)
    assert any("nearer than one they list" in line for line in wrong)
    assert any("does not list them" in line for line in wrong)


def test_the_checker_tells_photos_in_no_cell_or_split(
    checked: tuple[CellBuild, Points, NDArray[np.int64], Region],
) -> None:
    made, points, province_id, region = checked
    lost = made.cell_id.copy()
    lost[5] = -1
    wrong = check_invariants(made.cells, lost, points, province_id, region, SETTINGS)
    assert wrong == ["1 of 720 photos are in no cell."]
    twice = np.concatenate([points, points[:1]])
    owner = np.append(made.cell_id, (made.cell_id[0] + 1) % 3)
    wrong = check_invariants(made.cells, owner, twice, np.append(province_id, 0), region, SETTINGS)
    assert any("at the same coordinate" in line for line in wrong)
