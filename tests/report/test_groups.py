"""Groups of photos that resemble each other, for the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geopak.report.groups import group_photos

# Two photos within a block, two more a degree away each from everything.
LATLON_DEG = np.array([[30.005, 70.005], [30.006, 70.006], [31.0, 71.0], [32.0, 72.0]])


def make_photos(**columns: Sequence[str | int | None]) -> pd.DataFrame:
    photos = pd.DataFrame(LATLON_DEG, columns=["latitude", "longitude"])
    return photos.assign(province_id=0, **columns)


def test_without_authors_the_place_alone_groups() -> None:
    assert group_photos(make_photos()).label.tolist() == [0, 0, 1, 2]
    groups = group_photos(make_photos(author=[None] * 4, captured_at=[None] * 4, album=[None] * 4))
    assert groups.label.tolist() == [0, 0, 1, 2]
    assert groups.ties == {
        "block of ground about 2 km wide": 1,
        "author and day": 0,
        "album": 0,
    }


def test_authors_known_of_half_of_the_photos() -> None:
    photos = make_photos(author=[None, "Ann", None, "Ann"], captured_at=["2021-05-03T10:00"] * 4)
    groups = group_photos(photos)
    # The first two share a place, the second and the last an author and day.
    assert groups.label.tolist() == [0, 0, 1, 0]
    assert groups.ties["author and day"] == 0.5


def test_author_day_and_album_tie_photos_of_several_places() -> None:
    photos = make_photos(
        author=["Ann", "Bob", "Ann", "Ann"],
        captured_at=["2021-05-03T10:00", "2021-05-03", "2021-05-03 22:10", "2021-05-04"],
    )
    assert group_photos(photos).label.tolist() == [0, 0, 0, 1]
    photos["album"] = ["a", None, None, "a"]
    assert group_photos(photos).label.tolist() == [0, 0, 0, 0]


def test_neighbours_in_two_provinces_and_an_author_without_a_day_are_not_tied() -> None:
    photos = make_photos(author=["Ann"] * 4, captured_at=[None, "noon", None, None])
    photos["province_id"] = [0, 1, 0, 0]
    assert group_photos(photos).label.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("known", [0, 2, 4])
def test_tables_read_back_from_a_file(tmp_path: Path, known: int) -> None:
    author = ["Ann"] * known + [None] * (4 - known)
    photos = make_photos(author=author, captured_at=["2021-05-03"] * 4)
    for kind in ("object", "string"):
        photos["author"] = photos["author"].astype(kind)
        photos.to_parquet(tmp_path / "photos.parquet")
        groups = group_photos(pd.read_parquet(tmp_path / "photos.parquet"))
        assert len(np.unique(groups.label)) == (1 if known == 4 else 3)
        assert groups.ties["author and day"] == known / 4


def test_photos_that_look_alike_are_tied() -> None:
    groups = group_photos(make_photos(look=[7, 1, 2, 7]))
    assert groups.label.tolist() == [0, 0, 1, 0]
    assert groups.ties["look"] == 1
