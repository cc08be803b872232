"""Licences, dates and names as Wikimedia writes them."""

from __future__ import annotations

import pytest

from geopak.sources.wikimedia import captured_at, license_of, plain_text

BY_SA = "https://creativecommons.org/licenses/by-sa/3.0/deed.en"


@pytest.mark.parametrize(
    ("texts", "key"),
    [
        ((BY_SA,), "cc-by-sa-3.0"),
        (("http://creativecommons.org/licenses/by/2.0/de/deed.en",), "cc-by-2.0"),
        ((None, "CC BY-SA 3.0 de"), "cc-by-sa-3.0"),
        (("", "CC BY 4.0"), "cc-by-4.0"),
        (("", "CC0"), "cc0"),
        (("", "Public domain"), "pdm"),
        (("https://www.gnu.org/copyleft/fdl.html", "GFDL"), None),
        (("", None), None),
    ],
)
def test_licences(texts: tuple[str | None, ...], key: str | None) -> None:
    assert license_of(*texts) == key


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2014-05-06 10:20:30", "2014-05-06T10:20:30"),
        ("2014-05-06T10:20", "2014-05-06T10:20"),
        ('<time class="dtstart" datetime="2011-04-03">2011-04-03</time>', "2011-04-03"),
        ("1905", "1905"),
        ("circa 1905", None),
        ("2014-13-06", None),
        ("0000", None),
        ("", None),
    ],
)
def test_dates(text: str, wanted: str | None) -> None:
    assert captured_at(text) == wanted


def test_markup_is_taken_out_of_names() -> None:
    assert plain_text("<b>A</b>&nbsp;&lt;b&gt;") == "A <b>"
