"""What may happen to a collection in a week: other people's files, outages, odd photos, bills."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from geopak.cli import compose
from geopak.errors import ConfigError, SourceError
from geopak.schema.collecting import CollectConfig
from geopak.sources.running import collect, dry_run
from tests.sources.collecting import (
    checked,
    collect_here,
    configured,
    ledger_of,
    rows_of,
    start,
)
from tests.sources.flickr_server import BEGIN, KEY, FlickrServer, Shot, changed
from tests.sources.photo_files import exif, write_photo
from tests.sources.stand_in import (
    Reply,
    Request,
    as_jpeg,
    as_text,
    jpeg,
    redirect,
    too_many_requests,
    unavailable,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLICKR_API_KEY", KEY)
    monkeypatch.setattr("geopak.sources.downloads.os.fsync", lambda handle: None)


def some(count: int = 5) -> list[Shot]:
    return [Shot(str(k), 25.0 + k / 1000, 67.5, BEGIN + 1000 * k) for k in range(1, count + 1)]


def kept(out: Path) -> set[str]:
    return {row["id"].removeprefix("flickr-") for row in rows_of(out / "photos.csv")}


def reasons(out: Path) -> dict[str, str]:
    return {row["source_id"]: row["reason"] for row in rows_of(out / "rejected.csv")}


def of_folder(root: Path, out: Path, *more: str) -> CollectConfig:
    return checked(["source=folder", f"source.root={root}", f"out={out}", *more])


# --- other people's files -------------------------------------------------------------------


def test_photos_of_ones_own_are_no_leftovers(tmp_path: Path) -> None:
    mine = tmp_path / "photos"
    write_photo(mine / "a.jpg", exif(25.0, 67.5))
    (mine / "notes.txt").write_text("mine")
    for root in (mine, tmp_path):
        with pytest.raises(SourceError, match="one folder or lie in each other"):
            collect(of_folder(root, tmp_path))
    with FlickrServer(some()) as server, pytest.raises(SourceError, match="knows nothing of what"):
        collect_here(server, tmp_path)
    # The second time there is a ledger, which still knows nothing.
    with FlickrServer(some()) as server, pytest.raises(SourceError, match="knows nothing of what"):
        collect_here(server, tmp_path)
    assert sorted(p.name for p in mine.iterdir()) == ["a.jpg", "notes.txt"]


def test_only_files_of_ours_are_removed(tmp_path: Path) -> None:
    with FlickrServer(some()) as server:
        collect_here(server, tmp_path)
        photos = tmp_path / "photos" / "flickr"
        left = [photos / "ab" / f"{'ab' * 10}.jpg", photos / "ab" / f".{'ab' * 10}.png.partial"]
        mine = [
            photos / "notes.txt", photos / "ab" / "x.jpg", tmp_path / "photos" / "ab.jpg",
            tmp_path / "photos" / "other" / "ab" / f"{'ab' * 10}.jpg",
        ]  # fmt: skip
        for path in (*left, *mine):
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(b"x")
        collect_here(server, tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in mine)


def test_photos_are_not_written_through_a_link(tmp_path: Path) -> None:
    mine, out = tmp_path / "mine", tmp_path / "out"
    mine.mkdir()
    out.mkdir()
    (out / "photos").symlink_to(mine)
    with FlickrServer(some()) as server, pytest.raises(SourceError, match="photos is a link"):
        collect_here(server, out)
    assert list(mine.iterdir()) == []


def test_a_lost_ledger_costs_no_photo(tmp_path: Path) -> None:
    with FlickrServer(some()) as server:
        collect_here(server, tmp_path)
        before = sorted(tmp_path.rglob("*.jpg"))
        for path in tmp_path.glob("ledger*"):
            path.unlink()
        with pytest.raises(SourceError, match="If the ledger was lost"):
            collect_here(server, tmp_path)
    assert sorted(tmp_path.rglob("*.jpg")) == before


# --- odd photos -----------------------------------------------------------------------------


# The orientation is 6, to turn by; another tag has a type that its value does not fit.
ODD_EXIF = bytes.fromhex(
    "4578696600004d4d002a000000080002011900020000000b0000002601120003000000010006000000000100787800787878787878780000"
)


def test_broken_exif_data_are_no_reason_to_end(tmp_path: Path) -> None:
    made = io.BytesIO()
    Image.new("RGB", (64, 48)).save(made, "JPEG", exif=ODD_EXIF)
    with FlickrServer(some()) as server:
        server.faults.add(as_jpeg(made.getvalue()), when="/pictures/3_", times=None)
        collect_here(server, tmp_path)
    assert kept(tmp_path) == {"1", "2", "3", "4", "5"}
    (row,) = [r for r in rows_of(tmp_path / "photos.csv") if r["id"] == "flickr-3"]
    assert (row["width"], row["height"]) == ("64", "48")


def test_an_odd_photo_or_answer_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geopak.sources.downloads import Downloader
    from geopak.sources.flickr import FlickrSource

    write, ask = Downloader._write, FlickrSource._ask_photos
    asked: list[str] = []

    def stumbles(self: Any, source: str, source_id: str, body: bytes) -> Any:
        if source_id == "3":
            raise KeyError("nobody expected this")
        return write(self, source, source_id, body)

    async def stumbles_once(self: Any, query: Any, client: Any) -> Any:
        asked.append(query.identity)
        if len(asked) == 1:
            raise ZeroDivisionError
        return await ask(self, query, client)

    monkeypatch.setattr(Downloader, "_write", stumbles)
    monkeypatch.setattr(FlickrSource, "_ask_photos", stumbles_once)
    with FlickrServer(some()) as server:
        collect_here(server, tmp_path)
        assert [row[6] for row in ledger_of(tmp_path)["queries"] if row[6]] == [
            f"ZeroDivisionError in {Path(__file__).name}, line "
            f"{stumbles_once.__code__.co_firstlineno + 3}"
        ]
        ended = collect_here(server, tmp_path, retry_failed="true")
    assert kept(tmp_path) == {"1", "2", "4", "5"}
    assert reasons(tmp_path) == {"3": "unchecked"}
    assert ended.summary["sources"]["flickr"]["queries"]["failed"] == 0


# --- outages --------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["photos.search", "/pictures"])
def test_a_server_that_wants_to_be_left_alone_is(what: str, tmp_path: Path) -> None:
    with FlickrServer(some()) as server:
        server.faults.add(too_many_requests(86_400), when=lambda r: what in r.target, times=None)
        process = start(server, tmp_path, on_quota="stop", concurrency=1, downloads=1)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 75, output
        assert sum(what in r.request.target for r in server.requests) == 1
        queries = ledger_of(tmp_path)["queries"]
        assert {row[5] for row in queries} <= {"open", "done"}
        assert reasons(tmp_path) == {}
        server.faults.clear()
        collect_here(server, tmp_path)
    assert kept(tmp_path) == {"1", "2", "3", "4", "5"}


@pytest.mark.parametrize("downloads", [1, 3])
def test_an_outage_is_waited_for_and_costs_no_photo(downloads: int, tmp_path: Path) -> None:
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    with FlickrServer(some(30)) as server:
        collect_here(server, calm)
        server.faults.add(unavailable(), when="/pictures", times=12)
        ended = collect_here(server, shaken, retries=0, outage_s=30, downloads=downloads)
    assert ended.summary["rejected"] == {}
    assert ledger_of(shaken)["photos"] == ledger_of(calm)["photos"]


def test_an_outage_of_the_interface_is_waited_for(tmp_path: Path) -> None:
    with FlickrServer(some()) as server:
        search = lambda r: "photos.search" in r.target  # noqa: E731
        server.faults.add(unavailable(), when=search, times=24)
        ended = collect_here(server, tmp_path, retries=0, outage_s=30, concurrency=8)
    assert ended.summary["sources"]["flickr"]["queries"]["failed"] == 0
    assert kept(tmp_path) == {"1", "2", "3", "4", "5"}


def test_an_outage_that_lasts_ends_it_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with FlickrServer(some(60)) as server:
        server.faults.add(unavailable(), when="/pictures", times=None)
        with pytest.raises(SourceError, match="No photos could be had for"):
            collect_here(server, tmp_path, retries=0, outage_s=0.2)
        # Not all of them are spent on it.
        assert 8 <= list(reasons(tmp_path).values()).count("unavailable") <= 16
        server.faults.clear()
        collect_here(server, tmp_path)
        assert len(kept(tmp_path)) >= 44
        collect_here(server, tmp_path, retry_failed="true")
    assert len(kept(tmp_path)) == 60


def test_what_is_missing_at_the_end_is_told_by_the_status(tmp_path: Path) -> None:
    with FlickrServer(some()) as server:
        server.faults.add(unavailable(), when="/pictures/3_", times=None)
        process = start(server, tmp_path, retries=0)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 69, output
        assert "1 photos were not available. retry_failed=true" in output


# --- settings -------------------------------------------------------------------------------

BIG = as_jpeg(jpeg(300, 200) + bytes(20_000))
OTHER_SETTINGS: dict[str, tuple[Reply | None, dict[str, Any], dict[str, Any]]] = {
    "forbidden_address": (None, {}, {"allowed_hosts": "[localhost]"}),
    "too_large": (BIG, {"max_photo_mb": 0.01}, {"max_photo_mb": 1}),
    "too_many_pixels": (BIG, {"max_pixels": 50_000}, {"max_pixels": 100_000}),
    "too_small": (as_jpeg(jpeg(64, 48)), {"min_side_px": 100}, {"min_side_px": 20}),
    "denied": (as_text("no", 403), {}, {"retry_failed": "true"}),
    "refused": (as_text("no", 451), {}, {"retry_failed": "true"}),
}


@pytest.mark.parametrize("reason", OTHER_SETTINGS)
def test_what_a_setting_rejected_another_setting_takes_back(reason: str, tmp_path: Path) -> None:
    reply, before, after = OTHER_SETTINGS[reason]

    def others(request: Request) -> Reply:
        return as_jpeg(jpeg(200, 200, seed=int(request.path[10])))

    with FlickrServer(some()) as server:
        there = server.url.replace("127.0.0.1", "localhost") + "/elsewhere.jpg"
        server.faults.add(reply or redirect(there), when="/pictures/3_", times=None)
        server.faults.add(others, when="/pictures", times=None)
        collect_here(server, tmp_path, **before)
        assert reasons(tmp_path) == {"3": reason}
        server.forget()
        collect_here(server, tmp_path, **before)
        assert server.requests == []
        if reason in ("denied", "refused"):
            server.faults.clear()
        server.faults.add(as_jpeg(jpeg(150, 150)), when="/elsewhere", times=None)
        collect_here(server, tmp_path, **{**before, **after})
    assert kept(tmp_path) == {"1", "2", "3", "4", "5"}


def google(out: Path, *more: str) -> CollectConfig:
    return checked(["source=google_places", f"out={out}", "targets=5", *more])


def test_a_quota_takes_the_brake_only_off_what_it_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run(google(tmp_path, "quota={photo_media: 7}"))
    told = capsys.readouterr().out
    assert "; 500 a day" in told
    assert "; 7 a day" in told
    dry_run(google(tmp_path, "quota={nearby_search: null}"))
    assert "; 500 a day" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"quota.nearby_serach .*Did you mean 'nearby_search'"):
        dry_run(google(tmp_path, "quota={nearby_serach: 10}"))
    with FlickrServer(some()) as server:
        collect_here(server, tmp_path, quota="{download: 3}", on_quota="stop", downloads=1)
        # Pictures that wait for the next day are not rejected.
        assert len(kept(tmp_path)) == 3
        assert reasons(tmp_path) == {}


def test_the_dry_run_tells_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FlickrServer(some()) as server:
        numbers = dry_run(
            configured(server, tmp_path, targets=100, quota="{download: 100}", photos_per_s=1)
        )
    assert numbers["requests"]["download"] == [700, 2800]
    assert numbers["days_by_quota"] == 28
    assert numbers["seconds"] == [700, 2800]
    assert "download requests: 700 to 2,800; 100 a day" in capsys.readouterr().out


def test_the_dry_run_looks_at_the_region_and_changes_nothing(tmp_path: Path) -> None:
    def state() -> dict[str, Any]:
        return {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.iterdir()}

    with FlickrServer(some()) as server:
        collect_here(server, tmp_path)
        before = state()
        dry_run(configured(server, tmp_path))
        with pytest.raises(SourceError, match="a collection of 'pakistan'"):
            dry_run(configured(server, tmp_path, region="bangladesh"))
        assert state() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("licenses=[]", "licenses=[] keeps no photo"),
        ("contact=Jörg@example.org", "characters that no header of HTTP may have"),
        ("source.api=nonsense", "source.api='nonsense' is no address"),
    ],
)
def test_what_cannot_work_is_refused_at_once(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as told:
        compose("collect", ["source=flickr", override])
    assert message in str(told.value)


# --- what is written ------------------------------------------------------------------------


def test_coarse_coordinates_are_coarse_everywhere(tmp_path: Path) -> None:
    shots = some(2)
    far = changed(Shot("9", 25.123456, 67.654321, BEGIN), latitude="0", longitude="67.654321")
    with FlickrServer([*shots, far]) as server:
        server.faults.add(as_jpeg(jpeg()), when="/pictures", times=None)
        collect_here(server, tmp_path, **{"privacy.coarsen_km": 10})
    assert set(reasons(tmp_path).values()) >= {"duplicate"}
    for name in ("photos.csv", "rejected.csv", "attribution.csv", "attribution.html"):
        text = (tmp_path / name).read_text("utf-8")
        for shot in shots:
            assert str(shot.latitude) not in text, name
        assert "67.5," not in text
        assert "67.654321" not in text


def test_a_title_is_no_formula(tmp_path: Path) -> None:
    titles = ["=1+1", "@SUM(1)", "+1", "-1", "plain"]
    shots = [changed(shot, title=title) for shot, title in zip(some(), titles, strict=True)]
    with FlickrServer(shots) as server:
        collect_here(server, tmp_path)
    told = {row["title"] for row in rows_of(tmp_path / "attribution.csv")}
    assert told == {"'=1+1", "'@SUM(1)", "'+1", "'-1", "plain"}
    assert {row["title"] for row in rows_of(tmp_path / "photos.csv")} == set(titles)


@pytest.mark.parametrize("blocked", ["ledger.sqlite", "photos.csv"])
def test_a_folder_in_the_place_of_a_file_is_told(blocked: str, tmp_path: Path) -> None:
    (tmp_path / blocked).mkdir()
    with FlickrServer(some()) as server, pytest.raises(SourceError, match="cannot be read"):
        collect_here(server, tmp_path)


def test_a_place_that_cannot_be_written_is_told() -> None:
    with FlickrServer(some()) as server, pytest.raises(SourceError, match="cannot be read and wri"):
        collect_here(server, Path("/dev/null/x"))


def test_a_full_disk_ends_it_and_rejects_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, body: bytes) -> None:
        raise OSError(28, "No space left on device")

    with FlickrServer(some()) as server:
        with monkeypatch.context() as patched:
            patched.setattr("geopak.sources.downloads.write_file", full)
            with pytest.raises(SourceError, match="No space left on device"):
                collect_here(server, tmp_path)
        collect_here(server, tmp_path)
    assert kept(tmp_path) == {"1", "2", "3", "4", "5"}
