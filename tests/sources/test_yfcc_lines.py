"""Lines of YFCC100M's dump: which are photos of the region, and every field of theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.geo.boundaries import Outlines
from geopak.schema.sources.yfcc100m import Yfcc100mOptions
from geopak.sources.records import FoundPhoto
from geopak.sources.yfcc_lines import LineFilter, captured_at, layout_of
from tests.sources.yfcc_dump import OUTLINES, as_text, dump_line

OPTIONS = Yfcc100mOptions("yfcc100m", None)

CELLS = st.sampled_from(
    ["", "25.5", "65.25", "-91", "nan", "inf", "1e1", "+61", "25,5", " 25", "x", "0x1p3", "180.5"]
)


@settings(max_examples=60)
@given(st.lists(st.tuples(CELLS, CELLS, st.sampled_from([0, 1])), min_size=1, max_size=8))
def test_the_quick_look_is_the_slow_one(cells: list[tuple[str, str, int]]) -> None:
    lines = [dump_line(k, a, b, marker=m) for k, (a, b, m) in enumerate(cells)]
    quick, slow = (LineFilter(23, OUTLINES, OPTIONS) for _ in range(2))
    quick.look(as_text(lines))
    slow._look_one_by_one(lines)
    assert quick.found == slow.found


def test_every_field_of_a_photo() -> None:
    lines = LineFilter(23, OUTLINES, OPTIONS)
    lines.look(
        as_text(
            [
                dump_line(
                    7, 25.5, 65.25, title="Über + unter", nickname="Ana + Bé", accuracy=11,
                    license_url="http://creativecommons.org/licenses/by-nc-sa/2.0/",
                )
            ]
        )
    )  # fmt: skip
    (photo,) = lines.found.photos
    assert photo == FoundPhoto(
        source_id="6985418918", latitude=25.5, longitude=65.25, accuracy_km=3.2,
        url="https://live.staticflickr.com/7007/6985418918_000000d889.jpg".replace(
            "000000d889", f"{7 * 7919:010x}"
        ),
        license="cc-by-nc-sa-2.0", author="Ana + Bé",
        author_url="https://www.flickr.com/people/39000007@N07/",
        page_url="https://www.flickr.com/photos/39000007@N07/6985418918/",
        captured_at="2012-02-16T09:56:37", title="Über + unter",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"size": "500"}, "https://live.staticflickr.com/7001/6985418912_{s}.jpg"),
        ({"size": 640}, "https://live.staticflickr.com/7001/6985418912_{s}_z.jpg"),
        ({"size": "1024"}, "https://live.staticflickr.com/7001/6985418912_{s}_b.jpg"),
        ({"size": "original"}, "https://live.staticflickr.com/7001/6985418912_{o}_o.png"),
        ({"pictures": None}, "http://farm8.staticflickr.com/7001/6985418912_{s}.jpg"),
        (
            {"pictures": None, "size": 1024},
            "http://farm8.staticflickr.com/7001/6985418912_{s}_b.jpg",
        ),
        (
            {"pictures": None, "size": "original"},
            "http://farm8.staticflickr.com/7001/6985418912_{o}_o.png",
        ),
    ],
)
def test_pictures_of_each_size(options: dict[str, Any], wanted: str) -> None:
    lines = LineFilter(23, OUTLINES, replace(OPTIONS, **options))
    lines.look(as_text([dump_line(1, 25.5, 65.25, extension="png")]))
    assert [photo.url for photo in lines.found.photos] == [
        wanted.format(s=f"{7919:010x}", o=f"{104729:010x}")
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"marker": 1}, "video"),
        ({"marker": 7}, "malformed_line"),
        ({"id": "x1"}, "malformed_line"),
        ({"id": "1%C2%B2"}, "malformed_line"),
        ({"accuracy": 3}, "accuracy_too_low"),
        ({"secret": "", "download_url": ""}, "no_picture"),
        ({"latitude": "91"}, "bad_coordinate"),
        ({"latitude": "33.9", "longitude": "73.9"}, "outside_region"),
    ],
)
def test_what_is_refused_is_kept_with_its_reason(fields: dict[str, Any], reason: str) -> None:
    lines = LineFilter(23, OUTLINES, replace(OPTIONS, min_accuracy=6))
    place = fields.pop("latitude", 25.5), fields.pop("longitude", 65.25)
    lines.look(as_text([dump_line(1, *place, **fields), dump_line(2, 25.5, 65.25)]))
    assert [refused.reason for refused in lines.found.refused] == [reason]
    assert [photo.source_id for photo in lines.found.photos] == ["6985418913"]


@pytest.mark.parametrize("accuracy", ["%C2%B2", "9" * 5000, "1.5", ""])
def test_an_accuracy_that_is_no_level_is_not_known(accuracy: str) -> None:
    lines = LineFilter(23, OUTLINES, OPTIONS)
    lines.look(as_text([dump_line(1, 25.5, 65.25, accuracy=accuracy)]))
    [photo] = lines.found.photos
    assert photo.accuracy_km is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2012-02-16 09:56:37.0", "2012-02-16T09:56:37"),
        ("2012-02-16", "2012-02-16"),
        ("0000-00-00 00:00:00.0", None),
        ("2012-13-40 00:00:00.0", None),
        ("null", None),
        ("", None),
    ],
)
def test_capture_dates(text: str, wanted: str | None) -> None:
    assert captured_at(text) == wanted


def test_a_region_across_the_antimeridian() -> None:
    outlines = Outlines((shapely.box(175, -20, 185, -10),))
    lines = LineFilter(23, outlines, OPTIONS)
    places = [(-15, 179), (-15, -179), (-15, 174), (-15, -174)]
    lines.look(as_text([dump_line(k, *place) for k, place in enumerate(places)]))
    assert [photo.longitude for photo in lines.found.photos] == [179, -179]


def test_layouts_are_told_by_content() -> None:
    for columns in (23, 25):
        assert layout_of([dump_line(1, columns=columns), b"garbage"][: 1 + columns % 2]) in (
            columns,
            None,
        )
        assert layout_of([dump_line(k, columns=columns) for k in range(5)] + [b"x"]) == columns
    assert layout_of([b"\t" * 22]) is None
    assert layout_of([]) is None
