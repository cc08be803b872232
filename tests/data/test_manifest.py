"""The identity of a prepared set: equal content, equal id; anything else, and what differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopak.data.manifest import (
    changed_files,
    differences,
    file_sha256,
    make_manifest,
    photo_files_sha256,
    read_manifest,
    table_sha256,
    write_manifest,
)
from geopak.errors import PreparedSetError

TEXT = st.one_of(st.none(), st.text(max_size=4))
ROWS = st.lists(
    st.tuples(TEXT, st.floats(-90, 90), st.integers(-3, 3)), min_size=1, max_size=6
)  # fmt: skip
COLUMNS = ("text", "number", "count")


def frame(rows: list[tuple[str | None, float, int]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"text": "string", "number": "float64", "count": "int64"})


@given(ROWS, ROWS)
def test_tables_hash_alike_exactly_when_they_are_alike(
    one: list[tuple[str | None, float, int]], other: list[tuple[str | None, float, int]]
) -> None:
    def bits(rows: list[tuple[str | None, float, int]]) -> list[tuple[str | None, bytes, int]]:
        return [(t, np.float64(n).tobytes(), c) for t, n, c in rows]

    same = bits(one) == bits(other)
    assert (table_sha256(frame(one), COLUMNS) == table_sha256(frame(other), COLUMNS)) is same


@given(ROWS)
def test_the_hash_does_not_depend_on_how_text_is_kept(
    rows: list[tuple[str | None, float, int]],
) -> None:
    table = frame(rows)
    wide = table.astype({"text": object})
    wide["text"] = wide["text"].where(wide["text"].notna(), None)
    assert table_sha256(wide, COLUMNS) == table_sha256(table, COLUMNS)


def test_where_one_text_ends_matters() -> None:
    one = pd.DataFrame({"a": ["ab", "c"]}, dtype="string")
    other = pd.DataFrame({"a": ["a", "bc"]}, dtype="string")
    assert table_sha256(one, ["a"]) != table_sha256(other, ["a"])


def test_photo_files_hash_alike_in_any_order() -> None:
    table = pd.DataFrame({"path": ["b", "a"], "sha256": ["2", "1"]}, dtype="string")
    back = table.iloc[::-1]
    one = photo_files_sha256(table["path"], table["sha256"])
    assert photo_files_sha256(back["path"], back["sha256"]) == one
    assert photo_files_sha256(table["path"], table["sha256"][::-1]) != one


def manifest(seed: int = 1, photos: str = "p") -> dict[str, object]:
    return make_manifest(
        region={"name": "here", "provinces": [{"key": "east", "target_cells": 4}]},
        config={"seed": seed, "split": {"method": "places"}},
        inputs={"tables": [{"file": "a.csv", "rows": 3, "sha256": "x"}]},
        content={"photos": photos, "cells": "c"},
    )


def test_round_trip_and_altered_files(tmp_path: Path) -> None:
    (tmp_path / "photos.parquet").write_bytes(b"photos")
    (tmp_path / "cells.parquet").write_bytes(b"cells")
    written = write_manifest(manifest(), tmp_path)
    assert read_manifest(tmp_path) == written
    assert written["files"]["photos.parquet"] == file_sha256(tmp_path / "photos.parquet")
    assert changed_files(written, tmp_path) == []
    (tmp_path / "cells.parquet").write_bytes(b"others")
    (tmp_path / "photos.parquet").unlink()
    assert set(changed_files(written, tmp_path)) == {"cells.parquet", "photos.parquet"}


def test_the_id_is_of_the_content_alone() -> None:
    assert manifest(seed=1)["set_id"] == manifest(seed=2)["set_id"]
    assert manifest(photos="q")["set_id"] != manifest()["set_id"]


def test_differences_name_what_differs() -> None:
    one, other = manifest(), manifest(seed=2, photos="q")
    other["region"] = {"name": "here", "provinces": [{"key": "east", "target_cells": 9}]}
    assert differences(one, one) == []
    assert differences(one, other) == [
        "content.photos: p here, q there",
        "config.seed: 1 here, 2 there",
        "region.provinces.east.target_cells: 4 here, 9 there",
    ]


def test_missing_and_broken_manifests_are_explained(tmp_path: Path) -> None:
    with pytest.raises(PreparedSetError, match=r"No manifest\.json in"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(PreparedSetError, match="cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(PreparedSetError, match="no manifest of a prepared set"):
        read_manifest(tmp_path)
