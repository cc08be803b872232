import numpy as np
import pandas as pd
import pandera.errors
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.data.table import (
    COLUMNS,
    ValidationSettings,
    check_split_table,
    natural_order,
    photo_schema,
    raw_schema,
    rejections,
    validate,
)
from geopak.errors import ConfigError, PreparedSetError
from geopak.geo.region import Province, Region

REGION = Region("toy", "Toyland", (Province("west", "West"), Province("east", "East", ("E.",))))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "a").mkdir(parents=True)
    for name in ("a/1.jpg", "a/2.jpg", "b.jpg"):
        (folder / name).write_bytes(b"x")
    return folder


def row(**changes):
    return {"id": "p1", "path": "a/1.jpg", "latitude": "25.5", "longitude": "67.25"} | changes


def table(*rows):
    frame = pd.DataFrame(list(rows), dtype="string")
    return frame.assign(
        file=pd.array(["t.csv"] * len(rows), "string"), line=np.arange(len(rows)) + 2
    )


def test_good_rows_become_photos(root):
    raw = table(
        row(province="e.", width="640", album="x"),
        row(id="p2", path="./a//2.jpg", latitude="-26.123456789", captured_at="2021-05-03"),
    )
    photos, rejected = validate(raw, root, REGION)
    assert rejected.empty
    assert rejected.columns.to_list() == ["reason", "detail"]
    assert photos["path"].to_list() == ["a/1.jpg", "a/2.jpg"]
    assert photos["latitude"].to_list() == [25.5, -26.123456789]
    assert photos["label_province"].to_list() == ["East", pd.NA]
    assert photos["coordinate_decimals"].to_list() == [2, 9]
    assert photos["width"].to_list() == [640, pd.NA]
    expected = {"label_province", "coordinate_decimals", *COLUMNS} - {"province"}
    assert set(photos.columns) == expected


BAD_ROWS = {
    "malformed_row": (row(malformed="has 9 values", id=None), "the row has 9 values"),
    "missing_id": (row(id=None), "own"),
    "missing_path": (row(path=None), "path is empty"),
    "coordinate_missing": (row(latitude=None), "latitude is empty"),
    "coordinate_not_a_number": (row(longitude="67°12'"), 'longitude is "67°12\'"'),
    "coordinates_swapped": (row(latitude="120.5", longitude="30"), "other way round"),
    "coordinate_out_of_range": (row(latitude="91", longitude="120"), "latitude 91, longitude 120"),
    "coordinates_zero": (row(latitude="0.0", longitude="0"), "0, 0"),
    "too_few_decimals": (row(longitude="67.2"), "latitude 25.5, longitude 67.2: fewer than 2"),
    "path_outside_root": (row(path="../secret.jpg"), "leaves the data root"),
    "file_missing": (row(path="a/none.jpg"), "no file 'a/none.jpg'"),
    "duplicate_id": (row(id="good"), "the id is also that of t.csv line 2"),
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_bad_rows_are_rejected_with_reason_and_detail(root, reason):
    bad, needle = BAD_ROWS[reason]
    raw = table(row(id="good", path="b.jpg", malformed=None), bad)
    photos, rejected = validate(raw, root, REGION)
    assert photos["id"].to_list() == ["good"]
    assert rejected["reason"].to_dict() == {1: reason}
    assert needle in rejected["detail"].iloc[0]


def test_the_first_reason_in_the_documented_order_counts(root):
    reasons = list(BAD_ROWS)
    worst = {}
    for reason in reversed(reasons):
        changed = {k: v for k, v in BAD_ROWS[reason][0].items() if v != row().get(k, "none")}
        worst |= changed
        if reason in ("coordinates_swapped", "coordinate_out_of_range", "coordinates_zero"):
            worst |= BAD_ROWS[reason][0] | {k: worst[k] for k in ("id", "path") if k in worst}
        _, rejected = validate(table(row(id="good", path="b.jpg"), row() | worst), root, REGION)
        assert rejected["reason"].to_list() == [reason]


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "N/A"])
def test_written_out_missing_values(root, text):
    _, rejected = validate(table(row(latitude=text)), root, REGION)
    assert rejected["reason"].to_list() == ["coordinate_missing"]


@pytest.mark.parametrize("text", ["inf", "-inf", "abc", "25,5", "1e400"])
def test_text_that_is_no_number(root, text):
    _, rejected = validate(table(row(latitude=text)), root, REGION)
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
    _, rejected = validate(table(row(path=path)), root, REGION)
    assert rejected["reason"].to_list() == ["path_outside_root"]


def test_links_inside_the_root_are_followed(root):
    (root / "inner.jpg").symlink_to(root / "b.jpg")
    photos, rejected = validate(table(row(path="inner.jpg")), root, REGION)
    assert rejected.empty
    assert photos["path"].to_list() == ["inner.jpg"]


def test_the_first_of_a_repeated_id_is_kept(root):
    raw = table(row(path="gone.jpg"), row(path="b.jpg"), row(path="a/2.jpg"))
    photos, rejected = validate(raw, root, REGION)
    assert photos["path"].to_list() == ["b.jpg"]
    assert rejected["reason"].to_list() == ["file_missing", "duplicate_id"]
    assert rejected["detail"].iloc[1].endswith("t.csv line 3")


def test_a_number_of_pixels_that_is_none_is_left_out(root):
    texts = ["640", "640.0", "wide", "-3", "0", "inf", "1e9", "12.6"]
    raw = table(*(row(id=str(k), width=text) for k, text in enumerate(texts)))
    photos, rejected = validate(raw, root, REGION)
    assert rejected.empty
    assert photos["width"].fillna(-1).to_list() == [640, 640, -1, -1, -1, -1, -1, 13]


def test_decimals_are_those_of_the_more_exact_coordinate(root):
    texts = [("25", "67"), ("25.1", "67.2"), ("25.10", "67"), ("25.123", "67.1")]
    raw = table(*(row(id=str(k), latitude=a, longitude=b) for k, (a, b) in enumerate(texts)))
    for least, kept in [(0, 4), (1, 3), (2, 2), (3, 1), (4, 0)]:
        photos, rejected = validate(raw, root, REGION, ValidationSettings(min_decimals=least))
        assert photos["id"].to_list() == ["0", "1", "2", "3"][4 - kept :]
        assert set(rejected["reason"]) <= {"too_few_decimals"}
    assert "validation.min_decimals" in rejected["detail"].iloc[0]


def test_a_coordinate_that_says_it_is_weak_is_rejected(root):
    texts = ["0.01", "5", "5.001", "180", None, "somewhere", "-1", "inf", "nan", "1e9"]
    raw = table(*(row(id=str(k), accuracy_km=text) for k, text in enumerate(texts)))
    photos, rejected = validate(raw, root, REGION)
    assert rejected["reason"].to_list() == ["inaccurate"] * 2
    assert rejected["detail"].iloc[1].startswith("the coordinate is exact to 180 km, at most 5 are")
    # What is no distance says nothing.
    assert photos["id"].to_list() == ["0", "1", "4", "5", "6", "7", "8", "9"]
    assert photos["accuracy_km"].fillna(-1).to_list() == [0.01, 5.0, -1, -1, -1, -1, -1, -1]
    strict = validate(raw, root, REGION, ValidationSettings(max_accuracy_km=0.1))[0]
    assert strict["id"].to_list() == ["0", "4", "5", "6", "7", "8", "9"]
    every, none = validate(raw, root, REGION, ValidationSettings(max_accuracy_km=None))
    assert len(every) == 10
    assert none.empty
    assert every["accuracy_km"].fillna(-1).to_list()[:4] == [0.01, 5.0, 5.001, 180.0]
    without, _ = validate(table(row()), root, REGION)
    assert without["accuracy_km"].isna().all()


def test_a_coordinate_that_too_many_share(root):
    rows = [row(id=f"p{k}", longitude="67.10") for k in range(4)]
    rows += [row(id="p0", longitude="67.10"), row(id="other", longitude="67.11")]
    limit = ValidationSettings(max_photos_per_coordinate=3)
    photos, rejected = validate(table(*rows), root, REGION, limit)
    assert photos["id"].to_list() == ["other"]
    assert rejected["reason"].to_list() == ["coordinate_shared"] * 4 + ["duplicate_id"]
    for needle in ("latitude 25.5, longitude 67.10: 4 photos", "at most 3", "validation.max_pho"):
        assert needle in rejected["detail"].iloc[0]
    # The repeated id does not count.
    three = table(*rows[:3], rows[4])
    assert len(validate(three, root, REGION, limit)[0]) == 3
    for settings_ in (None, ValidationSettings(max_photos_per_coordinate=None)):
        assert len(validate(table(*rows), root, REGION, settings_)[0]) == 5


def test_a_landmark_photographed_by_thousands_is_kept(root):
    """Positions scatter by metres, so that no coordinate is there twice as often as allowed."""
    rng = np.random.default_rng(0)
    spots = rng.normal((31.58831, 74.31095), 0.0001, (3000, 2))
    raw = table(
        *(
            row(id=str(k), latitude=f"{lat:.5f}", longitude=f"{lon:.5f}")
            for k, (lat, lon) in enumerate(spots)
        )
    )
    assert validate(raw, root, REGION)[1].empty


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_decimals": -1},
        {"min_decimals": 16},
        {"max_photos_per_coordinate": 0},
        {"max_accuracy_km": 0},
        {"max_accuracy_km": float("nan")},
    ],
)
def test_settings_that_cannot_work(wrong):
    with pytest.raises(ConfigError, match=f"validation.{next(iter(wrong))} is"):
        ValidationSettings(**wrong)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["1", "2", "3", ""]),
            st.sampled_from(["a/1.jpg", "b.jpg", "..", "", "none.jpg"]),
            st.text(alphabet="0123456789.-naNe ", max_size=6),
            st.text(alphabet="0123456789.-naNe ", max_size=6),
            st.sampled_from(["West", "", "Nowhere"]),
            st.text(alphabet="0129.-e", max_size=4),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 3),
)
def test_every_row_is_kept_or_rejected_once(tmp_path_factory, rows, min_decimals):
    root = tmp_path_factory.mktemp("root")
    (root / "a").mkdir()
    for name in ("a/1.jpg", "b.jpg"):
        (root / name).write_bytes(b"x")
    columns = ["id", "path", "latitude", "longitude", "province", "width"]
    raw = pd.DataFrame(rows, columns=columns, dtype="string").replace("", pd.NA)
    raw = raw.assign(file=pd.array(["t.csv"] * len(raw), "string"), line=np.arange(len(raw)) + 2)
    believed = ValidationSettings(min_decimals, max_photos_per_coordinate=2)
    photos, rejected = validate(raw, root, REGION, believed)
    assert sorted([*photos.index, *rejected.index]) == list(range(len(rows)))
    assert photos["id"].is_unique
    assert photos["latitude"].between(-90, 90).all()
    assert photos["longitude"].between(-180, 180).all()
    assert rejected.notna().all(axis=None)
    for k in photos.index:
        assert photos["latitude"][k] == float(raw["latitude"][k])


def test_rejections():
    made = rejections(pd.Index([3, 5]), "why", ["a", "b"])
    assert made.to_dict("index") == {
        3: {"reason": "why", "detail": "a"},
        5: {"reason": "why", "detail": "b"},
    }


def test_natural_order():
    ids = pd.Series(["p10", "p2", "p1a", "p1"])
    assert ids[natural_order(ids).sort_values().index].to_list() == ["p1", "p1a", "p2", "p10"]


def test_raw_rows_have_a_schema():
    raw_schema().validate(table(row()))
    for wrong in (table(row()).assign(latitude=25.5), table(row()).assign(line=0)):
        with pytest.raises(pandera.errors.SchemaError):
            raw_schema().validate(wrong)


def test_photos_have_a_schema(root):
    photos, _ = validate(table(row(), row(id="p2")), root, REGION)
    for wrong in (
        photos.assign(latitude=91.0),
        photos.assign(id=pd.array(["p1", "p1"], "string")),
        photos.assign(extra=1),
        photos.drop(columns="album"),
        photos.assign(path=pd.array(["a", None], "string")),
    ):
        with pytest.raises((pandera.errors.SchemaError, pandera.errors.SchemaErrors)):
            photo_schema().validate(wrong)


def split_table(**changes):
    frame = {
        "id": [7, 8, 9], "latitude": [25.5, 26.0, 27.0], "longitude": [67, 68, 69],
        "split": ["train", "val", "test"], "author": ["A", None, "B"], "note": [1, 2, 3],
    }  # fmt: skip
    return pd.DataFrame(frame | changes)


def test_a_split_table_from_elsewhere_gets_the_types_of_ours():
    given_table = split_table(latitude=["25.5", " 26", "27"])
    frame = check_split_table(given_table, "s.csv")
    assert frame["id"].to_list() == ["7", "8", "9"]
    assert frame["latitude"].to_list() == [25.5, 26.0, 27.0]
    assert frame["longitude"].dtype == "float64"
    assert frame["author"].dtype == "string"
    assert frame["note"].to_list() == [1, 2, 3]
    assert given_table["latitude"][0] == "25.5"


@pytest.mark.parametrize(
    ("changes", "needles"),
    [
        (
            {"latitude": [25.5, 91, 92]},
            ["row 2 (id '8')", "latitude", "91.0", "2 of 3 rows", "-90"],
        ),
        ({"longitude": [67, None, 69]}, ["row 2 (id '8')", "longitude has no value"]),
        ({"latitude": ["25,5", "26", "27"]}, ["row 1 (id '7')", "'25,5'", "decimal degrees"]),
        ({"id": ["a", "b", "a"]}, ["row 1", "id 'a' is there twice", "id of its own"]),
        ({"id": ["a", None, "b"]}, ["row 2", "id has no value"]),
        ({"split": ["train", "", "test"]}, ["row 2 (id '8')", "the name of a split"]),
    ],
)
def test_a_split_table_that_is_wrong(changes, needles):
    with pytest.raises(PreparedSetError) as caught:
        check_split_table(split_table(**changes), "s.csv")
    for needle in ["s.csv", *needles]:
        assert needle in str(caught.value)


def test_a_split_table_that_lacks_something():
    with pytest.raises(PreparedSetError, match=r"s\.csv has no column 'split'\. Did you mean 'spl"):
        check_split_table(split_table().rename(columns={"split": "splits"}), "s.csv")
    twice = pd.concat([split_table(), split_table()[["id"]]], axis=1)
    with pytest.raises(PreparedSetError, match="has the column 'id' twice"):
        check_split_table(twice, "s.csv")
    with pytest.raises(PreparedSetError, match="has no rows"):
        check_split_table(split_table().iloc[:0], "s.csv")
