"""Quota, progress, licences, the written files, and the ledger's own promises."""

from __future__ import annotations

import asyncio
import csv
import datetime
import io
import logging
import sqlite3
import zoneinfo
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from geopak.errors import QuotaSpentError, SourceError
from geopak.sources import licenses, output
from geopak.sources.downloads import file_stem, write_file
from geopak.sources.ledger import Candidate, Download, Ledger
from geopak.sources.progress import Progress, duration
from geopak.sources.quota import DailyQuota
from geopak.sources.records import Answer, FoundPhoto, Query, Refused

NAMES = {"north": "The North", "south": "The South"}


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger(tmp_path / "ledger.sqlite", durable=False) as opened:
        yield opened


# --- quota ------------------------------------------------------------------------------------


class Clock:
    """A clock that is set by hand."""

    def __init__(self, *moment: int) -> None:
        self.now = datetime.datetime(*moment, tzinfo=datetime.UTC)  # type: ignore[misc]

    def __call__(self) -> datetime.datetime:
        return self.now


def test_a_day_has_so_many_requests_of_a_kind_and_the_next_as_many(ledger: Ledger) -> None:
    clock = Clock(2024, 5, 6, 23, 59)
    limits = {"search": 3, "media": None}
    quota = DailyQuota(ledger, "maps", limits, "UTC", "stop", clock)

    async def use(kind: str, number: int) -> None:
        for _ in range(number):
            await quota.take(kind)

    asyncio.run(use("search", 3))
    asyncio.run(use("media", 20))
    asyncio.run(use("unknown", 2))
    with pytest.raises(
        QuotaSpentError, match="'search' requests is used up until 2024-05-07 00:00"
    ):
        asyncio.run(use("search", 1))
    # Another process counts on.
    again = DailyQuota(ledger, "maps", limits, "UTC", "stop", clock)
    with pytest.raises(QuotaSpentError):
        asyncio.run(again.take("search"))
    # Another source has its own.
    asyncio.run(DailyQuota(ledger, "other", limits, "UTC", "stop", clock).take("search"))
    clock.now += datetime.timedelta(minutes=2)
    asyncio.run(use("search", 3))
    assert ledger.requests("maps") == {"media": 20, "search": 6, "unknown": 2}


def test_a_day_ends_at_midnight_of_its_zone(ledger: Ledger) -> None:
    clock = Clock(2024, 5, 6, 6, 59)
    quota = DailyQuota(ledger, "maps", {"search": 1}, "America/Los_Angeles", "stop", clock)
    asyncio.run(quota.take("search"))
    with pytest.raises(QuotaSpentError, match="2024-05-06 00:00 PDT"):
        asyncio.run(quota.take("search"))
    clock.now += datetime.timedelta(minutes=1)
    asyncio.run(quota.take("search"))


def test_it_waits_for_the_next_day(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock, slept, waiting = Clock(2024, 5, 6, 23, 57), [], []
    quota = DailyQuota(ledger, "maps", {"search": 1}, "UTC", "wait", clock)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        waiting.append(quota.waiting_until)
        clock.now += datetime.timedelta(seconds=seconds)

    monkeypatch.setattr("geopak.sources.quota.asyncio.sleep", sleep)
    asyncio.run(quota.take("search"))
    asyncio.run(quota.take("search"))
    assert sum(slept) == pytest.approx(180, abs=1)
    assert max(slept) <= 60
    assert waiting[0] == datetime.datetime(2024, 5, 7, tzinfo=zoneinfo.ZoneInfo("UTC"))
    assert quota.waiting_until is None
    assert caplog.text.count("are used up; going on at 2024-05-07 00:00 UTC") == 1


def test_a_quota_of_none_is_not_waited_for(ledger: Ledger) -> None:
    quota = DailyQuota(ledger, "maps", {"media": 0}, "UTC", "wait")
    with pytest.raises(QuotaSpentError):
        asyncio.run(quota.take("media"))


# --- progress ---------------------------------------------------------------------------------


def fill(ledger: Ledger, kept: int, waiting: int = 0, province: str = "north") -> None:
    """Puts photos into a ledger as a collection does."""
    first = ledger.rows("SELECT count(*) FROM photos")[0][0]
    ledger.begin("made", [Query("q", {"first": first})])
    ledger.choose("made", [(None, 1)])
    (asked,) = ledger.unanswered("made")
    photos = tuple(
        FoundPhoto(f"p{first + k}", 31.5, 74.3, url=f"https://x.example/{k}", license="cc-by-2.0",
                   author="A", title="T", page_url="https://x.example/p")
        for k in range(kept + waiting)
    )  # fmt: skip
    provinces = [province] * len(photos)
    ledger.answered("made", asked, Answer(photos), provinces, [None] * len(photos))
    for candidate in ledger.candidates("made", 2**62)[:kept]:
        name = f"{candidate.id}"
        ledger.downloaded(candidate, Download(name, f"photos/made/{name}.jpg", 10, 10, 5))


def test_progress_tells_rates_and_the_time_that_is_left(ledger: Ledger) -> None:
    now = [0.0]
    progress = Progress(ledger, "made", NAMES, {"north": 100, "south": None}, clock=lambda: now[0])
    fill(ledger, 10, 5)
    progress.update()
    assert progress.rate_per_s("north") is None
    assert progress.seconds_left("north") is None
    fill(ledger, 20)
    now[0] = 40.0
    progress.update()
    assert progress.rate_per_s("north") == 0.5
    assert progress.seconds_left("north") == 70 / 0.5
    assert progress.seconds_left("south") is None
    line = progress.line()
    assert "made: 2 queries answered, 0 open" in line
    assert "The North 30/100" in line
    console = Console(width=120, file=io.StringIO())
    console.print(progress.table())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("The North", "35", "30", "100", "30.0", "2 min", "The South", "all"):
        assert part in shown
    # What is long ago does not count.
    now[0] = 5000.0
    progress.update()
    now[0] = 6000.0
    progress.update()
    assert progress.rate_per_s("north") == 0


def test_on_a_terminal_it_is_drawn_elsewhere_it_is_told(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fill(ledger, 3)

    def shown(**how: Any) -> str:
        console = Console(width=100, file=io.StringIO(), **how)
        progress = Progress(ledger, "made", NAMES, {}, every_s=0.01, console=console)

        async def run() -> None:
            task = asyncio.create_task(progress.show())
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(run())
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    assert "The North" in shown(force_terminal=True)
    assert not caplog.records
    assert shown(force_terminal=False) == ""
    assert "kept The North 3" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (5, "< 1 min"), (3000, "50 min"), (7200, "2 h"), (200_000, "2 days")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


# --- licences ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://creativecommons.org/licenses/by/2.0/", "cc-by-2.0"),
        ("http://creativecommons.org/licenses/by-nc-sa/2.0", "cc-by-nc-sa-2.0"),
        ("//www.creativecommons.org/licenses/by-nd/4.0/deed.en", "cc-by-nd-4.0"),
        ("creativecommons.org/licenses/by-sa/3.0/igo/", "cc-by-sa-3.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "cc0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "pdm"),
        ("http://www.usa.gov/copyright.shtml", "us-gov"),
        ("https://creativecommons.org/licenses/by-byte/2.0/", None),
        ("https://creativecommons.org.evil.example/licenses/by/2.0/", None),
        ("https://example.org/licenses/by/2.0/", None),
        ("", None),
        (None, None),
    ],
)
def test_licences_by_address(url: str | None, key: str | None) -> None:
    assert licenses.from_url(url) == key


@pytest.mark.parametrize("key", [k for k in licenses.LICENSES if k.startswith("cc-")])
@pytest.mark.parametrize("version", ["1.0", "2.0", "3.0", "4.0"])
def test_an_address_leads_back_to_its_licence(key: str, version: str) -> None:
    full = f"{key}-{version}"
    assert licenses.from_url(licenses.url_of(full)) == full
    assert licenses.base_key(full) == key
    assert licenses.name_of(full) == f"CC {key[3:].upper()} {version}"


def test_what_licences_permit() -> None:
    assert licenses.find("cc-by-nc-nd-2.0").derivatives is False  # type: ignore[union-attr]
    assert licenses.find("cc-by-nc-2.0").commercial is False  # type: ignore[union-attr]
    assert "all-rights-reserved" not in licenses.OPEN
    assert "google-places" not in licenses.OPEN
    assert licenses.allowed("cc-by-2.0", ["cc-by"])
    assert licenses.allowed("cc-by-2.0", ["cc-by-2.0"])
    assert not licenses.allowed("cc-by-4.0", ["cc-by-2.0"])
    assert not licenses.allowed("cc-by-sa-2.0", ["cc-by"])
    assert not licenses.allowed(None, ["cc-by"])
    assert licenses.allowed(None, ["unknown"])
    assert licenses.allowed("something-else", ["unknown"])
    assert licenses.allowed("all-rights-reserved", None)


# --- files ------------------------------------------------------------------------------------


def test_what_people_write_in_titles_breaks_no_table_and_no_page(ledger: Ledger) -> None:
    nasty = 'x"><script>alert(1)</script>,\r\n;\u2028 لاہور'
    ledger.begin("made", [Query("q", {})])
    ledger.choose("made", [(None, 1)])
    (asked,) = ledger.unanswered("made")
    photo = FoundPhoto(
        "a/b:../c", 31.5, 74.3, url="https://x.example/1", license="cc0", author=nasty, title=nasty,
        page_url="javascript:alert(2)", author_url='https://x.example/"onclick=',
    )  # fmt: skip
    ledger.answered("made", asked, Answer((photo,)), ["north"], [None])
    (candidate,) = ledger.candidates("made", 2**62)
    ledger.downloaded(candidate, Download("0", "photos/made/x.jpg", 10, 10, 5))
    rows = list(output.photo_rows(ledger, NAMES))
    written = io.StringIO()
    output.write_csv(written, rows, output.PHOTO_COLUMNS)
    text = written.getvalue()
    (read,) = csv.DictReader(io.StringIO(text))
    assert text.count("\n") == 2
    assert read["author"] == " ".join(nasty.split())
    assert read["province"] == "The North"
    assert "/" not in read["id"]
    page = "".join(output.attribution_page(output.attribution_rows(rows), "A <title>"))
    assert "<script>" not in page
    assert "javascript:" not in page
    assert '"onclick' not in page
    assert "لاہور" in page


def test_names_of_files_are_ours_and_differ() -> None:
    stems = {
        file_stem(source, name)
        for source in ("a", "b")
        for name in ("1", "../../etc/passwd", "x" * 5000, "\0", "1 ", "é", "e\u0301")
    }
    assert len(stems) == 14
    assert all(len(stem) == 20 and stem.isalnum() for stem in stems)


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "x.csv"
    write_file(path, b"old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("geopak.sources.downloads.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"


# --- ledger -----------------------------------------------------------------------------------


def test_an_answer_is_committed_whole_or_not_at_all(ledger: Ledger) -> None:
    ledger.begin("made", [Query("q", {})])
    ledger.choose("made", [(None, 1)])
    (asked,) = ledger.unanswered("made")
    good = FoundPhoto("1", 31.5, 74.3)
    bad = FoundPhoto("2", 31.5, 74.3, extra={"x": object()})
    with pytest.raises(TypeError):
        ledger.answered("made", asked, Answer((good, bad)), ["north"] * 2, [None] * 2)
    assert ledger.rows("SELECT count(*) FROM photos") == [(0,)]
    assert [q.id for q in ledger.unanswered("made")] == [asked.id]


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.remember("format", "99")
    with pytest.raises(SourceError, match="format 99"):
        Ledger(path)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE songs (title TEXT)")
    db.close()
    with pytest.raises(SourceError, match=r"other\.sqlite"):
        Ledger(other)


def test_what_is_committed_outlives_a_loss_of_power(tmp_path: Path) -> None:
    with Ledger(tmp_path / "a.sqlite") as ledger:
        assert ledger.rows("PRAGMA synchronous") == [(2,)]
        ledger.count_request("made", "free", "2024-05-06", None)
        assert ledger.rows("PRAGMA synchronous") == [(2,)]
        assert ledger.rows("PRAGMA journal_mode") == [("wal",)]


def test_a_copy_finds_its_first_whatever_came_first(ledger: Ledger) -> None:
    fill(ledger, 0, 3)
    first, second, third = ledger.candidates("made", 2**62)

    def same(candidate: Candidate) -> Download:
        return Download("same", f"photos/{candidate.id}.jpg", 1, 1, 1)

    assert ledger.downloaded(third, same(third)).province == "north"
    kept = ledger.downloaded(first, same(first))
    assert (kept.province, kept.displaced, kept.removed) == (
        "north", "north", f"photos/{third.id}.jpg",
    )  # fmt: skip
    lost = ledger.downloaded(second, same(second))
    assert (lost.province, lost.removed) == (None, f"photos/{second.id}.jpg")
    states = ledger.rows("SELECT source_id, state, path FROM photos ORDER BY source_id")
    assert [state for _, state, _ in states] == ["downloaded", "rejected", "rejected"]
    assert ledger.wanted_files() == {f"photos/{first.id}.jpg"}


@pytest.mark.parametrize("table", ["csv", "parquet"])
def test_what_is_written_need_not_fit_into_memory(
    table: str, ledger: Ledger, tmp_path: Path
) -> None:
    import tracemalloc

    number, detail = 20_000, "x" * 100
    ledger.begin("s", [Query("q", {})])
    ledger.choose("s", [(None, 1)])
    (asked,) = ledger.unanswered("s")
    refused = tuple(Refused(f"line {k}", "malformed", detail) for k in range(number))
    photos = tuple(FoundPhoto(f"p{k}", 25.0, 5.0, title=detail) for k in range(number // 4))
    answer, each = Answer(photos, (), refused), [None] * len(photos)
    ledger.answered("s", asked, answer, ["north"] * len(photos), each)
    ledger._db.execute("UPDATE photos SET state = 'downloaded', path = source_id")
    # What is imported once is no matter of this.
    output.write_all(ledger, tmp_path, NAMES, "Photos", table)
    tracemalloc.start()
    output.write_all(ledger, tmp_path, NAMES, "Photos", table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "rejected.csv").stat().st_size > number * len(detail)
    # A parquet's rows are gathered by ten thousand.
    assert peak < (1_000_000 if table == "csv" else 20_000_000)
