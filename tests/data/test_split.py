"""The split: what it promises, against comparisons of all pairs and of all subsets."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from omegaconf import OmegaConf

from geopak.cli import CONFIG_DIR
from geopak.data.leaks import leak_report
from geopak.data.split import (
    SplitSettings,
    _pick,
    read_previous,
    split_photos,
    split_with_report,
)
from geopak.data.ties import Ties, block_codes, components
from geopak.errors import ConfigError, PreparedSetError
from geopak.schema.preparation import SPLIT_METHODS
from tests.data.test_ties import all_pairs_tied, scene

GROUPED = ("places", "spatial_blocks")


def country(num: int, seed: int, with_ties: bool = True) -> pd.DataFrame:
    """Three provinces of very different size, with a dense city, towns, villages and travellers."""
    rng = np.random.default_rng(seed)
    share = np.array([0.75, 0.18, 0.07])
    num_albums = max(1, num // 3)
    province = rng.choice(3, num_albums, p=share)
    city = np.array([[24.9, 67.0], [31.5, 74.3], [34.4, 73.5]])
    towns = city[:, None] + rng.normal(0, 0.9, (3, 60, 2))
    weight = 1 / np.arange(1, 61)
    town = rng.choice(60, num_albums, p=weight / weight.sum())
    urban = rng.random(num_albums) < 0.5
    center = np.where(urban[:, None], city[province], towns[province, town])
    spread = np.where(urban, 7.0, 2.0)[:, None] / 111
    center = center + rng.normal(0, 1, (num_albums, 2)) * spread
    album = rng.integers(num_albums, size=num)
    around = np.where(rng.random(num) < 0.03, 20.0, 0.2)[:, None] / 111
    latlon = center[album] + rng.normal(0, 1, (num, 2)) * around
    photos = pd.DataFrame(
        {
            "id": [f"p{k}" for k in range(num)],
            "latitude": latlon[:, 0],
            "longitude": latlon[:, 1],
            "province_id": province[album],
        }
    )
    if with_ties:
        photos["author"] = [f"author {k // 3}" for k in album]
        photos["captured_at"] = [f"20{10 + k % 12}-0{1 + k % 9}-1{k % 10}" for k in album]
        photos["album"] = [f"album {k}" for k in album]
        photos["look"] = np.arange(num)
    return photos


def assert_no_leak(photos: pd.DataFrame, split: pd.Series, min_distance_km: float) -> None:
    tie = all_pairs_tied(photos, min_distance_km)
    of = split.to_numpy(object)
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not tie[np.ix_(of == one, of == other)].any()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 120),
    st.sampled_from([0.05, 1.0, 10.0]),
    st.booleans(),
    st.sampled_from([0.0, 0.25, 2.0]),
    st.sampled_from(GROUPED),
    st.sampled_from([0.0, 0.02, 0.3]),
    st.booleans(),
)
def test_splits_never_touch(
    seed: int,
    num: int,
    spread_km: float,
    with_ties: bool,
    min_distance_km: float,
    method: str,
    max_group_share: float,
    grown: bool,
) -> None:
    photos = scene(seed, num, spread_km, with_ties)
    options = SplitSettings(
        method=method, min_distance_km=min_distance_km, max_group_share=max_group_share
    )
    previous = None
    if grown:
        # Of other settings, so that it may contradict what is asked now.
        earlier = photos[np.random.default_rng(seed).random(num) < 0.6]
        before = split_photos(earlier, SplitSettings(method="random"), seed=2)
        previous = before.set_axis(earlier["id"])
    split = split_photos(photos, options, 1, previous)
    assert set(split) <= {"train", "val", "test", "buffer"}
    assert (split.index == photos.index).all()
    assert_no_leak(photos, split, min_distance_km)
    shuffled = photos.sample(frac=1, random_state=3)
    assert (split_photos(shuffled, options, 1, previous).sort_index() == split).all()
    for province in photos["province_id"].unique():
        assert (split[photos["province_id"] == province] != "test").any()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.25]))
def test_small_groups_are_never_cut(seed: int, distance_km: float) -> None:
    photos = scene(seed, 60, 30.0)
    photos["province_id"] = 0
    label = components(len(photos), [np.nonzero(all_pairs_tied(photos, distance_km))])
    size = np.bincount(label)[label]
    split = split_photos(photos, SplitSettings(min_distance_km=distance_km, max_group_share=0.5), 1)
    small = size <= 10
    assert (split[small] != "buffer").all()
    assert (split[small].groupby(label[small]).nunique() == 1).all()


def test_alike_photos_and_albums_stay_together() -> None:
    photos = scene(0, 200, with_ties=False)
    photos["look"] = np.arange(200) // 2
    split = split_photos(photos, SplitSettings(), 0).to_numpy(object).reshape(-1, 2)
    for one, other in split:
        assert one == other or "buffer" in (one, other)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_ties", [True, False])
def test_sizes_are_close_to_the_asked_share(seed: int, with_ties: bool) -> None:
    photos = country(6000, seed, with_ties)
    options = SplitSettings()
    result = split_with_report(photos, options, seed=seed)
    for province, rows in result.split.groupby(photos["province_id"]):
        share = rows.value_counts(normalize=True)
        assert share["test"] == pytest.approx(options.test_fraction, abs=0.01)
        assert share["val"] == pytest.approx(options.val_fraction, abs=0.01)
        assert share["train"] > 0.65
        described = result.provinces[province]
        assert described.province_id == province
        assert described.counts == {"buffer": 0} | rows.value_counts().to_dict()
        assert described.notes == ()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=10),
    st.floats(0.01, 0.8),
    st.sampled_from([0.0, 0.01, 0.1]),
)
def test_the_size_is_met_wherever_a_choice_of_units_meets_it(
    sizes: list[int], fraction: float, share: float
) -> None:
    counts = np.array(sizes)
    quota, tolerance = fraction * counts.sum(), share * counts.sum()
    gap = abs(counts[_pick(counts, quota, tolerance)].sum() - quota)
    choices = itertools.product([False, True], repeat=len(sizes))
    best = min(abs(counts[list(choice)].sum() - quota) for choice in choices)
    assert gap <= max(best, tolerance) + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.integers(0, 1000))
def test_three_groups_give_train_val_and_test(sizes: list[int], seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    photos = pd.DataFrame(
        {
            "id": np.arange(len(groups)).astype(str),
            "latitude": 25.0 + groups * 0.1,
            "longitude": 67.0,
            "province_id": 3,
        }
    )
    result = split_with_report(photos, SplitSettings(), seed)
    assert (result.split.groupby(groups).nunique() == 1).all()
    (described,) = result.provinces
    assert described.num_groups == len(sizes)
    assert described.largest_group == max(sizes)
    if len(sizes) >= 3:
        assert set(result.split) == {"train", "val", "test"}
    else:
        assert set(result.split) == {"train"}
        assert "nothing can be held out" in described.notes[0]


def test_sizes_that_groups_do_not_allow_are_said() -> None:
    places = np.repeat([0, 1, 2], [60, 25, 15])
    photos = pd.DataFrame(
        {
            "id": np.arange(100).astype(str),
            "latitude": 25.0 + places,
            "longitude": 67.0,
            "province_id": 0,
        }
    )
    result = split_with_report(photos, SplitSettings(), 0)
    assert result.split.value_counts().to_dict() == {"train": 60, "val": 25, "test": 15}
    assert result.provinces[0].notes == (
        "val is 25.0% instead of 8.0% of its photos: the largest of its 3 groups holds 60.0%",
        "test is 15.0% instead of 12.0% of its photos: the largest of its 3 groups holds 60.0%",
    )
    assert result.provinces[0].shares["test"] == 0.15
    # As much as two splits are asked for alone, none of them needs a third of three.
    no_val = split_photos(photos, SplitSettings(val_fraction=0), 0)
    assert set(no_val) == {"train", "test"}
    assert set(split_photos(photos, SplitSettings(val_fraction=0, test_fraction=0), 0)) == {"train"}


def test_an_album_of_half_the_country_does_not_empty_train() -> None:
    photos = country(3000, 1, with_ties=False)
    everywhere = np.arange(3000) % 2 == 0
    photos["album"] = pd.Series("mine", photos.index).where(everywhere)
    split = split_photos(photos, SplitSettings(), 0)
    assert not split[everywhere].isin(["val", "test"]).any()
    assert (split == "train").mean() > 0.6
    assert (split == "test").mean() == pytest.approx(0.12, abs=0.015)


def test_the_buffer_is_small_where_groups_are() -> None:
    photos = country(6000, 0)
    split = split_photos(photos, SplitSettings(), 0)
    by_blocks = split_photos(photos, SplitSettings(max_group_share=0), 0)
    assert (split == "buffer").mean() < 0.03
    assert (split == "buffer").mean() < (by_blocks == "buffer").mean()


def test_seed_changes_and_repeats_the_draw() -> None:
    photos = scene(1, 400)
    first = split_photos(photos, SplitSettings(), 1)
    assert (first == split_photos(photos, SplitSettings(), 1)).all()
    assert (first != split_photos(photos, SplitSettings(), 2)).any()
    renamed = split_photos(photos.set_index("id", drop=False), SplitSettings(), 1)
    assert renamed.to_list() == first.to_list()


def test_the_draw_is_the_same_on_every_machine_and_with_every_version() -> None:
    photos = pd.DataFrame(
        {
            "id": [f"p{k}" for k in range(30)],
            "latitude": 25 + 0.1 * np.arange(30),
            "longitude": 67.0,
            "province_id": 0,
        }
    )
    drawn = {
        method: np.flatnonzero(split_photos(photos, SplitSettings(method=method), 17) == "test")
        for method in ("places", "random")
    }
    assert drawn["places"].tolist() == PLACES_DRAWN
    assert drawn["random"].tolist() == RANDOM_DRAWN


PLACES_DRAWN = [3, 9, 15, 24]
RANDOM_DRAWN = [4, 5, 17, 22]


# --- what is added later --------------------------------------------------------------------------


def moved(before: pd.Series, after: pd.Series) -> float:
    """Share of the earlier photos that went from one of train, val and test to another."""
    after = after.loc[before.index]
    return float(((before != after) & (before != "buffer") & (after != "buffer")).mean())


@pytest.mark.parametrize(
    ("added", "most_moved", "least_kept"), [(0.01, 0.006, 0.97), (0.1, 0.03, 0.9)]
)
def test_most_photos_stay_where_they_are_when_rows_are_added(
    added: float, most_moved: float, least_kept: float
) -> None:
    photos = country(8000, 0)
    shares, kept = [], []
    for seed in range(4):
        earlier = np.random.default_rng(seed).random(len(photos)) >= added / (1 + added)
        before = split_photos(photos[earlier], SplitSettings(), seed)
        after = split_photos(photos, SplitSettings(), seed)
        shares.append(moved(before, after))
        test = before.index[before == "test"]
        kept.append((after.loc[test] == "test").mean())
    assert np.mean(shares) <= most_moved
    assert np.mean(kept) >= least_kept


def cascading_draw(counts: NDArray[np.int64], quota: float) -> NDArray[np.bool_]:
    """Whatever fits, in the order of the line: one unit more or less changes all behind it."""
    drawn = np.zeros(len(counts), bool)
    for k, count in enumerate(counts):
        if count <= 2 * quota and count <= counts.sum() / 2:
            drawn[k] = True
            quota -= count
    return drawn


def test_a_small_change_of_the_counts_changes_few_units() -> None:
    rng = np.random.default_rng(0)
    changed = {"ours": [], "cascading": []}
    for _ in range(300):
        before = rng.integers(10, 60, 100)
        after = before + rng.binomial(before, 0.02)
        for name, draw in (
            ("ours", lambda counts: _pick(counts, 0.12 * counts.sum(), 0.008 * counts.sum())),
            ("cascading", lambda counts: cascading_draw(counts, 0.12 * counts.sum())),
        ):
            differs = draw(before) != draw(after)
            changed[name].append(before[differs].sum() / before.sum())
    bound = 0.001
    assert np.mean(changed["ours"]) < bound < np.mean(changed["cascading"])


def test_val_stays_when_test_is_made_larger() -> None:
    photos = country(4000, 2)
    small = split_photos(photos, SplitSettings(test_fraction=0.1), 0)
    large = split_photos(photos, SplitSettings(test_fraction=0.14), 0)
    assert (large[small == "val"] == "val").mean() > 0.97
    assert (large[small == "test"] == "test").mean() > 0.97


@pytest.mark.parametrize("method", SPLIT_METHODS)
def test_an_earlier_split_is_kept_exactly(method: str) -> None:
    photos = country(4000, 0)
    distance_km = 0.25
    options = SplitSettings(method=method, min_distance_km=distance_km)
    # A sixth of the albums is new, and another tenth of the photos.
    rng = np.random.default_rng(0)
    new_album = rng.random(4000)[photos["album"].str[6:].astype(int)] < 1 / 6
    earlier = ~new_album & (rng.random(4000) > 0.1)
    before = split_photos(photos[earlier], options, 5)
    previous = before.set_axis(photos.loc[earlier, "id"])
    result = split_with_report(photos, options, 99, previous)
    after = result.split[earlier]
    for name in ("val", "test"):
        assert (after[before == name] == name).all()
    assert after[before == "train"].isin(["train", "buffer"]).all()
    assert after[before == "buffer"].isin(["train", "buffer"]).all()
    if method != "random":
        # New photos give way: none of them makes an earlier train photo useless.
        assert (after[before == "train"] == "train").all()
        assert_no_leak(photos, result.split, distance_km)
    new = result.split[~earlier]
    assert (new == "test").mean() > 0.05
    assert (new == "val").mean() > 0.03
    for province in result.provinces:
        assert province.shares["test"] == pytest.approx(0.12, abs=0.03)


def test_new_photos_beside_an_earlier_test_photo_join_it() -> None:
    photos = country(2000, 0, with_ties=False)
    options = SplitSettings()
    before = split_photos(photos, options, 5)
    test = photos[before == "test"].head(20)
    beside = test.assign(id="new " + test["id"], latitude=test["latitude"] + 0.0001)
    grown = pd.concat([photos, beside], ignore_index=True)
    after = split_photos(grown, options, 5, before.set_axis(photos["id"]))
    assert (after.iloc[2000:] == "test").all()
    assert (after.iloc[:2000].to_numpy() == before.to_numpy()).all()


def test_an_earlier_val_photo_tied_to_test_by_now_is_set_aside_and_counted() -> None:
    photos = pd.DataFrame(
        {
            "id": list("abcd"),
            "latitude": [25.0, 26.0, 27.0, 28.0],
            "longitude": 67.0,
            "province_id": 0,
            "album": ["x", "x", None, "x"],
        }
    )
    previous = pd.Series(["test", "val", "train", "train", "val"], index=list("abcdz"))
    result = split_with_report(photos, SplitSettings(), 0, previous)
    assert result.split.to_list() == ["test", "buffer", "train", "buffer"]
    assert "1 earlier val photos are set aside: they are tied to test photos" in result.notes
    assert "1 of the 5 earlier photos are not there now" in result.notes


def test_an_earlier_split_that_is_none_is_refused(tmp_path: Path) -> None:
    photos = scene(0, 10)
    with pytest.raises(PreparedSetError, match="'p1' is there 2 times"):
        split_photos(photos, SplitSettings(), 0, pd.Series(["val", "val"], index=["p1", "p1"]))
    with pytest.raises(PreparedSetError, match="'p1' has split 'dev'"):
        split_photos(photos, SplitSettings(), 0, pd.Series(["dev"], index=["p1"]))
    with pytest.raises(PreparedSetError, match="is not there"):
        read_previous(tmp_path)
    (tmp_path / "other.csv").write_text("id,fold\na,1\n")
    with pytest.raises(PreparedSetError, match=r"other\.csv cannot be used.*split"):
        read_previous(tmp_path / "other.csv")
    (tmp_path / "other.parquet").write_bytes(b"nonsense")
    with pytest.raises(PreparedSetError, match=r"other\.parquet cannot be used"):
        read_previous(tmp_path / "other.parquet")


@pytest.mark.parametrize("kind", ["folder", "parquet", "csv", "tsv"])
def test_an_earlier_split_is_read_from(tmp_path: Path, kind: str) -> None:
    table = pd.DataFrame({"id": ["007", "8"], "split": ["val", "train"], "other": [1, 2]})
    file = tmp_path / ("photos.parquet" if kind == "folder" else f"set.{kind}")
    if kind in ("csv", "tsv"):
        table.to_csv(file, index=False, sep="\t" if kind == "tsv" else ",")
    else:
        table.to_parquet(file)
    previous = read_previous(tmp_path if kind == "folder" else file)
    assert previous.to_dict() == {"007": "val", "8": "train"}


# --- the other methods ----------------------------------------------------------------------------


def test_random_is_by_photo_has_no_buffer_and_leaks() -> None:
    photos = country(1500, 1)
    result = split_with_report(photos, SplitSettings(method="random"), 1)
    counts = result.split.value_counts()
    assert set(counts.index) == {"train", "val", "test"}
    assert counts["test"] == pytest.approx(180, abs=3)
    assert "for comparison only" in result.notes[0]
    leaks = leak_report(photos.assign(split=result.split)).held_out["test"]
    assert leaks.within(0.25) > 60
    assert leaks.same_author_day is not None
    assert leaks.same_author_day > 60


@pytest.mark.parametrize(
    "options",
    [SplitSettings(), SplitSettings(method="spatial_blocks", block_km=20, min_distance_km=2)],
    ids=lambda options: options.method,
)
def test_grouped_splits_do_not_leak(options: SplitSettings) -> None:
    photos = country(5000, 1)
    split = split_photos(photos, options, 1)
    report = leak_report(photos.assign(split=split), distances_km=(0.25, options.min_distance_km))
    for name in ("test", "val"):
        leaks = report.held_out[name]
        assert leaks.num_photos > 100
        assert leaks.within(options.min_distance_km) == 0
        assert leaks.same_author_day == leaks.same_album == 0


def test_spatial_blocks_are_held_out_whole() -> None:
    photos = country(5000, 3)
    options = SplitSettings(method="spatial_blocks", block_km=20, min_distance_km=2)
    split = split_photos(photos, options, 1)
    block = block_codes(photos[["latitude", "longitude"]], 20)
    for _, rows in split.groupby(block):
        assert len(set(rows) - {"buffer"}) <= 1
    assert {"val", "test"} <= set(split)


@pytest.mark.parametrize(
    ("bad", "needle"),
    [
        ({"method": "blocks"}, "split.method is 'blocks'"),
        ({"test_fraction": 0.9}, "split.test_fraction"),
        ({"test_fraction": float("nan")}, "split.test_fraction"),
        ({"val_fraction": -0.1}, "split.val_fraction"),
        ({"block_km": 0}, "split.block_km"),
        ({"min_distance_km": -1}, "split.min_distance_km"),
        ({"max_group_share": 0.7}, "split.max_group_share"),
    ],
)
def test_settings_are_checked(bad: dict[str, object], needle: str) -> None:
    with pytest.raises(ConfigError, match=needle):
        SplitSettings(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", SPLIT_METHODS)
def test_every_method_has_its_configuration(method: str) -> None:
    config = OmegaConf.load(CONFIG_DIR / "split" / f"{method}.yaml")
    assert list(config) == [field.name for field in dataclasses.fields(SplitSettings)]
    assert SplitSettings(**config).method == method


def test_an_empty_table_has_an_empty_split() -> None:
    for method in SPLIT_METHODS:
        result = split_with_report(scene(0, 3).head(0), SplitSettings(method=method), 0)
        assert result.split.empty
        assert result.provinces == ()


def test_days_that_cannot_be_read_are_said() -> None:
    photos = scene(0, 50)
    photos["captured_at"] = "03/05/2021"
    (note,) = split_with_report(photos, SplitSettings(), 0).notes
    assert note.startswith("author and day unknown: no photo with an author has a captured_at")


def test_links_of_a_split_are_those_of_its_ties() -> None:
    photos = country(2000, 4)
    split = split_photos(photos, SplitSettings(), 0)
    near_test = Ties.of(photos).linked((split == "test").to_numpy(), 0.25)
    assert set(split[near_test]) == {"test", "buffer"}
