"""The engine of a collection: asks, downloads, and decides what is asked next.

What a collection ends with is the same however fast the answers come and wherever it is stopped:

* Queries are chosen in *waves*. A wave is chosen when every query of the one before has its answer
  and every photo of the waves before that is settled; what is chosen follows from the ledger alone.
  While a wave is asked, the photos of the one before are downloaded.
* Provinces with fewer photos go first. Of a province so many queries are chosen as its missing
  photos should take, by what its queries have brought so far.
* Photos of a province are downloaded in the order of the queries that found them, and only so many
  at a time as are still missing. So those that are tried are the first ones in that order, up to
  the one that reaches the target; the others stay in the ledger, for a higher target.
* Of files with equal content the one that comes first in the same order stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
import numpy as np

from geopak.errors import GeopakError, QuotaSpentError, RefusedQueryError, SourceError
from geopak.sources import copies, downloads, licenses, reopening
from geopak.sources.client import Client
from geopak.sources.downloads import Downloader, RejectedPhotoError
from geopak.sources.ledger import Candidate, Download, Ledger, OpenQuery
from geopak.sources.progress import duration
from geopak.sources.records import Answer, FoundPhoto, Refused, Source

if TYPE_CHECKING:
    from geopak.geo.boundaries import Outlines
    from geopak.geo.region import Region

log = logging.getLogger(__name__)

# So often a query is put at the end of the line when it got no answer in all attempts.
_QUERY_TRIES = 3
# So many refused queries one after the other are no accident.
_MOST_REFUSED = 20
# So many without a usable answer one after the other, and none with one: the server is down.
_OUTAGE_AFTER = 8
_LONGEST_PAUSE_S = 300.0
# Of a province that nothing is known of yet.
_FIRST_QUERIES = 4
_GRACE_S = 10.0
Ending = Literal["finished", "quota", "stopped"]


@dataclass(frozen=True)
class Wishes:
    """What is collected.

    Attributes:
        targets: photos per province key; ``None``: as many as there are.
        licenses: that are kept; ``None``: any.
        min_side_px: of the shorter side, where a source tells it beforehand.
        wave: most queries of a wave.
        concurrency: queries at a time.
        downloads: photos at a time.
        pause_s: before a query without an answer is asked again, then twice as long.
        outage_s: a server of which nothing can be had is waited for so long.
    """

    targets: Mapping[str, int | None]
    licenses: Sequence[str] | None = None
    min_side_px: int = 0
    wave: int = 64
    concurrency: int = 8
    downloads: int = 8
    pause_s: float = 10.0
    outage_s: float = 0.0

    def judge(self, photo: FoundPhoto, province: str | None) -> str | None:
        """Why a photo is not wanted; ``None``: it is."""
        if province is None:
            return "outside_region"
        if not licenses.allowed(photo.license, self.licenses):
            return "license"
        if photo.width and photo.height and min(photo.width, photo.height) < self.min_side_px:
            return "too_small"
        return None


class _Outage:
    """Tells a server that is down from queries or photos that it does not give.

    Args:
        what: that is asked for, for messages.
        pause_s: the first pause; each next is twice as long.
        longest_s: that it is waited for.
    """

    def __init__(self, what: str, pause_s: float, longest_s: float) -> None:
        self._what = what
        self._pause_s = pause_s
        self._longest_s = longest_s
        self._in_a_row = 0
        self._began = 0.0
        self._round = 0
        self._next = 0.0

    def over(self) -> bool:
        """Notes a usable answer; whether an outage ended by it."""
        was_one = self._round > 0
        self._in_a_row = self._round = 0
        return was_one

    def failed(self) -> bool:
        """Notes that there was none; whether that is an outage."""
        if not self._in_a_row:
            self._began = time.monotonic()
        self._in_a_row += 1
        return self._longest_s > 0 and self._in_a_row >= _OUTAGE_AFTER

    def pause(self, error: object) -> float:
        """Seconds until it may be tried again.

        Raises:
            SourceError: it has lasted for too long.
        """
        now = time.monotonic()
        if now - self._began > self._longest_s:
            raise SourceError(
                f"No {self._what} could be had for {duration(now - self._began)}, the last time: "
                f"{error}. The same command goes on with it."
            )
        # All that are at work wait for the same moment.
        if now >= self._next:
            pause_s = min(self._pause_s * 2.0 ** min(self._round, 30), _LONGEST_PAUSE_S)
            self._next = now + pause_s
            self._round += 1
            log.warning(
                "%s %s in a row could not be had: again in %s. %s",
                self._in_a_row, self._what, duration(pause_s), error,
            )  # fmt: skip
        return self._next - now


class Collector:
    """Collects from one source into a ledger.

    Args:
        source: that is asked.
        region: whose provinces have targets.
        outlines: say in which province a photo lies.
        ledger: that is gone on with.
        client: for the source.
        downloader: for the photos.
        wishes: what is collected.
    """

    def __init__(
        self,
        source: Source,
        region: Region,
        outlines: Outlines,
        ledger: Ledger,
        client: Client,
        downloader: Downloader,
        wishes: Wishes,
    ) -> None:
        self.source = source
        self.ledger = ledger
        self.wishes = wishes
        self._keys = [province.key for province in region.provinces]
        self._outlines = outlines
        self._client = client
        self._downloader = downloader
        self._stop = asyncio.Event()
        self._ending: Ending = "finished"
        self._refused_in_a_row = 0
        pause_s, outage_s = wishes.pause_s, wishes.outage_s
        self._no_answers = _Outage("answers", pause_s, outage_s)
        self._no_photos = _Outage("photos", pause_s, outage_s)
        # Photos of late that were given up, perhaps for the server's sake.
        self._given_up: list[Candidate] = []
        self._taken_back = False
        self.spent: QuotaSpentError | None = None

    def stop(self, ending: Ending = "stopped") -> None:
        """Lets what is on its way come in, and begins nothing more."""
        if not self._stop.is_set():
            self._ending = ending
        self._stop.set()

    async def run(
        self,
        begun_as: str,
        retry_failed: bool = False,
        limits: Mapping[str, Any] | None = None,
    ) -> Ending:
        """Collects until there is nothing more to do, or it is stopped.

        Args:
            begun_as: what the source's first queries depend on. They are taken once for each.
            retry_failed: ask again what failed in an earlier run.
            limits: by the reason for which a photo is rejected, the setting that does it (a JSON
                value): where it has changed, those photos get another chance.

        Returns:
            Why it ended.

        Raises:
            SourceError: the source cannot be asked.
        """
        name, ledger = self.source.name, self.ledger
        remembered = f"begun {name} {begun_as}"
        grows = getattr(self.source, "start_every_run", False)
        if grows or ledger.meta(remembered) is None:
            ledger.begin(name, self.source.start())
            ledger.remember(remembered, "yes")
        # Where nothing was ever answered, the source was at fault, not a query.
        if retry_failed or not ledger.query_numbers(name)["done"]:
            queries, photos = reopening.failed(ledger, name)
            if queries or photos:
                log.info("%s queries and %s photos that failed are tried again.", queries, photos)
        self._reopen_by(limits or {})
        self._judge_anew()
        lost = self._sweep()
        if lost:
            log.warning("%s files of photos are gone and are fetched again.", f"{len(lost):,}")
            reopening.lost_files(ledger, lost)
        copies.settle(ledger)
        await self._interruptible(self._waves())
        self._sweep()
        return self._ending

    def _sweep(self) -> set[str]:
        out, ledger = self._downloader.out, self.ledger
        return downloads.sweep(out, ledger.sources(), ledger.wanted_files())

    def _reopen_by(self, limits: Mapping[str, Any]) -> None:
        remembered = f"limits {self.source.name}"
        text = self.ledger.meta(remembered)
        before = limits if text is None else json.loads(text)
        changed = [reason for reason, now in limits.items() if before.get(reason, now) != now]
        number = reopening.rejected_for(self.ledger, self.source.name, changed)
        if number:
            log.info("%s photos are tried again by other settings.", f"{number:,}")
        self.ledger.remember(remembered, json.dumps(dict(limits)))

    def _judge_anew(self) -> None:
        """Judges the photos of earlier runs by the wishes of this one, if they are others."""
        chosen = self.wishes.licenses
        wishes = f"{None if chosen is None else sorted(chosen)} {self.wishes.min_side_px}"
        if self.ledger.meta("judged by") != wishes:
            self.ledger.judge(self.wishes.judge)
            self.ledger.remember("judged by", wishes)

    async def _interruptible(self, work: Awaitable[None]) -> None:
        """Waits for the work; once it is to stop, only for a while."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=_GRACE_S)
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _waves(self) -> None:
        name, ledger = self.source.name, self.ledger
        settling = f"settling {name}"
        while not self._stop.is_set():
            wave = ledger.current_wave(name)
            # Whatever one of both raises ends the other.
            async with _Both() as both:
                both.start(self._ask_all(ledger.unanswered(name)))
                both.start(self._download_all(ledger.wave_begins(name, wave)))
            if self._stop.is_set():
                return
            if ledger.meta(settling) != str(wave) and self._choose(wave):
                continue
            # Nothing is to be asked if all that was found can be had: see whether it can.
            ledger.remember(settling, str(wave))
            await self._download_all(None)
            # Where a first copy is gone, the next has its turn.
            while not self._stop.is_set() and copies.settle(ledger):
                await self._download_all(None)
            if self._stop.is_set() or not self._choose(wave):
                return

    def _choose(self, wave: int) -> bool:
        """Chooses the next wave by what is in the ledger; ``False``: there is nothing to ask."""
        name, ledger = self.source.name, self.ledger
        tallies, waiting = ledger.tallies(), ledger.waiting(name)
        line, brought = ledger.in_line(name), ledger.usable_per_query(name)
        have, need = {}, {}
        for key in self._keys:
            kept = tallies[key].kept if key in tallies else 0
            have[key] = kept + waiting.get(key, 0)
            target = self.wishes.targets.get(key)
            need[key] = math.inf if target is None else target - have[key]
        left = self.wishes.wave
        numbers: list[tuple[str | None, int]] = []
        # The sort is stable: of two with as many photos the first of the region goes first.
        for key in sorted(self._keys, key=lambda k: have[k]):
            if need[key] <= 0:
                continue
            number = min(left, line.get(key, 0))
            if need[key] < math.inf:
                expected = brought.get(key)
                most = _FIRST_QUERIES if expected is None else need[key] / max(expected, 1.0)
                number = min(number, math.ceil(most))
            if number:
                numbers.append((key, number))
                left -= number
        if max(need.values()) > 0 and left and line.get(None):
            numbers.append((None, min(left, line[None])))
        return bool(numbers) and ledger.choose(name, numbers) > 0

    # --- queries ------------------------------------------------------------------------------

    async def _ask_all(self, queries: Iterable[OpenQuery]) -> None:
        line = deque(queries)

        async def worker() -> None:
            while line and not self._stop.is_set():
                await self._ask(line.popleft(), line)

        await _all(worker() for _ in range(min(self.wishes.concurrency, len(line))))

    async def _ask(self, asked: OpenQuery, line: deque[OpenQuery]) -> None:
        try:
            answer = await self.source.ask(asked.query, self._client)
        except QuotaSpentError as error:
            self.spent = error
            self.stop("quota")
        except RefusedQueryError as error:
            self._refused(asked, str(error))
        except httpx.HTTPError as error:
            if self._no_answers.failed():
                try:
                    pause_s = self._no_answers.pause(error)
                except SourceError:
                    self.ledger.failed(asked, str(error), final=True)
                    raise
                await self._sleep(pause_s)
                line.append(asked)
                return
            final = asked.tries + 1 >= _QUERY_TRIES
            self.ledger.failed(asked, str(error), final)
            log.warning(
                "A %r query got no answer: %s%s", asked.query.kind, error,
                " It is left for retry_failed=true." if final else "",
            )  # fmt: skip
            if not final:
                await self._sleep(self.wishes.pause_s * 2**asked.tries)
                line.append(OpenQuery(asked.id, asked.seq, asked.query, asked.tries + 1))
        except GeopakError:
            raise
        except Exception as error:
            self._refused(asked, _where(error))
        else:
            self._refused_in_a_row = 0
            self._no_answers.over()
            self._commit(asked, answer)

    def _refused(self, asked: OpenQuery, error: str) -> None:
        self._refused_in_a_row += 1
        self.ledger.failed(asked, error, final=True)
        log.warning("A %r query was refused: %s", asked.query.kind, error)
        if self._refused_in_a_row >= _MOST_REFUSED:
            raise SourceError(
                f"{self._refused_in_a_row} queries of {self.source.name} were refused one "
                f"after the other, the last: {error} retry_failed=true asks them again."
            )

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _commit(self, asked: OpenQuery, answer: Answer) -> None:
        usable, refused = [], list(answer.refused)
        for photo in answer.photos:
            lat, lon = photo.latitude, photo.longitude
            # Not a number compares as false.
            if abs(lat) <= 90 and abs(lon) <= 180:
                usable.append(photo)
            else:
                refused.append(Refused(photo.source_id, "bad_coordinate", f"{lat}, {lon}"))
        places = np.array([(p.latitude, p.longitude) for p in usable], float).reshape(-1, 2)
        provinces = [
            None if index < 0 else self._keys[index]
            for index in self._outlines.province_of(places).tolist()
        ]
        barred = [
            self.wishes.judge(photo, province)
            for photo, province in zip(usable, provinces, strict=True)
        ]
        clean = Answer(tuple(usable), answer.more, tuple(refused), answer.seen)
        self.ledger.answered(self.source.name, asked, clean, provinces, barred)

    # --- photos -------------------------------------------------------------------------------

    async def _download_all(self, below_seq: int | None) -> None:
        """Downloads what waits, of queries before a place in line (``None``: all)."""
        below = 2**62 if below_seq is None else below_seq
        candidates = self.ledger.candidates(self.source.name, below)
        if not candidates:
            return
        tallies = self.ledger.tallies()
        kept = {key: tallies[key].kept if key in tallies else 0 for key in self._keys}
        line = _Line(candidates, kept, self.wishes.targets)

        async def worker() -> None:
            while not self._stop.is_set():
                candidate = await line.take()
                if candidate is None:
                    return
                try:
                    gained, lost = await self._download(candidate)
                except BaseException:
                    await line.done(candidate, None, None)
                    raise
                await line.done(candidate, gained, lost)

        await _all(worker() for _ in range(min(self.wishes.downloads, len(candidates))))
        if self._taken_back and not self._stop.is_set():
            self._taken_back = False
            await self._download_all(below_seq)

    async def _download(self, candidate: Candidate) -> tuple[str | None, str | None]:
        """Gets a photo; the provinces that have one more and one less by it."""
        while True:
            came = await self._try(candidate)
            if isinstance(came, Download):
                kept = copies.keep(self.ledger, candidate, came)
                if kept.removed is not None:
                    (self._downloader.out / kept.removed).unlink(missing_ok=True)
                return kept.province, kept.displaced
            if came is None:
                return None, None
            if not self._no_photos.failed():
                self._given_up.append(candidate)
                self.ledger.rejected(candidate, "unavailable", came)
                return None, None
            try:
                pause_s = self._no_photos.pause(came)
            except SourceError:
                # So that the next run begins with others.
                self.ledger.rejected(candidate, "unavailable", came)
                raise
            await self._sleep(pause_s)
            if self._stop.is_set():
                return None, None

    async def _try(self, candidate: Candidate) -> Download | str | None:
        """A photo's file; why it is not available now; ``None``: it is rejected, or waits."""
        photo, name = self.ledger.photo(candidate), self.source.name
        try:
            url = photo.url or await self.source.locate(photo, self._client)
            file = await self._downloader.fetch(name, photo.source_id, url)
        except QuotaSpentError as error:
            self.spent = error
            self.stop("quota")
            return None
        except httpx.HTTPError as error:
            return str(error)
        except RejectedPhotoError as error:
            if error.reason == "unavailable":
                return error.detail
            reason, detail = error.reason, error.detail
        except RefusedQueryError as error:
            reason, detail = "refused", str(error)
        except GeopakError:
            raise
        except Exception as error:
            # One odd photo must not end what takes a week.
            reason, detail = "unchecked", _where(error)
            log.warning("%s %s: %s", name, photo.source_id, detail)
        else:
            self._photos_come()
            return file
        self._photos_come()
        self.ledger.rejected(candidate, reason, detail)
        return None

    def _photos_come(self) -> None:
        if self._no_photos.over() and self._given_up:
            reopening.just_rejected(self.ledger, self._given_up)
            self._taken_back = True
        self._given_up.clear()


def _where(error: Exception) -> str:
    """Kind and place of an error that nobody expected; its text could hold anything."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


class _Line:
    """Photos in the order in which they are tried, a line per province.

    Args:
        candidates: in their order.
        kept: photos that each province has.
        targets: that each may have.
    """

    def __init__(
        self,
        candidates: Iterable[Candidate],
        kept: Mapping[str, int],
        targets: Mapping[str, int | None],
    ) -> None:
        self._lines: dict[str, deque[Candidate]] = {}
        for candidate in candidates:
            self._lines.setdefault(candidate.province, deque()).append(candidate)
        self._kept = dict(kept)
        self._targets = targets
        self._on_the_way = dict.fromkeys(kept, 0)
        self._changed = asyncio.Condition()

    def _is_short(self, province: str) -> bool:
        target = self._targets.get(province)
        have = self._kept[province] + self._on_the_way[province]
        return target is None or have < target

    async def take(self) -> Candidate | None:
        """The next photo to try; ``None``: there will be none."""
        async with self._changed:
            while True:
                open_lines = [p for p, line in self._lines.items() if line and self._is_short(p)]
                if open_lines:
                    rarest = min(open_lines, key=lambda p: self._kept[p] + self._on_the_way[p])
                    self._on_the_way[rarest] += 1
                    return self._lines[rarest].popleft()
                if not any(self._on_the_way.values()):
                    self._changed.notify_all()
                    return None
                await self._changed.wait()

    async def done(self, candidate: Candidate, gained: str | None, lost: str | None) -> None:
        """Says what came of a photo."""
        async with self._changed:
            self._on_the_way[candidate.province] -= 1
            for province, change in ((gained, 1), (lost, -1)):
                if province is not None:
                    self._kept[province] = self._kept.get(province, 0) + change
            self._changed.notify_all()


class _Both:
    """A task group that raises the first error itself, not a group of errors."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> _Both:
        return self

    def start(self, work: Awaitable[None]) -> None:
        """Begins a task of the group."""
        self._tasks.append(asyncio.ensure_future(work))

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            failed = [t for t in self._tasks if t.done() and not t.cancelled() and t.exception()]
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if failed:
            error = failed[0].exception()
            assert error is not None
            raise error


async def _all(work: Iterable[Awaitable[None]]) -> None:
    async with _Both() as group:
        for part in work:
            group.start(part)
