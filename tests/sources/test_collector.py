"""The engine: what it ends with depends neither on the order of answers nor on interruptions."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.errors import QuotaSpentError, RefusedQueryError, SourceError
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Province, Region
from geopak.schema.collecting import PrivacyOptions
from geopak.sources.collector import Collector, Wishes
from geopak.sources.downloads import Downloader, PhotoLimits
from geopak.sources.http_errors import UnavailableError
from geopak.sources.ledger import Ledger
from geopak.sources.privacy import Privacy
from geopak.sources.records import Answer, Estimate, FoundPhoto, Query, Refused
from tests.sources.collecting import files_of, ledger_of
from tests.sources.stand_in import jpeg

KEYS = ("north", "middle", "south")
REGION = Region("land", "Land", tuple(Province(key, key.title()) for key in KEYS))
# Three bands from top to bottom, ten degrees wide.
OUTLINES = Outlines(tuple(shapely.box(0, 20 - 10 * k, 10, 30 - 10 * k) for k in range(3)))


class MadeUp:
    """A source that is drawn from a seed: a tree of queries whose photos lie in files.

    Queries overlap, photos are found by several, some files are missing or equal, and answers and
    files come after random pauses.

    Args:
        folder: of the files, which sources may share.
        seed: of what there is.
        haste: seed of the pauses; ``None``: there are none.
        name: of the source.
    """

    api_hosts: tuple[str, ...] = ()
    photo_hosts: tuple[str, ...] = ()

    def __init__(
        self, folder: Path, seed: int, haste: int | None = None, name: str = "made_up"
    ) -> None:
        self.name = name
        self.folder = folder
        rng = random.Random(seed)
        self.num_photos = rng.randint(1, 60)
        self.photos = []
        self.contents: dict[str, int] = {}
        for k in range(self.num_photos):
            lat = rng.choice([-3.0, 5.0, 15.0, 25.0, 29.0])
            self.photos.append(
                FoundPhoto(
                    f"p{k}", lat, rng.uniform(0.5, 9.5),
                    license=rng.choice(["cc0", "cc-by-2.0", "all-rights-reserved", None]),
                )
            )  # fmt: skip
            if rng.random() < 0.6:
                self.contents[f"p{k}"] = rng.randint(0, self.num_photos)
        self.queries = rng.randint(1, 20)
        self.tree: dict[int, list[int]] = {k: [] for k in range(self.queries)}
        for child in range(3, self.queries):
            for parent in rng.sample(range(child), rng.randint(1, min(2, child))):
                self.tree[parent].append(child)
        self.holds = {
            k: rng.sample(self.photos, rng.randint(0, min(12, self.num_photos)))
            for k in range(self.queries)
        }
        self.serves = {k: rng.choice([*KEYS, None]) for k in range(self.queries)}
        self.pauses = random.Random(haste)
        self.hasty = haste is None
        self.asked: list[int] = []
        # Called at each question, of a query or of a file.
        self.at_each = lambda: None

    def file(self, source_id: str) -> Path:
        """A photo's file; nothing is there if it is gone."""
        path = self.folder / f"{self.contents.get(source_id, 'gone')}.jpg"
        if source_id in self.contents and not path.exists():
            path.write_bytes(jpeg(40, 40, self.contents[source_id]))
        return path

    async def pause(self) -> None:
        self.at_each()
        if not self.hasty:
            for _ in range(self.pauses.randint(0, 5)):
                await asyncio.sleep(0)
            if self.pauses.random() < 0.1:
                await asyncio.sleep(0.001)

    def query(self, number: int) -> Query:
        return Query("part", {"number": number}, self.serves[number])

    def start(self) -> list[Query]:
        return [self.query(k) for k in range(min(3, self.queries))]

    async def ask(self, query: Query, client: Any) -> Answer:
        await self.pause()
        number = query.params["number"]
        self.asked.append(number)
        more = tuple(self.query(child) for child in self.tree[number])
        refused = (Refused(f"line {number}", "no_coordinate"),)
        return Answer(tuple(self.holds[number]), more, refused, seen=100)

    async def locate(self, photo: FoundPhoto, client: Any) -> str:
        await self.pause()
        return self.file(photo.source_id).absolute().as_uri()

    def estimate(self, targets: Mapping[str, int]) -> Estimate:
        return Estimate({})


async def collected(
    source: Any, out: Path, wishes: Wishes, stop_after: int | None = None, **how: Any
) -> str:
    """Runs a collection; ``stop_after``: cancels it at so many questions, of whatever kind."""
    with Ledger(out / "ledger.sqlite", durable=False) as ledger:
        downloader = Downloader(None, out, PhotoLimits(min_side_px=1), Privacy(PrivacyOptions()))
        collector = Collector(
            source, REGION, OUTLINES, ledger, None, downloader, wishes  # type: ignore[arg-type]
        )  # fmt: skip
        run = asyncio.ensure_future(collector.run("plan", **how))
        if stop_after is None:
            return await run
        questions = itertools.count(1)
        source.at_each = lambda: next(questions) == stop_after and run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        return "cancelled" if run.cancelled() else run.result()


TARGETS = st.fixed_dictionaries({key: st.none() | st.integers(0, 8) for key in KEYS})


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6), targets=TARGETS, wave=st.integers(1, 8),
    speeds=st.tuples(st.integers(1, 8), st.integers(1, 8)), haste=st.integers(0, 10**6),
    stops=st.lists(st.integers(1, 30), max_size=5),
)  # fmt: skip
def test_neither_order_nor_interruptions_change_the_outcome(
    seed: int, targets: Any, wave: int, speeds: tuple[int, int], haste: int, stops: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    files = tmp_path_factory.getbasetemp() / "made_up_files"
    files.mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("made_up")
    calm, shaken = folder / "calm", folder / "shaken"
    for path in (calm, shaken):
        path.mkdir()
    chosen = ["cc0", "cc-by", "unknown"]
    slow = Wishes(targets, chosen, wave=wave, concurrency=1, downloads=1)
    one = MadeUp(files, seed)
    assert asyncio.run(collected(one, calm, slow)) == "finished"
    concurrency, downloads = speeds
    fast = Wishes(targets, chosen, wave=wave, concurrency=concurrency, downloads=downloads)
    for number in stops:
        asyncio.run(collected(MadeUp(files, seed, haste + number), shaken, fast, number))
    assert asyncio.run(collected(MadeUp(files, seed, haste), shaken, fast)) == "finished"
    assert ledger_of(shaken) == ledger_of(calm)
    assert files_of(shaken) == files_of(calm)
    _check(one, calm, targets, chosen)
    # Again: there is nothing left to do.
    again = MadeUp(files, seed)
    assert asyncio.run(collected(again, shaken, fast)) == "finished"
    assert again.asked == []
    assert ledger_of(shaken) == ledger_of(calm)
    shutil.rmtree(folder)


def _check(source: MadeUp, out: Path, targets: Mapping[str, Any], chosen: list[str]) -> None:
    """What must hold of any outcome, by looking at everything that there is."""
    assert len(source.asked) == len(set(source.asked))
    found = {p.source_id: p for k in source.asked for p in source.holds[k]}
    with Ledger(out / "ledger.sqlite") as ledger:
        rows = ledger.rows("SELECT source_id, state, barred, reason, province, sha256 FROM photos")
    assert {row[0] for row in rows} == set(found)
    kept: dict[str, list[str]] = {key: [] for key in KEYS}
    contents = []
    for source_id, state, barred, reason, province, digest in rows:
        photo = found[source_id]
        index = int(OUTLINES.province_of(np.array([[photo.latitude, photo.longitude]]))[0])
        assert province == (KEYS[index] if index >= 0 else None)
        licence = (photo.license or "unknown").removesuffix("-2.0")
        expected = (
            "outside_region" if index < 0 else None if licence in chosen else "license"
        )  # fmt: skip
        assert barred == expected
        file = source.file(source_id)
        if state == "rejected":
            assert (reason == "gone") == (not file.exists())
        if state == "downloaded":
            assert barred is None
            kept[province].append(source_id)
            contents.append(digest)
            assert digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(contents) == len(set(contents))
    everything = {p.source_id for k in source.tree for p in source.holds[k]}
    for key in KEYS:
        target = targets[key]
        if target is not None:
            assert len(kept[key]) <= target
        waits = [r[0] for r in rows if r[4] == key and r[1] == "found" and r[2] is None]
        # Photos only wait where there are enough.
        assert not waits or len(kept[key]) == target
    if all(target is None for target in targets.values()):
        assert set(found) == everything


class OneByOne(MadeUp):
    """Sixteen queries for the north with a photo each; some files are missing, one is slow."""

    def __init__(self, folder: Path, gone: range, slow: int) -> None:
        super().__init__(folder, 0)
        self.queries, self.slow = 16, slow
        self.tree = {k: [] for k in range(16)}
        self.serves = dict.fromkeys(range(16), "north")
        self.holds = {k: [FoundPhoto(f"n{k}", 25.0, 5.0, license="cc0")] for k in range(16)}
        self.contents = {f"n{k}": 2000 + k for k in range(16) if k not in gone}

    def start(self) -> list[Query]:
        return [self.query(k) for k in range(16)]

    async def ask(self, query: Query, client: Any) -> Answer:
        if query.params["number"] == self.slow:
            await asyncio.sleep(0.005)
        return await super().ask(query, client)


@pytest.mark.parametrize(("target", "gone", "slow"), [(8, range(4, 8), -1), (1, range(0), 0)])
def test_stopped_at_any_question_it_ends_the_same(
    target: int, gone: range, slow: int, tmp_path: Path, files: Path
) -> None:
    wishes = Wishes({"north": target}, wave=4, concurrency=4, downloads=1)
    calm = tmp_path / "calm"
    calm.mkdir()
    questions = itertools.count()
    source = OneByOne(files, gone, slow)
    source.at_each = lambda: next(questions)
    asyncio.run(collected(source, calm, wishes))
    in_all = next(questions)
    assert in_all > 4
    for number in range(1, in_all + 1):
        shaken = tmp_path / f"{number}"
        shaken.mkdir()
        asyncio.run(collected(OneByOne(files, gone, slow), shaken, wishes, number))
        asyncio.run(collected(OneByOne(files, gone, slow), shaken, wishes))
        assert ledger_of(shaken) == ledger_of(calm), f"stopped at question {number}"


def test_photos_of_one_content_are_one_and_the_first_stays(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    source = MadeUp(files, 1)
    wanted = [FoundPhoto(f"q{k}", 25.0, 5.0, license="cc0") for k in range(6)]
    source.queries, source.tree = 2, {0: [], 1: []}
    source.holds = {0: wanted[:3], 1: wanted[3:]}
    source.serves = {0: "north", 1: "north"}
    for k, content in enumerate([1, 2, 1, 2, 3, 1]):
        source.contents[f"q{k}"] = content
    asyncio.run(collected(source, tmp_path, Wishes(dict.fromkeys(KEYS))))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        told = ledger.rows(
            "SELECT source_id, state, detail FROM photos ORDER BY source_id"
        )  # fmt: skip
    assert [row[1] for row in told] == [
        "downloaded", "downloaded", "rejected", "rejected", "downloaded", "rejected",
    ]  # fmt: skip
    assert told[5][2] == "the same file as made_up q0"
    assert len(list((tmp_path / "photos").rglob("*.jpg"))) == 3


def test_the_source_that_was_first_keeps_what_another_has_too(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    wishes = Wishes(dict.fromkeys(KEYS))
    # Its name comes first in the alphabet, its run does not.
    for name in ("zebra", "ape"):
        asyncio.run(collected(MadeUp(files, 7, name=name), tmp_path, wishes))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        kept = ledger.rows("SELECT source, count(*) FROM photos WHERE state = 'downloaded' "
                           "GROUP BY source")  # fmt: skip
        again = ledger.rows("SELECT DISTINCT reason FROM photos WHERE source = 'ape' "
                            "AND state = 'rejected' ORDER BY 1")  # fmt: skip
    assert [source for source, _ in kept] == ["zebra"]
    assert ("duplicate",) in again


def test_provinces_with_fewer_photos_are_asked_for_first(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    source = MadeUp(files, 3)
    middle_of = {"north": 25.0, "middle": 15.0, "south": 5.0}
    # The first queries, in the order of the region, find 3, 2 and 1 photos; then ten more each.
    source.queries = 33
    source.serves = {k: KEYS[k % 3] for k in range(33)}
    source.tree = {k: [*range(3 + k, 33, 3)] if k < 3 else [] for k in range(33)}
    number = 0
    for k in range(33):
        source.holds[k] = []
        for _ in range(3 - k if k < 3 else 1):
            photo = FoundPhoto(f"r{number}", middle_of[KEYS[k % 3]], 5.0, license="cc0")
            source.contents[f"r{number}"] = 1000 + number
            source.holds[k].append(photo)
            number += 1
    wishes = Wishes(dict.fromkeys(KEYS, 6), wave=2, concurrency=1)
    asyncio.run(collected(source, tmp_path, wishes))
    asked = [KEYS[k % 3] for k in source.asked]
    assert asked[:3] == ["north", "middle", "south"]
    # Two at a time, and whoever has fewest goes first: 3, 2 and 0 photos; then 3, 3 and 1.
    assert asked[3:6] == ["middle", "south", "south"]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert {k: t.kept for k, t in ledger.tallies().items()} == dict.fromkeys(KEYS, 6)
    # And no more was asked than that took, but for one wave.
    assert len(source.asked) <= 3 + 3 + 4 + 5 + 2


def test_a_higher_target_goes_on_with_what_was_found(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    few, more = Wishes(dict.fromkeys(KEYS, 1)), Wishes(dict.fromkeys(KEYS))
    first = MadeUp(files, 11)
    asyncio.run(collected(first, tmp_path, few))
    second = MadeUp(files, 11)
    asyncio.run(collected(second, tmp_path, more))
    assert not set(first.asked) & set(second.asked)
    assert set(first.asked) | set(second.asked) == set(_reached(first))


def _reached(source: MadeUp) -> list[int]:
    line, seen = [0, 1, 2][: source.queries], []
    while line:
        number = line.pop(0)
        if number not in seen:
            seen.append(number)
            line += source.tree[number]
    return seen


def test_other_licences_judge_what_was_found_anew(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    source = MadeUp(files, 5)
    every = dict.fromkeys(KEYS)
    asyncio.run(collected(source, tmp_path, Wishes(every, ["cc0"])))

    def numbers() -> dict[str, int]:
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            rows = ledger.rows(
                "SELECT coalesce(license, 'none'), count(*) FROM photos "
                "WHERE state = 'downloaded' AND barred IS NULL GROUP BY 1"
            )
        return dict(rows)

    strict = numbers()
    assert set(strict) == {"cc0"}
    again = MadeUp(files, 5)
    asyncio.run(collected(again, tmp_path, Wishes(every, None)))
    assert again.asked == []
    assert set(numbers()) == {"cc0", "cc-by-2.0", "all-rights-reserved", "none"}
    asyncio.run(collected(MadeUp(files, 5), tmp_path, Wishes(every, ["cc0"])))
    assert set(numbers()) == {"cc0"}


LICENCES = st.sampled_from(
    [None, ["cc0"], ["cc-by"], ["unknown"], ["cc0", "unknown"], ["cc-by", "all-rights-reserved"]]
)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6), chosen=st.lists(LICENCES, min_size=2, max_size=4),
    losing=st.booleans(),
)  # fmt: skip
def test_any_licences_one_after_the_other_end_as_the_last_alone(
    seed: int, chosen: list[list[str] | None], losing: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    files = tmp_path_factory.getbasetemp() / "files_of_few"
    files.mkdir(exist_ok=True)
    folder = tmp_path_factory.mktemp("licences")
    every = dict.fromkeys(KEYS)

    def source() -> MadeUp:
        made = MadeUp(files, seed)
        # Many have the same content.
        made.contents = {k: content % 4 for k, content in made.contents.items()}
        return made

    def told(out: Path) -> tuple[list[Any], list[Any]]:
        with Ledger(out / "ledger.sqlite") as ledger:
            rows = ledger.rows("SELECT source_id, state, reason, detail, sha256, path FROM photos "
                               "WHERE barred IS NULL ORDER BY 1")  # fmt: skip
            return rows, ledger.rows("SELECT source_id, barred FROM photos ORDER BY 1")

    alone, changing = folder / "alone", folder / "changing"
    for out in (alone, changing):
        out.mkdir()
    asyncio.run(collected(source(), alone, Wishes(every, chosen[-1])))
    for wished in chosen:
        asyncio.run(collected(source(), changing, Wishes(every, wished)))
        if losing:
            for path in sorted((changing / "photos").rglob("*.jpg"))[:1]:
                path.unlink()
    asyncio.run(collected(source(), changing, Wishes(every, chosen[-1])))
    assert told(changing) == told(alone)
    kept = [row for row in told(changing)[0] if row[1] == "downloaded"]
    assert all((changing / row[5]).is_file() for row in kept)
    assert len({row[4] for row in kept}) == len(kept)
    shutil.rmtree(folder)


def test_a_lost_file_that_is_gone_leaves_its_place_to_its_copy(tmp_path: Path, files: Path) -> None:
    source = MadeUp(files, 1)
    source.queries, source.tree, source.serves = 1, {0: []}, {0: "north"}
    source.holds = {0: [FoundPhoto(f"q{k}", 25.0, 5.0, license="cc0") for k in range(3)]}
    source.contents = dict.fromkeys(("q0", "q1", "q2"), 9)
    asyncio.run(collected(source, tmp_path, WISHES))
    (path,) = (tmp_path / "photos").rglob("*.jpg")
    path.unlink()
    del source.contents["q0"]
    asyncio.run(collected(source, tmp_path, WISHES))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        told = ledger.rows("SELECT source_id, state, reason, detail FROM photos ORDER BY 1")
    assert told[0][1:3] == ("rejected", "gone")
    assert told[1] == ("q1", "downloaded", None, None)
    assert told[2] == ("q2", "rejected", "duplicate", "the same file as made_up q1")


class Failing(MadeUp):
    """A source some of whose queries fail."""

    def __init__(self, folder: Path, error: Exception, failing: set[int], times: int) -> None:
        super().__init__(folder, 2)
        self.queries = 30
        self.tree = {k: [] for k in range(30)}
        self.tree[0] = list(range(1, 30))
        self.holds = {k: [] for k in range(30)}
        self.serves = dict.fromkeys(range(30))
        self.error, self.failing, self.left = error, failing, dict.fromkeys(range(30), times)

    def start(self) -> list[Query]:
        return [self.query(0)]

    async def ask(self, query: Query, client: Any) -> Answer:
        number = query.params["number"]
        if number in self.failing and self.left[number] > 0:
            self.left[number] -= 1
            raise self.error
        return await super().ask(query, client)


def states(out: Path) -> dict[str, int]:
    with Ledger(out / "ledger.sqlite") as ledger:
        return dict(ledger.query_numbers("made_up"))


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geopak.sources.downloads.os.fsync", lambda handle: None)


WISHES = Wishes(dict.fromkeys(KEYS), pause_s=0.001)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def test_a_refused_query_is_kept_with_its_reason_and_asked_again_on_demand(
    tmp_path: Path, files: Path
) -> None:
    source = Failing(files, RefusedQueryError("no such area"), {3, 5}, times=1)
    assert asyncio.run(collected(source, tmp_path, WISHES)) == "finished"
    assert states(tmp_path) == {"open": 0, "done": 28, "failed": 2}
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        told = ledger.rows("SELECT DISTINCT error FROM queries WHERE state = 'failed'")
    assert told == [("no such area",)]
    asyncio.run(collected(source, tmp_path, WISHES))
    assert states(tmp_path)["failed"] == 2
    asyncio.run(collected(source, tmp_path, WISHES, retry_failed=True))
    assert states(tmp_path) == {"open": 0, "done": 30, "failed": 0}


def test_many_refusals_in_a_row_end_it(tmp_path: Path, files: Path) -> None:
    source = Failing(files, RefusedQueryError("malformed"), set(range(1, 30)), times=9)
    with pytest.raises(SourceError, match="20 queries of made_up were refused one after"):
        asyncio.run(collected(source, tmp_path, WISHES))


def test_a_query_without_an_answer_is_asked_again_later(tmp_path: Path, files: Path) -> None:
    source = Failing(files, UnavailableError("down"), {4}, times=2)
    asyncio.run(collected(source, tmp_path, WISHES))
    assert states(tmp_path) == {"open": 0, "done": 30, "failed": 0}
    other = tmp_path / "other"
    other.mkdir()
    source = Failing(files, UnavailableError("down"), {4}, times=9)
    asyncio.run(collected(source, other, WISHES))
    assert states(other) == {"open": 0, "done": 29, "failed": 1}


def test_a_hopeless_source_ends_it_and_what_was_answered_stays(tmp_path: Path, files: Path) -> None:
    source = Failing(files, SourceError("wrong key"), {9}, times=9)
    with pytest.raises(SourceError, match="wrong key"):
        asyncio.run(collected(source, tmp_path, WISHES))
    assert states(tmp_path)["done"] >= 1
    assert states(tmp_path)["open"] >= 1


def test_a_spent_quota_ends_it_and_leaves_the_query_open(tmp_path: Path, files: Path) -> None:
    source = Failing(files, QuotaSpentError("search", "tomorrow"), {9}, times=1)
    assert asyncio.run(collected(source, tmp_path, WISHES)) == "quota"
    assert states(tmp_path)["failed"] == 0
    assert asyncio.run(collected(source, tmp_path, WISHES)) == "finished"
    assert states(tmp_path) == {"open": 0, "done": 30, "failed": 0}


def test_a_file_that_is_gone_is_fetched_again(tmp_path: Path, files: Path) -> None:
    asyncio.run(collected(MadeUp(files, 5), tmp_path, WISHES))
    before = files_of(tmp_path)
    photos = sorted((tmp_path / "photos").rglob("*.jpg"))
    photos[0].unlink()
    photos[-1].with_name(f".{20 * chr(98)}.jpg.partial").write_bytes(b"half")
    (photos[-1].parent / f"{20 * chr(97)}.jpg").write_bytes(b"of no one")
    asyncio.run(collected(MadeUp(files, 5), tmp_path, WISHES))
    assert files_of(tmp_path) == before


def test_coordinates_that_are_none_are_refused(tmp_path: Path, files: Path) -> None:
    source = MadeUp(files, 2)
    source.queries, source.tree, source.serves = 1, {0: []}, {0: None}
    bad = [(float("nan"), 5.0), (91.0, 5.0), (5.0, float("inf")), (5.0, -181.0)]
    source.holds = {0: [FoundPhoto(f"b{k}", lat, lon) for k, (lat, lon) in enumerate(bad)]}
    asyncio.run(collected(source, tmp_path, WISHES))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.rows("SELECT count(*) FROM photos") == [(0,)]
        told = ledger.rows("SELECT source_id, reason FROM refused WHERE reason != 'no_coordinate'")
    assert told == [(f"b{k}", "bad_coordinate") for k in range(4)]


def test_halves_of_characters_are_stored_as_question_marks(tmp_path: Path, files: Path) -> None:
    half = "\ud83d"
    source = MadeUp(files, 2)
    source.queries, source.tree, source.serves = 1, {0: []}, {0: None}
    source.holds = {
        0: [
            FoundPhoto(f"a{half}", 5.0, 5.0, title=f"cut {half}", author=half, album="كراچی"),
            FoundPhoto(f"b{half}", 91.0, 5.0),
        ]
    }
    with Ledger(tmp_path / "one.sqlite") as ledger:
        ledger.begin("made", [Query("q", {"text": half}, "a")])
        ledger.choose("made", [("a", 1)])
        [asked] = ledger.unanswered("made")
        assert asked.query.params == {"text": "?"}
        refused = (Refused(f"c{half}", "odd", f"detail {half}"),)
        answer = Answer(tuple(source.holds[0]), (Query("q", {"more": half}),), refused, 1)
        ledger.answered("made", asked, answer, ["a", None], [None, None])
        [one, two] = ledger.candidates("made", 9)[:1] * 2
        assert ledger.photo(one) == FoundPhoto(
            "a?", 5.0, 5.0, title="cut ?", author="?", album="كراچی"
        )
        ledger.rejected(two, "odd", half)
        ledger.failed(asked, half, final=True)
        assert ledger.rows("SELECT source_id, detail FROM refused") == [("c?", "detail ?")]
    asyncio.run(collected(source, tmp_path, WISHES))
