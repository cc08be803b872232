from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import ExifTags, Image

from geopak.errors import ConfigError
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.render.photo_plan import COLUMNS
from geopak.render.photoset import write_photo_set


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def thumbnail(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((16, 16)), float)


def test_table_and_files(
    photo_set: Path, region: Region, read_table: Callable[..., pd.DataFrame]
) -> None:
    table = read_table(photo_set)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 120
    assert table["id"].is_unique
    assert set(table["province"]) <= set(region.names)
    truncated = set(read_table(photo_set, "defects.csv").query("kind == 'truncated'")["id"])
    for row in table.itertuples():
        path = photo_set / row.path
        with Image.open(path) as image:
            assert image.size == (row.width, row.height)
            if row.id in truncated:
                with pytest.raises(OSError, match="truncated"):
                    image.load()
            else:
                assert np.asarray(image).std() > 8
    assert not list(photo_set.rglob("*.part"))


def test_position_time_and_author_are_in_the_file(
    photo_set: Path, read_table: Callable[..., pd.DataFrame]
) -> None:
    table = read_table(photo_set)
    for row in table.itertuples():
        with Image.open(photo_set / row.path) as image:
            exif = image.getexif()
        gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
        for value, ref, negative, expected in (
            (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef, "S", row.latitude),
            (ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef, "W", row.longitude),
        ):
            degrees, minutes, seconds = (float(part) for part in gps[value])
            angle = (degrees + minutes / 60 + seconds / 3600) * (-1 if gps[ref] == negative else 1)
            assert angle == pytest.approx(expected, abs=1e-6)
        taken = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal]
        assert taken == row.captured_at.replace("-", ":").replace("T", " ")
        assert exif[ExifTags.Base.Artist] == row.author


def test_same_files_for_any_number_of_workers(
    photo_set: Path, tmp_path: Path, small_settings: Callable[..., dict[str, Any]]
) -> None:
    again = write_photo_set(small_settings(tmp_path / "set", "workers=2"))
    assert content(again) == content(photo_set)


def test_another_seed_is_another_set(
    photo_set: Path, tmp_path: Path, small_settings: Callable[..., dict[str, Any]]
) -> None:
    other = write_photo_set(small_settings(tmp_path / "set", "seed=1"))
    assert (other / "photos.csv").read_bytes() != (photo_set / "photos.csv").read_bytes()


def test_resuming_rewrites_only_what_is_missing_or_broken(
    photo_set: Path,
    tmp_path: Path,
    small_settings: Callable[..., dict[str, Any]],
    read_table: Callable[..., pd.DataFrame],
) -> None:
    out = tmp_path / "set"
    shutil.copytree(photo_set, out)
    defects = read_table(out, "defects.csv")
    truncated = defects.loc[defects["kind"] == "truncated", "id"].iloc[0]
    table = read_table(out)
    good = table.loc[~table["id"].isin(defects["id"]), "path"].tolist()
    cut_off = table.loc[table["id"] == truncated, "path"].item()
    (out / good[0]).unlink()
    (out / good[1]).write_bytes((out / good[1]).read_bytes()[:-40])
    (out / good[2]).write_bytes(b"")
    (out / cut_off).write_bytes((out / cut_off).read_bytes()[:-40])
    (out / "photos.csv").unlink()
    broken = {good[0], good[1], good[2], cut_off}
    before = {p: (out / p).stat().st_mtime_ns for p in table["path"] if p not in broken}
    write_photo_set(small_settings(out))
    assert content(out) == content(photo_set)
    assert before == {p: (out / p).stat().st_mtime_ns for p in before}


def test_another_set_in_the_folder_is_not_overwritten_unasked(
    photo_set: Path, tmp_path: Path, small_settings: Callable[..., dict[str, Any]]
) -> None:
    out = tmp_path / "set"
    shutil.copytree(photo_set, out)
    with pytest.raises(ConfigError, match="overwrite=true"):
        write_photo_set(small_settings(out, "difficulty=0.5"))
    assert content(out) == content(photo_set)
    write_photo_set(small_settings(out, "num_photos=60", "overwrite=true"))
    assert len(list(out.rglob("*.jpg"))) == 60


def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, small_settings: Callable[..., dict[str, Any]]
) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write_photo_set(small_settings(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["diary.txt"]


def test_defects_are_exactly_those_asked_for(
    photo_set: Path,
    outlines: Outlines,
    read_table: Callable[..., pd.DataFrame],
    defect_counts: dict[str, int],
) -> None:
    table, defects = read_table(photo_set), read_table(photo_set, "defects.csv")
    assert defects["kind"].value_counts().to_dict() == defect_counts
    assert json.loads((photo_set / "synthetic.json").read_text())["defects"] == defect_counts
    assert defects["id"].is_unique
    # An original is a good row, and has one copy.
    originals = defects.loc[defects["original_id"] != "", "original_id"]
    assert originals.is_unique
    assert not set(originals) & set(defects["id"])

    kind = table["id"].map(defects.set_index("id")["kind"]).fillna("")
    found = outlines.province_of(table[["latitude", "longitude"]])
    inside = found >= 0
    assert set(kind[~inside]) == {"outside", "swapped"}
    assert not inside[kind.isin(["outside", "swapped"])].any()
    swapped = table.loc[kind == "swapped", ["longitude", "latitude"]]
    assert (outlines.province_of(swapped) >= 0).all()


def test_labels_are_wrong_only_where_said(
    photo_set: Path, outlines: Outlines, region: Region, read_table: Callable[..., pd.DataFrame]
) -> None:
    table, defects = read_table(photo_set), read_table(photo_set, "defects.csv")
    found = outlines.province_of(table[["latitude", "longitude"]])
    label = np.array([region.index_of(name) for name in table["province"]])
    wrong = set(table["id"][(found >= 0) & (found != label)])
    assert wrong == set(defects.query("kind == 'wrong_label'")["id"])


def test_duplicates(photo_set: Path, read_table: Callable[..., pd.DataFrame]) -> None:
    path = read_table(photo_set).set_index("id")["path"]
    for row in read_table(photo_set, "defects.csv").query("original_id != ''").itertuples():
        copy, original = photo_set / path[row.id], photo_set / path[row.original_id]
        assert (copy.read_bytes() == original.read_bytes()) == (row.kind == "duplicate")
        assert np.abs(thumbnail(copy) - thumbnail(original)).mean() < 4


def test_contact_sheet(
    photo_set: Path, tmp_path: Path, small_settings: Callable[..., dict[str, Any]]
) -> None:
    out = tmp_path / "set"
    shutil.copytree(photo_set, out)
    write_photo_set(small_settings(out, "contact_sheet=14"))
    with Image.open(out / "contact_sheet.jpg") as sheet:
        assert np.asarray(sheet).std() > 20


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("num_photos=0", "num_photos"),
        ("num_photos=20", "defects"),
        ("workers=0", "workers"),
        ("difficulty=-1", "difficulty"),
        ("seed=-1", "seed"),
        ("image.short_side_px=[100,50]", "image.short_side_px"),
        ("image.aspects=[]", "image.aspects"),
        ("image.quality=100", "image.quality"),
        ("places.spot_share=0.99", "places.spot_share"),
        ("places.album_size=0", "places.album_size"),
        ("places.years=[2020,2010]", "places.years"),
        ("defects.outside=1.5", "defects.outside"),
        ("+defects.outsid=1", "Did you mean 'outside'"),
        ("+places.jiter_km=1", "Did you mean 'jitter_km'"),
        ("+landscape.photo_shares.sind=1", "Did you mean 'sindh'"),
        ("world.style_mixing=2", "world.style_mixing"),
        ("region.towns=null", "region.towns"),
    ],
)
def test_settings_that_cannot_work(
    tmp_path: Path, override: str, key: str, small_settings: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(ConfigError, match=key):
        write_photo_set(small_settings(tmp_path / "set", override))
    assert not (tmp_path / "set").exists()
