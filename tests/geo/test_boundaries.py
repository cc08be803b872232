import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st

from geopak.cli import CONFIG_DIR, compose
from geopak.errors import RegionError
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Province, Region

REGION = Region("toy", "Toyland", (Province("west", "West", ("W.",)), Province("east", "East")))


def square(west, south, east, north):
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


def feature(geometry, **properties):
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def write(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


WEST = feature(square(0, 0, 1, 1), code="7", label="west")
EAST = feature(square(1, 0, 2, 1), code="8", label="EAST")


@pytest.fixture
def toy(tmp_path):
    return Outlines.load(write(tmp_path / "toy.geojson", WEST, EAST), REGION)


REGIONS = sorted(file.stem for file in (CONFIG_DIR / "region").glob("*.yaml"))
REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "geoBoundaries-PAK-ADM1.geojson"


@pytest.fixture(scope="module", params=REGIONS)
def shipped(request):
    config = compose("prepare", [f"region={request.param}"]).region
    region = Region.from_config(config)
    return region, Outlines.of_region(region), pd.read_csv(config.towns)


def test_inside_outside_and_not_a_number(toy):
    points = [[0.5, 0.5], [0.5, 1.5], [0.5, 2.5], [-0.1, 0.5], [np.nan, 0.5]]
    assert toy.province_of(points).tolist() == [0, 1, -1, -1, -1]
    assert toy.province_of(np.zeros((0, 2))).shape == (0,)


def test_a_shared_border_belongs_to_one_province(toy):
    border = np.stack((np.linspace(0, 1, 11), np.ones(11)), 1)
    assert (toy.province_of(border) == 0).all()


def test_overlap_goes_to_the_lower_index(tmp_path):
    features = feature(square(0, 0, 3, 1), n="East"), feature(square(0, 0, 2, 1), n="West")
    outlines = Outlines.load(write(tmp_path / "o.geojson", *features), REGION)
    assert outlines.province_of([[0.5, 1.5], [0.5, 2.5]]).tolist() == [0, 1]


@given(st.lists(st.tuples(st.floats(-2, 4), st.floats(-2, 4)), min_size=1, max_size=40))
def test_agrees_with_one_point_at_a_time(points):
    polygons = tuple(shapely.geometry.shape(f["geometry"]) for f in (WEST, EAST))
    expected = [
        next((k for k, p in enumerate(polygons) if p.intersects(shapely.Point(lon, lat))), -1)
        for lat, lon in points
    ]
    assert Outlines(polygons).province_of(points).tolist() == expected


def test_features_of_one_province_are_united_and_others_reported(tmp_path, caplog):
    path = write(
        tmp_path / "o.geojson", WEST, EAST, feature(square(5, 5, 6, 6), label="W."),
        feature(square(8, 8, 9, 9), label="Elsewhere"),
    )  # fmt: skip
    outlines = Outlines.load(path, REGION)
    assert outlines.province_of([[5.5, 5.5], [8.5, 8.5]]).tolist() == [0, -1]
    assert outlines.ignored == ("Elsewhere",)
    assert "Elsewhere" in caplog.text


def test_a_harmless_flaw_is_repaired(tmp_path):
    ring = [[0, 0], [1, 0], [1, 1], [0.5, 1], [0.5, 1.3], [0.5, 1], [0, 1], [0, 0]]
    spike = feature({"type": "Polygon", "coordinates": [ring]}, label="West")
    outlines = Outlines.load(write(tmp_path / "o.geojson", spike, EAST), REGION)
    assert outlines.polygons[0].is_valid
    assert outlines.province_of([[0.5, 0.5]]).tolist() == [0]


def test_survives_a_checkpoint(toy, tmp_path):
    torch.save(toy.to_dict(), tmp_path / "x.pt")
    again = Outlines.from_dict(torch.load(tmp_path / "x.pt", weights_only=True))
    assert again.to_dict() == toy.to_dict()
    assert again.bounds_deg == (0, 0, 1, 2)


BOW_TIE = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}
OPEN_RING = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0]]]}


@pytest.mark.parametrize(
    ("features", "needles"),
    [
        ([WEST], ["no feature for East", "'label'", "region.boundary_name_field"]),
        (
            [WEST, feature(square(1, 0, 2, 1), label="Eastern")],
            ["no feature for East", "'Eastern' is unknown. Did you mean 'East'?", "aliases"],
        ),
        ([feature(square(0, 0, 1, 1), a="x")], ["no attribute", "Attributes: a", "West, East"]),
        ([WEST, feature(square(1, 0, 2, 1), name="East")], ["feature 1", "'label'", "has: name"]),
        ([WEST, feature(BOW_TIE, label="East")], ["feature 1 (East)", "invalid ring", "makevalid"]),
        ([WEST, feature(OPEN_RING, label="East")], ["feature 1 (East)", "invalid ring", "four"]),
        ([WEST, feature({"type": "Point", "coordinates": [0, 0]}, label="East")], ["is a Point"]),
        ([WEST, feature(None, label="East")], ["feature 1 (East)", "is a None"]),
        ([WEST, feature(square(3e5, 0, 4e5, 9), label="East")], ["degrees", "EPSG:4326"]),
        ([], ["not a GeoJSON FeatureCollection"]),
    ],
)
def test_bad_files_are_explained(tmp_path, features, needles):
    path = write(tmp_path / "bad.geojson", *features)
    with pytest.raises(RegionError) as caught:
        Outlines.load(path, REGION)
    for needle in ["bad.geojson", *needles]:
        assert needle in str(caught.value)


@pytest.mark.parametrize("content", ["<kml/>", "[1, 2]", "{}", '{"features": [1]}', "\x00"])
def test_not_geojson(tmp_path, content):
    path = tmp_path / "x.geojson"
    path.write_text(content)
    with pytest.raises(RegionError, match=r"x\.geojson is not"):
        Outlines.load(path, REGION)
    with pytest.raises(RegionError, match=r"No outlines at .*none\.geojson"):
        Outlines.load(tmp_path / "none.geojson", REGION)


def test_named_attribute_is_used(tmp_path):
    path = write(tmp_path / "o.geojson", WEST, EAST)
    with pytest.raises(RegionError, match=r"no attribute 'lable'\. Did you mean 'label'"):
        Outlines.load(path, REGION, "lable")
    with pytest.raises(RegionError, match="no feature for West, East"):
        Outlines.load(path, REGION, "code")


def test_shipped_outlines_share_borders_without_gap_or_overlap(shipped):
    region, outlines, _ = shipped
    report = outlines.check(region)
    assert report.is_clean
    assert report.lines() == []
    together = shapely.union_all(np.array(outlines.polygons, object))
    assert together.geom_type == "Polygon"
    assert not together.interiors
    assert together.area == pytest.approx(sum(p.area for p in outlines.polygons), rel=1e-12)


def test_shipped_outlines_hold_the_towns(shipped):
    region, outlines, towns = shipped
    found = outlines.province_of(towns[["latitude", "longitude"]].to_numpy())
    stated = np.array([region.index_of(name) for name in towns["province"]])
    assert (found == stated).mean() >= 0.97


def winding_number(ring, lat, lon):
    """Turns of a ring around a point, edge by edge: the textbook's way."""
    turns = 0
    for (x0, y0), (x1, y1) in pairwise(ring):
        left = (x1 - x0) * (lat - y0) - (lon - x0) * (y1 - y0)
        if y0 <= lat < y1 and left > 0:
            turns += 1
        elif y1 <= lat < y0 and left < 0:
            turns -= 1
    return turns


def naive_province(outlines, lat, lon):
    for index, polygon in enumerate(outlines.polygons):
        rings = shapely.get_rings(shapely.get_parts(polygon))
        if (
            sum(winding_number(shapely.get_coordinates(r).tolist(), lat, lon) != 0 for r in rings)
            % 2
        ):
            return index
    return -1


def test_shipped_outlines_agree_with_the_winding_number(shipped):
    _, outlines, _ = shipped
    south, west, north, east = outlines.bounds_deg
    points = np.random.default_rng(2).uniform((south, west), (north, east), (400, 2))
    expected = [naive_province(outlines, lat, lon) for lat, lon in points.tolist()]
    assert outlines.province_of(points).tolist() == expected
    assert -1 in expected


@st.composite
def stars(draw):
    """A ring around the origin that does not cross itself, of any shape else."""
    radii = draw(st.lists(st.floats(0.2, 3), min_size=3, max_size=12))
    turn = draw(st.floats(0, 6))
    angles = turn + np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack((radii * np.cos(angles), radii * np.sin(angles)), 1)


@given(stars(), st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=20))
def test_any_outline_agrees_with_the_winding_number(star, points):
    polygon = shapely.Polygon(star, [0.3 * star])
    outlines = Outlines((polygon,))
    clear = [p for p in points if polygon.boundary.distance(shapely.Point(p[::-1])) > 1e-9]
    expected = [naive_province(outlines, lat, lon) for lat, lon in clear]
    assert outlines.province_of(np.reshape(clear, (-1, 2))).tolist() == expected


def test_chunks_change_nothing(toy, monkeypatch):
    points = np.random.default_rng(0).uniform(-0.5, 2.5, (101, 2))
    whole = toy.province_of(points)
    monkeypatch.setattr("geopak.geo.boundaries._CHUNK", 7)
    np.testing.assert_array_equal(toy.province_of(points), whole)


@pytest.mark.skipif(not REFERENCE.exists(), reason="no reference file beside the checkout")
def test_a_published_file_is_read_as_it_is():
    region = Region.from_config(compose("prepare").region)
    outlines = Outlines.load(REFERENCE, region)
    assert outlines.num_features == (1,) * region.num_provinces
    south, west, north, east = outlines.bounds_deg
    points = np.random.default_rng(4).uniform((south, west), (north, east), (150, 2))
    expected = [naive_province(outlines, lat, lon) for lat, lon in points.tolist()]
    assert outlines.province_of(points).tolist() == expected
    capital = region.find("ICT")
    assert outlines.province_of([[33.7, 73.06], [24.9, 67.0]]).tolist() == [
        capital, region.find("Sindh")
    ]  # fmt: skip


def test_a_checkpoint_of_an_older_version_still_loads(toy):
    old = {key: toy.to_dict()[key] for key in ("polygons_wkb_hex", "ignored")}
    again = Outlines.from_dict(old)
    assert again.province_of([[0.5, 0.5]]).tolist() == [0]
    assert again.check(REGION).several_features == {}
