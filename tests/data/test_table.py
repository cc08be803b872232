import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from shapely.geometry import box

from geopak.data.provinces import assign_provinces
from geopak.data.table import natural_order, read_folder, read_tables, validate
from geopak.errors import TableError
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Province, Region

REGION = Region("toy", "Toyland", (Province("west", "West"), Province("east", "East", ("E.",))))
OUTLINES = Outlines((box(60, 20, 70, 30), box(70, 20, 80, 30)))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "a").mkdir(parents=True)
    for name in ("a/1.jpg", "a/2.jpg", "b.jpg"):
        (folder / name).write_bytes(b"x")
    return folder


def row(**changes):
    return {"id": "p1", "path": "a/1.jpg", "latitude": "25.5", "longitude": "67.25"} | changes


def table(root, *rows):
    path = root.parent / "t.csv"
    pd.DataFrame(list(rows)).to_csv(path, index=False)
    return read_tables([path])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_published_columns_in_any_order_and_format(root, suffix):
    frame = pd.DataFrame(
        {
            "id": [1, 2],
            "latitude": [25.5, 26.123456789],
            "longitude": [67.0, 71.0],
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
    raw = read_tables([path])
    photos, rejected = validate(raw, root, REGION)
    assert rejected.empty
    assert photos["id"].to_list() == ["1", "2"]
    assert photos["path"].to_list() == ["a/1.jpg", "a/2.jpg"]
    assert photos["latitude"].to_list() == [25.5, 26.123456789]
    assert photos["label_province"].to_list() == ["West", "East"]
    assert raw["line"].to_list() == ([1, 2] if suffix == ".parquet" else [2, 3])


BAD_ROWS = {
    "missing_id": (row(id=""), "own"),
    "missing_path": (row(path=" "), "path is empty"),
    "coordinate_missing": (row(latitude=""), "latitude is empty"),
    "coordinate_not_a_number": (row(longitude="67°12'"), 'longitude is "67°12\'"'),
    "coordinates_swapped": (row(latitude="120.5", longitude="30"), "other way round"),
    "coordinate_out_of_range": (row(latitude="91", longitude="120"), "latitude 91, longitude 120"),
    "coordinates_zero": (row(latitude="0.0", longitude="0"), "0, 0"),
    "unknown_province": (row(province="Wst"), "'Wst' is no province of Toyland. Did you mean 'W"),
    "path_outside_root": (row(path="../secret.jpg"), "leaves the data root"),
    "file_missing": (row(path="a/none.jpg"), "no file 'a/none.jpg'"),
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_bad_rows_are_rejected_with_reason_and_detail(root, reason):
    bad, needle = BAD_ROWS[reason]
    raw = table(root, row(id="good", path="b.jpg"), {"province": "", **bad})
    photos, rejected = validate(raw, root, REGION)
    assert photos["id"].to_list() == ["good"]
    assert rejected["reason"].to_list() == [reason]
    assert needle in rejected["detail"].iloc[0]


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "N/A"])
def test_written_out_missing_values(root, text):
    _, rejected = validate(table(root, row(latitude=text)), root, REGION)
    assert rejected["reason"].to_list() == ["coordinate_missing"]


@pytest.mark.parametrize("text", ["inf", "-inf", "abc", "25,5", "1e400"])
def test_text_that_is_no_number(root, text):
    _, rejected = validate(table(root, row(latitude=text)), root, REGION)
    assert rejected["reason"].to_list() == ["coordinate_not_a_number"]


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "a/../../x.jpg", "..", "C:\\x.jpg", "\\\\host\\x", "link/x.jpg", "l.jpg"],
)
def test_paths_may_not_leave_the_root(root, path):
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "x.jpg").write_bytes(b"x")
    (root / "link").symlink_to(outside)
    (root / "l.jpg").symlink_to(outside / "x.jpg")
    _, rejected = validate(table(root, row(path=path)), root, REGION)
    assert rejected["reason"].to_list() == ["path_outside_root"]


def test_links_inside_the_root_are_followed(root):
    (root / "inner.jpg").symlink_to(root / "b.jpg")
    photos, rejected = validate(table(root, row(path="inner.jpg")), root, REGION)
    assert rejected.empty
    assert photos["path"].to_list() == ["inner.jpg"]


def test_a_folder_is_no_photo_and_a_zero_byte_no_name(root):
    raw = table(root, row(path="a"), row(id="2", path="a\0b"))
    _, rejected = validate(raw, root, REGION)
    assert rejected["reason"].to_list() == ["file_missing"] * 2


def test_the_first_of_a_repeated_id_is_kept(root):
    raw = table(root, row(path="gone.jpg"), row(path="b.jpg"), row(path="a/2.jpg"))
    photos, rejected = validate(raw, root, REGION)
    assert photos["path"].to_list() == ["b.jpg"]
    assert rejected["reason"].to_list() == ["file_missing", "duplicate_id"]
    assert rejected["detail"].iloc[1].endswith("t.csv line 3")


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["1", "2", "3", ""]),
            st.sampled_from(["a/1.jpg", "b.jpg", "..", "", "none.jpg"]),
            st.text(alphabet="0123456789.-naNe ", max_size=6),
            st.text(alphabet="0123456789.-naNe ", max_size=6),
            st.sampled_from(["West", "", "Nowhere"]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_row_is_kept_or_rejected_once(tmp_path_factory, rows):
    root = tmp_path_factory.mktemp("root")
    (root / "a").mkdir()
    for name in ("a/1.jpg", "b.jpg"):
        (root / name).write_bytes(b"x")
    columns = ["id", "path", "latitude", "longitude", "province"]
    raw = pd.DataFrame(rows, columns=columns, dtype="string").replace("", pd.NA)
    raw = raw.assign(file="t.csv", line=np.arange(len(raw)) + 2)
    photos, rejected = validate(raw, root, REGION)
    assert sorted([*photos.index, *rejected.index]) == list(range(len(rows)))
    assert photos["id"].is_unique
    assert photos["latitude"].between(-90, 90).all()
    assert photos["longitude"].between(-180, 180).all()
    assert rejected.notna().all(axis=None)


@pytest.mark.parametrize(
    ("text", "needles"),
    [
        ("id,path,lat,longitude\n1,a,2,3\n", ["no column 'latitude'", "Did you mean 'lat'?"]),
        ("id,path,latitude,longitud\n1,a,2,3\n", ["'longitude'", "Did you mean 'longitud'?"]),
        ("id,path,latitude\n1,a,2\n", ["no column 'longitude'", "It has: id, path, latitude"]),
        ("id,path,latitude,longitude\n", ["has no rows", "one row per photo"]),
        ("", ["has no rows"]),
        ("id,path,latitude,longitude\n1,a,2,3,4,5\n1,2,3\n", ["t.csv"]),
        ('id,path,latitude,longitude\n1,"a,2,3\n', ["cannot be read as a table"]),
        ("id,path,latitude,longitude,reason\n1,a,2,3,x\n", ["'reason'", "Rename"]),
    ],
)
def test_malformed_tables(tmp_path, text, needles):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(TableError) as caught:
        read_tables([path])
    for needle in ["t.csv", *needles]:
        assert needle in str(caught.value)


def test_unreadable_tables(tmp_path):
    with pytest.raises(TableError, match=r"No photo table at .*t\.csv.*geopak\.synthetic"):
        read_tables([tmp_path / "t.csv"])
    with pytest.raises(TableError, match=r"tables=\[FILE"):
        read_tables([])
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(TableError, match=r"t\.parquet cannot be read as a table"):
        read_tables([tmp_path / "t.parquet"])
    (tmp_path / "t.xlsx").write_bytes(b"x")
    with pytest.raises(TableError, match=r"\.xlsx is not a table format"):
        read_tables([tmp_path / "t.xlsx"])
    (tmp_path / "t.csv").write_bytes("id,path,latitude,longitude\n1,ä,2,3".encode("latin-1"))
    with pytest.raises(TableError, match="UTF-8"):
        read_tables([tmp_path / "t.csv"])


def test_several_tables_keep_their_origin(root):
    first = root.parent / "1.csv"
    first.write_text("\ufeffid,path,latitude,longitude\n1,b.jpg,25,67\n", encoding="utf-8")
    second = root.parent / "2.csv"
    second.write_text("longitude,latitude,path,id\n67,25,a/1.jpg,2\n")
    raw = read_tables([first, second])
    assert raw["file"].to_list() == ["1.csv", "2.csv"]
    assert validate(raw, root, REGION)[1].empty


def write_photo(path, latitude=None, longitude=None):
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
    raw = read_folder(root / "a", root)
    photos, rejected = validate(raw, root, REGION)
    assert rejected["reason"].to_list() == ["coordinate_missing"] * 2
    only = photos.iloc[0]
    assert (only["id"], only["path"]) == ("a/with.jpg", "a/with.jpg")
    assert only["latitude"] == pytest.approx(25.123456, abs=1e-6)
    assert only["longitude"] == -67.5
    assert (only["author"], only["captured_at"]) == ("Aisha", "2021-05-03 10:11:12")
    assert (only["width"], only["height"]) == (20, 10)


def test_a_folder_must_be_inside_the_root_and_hold_photos(root):
    with pytest.raises(TableError, match="not a folder inside the data root"):
        read_folder(root.parent, root)
    (root / "empty").mkdir()
    with pytest.raises(TableError, match="holds no image file"):
        read_folder(root / "empty", root)


def test_natural_order():
    ids = pd.Series(["p10", "p2", "p1a", "p1"])
    assert ids[natural_order(ids).sort_values().index].to_list() == ["p1", "p1a", "p2", "p10"]


def test_coordinates_win_over_labels():
    photos = pd.DataFrame(
        {
            "id": list("abcdef"),
            "latitude": [25.0, 25.0, 25.0, 65.0, 50.0, 25.0],
            "longitude": [65.0, 75.0, 75.0, 25.0, 50.0, 65.0],
            "label_province": pd.array(["West", "West", "East", "West", "West", pd.NA], "string"),
        },
        index=[3, 4, 5, 6, 7, 8],
    )
    inside, rejected, wrong = assign_provinces(photos, OUTLINES, REGION)
    assert inside["province"].to_list() == ["West", "East", "East", "West"]
    assert inside["province_id"].to_list() == [0, 1, 1, 0]
    assert rejected["reason"].to_dict() == {6: "coordinates_swapped", 7: "outside_region"}
    assert rejected["detail"][6].endswith("swapped it is in West")
    assert "Toyland" in rejected["detail"][7]
    assert wrong["id"].to_list() == ["b"]
