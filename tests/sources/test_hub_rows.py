"""Which rows of a data set are photos, and what their columns say."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geopak.errors import SourceError

from .asking import ask_everything
from .hub_sets import content, own_ids, picture, rows_of, source_of, write_parquet

pytestmark = pytest.mark.usefixtures("offline_hub")


def test_rows_that_are_no_photos(tmp_path):
    good = rows_of(1)[0]
    bad = [
        {"latitude": None},
        {"latitude": float("nan")},
        {"latitude": 91.0},
        {"latitude": 0.0, "longitude": 0.0},
        {"longitude": 180.5},
    ]
    rows = [
        good,
        *(good | row | {"id": f"bad{k}"} for k, row in enumerate(bad)),
        good | {"id": None},
    ]
    source = source_of(write_parquet(tmp_path / "a.parquet", rows))
    asked = ask_everything(source)
    assert [r.reason for r in asked.refused] == [
        "no_coordinate",
        "coordinate_not_a_number",
        "coordinate_out_of_range",
        "coordinates_zero",
        "coordinate_out_of_range",
    ]
    # A row without an id is known by its place.
    assert own_ids(asked) == ["000", "6"]
    assert asked.photos[1].source_id.endswith("/train/0/0/6")
    assert asked.seen == 7


def test_columns_by_other_names(tmp_path):
    table = pa.table(
        {
            "Photo": pa.array([picture(0), picture(1)]),
            "LAT": ["24.5", "x"],
            "Lng": ["67.5", "67"],
            "licence": ["https://creativecommons.org/licenses/by-sa/3.0/", "mine"],
            "owner": ["Aisha", ""],
            "taken_at": pa.array([0, None], pa.timestamp("s")),
            "width": [40.0, None],
            "url": ["https://example.org/1", "javascript:alert(1)"],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    source = source_of(tmp_path / "t.parquet")
    asked = ask_everything(source)
    [photo] = asked.photos
    assert (photo.latitude, photo.longitude) == (24.5, 67.5)
    assert (photo.license, photo.author, photo.width) == ("cc-by-sa-3.0", "Aisha", 40)
    assert photo.captured_at == "1970-01-01T00:00:00"
    assert photo.page_url == "https://example.org/1"
    assert content(source, photo) == picture(0)
    assert [r.reason for r in asked.refused] == ["coordinate_not_a_number"]
    chosen = source_of(tmp_path / "t.parquet", columns={"image": "Photo", "latitude": "LAT"})
    with pytest.raises(SourceError, match=r"no column for longitude .*It has: Photo, LAT, Lng"):
        # A mapping that is given whole takes the place of the known names.
        ask_everything(chosen)
    table = table.drop_columns(["licence", "owner"])
    pq.write_table(table, tmp_path / "t.parquet")
    [photo] = ask_everything(
        source_of(tmp_path / "t.parquet", license="cc0", author="Bilal")
    ).photos
    assert (photo.license, photo.author) == ("cc0", "Bilal")


def test_a_licence_that_is_no_known_one_is_kept_as_text(tmp_path):
    rows = [rows_of(1)[0] | {"license": "ask me first"}]
    source = source_of(write_parquet(tmp_path / "a.parquet", rows), license="cc0")
    [photo] = ask_everything(source).photos
    # What a row says goes before the default, even where it is not understood.
    assert photo.license is None
    assert photo.extra["license_text"] == "ask me first"
