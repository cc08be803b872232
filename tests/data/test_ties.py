"""What ties photos together, against comparisons of all pairs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geopak.data.ties import (
    Ties,
    block_codes,
    capture_day,
    components,
    distance_to_nearest_km,
    hashed,
    tie_codes,
    tie_gaps,
    unit_vectors,
)
from geopak.geo.distance import haversine_km_array


def scene(
    seed: int, num: int, spread_km: float = 3.0, with_ties: bool = True, num_towns: int = 4
) -> pd.DataFrame:
    """Photos about a few towns of two provinces, some with authors, albums and looks."""
    rng = np.random.default_rng(seed)
    towns = rng.uniform((25, 66), (26, 67), (num_towns, 2))
    latlon = towns[rng.integers(num_towns, size=num)] + rng.normal(0, spread_km / 111, (num, 2))
    photos = pd.DataFrame(
        {
            "id": [f"p{k}" for k in range(num)],
            "latitude": latlon[:, 0],
            "longitude": latlon[:, 1],
            "province_id": (latlon[:, 1] > 66.5).astype(np.int64),
        }
    )
    if with_ties:
        author = rng.integers(max(1, num // 8), size=num).astype(str).astype(object)
        album = rng.integers(max(1, num // 5), size=num).astype(str).astype(object)
        author[rng.random(num) < 0.3] = None
        album[rng.random(num) < 0.8] = None
        days = rng.integers(1, 4, num)
        photos["author"] = pd.array(author, "string")
        photos["captured_at"] = pd.array([f"2021-05-0{d}T10:00:00" for d in days], "string")
        photos["album"] = pd.array(album, "string")
        look = np.arange(num)
        twins = rng.random(num) < 0.1
        look[twins] = rng.integers(max(1, num // 20), size=int(twins.sum()))
        photos["look"] = look
    return photos


def all_pairs_tied(photos: pd.DataFrame, min_distance_km: float) -> NDArray[np.bool_]:
    """(N, N) by comparing all pairs."""
    latlon = photos[["latitude", "longitude"]].to_numpy()
    out = haversine_km_array(latlon[:, None], latlon[None]) <= min_distance_km
    if min_distance_km == 0:
        out[:] = np.eye(len(photos), dtype=bool)
    if "author" in photos:
        author_day = photos["author"] + photos["captured_at"].str[:10]
        for key in (author_day, photos["album"], photos["look"]):
            values = pd.factorize(key)[0]
            out |= (values[:, None] == values[None]) & (values >= 0)[:, None]
    return out


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.25, 30.0]))
def test_links_agree_with_all_pairs(seed: int, distance_km: float) -> None:
    photos = scene(seed, 60, 1.0)
    chosen = np.random.default_rng(seed).random(60) < 0.2
    expected = all_pairs_tied(photos, distance_km)[:, chosen].any(1) | chosen
    assert (Ties.of(photos).linked(chosen, distance_km) == expected).all()


def test_a_distance_right_at_the_limit_is_near() -> None:
    photos = pd.DataFrame({"latitude": [0.0, 0.0], "longitude": [0.0, 0.1]})
    exactly = float(haversine_km_array([0, 0], [0, 0.1]))
    chosen = np.array([True, False])
    assert Ties.of(photos).linked(chosen, exactly).tolist() == [True, True]
    assert Ties.of(photos).linked(chosen, exactly * 0.9999).tolist() == [True, False]


def test_neighbours_across_the_antimeridian_and_the_pole_are_near() -> None:
    photos = pd.DataFrame(
        {"latitude": [0.0, 0.0, 89.9999, 89.9999], "longitude": [179.9995, -179.9995, 10.0, -170.0]}
    )
    for first in (0, 2):
        chosen = np.arange(4) == first
        expected = (np.arange(4) == first) | (np.arange(4) == first + 1)
        assert (Ties.of(photos).linked(chosen, 0.25) == expected).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_nearest_distances_agree_with_all_pairs(seed: int, num: int) -> None:
    rng = np.random.default_rng(seed)
    latlon = np.stack((rng.uniform(-90, 90, num), rng.uniform(-180, 180, num)), 1)
    latlon[rng.random(num) < 0.3] = latlon[0]
    chosen = rng.random(num) < 0.5
    away = distance_to_nearest_km(unit_vectors(latlon), np.arange(num), chosen)
    pairs = haversine_km_array(latlon[:, None], latlon[None])
    expected = np.where(chosen[None], pairs, np.inf).min(1)
    np.testing.assert_allclose(away, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("block_km", [0.05, 2.0, 50.0])
def test_blocks_are_small_and_stay_when_photos_are_added(block_km: float) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform((-80, -180), (80, 180), (300, 2))
    points = np.concatenate([points, points + 0.002 * block_km])
    codes = block_codes(points, block_km)
    assert (block_codes(points[::7], block_km) == codes[::7]).all()
    together = 0
    for code in np.unique(codes):
        here = points[codes == code]
        together += len(here) - 1
        away = haversine_km_array(here[:, None], here[None])
        # A band is wider at the side of the equator: by 1 % of its width 80 degrees north.
        assert away.max() < block_km * 2**0.5 * 1.05
    assert together > 100


def test_the_two_names_of_the_antimeridian_are_one_block() -> None:
    assert len(set(block_codes([[10.0, 180.0], [10.0, -180.0]], 2.0).tolist())) == 1
    assert len(set(block_codes([[90.0, 0.0], [89.999, 0.0]], 2.0).tolist())) <= 2
    assert len(set(block_codes([[10.0, 67.123], [10.0, 427.123]], 2.0).tolist())) == 1


def test_hashes_are_the_same_everywhere_and_even() -> None:
    # SplitMix64 of 0 and 1 as its authors' generator gives them, salted with a hash of the salt.
    def naive(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    assert naive(0) == 0xE220A8397B1DCDAF
    for salt in (0, 17, -1, 2**70):
        got = hashed(np.arange(5), salt).tolist()
        assert got == [naive(k ^ naive(salt % 2**64)) for k in range(5)]
    shares = hashed(np.arange(100_000), 3) / 2**64
    assert np.histogram(shares, 20, (0, 1))[0] == pytest.approx(5000, rel=0.07)


def test_capture_days() -> None:
    cases = {
        "2021-05-03": [
            "2021-05-03T10:00", "2021-05-03T23:30:00+05:00", "2021:05:03 23:59:59", "2021-05-03",
            "2021-5-3", "2021/05/03 10:00", " 2021.05.03 ", "20210503", "20210503T101112",
            "20210503101112", "20210503 1011", "202105031011", "1620036612", "1620036612.5",
            "1620036612000",
        ],
        "1999-01-02": ["915235200", "915235200000"],
        None: [
            "noon", "", None, "03/05/2021", "2021-02-30", "2021-13-01", "2021-00-10", "2021-05-031",
            "0000:00:00 00:00:00", "21-05-03", "2021", "2021050", "-1620036612", "99999999",
            "٢٠٢١-05-03",
        ],
    }  # fmt: skip
    for day, texts in cases.items():
        got = capture_day(pd.Series(texts, dtype="string", index=range(5, 5 + len(texts))))
        assert list(got.index) == list(range(5, 5 + len(texts)))
        expected = pd.Timestamp(day) if day else pd.NaT
        for text, found in zip(texts, got, strict=True):
            assert found is expected or found == expected, text


def test_capture_days_of_other_kinds_of_columns() -> None:
    day = pd.Timestamp("2021-05-03")
    for column in (
        pd.Series([1620036612, 1620036612]),
        pd.Series([1620036612.0, 1620036612.4]),
        pd.to_datetime(pd.Series(["2021-05-03T23:00", "2021-05-03T01:00"])),
        pd.to_datetime(pd.Series(["2021-05-03T23:00+05:00", "2021-05-03T01:00+05:00"])),
        pd.Series([day.date(), day.date()]),
    ):
        assert capture_day(column).to_list() == [day, day]
    assert capture_day(pd.Series([1620036612.0, None])).isna().tolist() == [False, True]
    assert capture_day(pd.Series([], dtype="string")).empty


def test_empty_text_and_what_is_missing_tie_nothing() -> None:
    photos = pd.DataFrame(
        {
            "author": ["Ann", " Ann", "", None, "Bob", "Ann"],
            "captured_at": ["2021-05-03", "2021:05:03 9:00", "2021-05-03", "2021-05-03", "?", "?"],
            "album": ["", "  ", None, "a", "a", "b"],
            "look": [1, 1, 2, 3, 4, 5],
        }
    )
    codes = tie_codes(photos)
    assert codes["author and day"].tolist() == [0, 0, -1, -1, -1, -1]
    assert codes["album"].tolist() == [-1, -1, -1, 0, 0, 1]
    assert len(set(codes["look"].tolist())) == 5
    assert tie_codes(photos[["author"]]) == {}


def test_gaps_are_told_in_words() -> None:
    photos = pd.DataFrame(
        {"author": ["Ann", "", "Bob"], "captured_at": ["2021-05-03", "2021-05-03", "03/05/2021"]}
    )
    gaps = tie_gaps(photos)
    assert "1 of 3 photos have no author" in gaps["author and day"]
    assert "1 of 2 with an author have no captured_at" in gaps["author and day"]
    assert gaps["album"] == "album unknown: no column album"
    photos = photos.assign(author=None, album=None)
    assert tie_gaps(photos)["author and day"] == "author and day unknown: no photo has an author"
    assert tie_gaps(photos)["album"] == "album unknown: no photo has one"
    photos = photos.assign(author="Ann", captured_at="?")
    assert "names a day" in tie_gaps(photos)["author and day"]
    photos = photos.assign(captured_at="2021-05-03", album="a")
    assert tie_gaps(photos) == {}
    no_column = tie_gaps(photos.drop(columns=["captured_at"]))
    assert no_column["author and day"] == "author and day unknown: no column captured_at"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_components_agree_with_spreading(seed: int, num: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(num, size=(2, 6))
    near = np.eye(num, dtype=bool)
    near[a, b] = near[b, a] = True
    for _ in range(num):
        near = near @ near
    label = components(num, [(a, b)])
    assert ((label[:, None] == label[None]) == near).all()
