import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopak.data.coordinates import absent, degrees, explain, num_decimals, shared_by_unrelated


def text(*values):
    return pd.Series(values, dtype="string")


def test_absent():
    given_text = text(None, "", "nan", "NaN", "None", "N/A", "null", "-", "\\N", "0", "x", "1.5")
    assert absent(given_text).tolist() == [True] * 9 + [False] * 3


NUMBERS = {
    "24.86": 24.86, "-24.86": -24.86, "+24.86": 24.86, "24": 24.0, "24.": 24.0, ".5": 0.5,
    "2.486e1": 24.86, "1E2": 100.0, "007.5": 7.5,
}  # fmt: skip
NO_NUMBERS = [
    "inf", "-inf", "nan", "abc", "24,86", "1e400", "0x10", "1_000", "24.8.6", "24°51'", "--1", ".",
    "٢٤", "1 2", "e5", "True",
]  # fmt: skip


def test_degrees():
    values = degrees(text(*NUMBERS, *NO_NUMBERS, None))
    assert values[: len(NUMBERS)].tolist() == list(NUMBERS.values())
    assert np.isnan(values[len(NUMBERS) :]).all()


@given(st.lists(st.floats(-180, 180), min_size=1))
def test_every_float_round_trips(numbers):
    assert degrees(text(*map(repr, numbers))).tolist() == numbers


@given(st.lists(st.text(alphabet="0123456789.+-eE ", max_size=6), min_size=1))
def test_a_number_is_what_python_takes_for_one(texts):
    for written, value in zip(texts, degrees(text(*texts)), strict=True):
        try:
            expected = float(written) if written == written.strip() else math.nan
        except ValueError:
            expected = math.nan
        assert value == expected or (math.isnan(value) and not math.isfinite(expected))


def test_num_decimals():
    written = {
        "24.10": 2, "24.1": 1, "24": 0, "24.": 0, "-24.123456": 6, "2.4105e1": 3, "1e-5": 5,
        "1.5E3": 0, "abc": 0, "0." + "1" * 200: 99,
    }  # fmt: skip
    assert num_decimals(text(*written, None)).tolist() == [*written.values(), 0]


@given(st.decimals(-180, 180, places=4), st.integers(0, 3))
def test_decimals_as_written(number, zeros):
    written = f"{number:.4f}" + "0" * zeros
    assert num_decimals(text(written)).tolist() == [len(re.search(r"\.(\d*)", written)[1])]


@pytest.mark.parametrize(
    ("axis", "written", "needle"),
    [
        ("latitude", "24,86", "write 24.86 with a point"),
        ("longitude", "-67,0011", "write -67.0011 with a point"),
        ("latitude", "24°51'N", "makes 24.85"),
        ("latitude", "24° 51' 36\" N", "makes 24.86"),
        ("latitude", "24°51′36″S", "makes -24.86"),
        ("longitude", "67 0 36 E", "makes 67.01"),
        ("longitude", "W67:00:36", "makes -67.01"),
        ("longitude", "67°12'", "makes 67.2"),
        ("latitude", "-24°30'", "makes -24.5"),
        ("latitude", "24.86° N", "makes 24.86"),
        ("latitude", "24d51m36s", "makes 24.86"),
        ("latitude", "24°51.6'", "makes 24.86"),
        ("latitude", "67°E", "E belongs to a longitude"),
    ],
)
def test_other_notations_are_explained(axis, written, needle):
    said = explain(axis, written)
    assert said.startswith(f"the {axis} is {written!r}, not decimal degrees")
    assert said.endswith(needle)


@pytest.mark.parametrize("written", ["abc", "24°99'", "N24°51'N", "24.86.1", "inf", "1,234,567"])
def test_no_guess_where_nothing_is_plain(written):
    assert explain("latitude", written) == f"the latitude is {written!r}, not decimal degrees"


@given(st.integers(0, 89), st.integers(0, 59), st.integers(0, 59), st.sampled_from("NS"))
def test_sexagesimal_values(whole, minutes, seconds, letter):
    said = explain("latitude", f"{whole}°{minutes}'{seconds}\"{letter}")
    value = (whole + minutes / 60 + seconds / 3600) * (1 if letter == "N" else -1)
    assert float(said.rsplit(" ", 1)[1]) == pytest.approx(value, abs=1e-6)


def photos(n, **columns):
    frame = pd.DataFrame({"latitude": [24.86] * n, "longitude": [67.01] * n})
    return frame.assign(**{k: pd.array(v, "string") for k, v in columns.items()})


def test_unrelated_photos_at_one_coordinate():
    assert shared_by_unrelated(photos(3), 3).empty
    assert shared_by_unrelated(photos(4), 3).tolist() == [4] * 4


def test_an_author_day_or_an_album_counts_once():
    day = ["2021-05-03T10:00", "2021-05-03T11:00", "2021:05:03 12:00:00", "2021-05-04"]
    assert shared_by_unrelated(photos(4, author=["a"] * 4, captured_at=day), 2).empty
    assert shared_by_unrelated(photos(4, author=["a"] * 4, captured_at=day), 1).tolist() == [2] * 4
    assert shared_by_unrelated(photos(4, author=list("abcd"), captured_at=day), 3).size == 4
    assert shared_by_unrelated(photos(4, album=["x"] * 3 + [None]), 2).empty
    # An author alone does not say on how many occasions.
    assert shared_by_unrelated(photos(4, author=["a"] * 4), 3).size == 4


def test_other_coordinates_are_left_alone():
    frame = photos(6)
    frame.loc[[0, 5], "latitude"] = 24.860001
    assert shared_by_unrelated(frame, 3).index.to_list() == [1, 2, 3, 4]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1.0, 2.0]),
            st.sampled_from(["a", "b", None]),
            st.sampled_from(["2021-05-03", "2021-05-04 10:00", "unknown", None]),
            st.sampled_from(["x", "y", None]),
        ),
        max_size=12,
    ),
    st.integers(1, 4),
)
def test_against_a_loop(rows, limit):
    frame = pd.DataFrame(rows, columns=["latitude", "author", "captured_at", "album"])
    frame = frame.assign(longitude=3.0).astype(
        {"latitude": float, "author": "string", "captured_at": "string", "album": "string"}
    )
    occasions = {}
    for k, (latitude, author, day, album) in enumerate(rows):
        has_day = author and day and day[0] == "2"
        occasion = (author, day[:10]) if has_day else album or k
        occasions.setdefault(latitude, set()).add(occasion)
    expected = {
        k: len(occasions[row[0]]) for k, row in enumerate(rows) if len(occasions[row[0]]) > limit
    }
    assert shared_by_unrelated(frame, limit).to_dict() == expected
