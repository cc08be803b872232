import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.data.split import SplitSettings, capture_day, linked, place_names, split_photos
from geopak.errors import ConfigError
from geopak.geo.distance import haversine_km_array


def scene(seed, num, spread_km=3.0, with_ties=True):
    rng = np.random.default_rng(seed)
    towns = rng.uniform((25, 66), (26, 67), (4, 2))
    latlon = towns[rng.integers(4, size=num)] + rng.normal(0, spread_km / 111, (num, 2))
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
    return photos


def tied(photos, min_distance_km):
    """(N, N) bool by comparing all pairs."""
    latlon = photos[["latitude", "longitude"]].to_numpy()
    out = haversine_km_array(latlon[:, None], latlon[None]) <= min_distance_km
    if "author" in photos:
        for column in ("album", "author_day"):
            key = (
                photos[column]
                if column in photos
                else photos["author"] + capture_day(photos["captured_at"])
            )
            values = pd.factorize(key)[0]
            out |= (values[:, None] == values[None]) & (values >= 0)[:, None]
    return out


def assert_no_leak(photos, split, min_distance_km):
    tie = tied(photos, min_distance_km)
    of = split.to_numpy(object)
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not tie[np.ix_(of == one, of == other)].any()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 120),
    st.sampled_from([0.05, 1.0, 10.0]),
    st.booleans(),
    st.sampled_from([0.0, 0.25, 2.0]),
)
def test_splits_never_touch(seed, num, spread_km, with_ties, min_distance_km):
    photos = scene(seed, num, spread_km, with_ties)
    options = SplitSettings(min_distance_km=min_distance_km)
    split = split_photos(photos, options, seed=1)
    assert set(split) <= {"train", "val", "test", "buffer"}
    assert_no_leak(photos, split, min_distance_km)
    shuffled = photos.sample(frac=1, random_state=3)
    assert (split_photos(shuffled, options, 1).sort_index() == split).all()
    for province in photos["province_id"].unique():
        assert (split[photos["province_id"] == province] != "test").any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_links_agree_with_all_pairs(seed):
    photos = scene(seed, 60, 1.0)
    chosen = np.random.default_rng(seed).random(60) < 0.2
    expected = tied(photos, 0.25)[:, chosen].any(1) | chosen
    assert (linked(photos, chosen, 0.25) == expected).all()


def test_a_distance_right_at_the_limit_is_near():
    photos = pd.DataFrame({"latitude": [0.0, 0.0], "longitude": [0.0, 0.1]})
    exactly = float(haversine_km_array([0, 0], [0, 0.1]))
    chosen = np.array([True, False])
    assert linked(photos, chosen, exactly).tolist() == [True, True]
    assert linked(photos, chosen, exactly * 0.9999).tolist() == [True, False]


def test_alike_photos_and_albums_stay_together():
    photos = scene(0, 200, with_ties=False)
    photos["alike"] = np.arange(200) // 2
    split = split_photos(photos, SplitSettings(), 0).to_numpy(object).reshape(-1, 2)
    for one, other in split:
        assert one == other or "buffer" in (one, other)


def test_sizes_are_close_to_the_asked_share():
    photos = scene(5, 6000, spread_km=25, with_ties=False)
    options = SplitSettings()
    split = split_photos(photos, options, seed=7)
    for _, rows in split.groupby(photos["province_id"]):
        share = rows.value_counts(normalize=True)
        assert share["test"] == pytest.approx(options.test_fraction, abs=0.01)
        assert share["val"] == pytest.approx(options.val_fraction, abs=0.01)
        assert share["train"] > 0.5


def test_a_small_province_still_gets_a_test_photo():
    photos = pd.DataFrame(
        {
            "id": list("abcde"),
            "latitude": [25.0, 25.5, 26.0, 26.5, 27.0],
            "longitude": 67.0,
            "province_id": 0,
        }
    )
    split = split_photos(photos, SplitSettings(), seed=0)
    assert (split == "test").sum() == 1
    assert (split == "train").sum() >= 2
    assert (split_photos(photos.head(2), SplitSettings(), 0) == "train").all()
    assert (split_photos(photos.head(1), SplitSettings(), 0) == "train").all()


def test_seed_changes_and_repeats_the_draw():
    photos = scene(1, 400)
    first = split_photos(photos, SplitSettings(), 1)
    assert (first == split_photos(photos, SplitSettings(), 1)).all()
    assert (first != split_photos(photos, SplitSettings(), 2)).any()


def test_random_is_by_photo_and_has_no_buffer():
    photos = scene(1, 1000)
    split = split_photos(photos, SplitSettings(method="random"), 1)
    counts = split.value_counts()
    assert set(counts.index) == {"train", "val", "test"}
    assert counts["test"] == pytest.approx(120, abs=2)
    assert tied(photos, 0.25)[np.ix_(split == "train", split == "test")].any()


def test_places_are_small_and_stay_when_photos_are_added():
    rng = np.random.default_rng(0)
    points = rng.uniform((24, 61), (37, 77), (500, 2))
    points = np.concatenate([points, points + 0.004])
    names = place_names(points, np.zeros(1000, int), 2.0)
    assert (place_names(points[::7], np.zeros(143, int), 2.0) == names[::7]).all()
    for name in np.unique(names):
        here = points[names == name]
        assert haversine_km_array(here[:, None], here[None]).max() < 2 * 2**0.5 * 1.01


def test_capture_days():
    times = pd.Series(["2021-05-03T10:00", "2021:05:03 23:59:59", "2021-05-03", "noon", None])
    assert capture_day(times).fillna("?").to_list() == ["2021-05-03"] * 3 + ["?", "?"]


@pytest.mark.parametrize(
    ("bad", "needle"),
    [
        ({"method": "blocks"}, "split.method is 'blocks'"),
        ({"test_fraction": 0.9}, "split.test_fraction"),
        ({"val_fraction": -0.1}, "split.val_fraction"),
        ({"block_km": 0}, "split.block_km"),
    ],
)
def test_settings_are_checked(bad, needle):
    with pytest.raises(ConfigError, match=needle):
        SplitSettings(**bad)
