"""Collections from a Flickr that stands in: what is written, what is refused, how they end."""

from __future__ import annotations

import json
import logging
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from geopak.cli import compose
from geopak.errors import ConfigError, SourceError
from geopak.geo.boundaries import Outlines
from geopak.options import plain
from geopak.schema.collecting import LICENSES
from geopak.sources import licenses, running
from geopak.sources.downloads import file_stem
from geopak.sources.running import collect, dry_run
from tests.end_to_end.conftest import run_command
from tests.sources.collecting import (
    FaultyFlickr,
    collect_here,
    configured,
    files_of,
    ledger_of,
    rows_of,
    some_shots,
    start,
)
from tests.sources.flickr_server import KEY, FlickrServer, shots
from tests.sources.stand_in import (
    Reply,
    as_jpeg,
    broken,
    html_page,
    jpeg,
    redirect,
    too_many_requests,
    unavailable,
)

SHOTS = some_shots(150)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLICKR_API_KEY", KEY)
    monkeypatch.setattr("geopak.sources.downloads.os.fsync", lambda handle: None)


@pytest.fixture(scope="module")
def outlines() -> Outlines:
    return Outlines.of_region(configured_region())


def configured_region() -> Any:
    from geopak.geo.region import Region

    return Region.from_config(plain(compose("collect").region))


def test_all_that_is_there_is_kept_or_rejected_with_its_reason(
    tmp_path: Path, outlines: Outlines
) -> None:
    with FaultyFlickr(SHOTS, cap=40, most_per_page=20) as server:
        ended = collect_here(server, tmp_path)
        region = configured_region()
    kept, rejected = rows_of(tmp_path / "photos.csv"), rows_of(tmp_path / "rejected.csv")
    # By looking at every photo that the server has.
    expected: dict[str, str] = {}
    by_content: dict[int, list[str]] = {}
    where = outlines.province_of([[s.latitude, s.longitude] for s in SHOTS])
    for shot, province in zip(SHOTS, where.tolist(), strict=True):
        number = int(shot.id)
        if shot.license in ("0", "7") or shot.accuracy < 13 or province < 0:
            continue
        if number % 13 == 0:
            expected[shot.id] = "gone"
        elif number % 17 == 0:
            expected[shot.id] = "not_an_image"
        elif number % 19 == 0:
            expected[shot.id] = "too_small"
        else:
            expected[shot.id] = region.names[province]
            content = number + 1 if number % 11 == 0 else number
            by_content.setdefault(content, []).append(shot.id)
    twins = [ids for ids in by_content.values() if len(ids) > 1]
    assert twins
    found = {row["id"].removeprefix("flickr-"): row["province"] for row in kept}
    told = {r["source_id"]: r["reason"] for r in rejected if r["reason"] != "outside_region"}
    for ids in twins:
        lost = [k for k in ids if told.get(k) == "duplicate"]
        assert len(lost) == len(ids) - 1
        for k in lost:
            expected[k] = "duplicate"
    assert found | told == expected
    assert set(found).isdisjoint(told)
    # Every row has its file, and every file its row.
    paths = {row["path"] for row in kept}
    on_disk = {p.relative_to(tmp_path).as_posix() for p in (tmp_path / "photos").rglob("*.*")}
    assert paths == on_disk
    for row in kept[:20]:
        path = row["path"].split("/")
        assert path[:2] == ["photos", "flickr"]
        assert path[3].startswith(path[2])
        assert path[3].partition(".")[0] == file_stem("flickr", row["id"].removeprefix("flickr-"))
        with Image.open(tmp_path / row["path"]) as picture:
            assert picture.size == (int(row["width"]), int(row["height"])) == (40, 40)
        shot = next(s for s in SHOTS if f"flickr-{s.id}" == row["id"])
        assert (float(row["latitude"]), float(row["longitude"])) == (shot.latitude, shot.longitude)
        assert row["author"] == f"Author {shot.owner}"
        assert row["url"] == f"https://www.flickr.com/photos/{shot.owner}/{shot.id}/"
        assert row["captured_at"] == "2014-05-06T10:11:12"
        assert float(row["accuracy_km"]) > 0
        assert licenses.find(row["license"]) is not None
        assert row["license_url"].startswith("http")
    assert ended.summary == json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert sum(p["kept"] for p in ended.summary["provinces"].values()) == len(kept)
    reasons = Counter(r["reason"] for r in rejected)
    assert ended.summary["rejected"] | ended.summary["refused_entries"] == dict(reasons)
    credits = rows_of(tmp_path / "attribution.csv")
    assert [c["id"] for c in credits] == [row["id"] for row in kept]
    page = (tmp_path / "attribution.html").read_text("utf-8")
    assert page.count("<li>") == len(kept)
    assert f'<a href="{credits[0]["license_url"]}" rel=nofollow>{credits[0]["license"]}</a>' in page


def test_the_same_command_again_asks_nothing(tmp_path: Path) -> None:
    with FaultyFlickr(SHOTS, cap=40, most_per_page=20) as server:
        collect_here(server, tmp_path)
        before = ledger_of(tmp_path), files_of(tmp_path)
        server.forget()
        collect_here(server, tmp_path)
        assert server.requests == []
        assert (ledger_of(tmp_path), files_of(tmp_path)) == before


def test_targets_are_reached_and_not_exceeded(tmp_path: Path) -> None:
    with FaultyFlickr(SHOTS, cap=40, most_per_page=20) as server:
        collect_here(server, tmp_path, targets="{balochistan:12,punjab:7}")
        few = len(server.asked("/pictures/"))
        numbers = Counter(row["province"] for row in rows_of(tmp_path / "photos.csv"))
        assert numbers["Balochistan"] == 12
        assert numbers["Punjab"] == 7
        server.forget()
        collect_here(server, tmp_path, targets="null")
        assert len(server.asked("/pictures/")) > 0
        assert few < 70


def test_a_parquet_table_holds_the_same(tmp_path: Path) -> None:
    import pandas as pd

    with FaultyFlickr(SHOTS, cap=40, most_per_page=20) as server:
        collect_here(server, tmp_path, targets=3)
        text = pd.read_csv(tmp_path / "photos.csv", dtype={"id": str})
        collect_here(server, tmp_path, targets=3, table="parquet")
    assert not (tmp_path / "photos.csv").exists()
    table = pd.read_parquet(tmp_path / "photos.parquet")
    assert list(table.columns) == list(text.columns)
    assert table["id"].tolist() == text["id"].tolist()
    assert np.allclose(table["latitude"], text["latitude"])
    assert table["width"].tolist() == text["width"].tolist()


def test_licences_are_chosen(tmp_path: Path) -> None:
    with FaultyFlickr(SHOTS, cap=40, most_per_page=20) as server:
        collect_here(server, tmp_path, licenses="[cc0,cc-by-2.0]")
        kept = Counter(row["license"] for row in rows_of(tmp_path / "photos.csv"))
        assert set(kept) == {"cc0", "cc-by-2.0"}
        told = Counter(row["license"] for row in rows_of(tmp_path / "rejected.csv")
                       if row["reason"] == "license")  # fmt: skip
        assert set(told) & {"cc0", "cc-by-2.0"} == set()
        assert "cc-by-4.0" in told
        # None of them was fetched.
        fetched = {r.path.rpartition("/")[2].partition("_")[0] for r in server.asked("/pictures/")}
        barred = {r["source_id"] for r in rows_of(tmp_path / "rejected.csv")
                  if r["reason"] in ("license", "outside_region")}  # fmt: skip
        assert fetched.isdisjoint(barred)


def test_the_schema_knows_every_licence() -> None:
    assert set(LICENSES) == {*licenses.LICENSES, licenses.UNKNOWN}


# --- what servers do ------------------------------------------------------------------------


def big_png() -> bytes:
    """A picture that says that it is enormous."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(
            ">I", zlib.crc32(name + body)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )  # fmt: skip


GOOD = as_jpeg(jpeg(300, 200, seed=1))
LASTING = {
    "not_an_image": html_page("image/jpeg"),
    "gone": Reply(b"", 404),
    "refused": Reply(b"", 451),
    "denied": Reply(b"", 403),
    "unavailable": unavailable(),
    "too_large": as_jpeg(GOOD.body + bytes(2_000_000)),
    "too_many_pixels": Reply(big_png()),
    "too_small": as_jpeg(jpeg(31, 200)),
    "forbidden_address": redirect("http://169.254.169.254/latest/meta-data"),
}


@pytest.mark.parametrize("reason", LASTING)
def test_a_photo_that_cannot_be_had_is_rejected(reason: str, tmp_path: Path) -> None:
    with FlickrServer(shots(3, (31, 72, 32, 73), seed=1, clustered=False)) as server:
        server.faults.add(LASTING[reason], when="/pictures/1_", times=None)
        server.faults.add(GOOD, when="/pictures/2_", times=None)
        collect_here(server, tmp_path, max_photo_mb=1, retries=2, **{"source.licenses": "null",
                     "licenses": "null", "source.min_accuracy": 1})  # fmt: skip
        asked = len(server.asked("/pictures/1_"))
    told = {r["source_id"]: r["reason"] for r in rows_of(tmp_path / "rejected.csv")}
    assert told == {"1": reason}
    assert {r["id"] for r in rows_of(tmp_path / "photos.csv")} == {"flickr-2", "flickr-3"}
    assert asked == (3 if reason == "unavailable" else 1)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    "fault",
    [broken(GOOD), unavailable(), too_many_requests(0), as_jpeg(GOOD.body[:-500]), as_jpeg(b"")],
)
def test_a_download_that_stumbles_is_repeated(fault: Reply, tmp_path: Path) -> None:
    with FlickrServer(shots(1, (31, 72, 31.1, 72.1), clustered=False)) as server:
        server.faults.add(fault, when="/pictures/", times=2)
        collect_here(server, tmp_path, **{"source.licenses": "null", "licenses": "null",
                     "source.min_accuracy": 1})  # fmt: skip
        assert len(server.asked("/pictures/")) == 3
    assert len(rows_of(tmp_path / "photos.csv")) == 1


def test_pictures_behind_a_redirect_to_a_listed_host_are_kept(tmp_path: Path) -> None:
    with FlickrServer(shots(1, (31, 72, 31.1, 72.1), clustered=False)) as server:
        there = server.url.replace("127.0.0.1", "localhost") + "/elsewhere.jpg"
        server.faults.add(redirect(there), when="/pictures/", times=None)
        server.faults.add(GOOD, when="/elsewhere", times=None)
        how: Any = {"source.licenses": "null", "licenses": "null", "source.min_accuracy": 1}
        collect_here(server, tmp_path / "no", **how)
        assert rows_of(tmp_path / "no" / "rejected.csv")[0]["reason"] == "forbidden_address"
        assert not server.asked("/elsewhere")
        collect_here(server, tmp_path / "yes", allowed_hosts="[localhost]", **how)
    assert len(rows_of(tmp_path / "yes" / "photos.csv")) == 1


def test_a_private_address_is_not_asked_unless_it_is_meant(tmp_path: Path) -> None:
    with FlickrServer(SHOTS) as server:
        with pytest.raises(SourceError, match=r"usual port|private address"):
            collect_here(server, tmp_path, allow_private_hosts="false")
        assert server.requests == []


# --- keys -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, "0f0f-a-wrong-key"])
def test_the_key_is_nowhere(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with FaultyFlickr(SHOTS, stumbles=True, cap=40, most_per_page=20) as server:
        config = configured(server, tmp_path, targets=2)
        monkeypatch.setenv("FLICKR_API_KEY", key)
        if key == KEY:
            collect(config)
        else:
            with pytest.raises(SourceError) as told:
                collect(config)
            assert key not in str(told.value)
        assert any(key in r.request.target for r in server.requests)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path
    assert key not in caplog.text


def test_no_key_is_told_before_anything_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FlickrServer(SHOTS) as server:
        config = configured(server, tmp_path)
        monkeypatch.delenv("FLICKR_API_KEY")
        with pytest.raises(SourceError, match="FLICKR_API_KEY"):
            collect(config)
        assert server.requests == []


# --- quota, dry run, signals ----------------------------------------------------------------


def test_a_spent_quota_stops_it_and_the_next_day_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datetime

    from geopak.sources import quota

    day = datetime.datetime(2024, 5, 6, 12, tzinfo=datetime.UTC)
    monkeypatch.setattr(quota.DailyQuota.__init__, "__defaults__", ("UTC", "wait", lambda: day))
    with FaultyFlickr(SHOTS, cap=40, most_per_page=20) as server:
        whole = tmp_path / "whole"
        collect_here(server, whole)
        searches = len(server.asked("/services/"))
        part = tmp_path / "part"
        limit = 4
        days = 0
        while True:
            server.forget()
            ended = collect_here(server, part, quota=f"{{search:{limit}}}", on_quota="stop")
            assert (
                len([r for r in server.asked("/services/") if "search" in r.query["method"]])
                <= limit
            )
            if ended.quota_spent is None:
                break
            assert "until 2024-05-" in ended.quota_spent
            # The same day there is nothing more.
            server.forget()
            assert collect_here(
                server, part, quota=f"{{search:{limit}}}", on_quota="stop"
            ).quota_spent
            assert not server.asked("/services/")
            day += datetime.timedelta(days=1)
            days += 1
    assert days == (searches - 2) // limit
    assert ledger_of(part) == ledger_of(whole)
    assert files_of(part) == files_of(whole)


def test_a_dry_run_asks_nothing_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with FlickrServer(SHOTS) as server:
        config = configured(server, tmp_path / "out", targets=500, quota="{search:100}",
                            rate_per_s=1)  # fmt: skip
        monkeypatch.delenv("FLICKR_API_KEY")
        numbers = dry_run(config)
        assert server.requests == []
    assert not (tmp_path / "out").exists()
    told = capsys.readouterr().out
    assert "Nothing was asked" in told
    assert "100 a day, so up to" in told
    assert "Balochistan 500" in told
    low, high = numbers["requests"]["search"]
    assert 7 <= low <= high
    assert numbers["seconds"][0] >= low


def test_the_dry_run_of_a_collection_that_has_begun_counts_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FaultyFlickr(SHOTS, cap=40, most_per_page=20) as server:
        collect_here(server, tmp_path, targets=2)
        dry_run(configured(server, tmp_path, targets=3))
    told = capsys.readouterr().out
    assert "Balochistan 1" in told
    assert "answered queries" in told


def test_the_command_takes_the_option_as_it_is_usually_written() -> None:
    ran = run_command("collect", "source=flickr", "--dry-run", "targets=10")
    assert ran.status == 0, ran.text
    assert "flickr, Pakistan: what a collection would take" in ran.text


def test_without_a_source_it_says_which_there_are() -> None:
    ran = run_command("collect")
    assert ran.status == 2
    assert "Choose where photos come from: source=flickr|" in ran.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(number: signal.Signals, tmp_path: Path) -> None:
    with FaultyFlickr(SHOTS, cap=40, most_per_page=20) as server:
        process = start(server, tmp_path, photos_per_s=20)
        while process.poll() is None and len(server.asked("/pictures/")) < 8:
            time.sleep(0.01)
        process.send_signal(number)
        output = process.communicate(timeout=30)[0]
        assert process.returncode == 128 + number, output
        assert "Traceback" not in output
        kept = rows_of(tmp_path / "photos.csv")
        assert 0 < len(kept) < 40
        with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
            on_disk = {p.name for p in (tmp_path / "photos").rglob("*.*")}
            wanted = db.execute("SELECT path FROM photos WHERE state = 'downloaded'").fetchall()
        assert {path.rpartition("/")[2] for (path,) in wanted} == on_disk
        server.forget()
        collect_here(server, tmp_path)
        whole = tmp_path / "whole"
        collect_here(server, whole)
    assert ledger_of(tmp_path) == ledger_of(whole)


def test_two_collect_into_one_folder_only_one_after_the_other(tmp_path: Path) -> None:
    refused = pytest.raises(SourceError, match="Another process collects into")
    with FlickrServer(SHOTS) as server, running._alone_in(tmp_path), refused:
        collect_here(server, tmp_path)


def test_a_folder_belongs_to_one_region(tmp_path: Path) -> None:
    with FaultyFlickr(SHOTS, cap=40, most_per_page=20) as server:
        collect_here(server, tmp_path, targets=1)
        with pytest.raises(SourceError, match="a collection of 'pakistan'"):
            collect_here(server, tmp_path, region="bangladesh", targets=1)


def test_what_is_no_ledger_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"something else entirely" * 50)
    with FlickrServer(SHOTS) as server, pytest.raises(SourceError, match="cannot be read as the"):
        collect_here(server, tmp_path)
    assert (tmp_path / "ledger.sqlite").read_bytes().startswith(b"something else")


# --- with other commands --------------------------------------------------------------------


def test_what_was_collected_can_be_prepared(tmp_path: Path) -> None:
    from geopak.preparation import prepare

    # The smallest provinces would have none.
    small = [(33.55, 72.95, 33.75, 73.15), (33.9, 73.6, 34.3, 73.9),
             (35.5, 74.0, 36.2, 75.0)]  # fmt: skip
    more = [s for k, box in enumerate(small) for s in shots(40, box, k, first_id=20_000 + 100 * k)]
    with FaultyFlickr([*some_shots(600), *more], cap=250, most_per_page=250) as server:
        collect_here(server, tmp_path)
    kept = rows_of(tmp_path / "photos.csv")
    cfg = compose(
        "prepare",
        [f"root={tmp_path}", "quality.min_side_px=16", "quality.min_sharpness=null",
         "quality.max_flat_design=null", "quality.max_text_lines=null",
         "quality.drop_near_duplicates=false", "executor.workers=1"],
    )  # fmt: skip
    prepare(cfg)
    import pandas as pd

    photos = pd.read_parquet(tmp_path / "prepared" / "photos.parquet")
    rejected = pd.read_parquet(tmp_path / "prepared" / "rejected.parquet")
    assert len(photos) + len(rejected) == len(kept)
    assert len(photos) > 0.9 * len(kept), rejected["reason"].value_counts()
    province = {row["id"]: row["province"] for row in kept}
    assert [province[k] for k in photos["id"]] == photos["province"].tolist()
    accuracy = {row["id"]: float(row["accuracy_km"]) for row in kept}
    assert np.allclose(photos["accuracy_km"], [accuracy[k] for k in photos["id"]])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("targets.sind=5", "targets.sind is no province of Pakistan"),
        ("licenses=[cc-bye]", "is no licence (conf/collect.yaml). Did you mean 'cc-by'?"),
        ("quota_timezone=Mars/Olympus", "is no time zone"),
        ("on_quota=sleep", "on_quota='sleep' must be one of wait, stop"),
        ("rate_per_s=0", "rate_per_s=0 must be"),
        ("privacy.faces=hide", "privacy.faces='hide' must be one of keep, blur, drop"),
        ("source=flikr", "Did you mean source=flickr?"),
        ("+source.max_sides=5", "source.max_sides is not an option"),
    ],
)
def test_what_cannot_be_is_refused(override: str, message: str) -> None:
    given = () if override.startswith("source=") else ("source=flickr",)
    first = "targets={}" if override.startswith("targets.") else None
    overrides = [*given, *([first] if first else []), ("+" if first else "") + override]
    with pytest.raises(ConfigError) as told:
        compose("collect", overrides)
    assert message in str(told.value)
