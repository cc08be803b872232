import json

import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st

from geopak.cli import PACKAGE_DIR, compose
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


@pytest.fixture(scope="module")
def shipped():
    region = Region.from_config(compose("prepare").region)
    return region, Outlines.of_region(region)


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
    _, outlines = shipped
    together = shapely.union_all(np.array(outlines.polygons, object))
    assert together.geom_type == "Polygon"
    assert not together.interiors
    assert together.area == pytest.approx(sum(p.area for p in outlines.polygons), rel=1e-12)


def test_shipped_outlines_hold_the_towns(shipped):
    region, outlines = shipped
    towns = pd.read_csv(PACKAGE_DIR / "assets" / "towns" / "pakistan.csv")
    found = outlines.province_of(towns[["latitude", "longitude"]].to_numpy())
    stated = np.array([region.index_of(name) for name in towns["province"]])
    assert (found == stated).mean() >= 0.97
