"""The source that reads data sets of Hugging Face."""

from __future__ import annotations

import sys
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pytest

from geopak.cli import compose
from geopak.errors import RefusedQueryError, SourceError
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.options import plain
from geopak.sources.publishing import parquet_schema

from .asking import ask_everything, located
from .hub_sets import (
    DELHI,
    SCHEMA_COLUMNS,
    content,
    image_folder,
    own_ids,
    picture,
    rows_of,
    source_of,
)

pytestmark = pytest.mark.usefixtures("offline_hub")


@pytest.fixture(scope="module")
def outlines() -> Outlines:
    return Outlines.of_region(Region.from_config(plain(compose("collect"))["region"]))


def test_a_parquet_set_is_read_by_row_groups(parquet_set):
    source = source_of(parquet_set)
    asked = ask_everything(source)
    assert own_ids(asked) == [f"{k:03d}" for k in range(20)]
    assert [q.kind for q in asked.asked] == ["open"] + ["file"] * 3 + ["group"] * (3 + 2 + 1)
    assert asked.seen == 20
    # In any order: the collector takes the rarest province first.
    for k in (19, 3, 11, 0, 4, 16, 3):
        assert content(source, asked.photos[k]) == picture(k)
    photo = asked.photos[5]
    assert (photo.latitude, photo.longitude) == (DELHI[0] + 5 / 1e4, DELHI[1])
    assert (photo.license, photo.author) == ("cc-by-4.0", "Aisha")
    assert photo.source_id.startswith("set-")


def test_large_row_groups_are_asked_in_parts(parquet_set):
    whole = ask_everything(source_of(parquet_set))
    parts = ask_everything(source_of(parquet_set, rows_per_query=3))
    assert sorted(parts.ids()) == sorted(whole.ids())
    assert len(parts.asked) > len(whole.asked)
    assert {p.source_id: p for p in parts.photos} == {p.source_id: p for p in whole.photos}


@pytest.mark.parametrize("stop", [1, 3, 7])
@pytest.mark.parametrize("form", ["parquet", "imagefolder"])
def test_a_collection_goes_on_where_it_was_stopped(tmp_path, parquet_set, form, stop):
    folder = parquet_set if form == "parquet" else image_folder(tmp_path / "folder", 20)
    whole = ask_everything(source_of(folder, rows_per_query=2))
    first = ask_everything(source_of(folder, rows_per_query=2), stop_after=stop)
    rest = ask_everything(source_of(folder, rows_per_query=2), waiting=first.open.values())
    assert first.photos + rest.photos == whole.photos
    assert first.asked + rest.asked == whole.asked
    # A photo that waited in the ledger is found by a process that has not asked for it.
    later = source_of(folder, rows_per_query=2)
    for photo in whole.photos[13::3]:
        assert content(later, photo) == picture(int(photo.source_id[-3:]))


def test_an_image_folder_is_read_file_by_file(tmp_path):
    folder = image_folder(tmp_path / "folder", 7)
    source = source_of(folder, rows_per_query=3)
    asked = ask_everything(source)
    assert [q.params.get("start") for q in asked.asked] == [None, 0, 3, 6]
    assert own_ids(asked) == [f"{k:03d}" for k in range(7)]
    for k, photo in enumerate(asked.photos):
        assert content(source, photo) == picture(k)
        # No second copy of it was made.
        assert unquote(urlsplit(located(source, photo)).path).startswith(str(folder))


def test_parquet_files_alone(parquet_set):
    source = source_of(parquet_set / "data" / "train-*.parquet")
    asked = ask_everything(source)
    assert own_ids(asked) == [f"{k:03d}" for k in range(17)]
    assert content(source, asked.photos[12]) == picture(12)


def test_a_set_whose_pictures_are_in_neither(tmp_path):
    """Arrow files: read in a stream, pictures by going over the rows again."""
    import datasets

    table = pa.Table.from_pylist(rows_of(9), parquet_schema(SCHEMA_COLUMNS))
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    folder = tmp_path / "set"
    folder.mkdir()
    [arrow] = (tmp_path / "saved").glob("*.arrow")
    arrow.rename(folder / "train.arrow")
    source = source_of(folder, rows_per_query=4)
    asked = ask_everything(source)
    assert own_ids(asked) == [f"{k:03d}" for k in range(9)]
    for k in (8, 0, 5):
        assert content(source, asked.photos[k]) == picture(k)


def test_pictures_are_taken_out_only_where_they_are_wanted(parquet_set, tmp_path, outlines):
    work = tmp_path / "work"
    source = source_of(parquet_set, outlines, work)
    asked = ask_everything(source)
    # Looking through the rows takes no picture out.
    assert not work.exists()
    assert content(source, asked.photos[0]) == picture(0)
    # Of rows 0 to 3, the first group, only 2 is outside.
    written = {p.read_bytes() for p in work.rglob("*") if p.is_file()}
    assert written == {picture(k) for k in (0, 1, 3)}
    with pytest.raises(RefusedQueryError, match="row 2 holds no picture"):
        located(source, asked.photos[2])


def test_splits(parquet_set):
    assert own_ids(ask_everything(source_of(parquet_set, splits=["test"]))) == ["017", "018", "019"]
    with pytest.raises(SourceError, match=r"no split 'tests'\. Did you mean 'test'\?"):
        ask_everything(source_of(parquet_set, splits=["tests"]))


def test_the_hub_is_not_asked_where_that_is_forbidden():
    with pytest.raises(SourceError, match=r"HF_HUB_OFFLINE forbids to ask it"):
        ask_everything(source_of("me/photos"))


def test_a_folder_that_is_no_data_set(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "set").mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        ask_everything(source_of(tmp_path / "set"))


def test_a_broken_parquet_file(parquet_set):
    path = parquet_set / "data" / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    source = source_of(parquet_set)
    open_query = next(iter(source.start()))
    files = source._answer(open_query).more
    broken = next(q for q in files if q.params["split"] == "test")
    with pytest.raises(SourceError):
        source._translating(source._answer, broken)
    # Another one can be read.
    assert source._answer(next(q for q in files if q.params["split"] == "train")).more


def test_the_package_that_is_needed_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match=r"pip install 'geopak\[hub\]'"):
        source_of(tmp_path)


def test_what_it_would_take(tmp_path):
    assert source_of(tmp_path).estimate({}).requests == {}
    estimate = source_of("me/photos").estimate({"sindh": 3})
    assert estimate.cost_usd is None
    assert any("huggingface_hub" in text for text in estimate.assumptions)
