"""The leak report, against comparisons of all pairs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.data.leaks import DISTANCES_KM, LeakReport, leak_report
from geopak.errors import ConfigError, TableError
from geopak.geo.distance import haversine_km_array
from tests.data.test_ties import scene


def hashes(num: int, seed: int, copies: float = 0.4) -> list[bytes]:
    """Random hashes, of which some are others with a few bits turned."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(2, size=(num, 256), dtype=np.uint8)
    for row in np.flatnonzero(rng.random(num) < copies):
        bits[row] = bits[rng.integers(num)]
        bits[row, rng.permutation(256)[: rng.integers(25)]] ^= 1
    return [row.tobytes() for row in np.packbits(bits, axis=1)]


def with_split(photos: pd.DataFrame, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    names = ["train", "val", "test", "buffer"]
    return photos.assign(split=rng.choice(names, len(photos), p=[0.5, 0.15, 0.25, 0.1]))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.05, 1.0, 30.0]),
    st.sampled_from(["train", "train and val"]),
    st.integers(0, 20),
)
def test_counts_agree_with_all_pairs(seed: int, spread_km: float, seen: str, bits: int) -> None:
    photos = with_split(scene(seed, 80, spread_km), seed)
    photos["phash"] = hashes(80, seed)
    photos.loc[photos.index % 11 == 3, "phash"] = None
    photos.loc[0:2, "split"] = ["train", "val", "test"]
    train = ("train",) if seen == "train" else ("train", "val")
    held_out = ("test", "val") if seen == "train" else ("test",)
    report = leak_report(photos, train, held_out, near_duplicate_bits=bits)

    in_train = photos["split"].isin(train).to_numpy()
    latlon = photos[["latitude", "longitude"]].to_numpy()
    away = haversine_km_array(latlon[:, None], latlon[in_train][None]).min(1)
    author_day = photos["author"] + photos["captured_at"].str[:10]
    content = [h or bytes(32) for h in photos["phash"].where(photos["phash"].notna(), None)]
    unpacked = np.unpackbits(np.frombuffer(b"".join(content), np.uint8).reshape(80, 32), axis=1)
    apart = (unpacked[:, None] != unpacked[None]).sum(-1)
    hashed = photos["phash"].notna().to_numpy()
    looks = ((apart <= bits) & hashed & hashed[:, None])[:, in_train].any(1)

    assert report.num_train == in_train.sum()
    assert list(report.held_out) == list(held_out)
    for name, leaks in report.held_out.items():
        here = (photos["split"] == name).to_numpy()
        assert leaks.num_photos == here.sum()
        for km in (*DISTANCES_KM, 3.7):
            assert leaks.within(km) == (away[here] <= km).sum()
        for kind, count, key in (
            ("author and day", leaks.same_author_day, author_day),
            ("album", leaks.same_album, photos["album"]),
        ):
            shared = key.isin(key[in_train].dropna()).to_numpy()
            if count is None:
                assert not key[here].notna().any() or not key[in_train].notna().any()
                assert kind in leaks.unknown
            else:
                assert count == (shared & here).sum()
        if leaks.near_duplicate is not None:
            assert leaks.near_duplicate == (looks & here).sum()
        np.testing.assert_allclose(leaks.nearest_train_km, away[here], rtol=1e-6, atol=1e-6)
        ordered = np.sort(away[here])
        for share, km in leaks.quantiles_km.items():
            assert km == pytest.approx(ordered[int(share * (len(ordered) - 1))], rel=1e-6, abs=1e-5)
        parts = [*leaks.provinces.values()]
        assert sum(part.num_photos for part in parts) == leaks.num_photos
        assert sum(part.within_km[0.25] for part in parts) == leaks.within(0.25)
        medians = leaks.median_km_by_province(photos)
        for province, median in medians.items():
            rows = here & (photos["province_id"] == province).to_numpy()
            assert median == pytest.approx(np.median(away[rows]), rel=1e-6, abs=1e-6)

    again = LeakReport.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again.to_dict() == report.to_dict()
    assert again.headline() == report.headline()
    assert again.lines() == report.lines()


def four(**columns: object) -> pd.DataFrame:
    """A test photo, a train photo 111 m away, another test photo and one of buffer."""
    photos = pd.DataFrame(
        {
            "id": list("abcd"),
            "latitude": [25.0, 25.001, 26.0, 26.0],
            "longitude": 67.0,
            "split": ["test", "train", "test", "buffer"],
        }
    )
    return photos.assign(**columns)


def test_a_distance_exactly_reached_counts() -> None:
    exactly = float(haversine_km_array([25.0, 67.0], [25.001, 67.0]))
    report = leak_report(four(), distances_km=(exactly, exactly * 0.9999, 0.0))
    leaks = report.held_out["test"]
    assert leaks.within_km == {0.0: 0, exactly * 0.9999: 0, exactly: 1}
    assert leaks.rows.tolist() == [0, 2]
    same = four(latitude=25.0)
    assert leak_report(same).held_out["test"].within(0) == 2
    # What is in buffer is no one's leak: it is neither trained nor measured on.
    assert leak_report(four()).num_train == 1


def test_the_headline_states_what_is_not_known() -> None:
    assert leak_report(four()).headline() == (
        "leaks: 1 of 2 test photos have a train photo within 250 m, author and day unknown, "
        "album unknown, near-duplicates unknown"
    )
    photos = four(
        author=["Ann", "Ann", "Bob", "Bob"],
        captured_at="2021-05-03",
        album=["x", "x", None, None],
        phash=[bytes(32), b"\1" + bytes(31), b"\xff" * 32, None],
    )
    report = leak_report(photos)
    assert report.headline() == (
        "leaks: 1 of 2 test photos have a train photo within 250 m, 1 of the same author and day, "
        "1 of the same album, 1 near-duplicates"
    )
    assert report.headline(1.0).startswith(
        "leaks: 1 of 2 test photos have a train photo within 1 km"
    )
    assert leak_report(photos, near_duplicate_bits=0).held_out["test"].near_duplicate == 0
    assert "val: no photo" in report.lines()
    assert (
        leak_report(photos, held_out=("val", "test")).headline() == "leaks: there is no val photo"
    )
    both = leak_report(
        photos.assign(split=["test", "val", "test", "train"]), ("train", "val"), "test"
    )
    assert "have a train or val photo within 250 m" in both.headline()
    # Another distance, where 250 m was not asked for.
    assert "within 5 km" in leak_report(photos, distances_km=(1.0, 5.0)).headline()


@pytest.mark.parametrize(
    ("columns", "kind", "reason"),
    [
        ({}, "author and day", "no column author and captured_at"),
        ({"author": "Ann"}, "author and day", "no column captured_at"),
        ({"author": None, "captured_at": "2021-05-03"}, "author and day", "no photo has an author"),
        ({"author": "Ann", "captured_at": "03/05/2021"}, "author and day", "names a day"),
        (
            {"author": ["Ann", None, "Ann", "Ann"], "captured_at": "2021-05-03"},
            "author and day",
            "no train photo has a known author and day",
        ),
        (
            {"author": [None, "Ann", "", None], "captured_at": "2021-05-03"},
            "author and day",
            "no test photo has a known author and day",
        ),
        ({}, "album", "no column album"),
        ({"album": ""}, "album", "no photo has one"),
        ({}, "near-duplicates", "no column phash"),
        ({"phash": None}, "near-duplicates", "no photo has a perceptual hash"),
        (
            {"phash": [None, bytes(32), b"", bytes(32)]},
            "near-duplicates",
            "no test photo has a known perceptual hash",
        ),
    ],
)
def test_what_cannot_be_told_is_unknown_and_not_nothing(
    columns: dict[str, object], kind: str, reason: str
) -> None:
    report = leak_report(four(**columns))
    leaks = report.held_out["test"]
    counts = {
        "author and day": leaks.same_author_day,
        "album": leaks.same_album,
        "near-duplicates": leaks.near_duplicate,
    }
    assert counts[kind] is None
    assert reason in leaks.unknown[kind]
    assert f"{kind} unknown" in report.headline()
    assert any(reason in line for line in report.lines())


def test_what_is_known_in_part_is_said() -> None:
    photos = four(
        author="Ann",
        captured_at=["2021-05-03", "2021-05-03", "03/05/2021", None],
        phash=[bytes(32), bytes(32), None, None],
    )
    report = leak_report(photos)
    leaks = report.held_out["test"]
    assert leaks.same_author_day == leaks.near_duplicate == 1
    assert (
        "1 of 3 with an author have no captured_at that names a day"
        in (leaks.partly["author and day"])
    )
    assert leaks.partly["near-duplicates"] == (
        "near-duplicates: 1 of 2 have no known perceptual hash"
    )
    assert "1 of the same author and day (not known of all)" in report.headline()


def test_hashes_in_hexadecimal_and_numbers_as_text_are_understood() -> None:
    photos = four(phash=["00" * 32, "01" + "00" * 31, "ff" * 32, None])
    photos = photos.assign(latitude=photos["latitude"].astype(str), split=["test", "train"] * 2)
    report = leak_report(photos)
    assert report.held_out["test"].near_duplicate == 1


@pytest.mark.parametrize(
    ("photos", "needle"),
    [
        (four().drop(columns="split"), "no column 'split'"),
        (four(latitude=["25", "north", "26", "26"]), "Row 2, photo b, has no usable coordinate"),
        (four(latitude=[25.0, 25.0, 26.0, 91.0]), "Row 4, photo d,"),
        (four(split="train"), "No photo is in split test or val; the table has: train"),
        (four(split=["test", None, "test", "fit"]), "in split train; the table has: .none., fit"),
        (four(phash=[b"12", None, None, None]), "Photo a: phash is no perceptual hash"),
        (four(phash=["zz" * 32, None, None, None]), "Photo a: phash is no perceptual hash"),
    ],
)
def test_tables_that_cannot_be_measured(photos: pd.DataFrame, needle: str) -> None:
    with pytest.raises(TableError, match=needle):
        leak_report(photos)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"train": ("train", "test")}, "'test' is in train and in held_out"),
        ({"held_out": ()}, "must each name a split"),
        ({"distances_km": ()}, "at least one distance"),
        ({"distances_km": (-1.0,)}, "none of them negative"),
        ({"near_duplicate_bits": 40}, "near_duplicate_bits is 40"),
    ],
)
def test_options_are_checked(options: dict[str, object], needle: str) -> None:
    with pytest.raises(ConfigError, match=needle):
        leak_report(four(), **options)  # type: ignore[arg-type]


def test_a_report_read_back_does_not_make_up_distances() -> None:
    report = LeakReport.from_dict(leak_report(four()).to_dict())
    assert report.held_out["test"].within(0.25) == 1
    with pytest.raises(ConfigError, match=r"within 0\.5 km, only within 0\.01, 0\.1, 0\.25, 1"):
        report.held_out["test"].within(0.5)


def test_crowds_that_were_not_compared_in_full_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from geopak.data import leaks as module
    from geopak.data.duplicates import LookAlikes

    def crowded(found: np.ndarray, max_bits: int) -> LookAlikes:
        nothing = np.zeros(0, np.int64)
        return LookAlikes(np.zeros(len(found), np.int64), nothing, nothing, num_crowded=3)

    monkeypatch.setattr(module, "find_look_alikes", crowded)
    report = leak_report(four(phash=[bytes(32)] * 4))
    assert report.held_out["test"].near_duplicate == 2
    assert "at least so many; 3 photos" in report.held_out["test"].partly["near-duplicates"]
