"""The ledger of a collection: queries, photos, and the requests of each day, in one SQLite file.

Whatever an answer brings is committed with the end of its query, and a photo's end after its file
is on the disk. So a collection that is killed at any moment begins again with the queries that have
no answer and the photos that have no file; at most those requests are repeated that were on their
way.

What is in the ledger in the end does not depend on which of several requests was answered first.
Queries go in *waves*, chosen when all queries of the wave before have their answers and all photos
of the waves before that are settled; whatever two queries of a wave both bring belongs to the one
that was chosen first. Only where a picture is, is as it was told last.
:mod:`geopak.sources.collector` says how that serves the targets.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from geopak.errors import SourceError
from geopak.sources.records import Answer, FoundPhoto, Query, Refused, storable

FORMAT = 1
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
-- Of two equal photos the one of the source with the lower rank stays: the one collected first.
CREATE TABLE sources (name TEXT PRIMARY KEY, rank INTEGER NOT NULL UNIQUE);
CREATE TABLE queries (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    identity TEXT NOT NULL,
    kind TEXT NOT NULL,
    params TEXT NOT NULL,
    province TEXT,
    -- Where it stands in line: behind which query, as which of those that follow from it.
    parent_seq INTEGER NOT NULL,
    position INTEGER NOT NULL,
    -- Given when it is chosen to be asked.
    wave INTEGER,
    seq INTEGER,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done', 'failed')),
    tries INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    seen INTEGER NOT NULL DEFAULT 0,
    UNIQUE (source, identity)
);
CREATE INDEX queries_in_line ON queries (source, state, wave, province, parent_seq, position);
CREATE TABLE photos (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    source_id TEXT NOT NULL,
    record TEXT NOT NULL,
    license TEXT,
    province TEXT,
    -- Where it stands in line: of which query, as which of its photos.
    query_seq INTEGER NOT NULL,
    position INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'found' CHECK (state IN ('found', 'downloaded', 'rejected')),
    -- Whether the settings of today allow it, and if not, why.
    barred TEXT,
    reason TEXT,
    detail TEXT,
    tries INTEGER NOT NULL DEFAULT 0,
    sha256 TEXT,
    path TEXT,
    width INTEGER,
    height INTEGER,
    num_bytes INTEGER,
    changes TEXT,
    UNIQUE (source, source_id)
);
CREATE INDEX photos_in_line ON photos (source, state, province, query_seq, position);
CREATE INDEX photos_by_content ON photos (sha256) WHERE sha256 IS NOT NULL;
CREATE TABLE refused (
    source TEXT NOT NULL,
    source_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    query_seq INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (source, source_id, reason)
) WITHOUT ROWID;
CREATE TABLE requests (
    source TEXT NOT NULL,
    kind TEXT NOT NULL,
    day TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (source, kind, day)
) WITHOUT ROWID;
"""
_START = -1
# What the newest answer tells of a photo that waits for its download.
_PICTURE = ("url", "width", "height", "extra")


@dataclass(frozen=True)
class OpenQuery:
    """A query that has been chosen and has no answer yet.

    Attributes:
        id: in the ledger.
        seq: its place among all that were chosen.
        tries: how often it was asked in vain.
    """

    id: int
    seq: int
    query: Query
    tries: int


@dataclass(frozen=True)
class Candidate:
    """A photo that waits for its download."""

    id: int
    province: str


@dataclass(frozen=True)
class Download:
    """A photo's file, as it lies on the disk.

    Attributes:
        sha256: of what the source sent, before any change.
        path: relative to the collection, forward slashes.
        changes: what was done to the picture; empty: nothing.
    """

    sha256: str
    path: str
    width: int
    height: int
    num_bytes: int
    changes: str = ""


@dataclass(frozen=True)
class Kept:
    """What came of a download.

    Attributes:
        province: that the photo was kept for; ``None``: another with the same content stays.
        displaced: province that lost its copy to this one.
        removed: file that is no longer wanted.
    """

    province: str | None
    displaced: str | None = None
    removed: str | None = None


@dataclass
class Tally:
    """Numbers of photos of a province, of all sources."""

    found: int = 0
    kept: int = 0
    rejected: int = 0
    waiting: int = 0


class Ledger:
    """The ledger of one collection; a context manager that closes it.

    Args:
        path: of the SQLite file; made where there is none.
        durable: a commit is on the disk when it returns, so that not even a loss of power takes it
            back. Without, it only outlives the process.
        writable: without, nothing in the folder is changed, and the file must be there.

    Raises:
        SourceError: another version's file, or no ledger at all.
    """

    def __init__(self, path: str | Path, durable: bool = True, writable: bool = True) -> None:
        self.path = Path(path)
        self.writable = writable
        self._synchronous = "FULL" if durable else "NORMAL"
        try:
            self._db = self._connect(writable)
        except sqlite3.Error as error:
            raise self._unreadable(error) from None
        try:
            if writable:
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute(f"PRAGMA synchronous = {self._synchronous}")
                with self._transaction():
                    self._make_or_check()
            else:
                self._check()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise self._unreadable(error) from None
        except BaseException:
            self._db.close()
            raise

    def _connect(self, writable: bool) -> sqlite3.Connection:
        if writable:
            return sqlite3.connect(self.path, isolation_level=None, timeout=30)
        # Without a log beside it nobody writes, and SQLite need not make one to read.
        is_at_rest = not self.path.with_name(f"{self.path.name}-wal").exists()
        how = "immutable=1" if is_at_rest else "mode=ro"
        where = f"file:{quote(str(self.path.absolute()))}?{how}"
        return sqlite3.connect(where, uri=True, isolation_level=None, timeout=30)

    def _unreadable(self, error: Exception) -> SourceError:
        return SourceError(
            f"{self.path} cannot be read as the ledger of a collection: {error}. Restore it "
            "from a copy, or choose another out=FOLDER."
        )

    def _make_or_check(self) -> None:
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables:
            for statement in _SCHEMA.split(";\n"):
                self._db.execute(statement)
            self._db.execute("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
        self._check()

    def _check(self) -> None:
        found = self.meta("format")
        if found != str(FORMAT):
            raise SourceError(
                f"{self.path} has format {found}, and this version of geopak reads {FORMAT}. "
                "Choose another out=FOLDER."
            )

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def meta(self, key: str) -> str | None:
        """A remembered value."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def remember(self, key: str, value: str) -> None:
        """Remembers a value."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # --- queries ------------------------------------------------------------------------------

    def begin(self, source: str, queries: Iterable[Query]) -> None:
        """Takes up a source: its rank, and its first queries as far as they are new."""
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO sources VALUES "
                "(?, (SELECT coalesce(max(rank) + 1, 0) FROM sources))",
                (source,),
            )
            self._add_queries(source, _START, queries)

    def sources(self) -> list[str]:
        """Names of the sources that were taken up, in their order."""
        return [name for (name,) in self._db.execute("SELECT name FROM sources ORDER BY rank")]

    def _add_queries(self, source: str, parent_seq: int, queries: Iterable[Query]) -> None:
        self._db.executemany(
            "INSERT INTO queries (source, identity, kind, params, province, parent_seq, position) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source, identity) DO UPDATE SET "
            "province = excluded.province, parent_seq = excluded.parent_seq, "
            "position = excluded.position WHERE wave IS NULL "
            "AND (excluded.parent_seq, excluded.position) < (parent_seq, position)",
            (
                (
                    source, q.identity, q.kind,
                    storable(json.dumps(dict(q.params), ensure_ascii=False)),
                    q.province, parent_seq, position,
                )
                for position, q in enumerate(queries)
            ),
        )  # fmt: skip

    def current_wave(self, source: str) -> int:
        """The last wave that was chosen; -1: none yet."""
        row = self._db.execute(
            "SELECT max(wave) FROM queries WHERE source = ?", (source,)
        ).fetchone()
        return -1 if row[0] is None else int(row[0])

    def wave_begins(self, source: str, wave: int) -> int:
        """The lowest place in line of a wave's queries; photos below it are of earlier waves."""
        row = self._db.execute(
            "SELECT min(seq) FROM queries WHERE source = ? AND wave = ?", (source, wave)
        ).fetchone()
        return 0 if row[0] is None else int(row[0])

    def unanswered(self, source: str) -> list[OpenQuery]:
        """The queries of the current wave that have no answer, in their order."""
        rows = self._db.execute(
            "SELECT id, seq, kind, params, province, tries FROM queries "
            "WHERE source = ? AND state = 'open' AND wave IS NOT NULL ORDER BY seq",
            (source,),
        )
        return [
            OpenQuery(row, seq, Query(kind, json.loads(params), province), tries)
            for row, seq, kind, params, province, tries in rows
        ]

    def in_line(self, source: str) -> dict[str | None, int]:
        """How many queries wait to be chosen, by the province that they serve."""
        rows = self._db.execute(
            "SELECT province, count(*) FROM queries "
            "WHERE source = ? AND state = 'open' AND wave IS NULL GROUP BY province",
            (source,),
        )
        return dict(rows.fetchall())

    def choose(self, source: str, numbers: Sequence[tuple[str | None, int]]) -> int:
        """Makes the next wave.

        Args:
            source: whose.
            numbers: so many queries of each province, in the order in which they are asked.

        Returns:
            How many were chosen.
        """
        wave = self.current_wave(source) + 1
        with self._transaction():
            first = self._db.execute("SELECT coalesce(max(seq) + 1, 0) FROM queries").fetchone()[0]
            chosen: list[int] = []
            for province, number in numbers:
                rows = self._db.execute(
                    "SELECT id FROM queries WHERE source = ? AND state = 'open' AND wave IS NULL "
                    "AND province IS ? ORDER BY parent_seq, position LIMIT ?",
                    (source, province, number),
                )
                chosen += [row for (row,) in rows]
            self._db.executemany(
                "UPDATE queries SET wave = ?, seq = ? WHERE id = ?",
                ((wave, first + k, row) for k, row in enumerate(chosen)),
            )
        return len(chosen)

    def answered(
        self,
        source: str,
        asked: OpenQuery,
        answer: Answer,
        provinces: Sequence[str | None],
        barred: Sequence[str | None],
    ) -> int:
        """Commits an answer: the query's end, photos, further queries and refusals, as one.

        Args:
            source: whose.
            asked: the query.
            answer: what the source said.
            provinces: of each photo; ``None``: outside the region.
            barred: why a photo is not wanted; ``None``: it is.

        Returns:
            How many of the photos are new.
        """
        before = self._db.total_changes
        with self._transaction():
            self._db.execute(
                "UPDATE queries SET state = 'done', error = NULL, seen = ? WHERE id = ?",
                (answer.seen, asked.id),
            )
            after_query = self._db.total_changes
            self._db.executemany(
                "INSERT INTO photos (source, source_id, record, license, province, query_seq, "
                "position, barred) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (source, source_id) DO UPDATE SET record = excluded.record, "
                "license = excluded.license, province = excluded.province, "
                "query_seq = excluded.query_seq, position = excluded.position, "
                "barred = excluded.barred "
                "WHERE state = 'found' AND (excluded.query_seq, excluded.position) "
                "< (query_seq, position)",
                (
                    (
                        source, storable(photo.source_id), _record(photo),
                        photo.license and storable(photo.license), province, asked.seq, position,
                        why,
                    )
                    for position, (photo, province, why) in enumerate(
                        zip(answer.photos, provinces, barred, strict=True)
                    )
                ),
            )  # fmt: skip
            new = self._db.total_changes - after_query
            self._renew_pictures(source, asked.seq, answer.photos, barred)
            self._add_queries(source, asked.seq, answer.more)
            self._add_refused(source, asked.seq, answer.refused)
        assert self._db.total_changes >= before
        return new

    def _renew_pictures(
        self, source: str, seq: int, photos: Sequence[FoundPhoto], barred: Sequence[str | None]
    ) -> None:
        """Of photos that wait and were found before, takes where the picture is from this answer.

        Addresses and names of pictures may be good for a while only, or be of another size now.
        """
        for position, (photo, why) in enumerate(zip(photos, barred, strict=True)):
            row = self._db.execute(
                "SELECT id, record, barred FROM photos WHERE source = ? AND source_id = ? "
                "AND state = 'found' AND (query_seq, position) != (?, ?)",
                (source, storable(photo.source_id), seq, position),
            ).fetchone()
            if row is None:
                continue
            known = FoundPhoto(**json.loads(row[1]))
            told = {name: getattr(photo, name) for name in _PICTURE}
            record = _record(dataclasses.replace(known, **told))
            is_size = "too_small" in (row[2], why)
            self._db.execute(
                "UPDATE photos SET record = ?, barred = ? WHERE id = ?",
                (record, why if is_size else row[2], row[0]),
            )

    def _add_refused(self, source: str, seq: int, refused: Iterable[Refused]) -> None:
        self._db.executemany(
            "INSERT INTO refused VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
            "detail = excluded.detail, query_seq = excluded.query_seq, "
            "position = excluded.position WHERE (excluded.query_seq, excluded.position) "
            "< (query_seq, position)",
            (
                (source, storable(r.source_id), r.reason, storable(r.detail), seq, position)
                for position, r in enumerate(refused)
            ),
        )

    def failed(self, asked: OpenQuery, error: str, final: bool) -> None:
        """Notes that a query got no answer; ``final``: it is not asked again by itself."""
        self._db.execute(
            "UPDATE queries SET tries = tries + 1, error = ?, state = ? WHERE id = ?",
            (storable(error), "failed" if final else "open", asked.id),
        )

    def reopen_failed(self, source: str) -> tuple[int, int]:
        """Gives queries and photos that failed another chance; returns their numbers.

        Photos are those that a server or a defect kept from us, not those that it says are gone.
        """
        with self._transaction():
            queries = self._db.execute(
                "UPDATE queries SET state = 'open', tries = 0 "
                "WHERE source = ? AND state = 'failed'",
                (source,),
            ).rowcount
            photos = self._reopen(source, ("denied", "refused", "unavailable", "unchecked"))
        return queries, photos

    def reopen(self, source: str, reasons: Sequence[str]) -> int:
        """Lets photos that were rejected for one of some reasons wait again; how many."""
        with self._transaction():
            return self._reopen(source, reasons)

    def _reopen(self, source: str, reasons: Sequence[str]) -> int:
        return self._db.execute(
            "UPDATE photos SET state = 'found', reason = NULL, detail = NULL "
            "WHERE source = ? AND state = 'rejected' "
            "AND reason IN (SELECT value FROM json_each(?))",
            (source, json.dumps(list(reasons))),
        ).rowcount

    def take_back(self, candidates: Iterable[Candidate]) -> None:
        """Lets photos wait again that were rejected a moment ago."""
        with self._transaction():
            self._db.executemany(
                "UPDATE photos SET state = 'found', reason = NULL, detail = NULL, "
                "tries = tries - 1 WHERE id = ? AND state = 'rejected'",
                ((candidate.id,) for candidate in candidates),
            )

    # --- photos -------------------------------------------------------------------------------

    def judge(self, judge: Any) -> None:
        """Judges all photos anew, after the settings have changed.

        Args:
            judge: function of a record (:class:`FoundPhoto`) and a province, to why the photo is
                not wanted, or ``None``.
        """
        rows = self._db.execute("SELECT id, record, province, barred FROM photos").fetchall()
        changed = []
        for row, record, province, before in rows:
            now = judge(FoundPhoto(**json.loads(record)), province)
            if now != before:
                changed.append((now, row))
        with self._transaction():
            self._db.executemany("UPDATE photos SET barred = ? WHERE id = ?", changed)

    def candidates(self, source: str, below_seq: int) -> list[Candidate]:
        """Photos that wait for a download, of queries before a place in line, in their order."""
        rows = self._db.execute(
            "SELECT id, province FROM photos WHERE source = ? AND state = 'found' "
            "AND barred IS NULL AND query_seq < ? ORDER BY query_seq, position",
            (source, below_seq),
        )
        return [Candidate(row, province) for row, province in rows]

    def photo(self, candidate: Candidate) -> FoundPhoto:
        """What the source told of a photo."""
        row = self._db.execute("SELECT record FROM photos WHERE id = ?", (candidate.id,)).fetchone()
        return FoundPhoto(**json.loads(row[0]))

    def downloaded(self, candidate: Candidate, file: Download) -> Kept:
        """Commits a photo's file; of equal files one stays, whichever was there first.

        It is that of the source that was collected first, there the one found first.
        """
        with self._transaction():
            own = self._place(candidate.id)
            same = self._db.execute(
                "SELECT id, path, province, source, source_id FROM photos "
                "WHERE sha256 = ? AND state = 'downloaded' AND barred IS NULL AND id != ?",
                (file.sha256, candidate.id),
            ).fetchone()
            values = (
                file.sha256, file.path, file.width, file.height, file.num_bytes, file.changes,
                candidate.id,
            )  # fmt: skip
            self._db.execute(
                "UPDATE photos SET state = 'downloaded', sha256 = ?, path = ?, width = ?, "
                "height = ?, num_bytes = ?, changes = ?, tries = tries + 1 WHERE id = ?",
                values,
            )
            if same is not None and self._place(same[0]) < own:
                self._lose([candidate.id], f"{same[3]} {same[4]}")
                return Kept(None, removed=file.path)
            mine = self._db.execute(
                "SELECT source || ' ' || source_id FROM photos WHERE id = ?", (candidate.id,)
            ).fetchone()[0]
            # Those that lost to another have lost to this one.
            losers = self._db.execute(
                "SELECT id FROM photos WHERE sha256 = ? AND id != ? AND "
                "(state = 'downloaded' AND barred IS NULL OR "
                "state = 'rejected' AND reason = 'duplicate')",
                (file.sha256, candidate.id),
            )
            self._lose([row for (row,) in losers.fetchall()], mine)
            if same is None:
                return Kept(candidate.province)
            return Kept(candidate.province, displaced=same[2], removed=same[1])

    def settle_copies(self) -> int:
        """Decides anew which of equal files stays, after photos were barred, freed or lost.

        Of those that are not barred the first one stays, as if the others had never been: if its
        file was given up as a copy, it waits for a download again.

        Returns:
            How many photos wait for a download again.
        """
        again: list[int] = []
        kept_or_lost = (
            "sha256 IS NOT NULL AND barred IS NULL AND "
            "(state = 'downloaded' OR state = 'rejected' AND reason = 'duplicate')"
        )
        with self._transaction():
            rows = self._db.execute(
                "SELECT sha256, photos.id, state, source || ' ' || source_id FROM photos "
                f"JOIN sources ON name = source WHERE {kept_or_lost} AND sha256 IN (SELECT sha256 "
                f"FROM photos WHERE {kept_or_lost} GROUP BY sha256 "
                "HAVING count(*) > 1 OR state = 'rejected') "
                "ORDER BY sha256, rank, query_seq, position"
            )
            for _, group in itertools.groupby(rows.fetchall(), key=lambda row: row[0]):
                (_, first, state, told), *others = group
                if state == "downloaded":
                    self._lose([other for _, other, *_ in others], told)
                else:
                    # When it comes, it takes the place of whichever has it now.
                    again.append(first)
            self._db.executemany(
                "UPDATE photos SET state = 'found', reason = NULL, detail = NULL, sha256 = NULL "
                "WHERE id = ?",
                ((row,) for row in again),
            )
        return len(again)

    def _place(self, photo: int) -> tuple[int, int, int]:
        row = self._db.execute(
            "SELECT rank, query_seq, position FROM photos JOIN sources ON name = source "
            "WHERE photos.id = ?",
            (photo,),
        ).fetchone()
        return (row[0], row[1], row[2])

    def _lose(self, photos: Iterable[int], to: str) -> None:
        # The sum stays, so that a third copy finds its way to the first all the same.
        self._db.executemany(
            "UPDATE photos SET state = 'rejected', reason = 'duplicate', detail = ?, path = NULL "
            "WHERE id = ?",
            ((f"the same file as {to}", photo) for photo in photos),
        )

    def rejected(self, candidate: Candidate, reason: str, detail: str) -> None:
        """Commits that a photo cannot be had or used."""
        self._db.execute(
            "UPDATE photos SET state = 'rejected', reason = ?, detail = ?, tries = tries + 1 "
            "WHERE id = ?",
            (reason, storable(detail), candidate.id),
        )

    def tallies(self) -> dict[str | None, Tally]:
        """Numbers per province, of all sources; ``None``: outside the region."""
        rows = self._db.execute(
            "SELECT province, state, barred IS NOT NULL, count(*) FROM photos GROUP BY 1, 2, 3"
        )
        out: dict[str | None, Tally] = {}
        for province, state, barred, number in rows:
            tally = out.setdefault(province, Tally())
            tally.found += number
            if barred or state == "rejected":
                tally.rejected += number
            elif state == "downloaded":
                tally.kept += number
            else:
                tally.waiting += number
        return out

    def waiting(self, source: str) -> dict[str, int]:
        """Photos of a source that wait for a download, per province."""
        rows = self._db.execute(
            "SELECT province, count(*) FROM photos WHERE source = ? AND state = 'found' "
            "AND barred IS NULL GROUP BY province",
            (source,),
        )
        return dict(rows.fetchall())

    def usable_per_query(self, source: str) -> dict[str, float]:
        """Photos that were wanted per answered query of a province, on average."""
        answered = dict(
            self._db.execute(
                "SELECT province, count(*) FROM queries WHERE source = ? AND state = 'done' "
                "AND province IS NOT NULL GROUP BY province",
                (source,),
            ).fetchall()
        )
        usable = dict(
            self._db.execute(
                "SELECT province, count(*) FROM photos WHERE source = ? AND barred IS NULL "
                "AND state != 'rejected' GROUP BY province",
                (source,),
            ).fetchall()
        )
        return {name: usable.get(name, 0) / number for name, number in answered.items()}

    def lost_files(self, paths: Iterable[str]) -> int:
        """Lets photos whose files are no longer there wait for a download again."""
        with self._transaction():
            before = self._db.total_changes
            self._db.executemany(
                "UPDATE photos SET state = 'found', path = NULL, sha256 = NULL "
                "WHERE state = 'downloaded' AND path = ?",
                ((path,) for path in paths),
            )
            return self._db.total_changes - before

    def wanted_files(self) -> set[str]:
        """Paths of all files that belong to the collection."""
        rows = self._db.execute("SELECT path FROM photos WHERE state = 'downloaded'")
        return {path for (path,) in rows}

    def rows(self, sql: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a question in SQL, for exports and tests."""
        return self._db.execute(sql, arguments).fetchall()

    def each(self, sql: str, arguments: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The same one by one, for answers that are longer than memory."""
        return iter(self._db.execute(sql, arguments))

    # --- requests -----------------------------------------------------------------------------

    def count_request(self, source: str, kind: str, day: str, limit: int | None) -> bool:
        """Counts a request before it is sent; ``False``: the day's are used up, none is counted."""
        # Where nothing depends on the number, it need not be on the disk before the request goes.
        level = "NORMAL" if limit is None else self._synchronous
        self._db.execute(f"PRAGMA synchronous = {level}")
        try:
            return self._count_request(source, kind, day, limit)
        finally:
            self._db.execute(f"PRAGMA synchronous = {self._synchronous}")

    def _count_request(self, source: str, kind: str, day: str, limit: int | None) -> bool:
        with self._transaction():
            row = self._db.execute(
                "SELECT number FROM requests WHERE source = ? AND kind = ? AND day = ?",
                (source, kind, day),
            ).fetchone()
            number = row[0] if row else 0
            if limit is not None and number >= limit:
                return False
            self._db.execute(
                "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?)",
                (source, kind, day, number + 1),
            )
        return True

    def requests(self, source: str) -> dict[str, int]:
        """All requests of a source so far, by kind."""
        rows = self._db.execute(
            "SELECT kind, sum(number) FROM requests WHERE source = ? GROUP BY kind ORDER BY kind",
            (source,),
        )
        return dict(rows.fetchall())

    def query_numbers(self, source: str) -> Mapping[str, int]:
        """How many queries are open, done and failed."""
        rows = self._db.execute(
            "SELECT state, count(*) FROM queries WHERE source = ? GROUP BY state", (source,)
        )
        return {"open": 0, "done": 0, "failed": 0, **dict(rows.fetchall())}


def _record(photo: FoundPhoto) -> str:
    fields = dataclasses.asdict(photo)
    told = {k: v for k, v in fields.items() if v not in (None, {})}
    return storable(json.dumps(told, ensure_ascii=False))
