"""The tables of Google Landmarks v2, looked up as a scan finds them."""

from __future__ import annotations

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopak.sources import landmark_tables
from geopak.sources.landmark_tables import Attributions, Images, file_name_of, title_of

UPLOAD = "https://upload.wikimedia.org/wikipedia/commons/a/ab"

ROWS = st.lists(
    st.tuples(
        st.integers(0, 16**16 - 1), st.text(st.characters(codec="utf-8", exclude_characters="\r\n"),
        max_size=8), st.integers(0, 6),
    ),
    max_size=20, unique_by=lambda row: row[0],
)  # fmt: skip


@given(ROWS, st.integers(20, 80))
def test_rows_are_looked_up_as_a_scan_finds_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, int]], block: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "train.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "url", "landmark_id"))
        writer.writerows((f"{image:016x}", url, landmark) for image, url, landmark in rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(landmark_tables, "_BLOCK_BYTES", block)
        images = Images(path)
    assert len(images) == len(rows)
    for landmark in range(-1, 8):
        found = [(int(row.image, 16), row.url, int(row.landmark)) for row in images.of(landmark)]
        assert found == [row for row in rows if row[2] == landmark]


@given(ROWS)
def test_attributions_are_looked_up_as_a_scan_finds_them(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, int]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "train_attribution.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "url", "author", "license", "title"))
        writer.writerows((f"{i:016x}", "u", text, f"l{n}", "t\nu") for i, text, n in rows)
    table = Attributions(path)
    assert not table.malformed
    for image, text, number in rows:
        found = table.of(f"{image:016x}")
        assert found is not None
        assert (found.author, found.license) == (text.strip(), f"l{number}")
    assert table.of("not an id") is None


def test_names_from_addresses() -> None:
    assert title_of("http://commons.wikimedia.org/wiki/Category:K%C3%B6nigs_see") == (
        "Category:Königs see"
    )
    assert title_of("http://commons.wikimedia.org/wiki/Category:What?_A") == "Category:What? A"
    assert title_of("http://example.org/") == ""
    assert file_name_of(f"{UPLOAD}/A_b%3F.jpg") == "A b?.jpg"
    thumb = "https://upload.wikimedia.org/wikipedia/commons/thumb/a/ab/A_b.jpg/960px-A_b.jpg"
    assert file_name_of(thumb) == "A b.jpg"
