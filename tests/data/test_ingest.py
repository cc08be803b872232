import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import ExifTags, Image

from geopak.cli import CONFIG_DIR
from geopak.data import delimited
from geopak.data import ingest as ingest_module
from geopak.data.ingest import ColumnNames, read_sources, read_split_table, source_names
from geopak.data.photo_folder import read_folder
from geopak.data.table import COLUMNS, raw_schema, validate
from geopak.errors import ConfigError, PreparedSetError, TableError
from geopak.geo.region import Province, Region

REGION = Region("toy", "Toyland", (Province("west", "West"), Province("east", "East", ("E.",))))
DEFAULT = OmegaConf.load(CONFIG_DIR / "columns" / "default.yaml")
LINES = "id,path,latitude,longitude\np1,b.jpg,25.51,67.25\n"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "a").mkdir(parents=True)
    for name in ("a/1.jpg", "a/2.jpg", "b.jpg"):
        (folder / name).write_bytes(b"x")
    return folder


def written(root, content, name="t.csv"):
    path = root.parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def ingest(root, *tables, columns=None):
    raw = read_sources(tables, [], root, columns)
    raw_schema().validate(raw)
    assert raw.index.to_list() == list(range(len(raw)))
    return raw


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".parquet", ".csv.gz"])
def test_columns_in_any_order_and_format(root, suffix):
    frame = pd.DataFrame(
        {
            "id": [1, 2],
            "latitude": [25.5, 26.123456789],
            "longitude": [67.25, 71.0],
            "province": ["West", "e."],
            "path": ["a/1.jpg", "a//2.jpg"],
            "remark": ["kept for the rejected table", None],
        }
    )
    path = root.parent / f"t{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    raw = ingest(root, path)
    photos, rejected = validate(raw, root, REGION)
    assert rejected.empty
    assert photos["id"].to_list() == ["1", "2"]
    assert photos["path"].to_list() == ["a/1.jpg", "a/2.jpg"]
    assert photos["latitude"].to_list() == [25.5, 26.123456789]
    assert photos["label_province"].to_list() == ["West", "East"]
    assert raw["line"].to_list() == ([1, 2] if suffix == ".parquet" else [2, 3])
    assert raw["remark"].to_list() == ["kept for the rejected table", pd.NA]


def test_geojson(root):
    point = {"type": "Point", "coordinates": [67.25, 25.51]}
    features = [
        {"type": "Feature", "geometry": g, "properties": {"id": i, "filename": "b.jpg"}}
        for i, g in enumerate([point, {"type": "Polygon"}, None])
    ]
    content = json.dumps({"type": "FeatureCollection", "features": features})
    raw = ingest(root, written(root, content, "t.geojson"), columns=DEFAULT)
    photos, rejected = validate(raw, root, REGION)
    assert photos[["latitude", "longitude"]].to_numpy().tolist() == [[25.51, 67.25]]
    assert rejected["reason"].to_list() == ["malformed_row", "coordinate_missing"]
    assert rejected["detail"].iloc[0] == "the row its geometry is Polygon, not a Point"


def test_several_sources_keep_their_origin(root):
    first = written(root, "\ufeff" + LINES, "x/t.csv")
    second = written(root, "longitude,latitude,path,id,more\n67.25,25.25,a/1.jpg,2,m\n", "y/t.csv")
    third = root.parent / "t.parquet"
    pd.DataFrame({"id": ["3"], "path": ["a/2.jpg"], "latitude": [1], "longitude": [2]}).to_parquet(
        third
    )
    write_photo(root / "p" / "4.jpg", 25.1234, 67.5)
    raw = read_sources([first, second, third], [root / "p"], root)
    assert raw["file"].to_list() == ["x/t.csv", "y/t.csv", "t.parquet", "p"]
    assert raw["line"].to_list() == [2, 2, 1, 1]
    assert raw["id"].to_list() == ["p1", "2", "3", "p/4.jpg"]
    assert raw["more"].to_list() == [pd.NA, "m", pd.NA, pd.NA]
    assert raw.columns[-3:].to_list() == ["file", "line", "malformed"]
    raw_schema().validate(raw)


def test_names_tell_tables_apart():
    assert source_names(["/a/b/t.csv", "/a/c/t.csv", "/a/u.csv"]) == ["b/t.csv", "c/t.csv", "u.csv"]
    assert source_names(["/a/x/b/t.csv", "/a/y/b/t.csv"]) == ["x/b/t.csv", "y/b/t.csv"]
    assert source_names(["/t.csv", "/a/t.csv"]) == ["t.csv", "a/t.csv"]
    with pytest.raises(TableError, match="given twice"):
        source_names(["/a/../t.csv", "/t.csv"])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Photo ID,File Name,LAT,Lng", ["id", "path", "latitude", "longitude"]),
        ("ID,Path,Latitude,Longitude", ["id", "path", "latitude", "longitude"]),
        ("uid,file,gps-latitude,gps.longitude", ["id", "path", "latitude", "longitude"]),
        # Its own name wins over aliases, which stay as columns of the table.
        (
            "id,photo_id,path,file_name,latitude,lat,longitude,x",
            ["id", "photo_id", "path", "file_name", "latitude", "lat", "longitude", "x"],
        ),
        ("id,path,y,x,datetaken,owner,,", ["captured_at", "author", "column 7", "column 8"]),
        ("id,path,y,x,tag,tag", ["latitude", "longitude", "tag", "tag (2)"]),
    ],
)
def test_aliases(root, header, expected):
    names = ColumnNames.from_config(DEFAULT).resolve("t.csv", header.split(","))
    assert names[-len(expected) :] == expected
    cells = {name: str(k) for k, name in enumerate(names)}
    raw = ingest(root, written(root, f"{header}\n{','.join(cells.values())}\n"), columns=DEFAULT)
    for name in expected:
        assert raw[name].item() == cells[name]


@pytest.mark.parametrize(
    ("header", "needles"),
    [
        ("id,path,lat,y,longitude", ["could be 'latitude'", "'lat' and 'y'", "columns.latitude="]),
        ("id,path,lat,Lat,longitude", ["'lat' and 'Lat'"]),
        ("id,path,latitude,longitude,longitude", ["column 'longitude' twice"]),
        ("id,path,Latitude,LATITUDE,longitude", ["twice ('Latitude' and 'LATITUDE')"]),
        ("id,path,latitude,longitude,owner,user", ["could be 'author'"]),
        ("id,path,latitude,longitud", ["no column 'longitude'", "Did you mean 'longitud'?"]),
        ("id,path,latitude", ["no column 'longitude'", "It has: id, path, latitude."]),
        ("id,path,latitude,longitude,file", ["'file'", "Rename or remove"]),
        ("id,path,latitude,longitude,reason", ["'reason'", "Rename or remove"]),
        ("id,path,latitude,longitude,malformed", ["'malformed'", "Rename or remove"]),
    ],
)
def test_headers_that_are_wrong(root, header, needles):
    path = written(root, header + "\n" + ",".join("1" * len(header.split(","))) + "\n")
    with pytest.raises(TableError) as caught:
        ingest(root, path, columns=DEFAULT)
    for needle in ["t.csv", *needles]:
        assert needle in str(caught.value)


def test_a_likely_name_is_suggested_where_no_alias_is_set(root):
    with pytest.raises(TableError, match=r"no column 'latitude'\. Did you mean 'lat'\?"):
        ingest(root, written(root, "id,path,lat,lon\n1,a,2,3\n"))


@pytest.mark.parametrize(
    ("config", "needle"),
    [
        ({"latitud": ["y"]}, "columns.latitud is no column of a photo table. Did you mean 'latit"),
        ({"latitude": ["y"], "longitude": "Y"}, "'Y', which already stands for 'latitude'"),
        ({"path": ["url"]}, "already stands for 'url'"),
    ],
)
def test_aliases_that_are_wrong(root, config, needle):
    with pytest.raises(ConfigError) as caught:
        read_sources(["t.csv"], [], root, config)
    assert needle in str(caught.value)


def test_the_shipped_aliases_are_for_known_columns():
    assert set(DEFAULT) <= set(COLUMNS)
    assert ColumnNames.from_config({"id": None, "path": "pfad"}).aliases["path"] == ("pfad",)


def test_whole_tables_that_cannot_be_read(root, tmp_path):
    with pytest.raises(TableError, match=r"tables=\[FILE"):
        read_sources([], [], root)
    with pytest.raises(TableError, match=r"No photo table at .*t\.csv.*geopak\.synthetic"):
        ingest(root, tmp_path / "t.csv")
    with pytest.raises(TableError, match="is a folder, not a table"):
        ingest(root, root)
    with pytest.raises(TableError, match=r"\.xlsx is not a table format"):
        ingest(root, written(root, b"x", "t.xlsx"))
    with pytest.raises(TableError, match=r"t\.parquet cannot be read as a table"):
        ingest(root, written(root, b"PAR1 but not really", "t.parquet"))
    with pytest.raises(TableError, match=r"has no rows\. It needs a header"):
        ingest(root, written(root, "id,path,latitude,longitude\n"))
    with pytest.raises(TableError, match="is given twice"):
        ingest(root, *[written(root, LINES)] * 2)
    with pytest.raises(TableError, match="no feature that can be read"):
        ingest(root, written(root, '{"type": "FeatureCollection", "features": [1]}', "t.geojson"))
    pd.DataFrame({"id": [1], "path": ["a"]}).to_parquet(tmp_path / "u.parquet")
    with pytest.raises(TableError, match=r"u\.parquet has no column 'latitude'"):
        ingest(root, tmp_path / "u.parquet")


def test_a_wrong_table_is_found_before_any_is_read(root, monkeypatch):
    monkeypatch.setattr(ingest_module._TextFile, "read", None)
    good, bad = written(root, LINES), written(root, "id,path\n", "u.csv")
    with pytest.raises(TableError, match=r"u\.csv has no column 'latitude'"):
        ingest(root, good, bad)


def test_kinds_of_parquet_columns(root, tmp_path):
    table = pa.table(
        {
            "id": pa.array([b"p1", b"\xe4", None], pa.binary()),
            "path": pa.array(["b.jpg", " ", "b.jpg"]).dictionary_encode(),
            "latitude": pa.array([25.5, 24.0, np.nan]),
            "longitude": pa.array([67.25, 1e-7, 3], pa.float32()),
            "captured_at": pa.array([0, None, 1], pa.timestamp("s")),
            "width": pa.array([640, None, 3], pa.int16()),
            "url": pa.nulls(3),
            "phash": pa.array([b"\xff", b"", None]),
            "tags": pa.array([["a"], [], None]),
        }
    )
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, row_group_size=2)
    raw = ingest(root, path)
    assert "phash" not in raw
    assert "tags" not in raw
    assert raw["id"].to_list() == ["p1", "\\xe4", pd.NA]
    assert raw["path"].to_list() == ["b.jpg", pd.NA, "b.jpg"]
    assert raw["latitude"].to_list() == ["25.5", "24", "nan"]
    assert raw["longitude"].to_list() == ["67.25", "1e-7", "3"]
    assert raw["captured_at"].str[:10].to_list() == ["1970-01-01", pd.NA, "1970-01-01"]
    assert raw["width"].to_list() == ["640", pd.NA, "3"]
    assert "not UTF-8" in raw["malformed"][1]
    assert raw["malformed"].isna().to_list() == [True, False, True]


def test_a_parquet_column_that_is_no_text(root, tmp_path):
    pd.DataFrame({"id": [[1]], "path": "a", "latitude": 1, "longitude": 2}).to_parquet(
        tmp_path / "t.parquet"
    )
    with pytest.raises(TableError, match=r"the column 'id' holds .*list"):
        ingest(root, tmp_path / "t.parquet")


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.booleans(), st.tuples(TEXT, TEXT), st.integers(0, 5)), min_size=1, max_size=15
    )
)
def test_every_written_row_is_there_once(tmp_path_factory, rows):
    """Good rows with any values, between rows that are bad in every way."""
    root = tmp_path_factory.mktemp("root")
    (root / "b.jpg").write_bytes(b"x")
    bad = [
        b"x,y",
        b"1,2,3,4,5,6,7,8",
        b'1,"b.jpg,25.25,67.25,a,b',
        b"1,\xff,2.11,3,a,b",
        b'"x',
        b"1\0,",
    ]
    path = root / "t.csv"
    expected, line = [], 2
    with path.open("wb") as stream:
        stream.write(b"id,path,latitude,longitude,author,album\n")
        for k, (is_good, (author, album), kind) in enumerate(rows):
            if is_good:
                cells = [f"p{k}", "b.jpg", f"25.{k:03d}", "67.25", author, album]
                content = ",".join('"' + c.replace('"', '""') + '"' for c in cells).encode() + b"\n"
            else:
                content = bad[kind] + b"\n"
            expected.append((line, is_good, author.strip() or None, album.strip() or None))
            stream.write(content)
            line += content.count(b"\n")
    raw = ingest(root, path)
    assert raw["line"].to_list() == [row[0] for row in expected]
    assert raw["malformed"].isna().to_list() == [row[1] for row in expected]
    photos, rejected = validate(raw, root, REGION)
    assert sorted([*photos.index, *rejected.index]) == list(range(len(rows)))
    good = [k for k, row in enumerate(rows) if row[0]]
    assert photos.index.to_list() == good
    assert photos["id"].to_list() == [f"p{k}" for k in good]
    assert photos["latitude"].to_list() == [float(f"25.{k:03d}") for k in good]
    for column, place in (("author", 2), ("album", 3)):
        got = [None if pd.isna(value) else value for value in photos[column]]
        assert got == [expected[k][place] for k in good]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_a_table_error(tmp_path_factory, content):
    root = tmp_path_factory.mktemp("root")
    for body in (content, b"id,path,latitude,longitude\n" + content):
        path = root / "t.csv"
        path.write_bytes(body)
        try:
            raw = read_sources([path], [], root, DEFAULT)
        except TableError as error:
            said = str(error)
        else:
            said = "t.csv"
            assert raw["line"].is_monotonic_increasing
            assert raw["line"].is_unique
        assert "t.csv" in said


def write_photo(path, latitude=None, longitude=None):
    path.parent.mkdir(exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Aisha"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2021:05:03 10:11:12"
    if latitude is not None:
        gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
        for tag, value, letters in (
            (ExifTags.GPS.GPSLatitude, latitude, "NS"),
            (ExifTags.GPS.GPSLongitude, longitude, "EW"),
        ):
            gps[tag - 1] = letters[value < 0]
            degrees, rest = divmod(abs(value), 1)
            gps[tag] = (degrees, float(int(rest * 60)), (rest * 60 % 1) * 60)
    Image.new("RGB", (20, 10), "red").save(path, exif=exif)


def test_a_folder_of_photos_with_gps(root):
    for file in root.rglob("*.jpg"):
        file.unlink()
    write_photo(root / "a" / "with.jpg", 25.123456, -67.5)
    write_photo(root / "a" / "without.JPG")
    (root / "a" / "broken.png").write_bytes(b"not a picture")
    (root / "a" / os.fsdecode(b"\xe4.jpg")).write_bytes(b"x")
    (root / "a" / "notes.txt").write_text("no photo")
    raw = read_sources([], [root / "a"], root)
    raw_schema().validate(raw)
    photos, rejected = validate(raw, root, REGION)
    assert rejected["reason"].to_list() == ["malformed_row", "coordinate_missing", "malformed_row"]
    assert "'a/broken.png' cannot be opened as an image" in rejected["detail"].iloc[0]
    assert "is not UTF-8 text; rename" in rejected["detail"].iloc[2]
    assert str(root) not in rejected["detail"].str.cat()
    only = photos.iloc[0]
    assert (only["id"], only["path"]) == ("a/with.jpg", "a/with.jpg")
    assert only["latitude"] == pytest.approx(25.123456, abs=1e-6)
    assert raw["longitude"][1] == "-67.5"
    assert (only["author"], only["captured_at"]) == ("Aisha", "2021-05-03T10:11:12")
    assert (only["width"], only["height"]) == (20, 10)


def test_a_folder_of_photos_whose_sidecars_have_the_position(root):
    for file in root.rglob("*.jpg"):
        file.unlink()
    write_photo(root / "a" / "takeout.jpg")
    place = {"latitude": 25.25, "longitude": 67.5}
    told = {"photoTakenTime": {"timestamp": "1"}, "geoDataExif": place}
    (root / "a" / "takeout.jpg.json").write_text(json.dumps(told))
    write_photo(root / "a" / "apart.jpg", 34.5, 72.25)
    (root / "a" / "apart.jpg.json").write_text(json.dumps(told))
    raw = read_sources([], [root / "a"], root)
    photos, rejected = validate(raw, root, REGION)
    assert photos[["latitude", "longitude"]].to_numpy().tolist() == [[25.25, 67.5]]
    assert rejected["reason"].to_list() == ["malformed_row"]
    assert "takeout_camera 25.25, 67.5" in rejected["detail"].item()


def test_a_folder_must_be_inside_the_root_and_hold_photos(root):
    with pytest.raises(TableError, match="not a folder inside the data root"):
        read_folder(root.parent, root)
    (root / "empty").mkdir()
    with pytest.raises(TableError, match="holds no image file"):
        read_folder(root / "empty", root)


SPLIT_LINES = "photo_id,lat,lon,split,author\n1,25.5,67,train,A\n2,26,68.25,test,\n"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_split_made_elsewhere(root, suffix):
    path = written(root, SPLIT_LINES)
    if suffix == ".parquet":
        frame = pd.read_csv(path).assign(phash=[b"1" * 32, None])
        path = root.parent / "t.parquet"
        frame.to_parquet(path)
    frame = read_split_table(path, DEFAULT)
    assert frame["id"].to_list() == ["1", "2"]
    assert frame["latitude"].to_list() == [25.5, 26.0]
    assert frame["split"].to_list() == ["train", "test"]
    assert frame["author"].fillna("?").to_list() == ["A", "?"]
    if suffix == ".parquet":
        assert frame["phash"].to_list() == [b"1" * 32, None]


@pytest.mark.parametrize(
    ("text", "needles"),
    [
        (SPLIT_LINES.replace("split", "fold"), ["has no column 'split'"]),
        (SPLIT_LINES + "1,2,3\n", ["line 4 is malformed: has 3 values", "1 of 3 rows"]),
        (SPLIT_LINES.replace("test", ""), ["row 2 (id '2')", "the name of a split"]),
        (
            SPLIT_LINES.replace("26", "x"),
            ["row 2", "latitude 'x' cannot be used", "decimal degrees"],
        ),
    ],
)
def test_splits_made_elsewhere_that_are_wrong(root, text, needles):
    with pytest.raises((TableError, PreparedSetError)) as caught:
        read_split_table(written(root, text), DEFAULT)
    for needle in ["t.csv", *needles]:
        assert needle in str(caught.value)


def test_plain_rows_are_not_read_one_by_one(root, monkeypatch):
    monkeypatch.setattr(delimited._Rows, "parse_lines", None)
    raw = ingest(root, written(root, LINES + 'p2,"a,b.jpg",1.25,2\n' * 3000))
    assert len(raw) == 3001
