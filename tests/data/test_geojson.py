import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopak.data import geojson
from geopak.data.geojson import read_features
from geopak.errors import TableError


def feature(number=1, lon=67.25, lat=25.5, **properties):
    return {
        "type": "Feature",
        "properties": {"id": f"p{number}", "path": f"{number}.jpg", **properties},
        "geometry": {"type": "Point", "coordinates": [lon, lat]},
    }


def collection(*features, **members):
    return {"type": "FeatureCollection", **members, "features": list(features)}


def read(folder, content, name="t.geojson"):
    path = folder / name
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_features(path).to_pylist()


def test_points_and_properties(tmp_path):
    text = json.dumps(collection(feature(1, width=100, ok=True, tags=["a", 1], album=" b ")))
    rows = read(tmp_path, text.replace("67.25", "67.250").replace("25.5]", "25.50, 12]"))
    assert rows == [
        {
            "id": "p1", "path": "1.jpg", "latitude": "25.50", "longitude": "67.250",
            "width": "100", "ok": "true", "tags": '["a", "1"]', "album": "b",
            "line": 1, "malformed": None,
        }
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["t.geojson", "t.geojsonl", "t.json", "t.geojson.gz"])
@pytest.mark.parametrize("layout", ["one line", "indented", "per line", "type last", "bom"])
def test_layouts(tmp_path, monkeypatch, name, layout):
    features = [feature(k, lat=25 + k / 100) for k in range(1, 30)]
    text = {
        "one line": json.dumps(collection(*features)),
        "indented": json.dumps(collection(*features), indent=2),
        "per line": "\n".join(map(json.dumps, features)),
        "type last": "\n".join(json.dumps(dict(reversed(f.items()))) for f in features),
        "bom": "\ufeff" + json.dumps(collection(*features)),
    }[layout]
    content = text.encode()
    for chunk in (17, 1 << 20):
        monkeypatch.setattr(geojson, "_CHUNK_BYTES", chunk)
        rows = read(tmp_path, gzip.compress(content) if name.endswith("gz") else content, name)
        assert [row["id"] for row in rows] == [f"p{k}" for k in range(1, 30)]
        assert [row["line"] for row in rows] == list(range(1, 30))
        assert [row["latitude"] for row in rows] == [str(25 + k / 100) for k in range(1, 30)]
        assert all(row["malformed"] is None for row in rows)


BAD_FEATURES = {
    '{"type": "Feature", "properties": {"id": }}': "cannot be read as JSON",
    '{"type": "Feature", "properties": {"id": "open}}': "cannot be read as JSON",
    '{"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[1, 2]]}}':
        "its geometry is LineString, not a Point",
    '{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1]}}': "has no coordinates",
    '{"type": "Feature", "properties": [1]}': "no JSON object",
    '{"type": "Point", "coordinates": [1, 2]}': "is 'Point', not a Feature",
    '"text"': "is 'text', not a Feature",
    '{"type": "Feature", "properties": {"id": "\\ud800"}}': "not UTF-8 text (property 'id'",
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_FEATURES)
@pytest.mark.parametrize("per_line", [True, False])
def test_a_bad_feature_costs_its_own_row_only(tmp_path, bad, per_line):
    good = [json.dumps(feature(k)) for k in (1, 3)]
    if per_line:
        text = "\n".join([good[0], bad, good[1]])
    else:
        features = ",".join([good[0], bad, "\n" + good[1]])
        text = f'{{"type": "FeatureCollection", "features": [{features}]}}'
    rows = read(tmp_path, text)
    assert [row["line"] for row in rows] == [1, 2, 3]
    assert [row["malformed"] is None for row in rows] == [True, False, True]
    assert BAD_FEATURES[bad] in rows[1]["malformed"]
    assert [rows[0]["id"], rows[2]["id"]] == ["p1", "p3"]


def test_bytes_that_are_not_utf8(tmp_path):
    text = "\n".join(json.dumps(feature(k, author="x")) for k in (1, 2))
    rows = read(tmp_path, text.encode().replace(b'"x"', b'"\xe4"', 1))
    assert "not UTF-8" in rows[0]["malformed"]
    assert rows[1]["malformed"] is None


def test_a_file_that_was_cut_off(tmp_path):
    text = json.dumps(collection(feature(1), feature(2), feature(3)))
    rows = read(tmp_path, text[: text.index("p3") + 1])
    assert [row["id"] for row in rows] == ["p1", "p2", None]
    assert "JSON" in rows[2]["malformed"]
    rows = read(tmp_path, text[: text.index(', {"type": "Feature", "properties": {"id": "p3"')])
    assert "not complete" in rows[2]["malformed"]


def test_missing_places_and_ids(tmp_path):
    first = feature(1) | {"geometry": None, "id": 7}
    second = feature(2) | {"id": 8}
    del second["properties"]["id"]
    second["geometry"]["coordinates"] = []
    third = feature(3, latitude=1, longitude=2)
    fourth = feature(4, latitude=30.25, longitude=70.25) | {"geometry": None}
    rows = read(tmp_path, collection(first, second, third, fourth))
    assert [row["id"] for row in rows] == ["p1", "8", "p3", "p4"]
    assert [row["latitude"] for row in rows] == [None, None, "25.5", "30.25"]
    assert all(row["malformed"] is None for row in rows)


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        ("", "it is empty"),
        ("[1, 2]", r"begins with '\['"),
        ('{"type": "Point", "coordinates": [1, 2]}', "no list of features"),
        ('{"type": "FeatureCollection"', "no list of features"),
        ('{"type": "FeatureCollection", "features": []}', "list of features is empty"),
        ('{"a": tru', "no GeoJSON"),
        (json.dumps(feature(line=3)), "property 'line'"),
        (
            json.dumps(
                {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}}
                | collection(feature())
            ),
            "EPSG::3857, not in WGS84 degrees",
        ),
        (
            json.dumps(
                collection(feature())
                | {"crs": {"type": "name", "properties": {"name": "EPSG:32642"}}}
            ),
            "EPSG:32642, not in WGS84 degrees",
        ),
    ],
)
def test_what_is_no_geojson(tmp_path, content, needle):
    with pytest.raises(TableError, match=needle) as caught:
        read(tmp_path, content)
    assert "t.geojson" in str(caught.value)


@pytest.mark.parametrize("name", ["urn:ogc:def:crs:OGC:1.3:CRS84", "EPSG:4326", "WGS 84"])
def test_wgs84_by_name(tmp_path, name):
    crs = {"type": "name", "properties": {"name": name}}
    assert len(read(tmp_path, collection(feature(), crs=crs))) == 1


@given(st.binary(max_size=200), st.integers(0, 200), st.sampled_from([5, 1000]))
def test_any_damage_is_a_table_error_or_malformed_rows(tmp_path_factory, junk, place, chunk):
    text = json.dumps(collection(feature(1), feature(2))).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geojson, "_CHUNK_BYTES", chunk)
        try:
            rows = read(tmp_path_factory.mktemp("t"), text[:place] + junk + text[place:])
        except TableError:
            return
    assert [row["line"] for row in rows] == list(range(1, len(rows) + 1))
