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
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geopak.sources.ledger_file import LedgerFile
from geopak.sources.records import Answer, FoundPhoto, Query, Refused, storable

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


@dataclass
class Tally:
    """Numbers of photos of a province, of all sources."""

    found: int = 0
    kept: int = 0
    rejected: int = 0
    waiting: int = 0


class Ledger(LedgerFile):
    """The ledger of one collection."""

    # --- queries ------------------------------------------------------------------------------

    def begin(self, source: str, queries: Iterable[Query]) -> None:
        """Takes up a source: its rank, and its first queries as far as they are new."""
        with self.transaction():
            self.db.execute(
                "INSERT OR IGNORE INTO sources VALUES "
                "(?, (SELECT coalesce(max(rank) + 1, 0) FROM sources))",
                (source,),
            )
            self._add_queries(source, _START, queries)

    def sources(self) -> list[str]:
        """Names of the sources that were taken up, in their order."""
        return [name for (name,) in self.db.execute("SELECT name FROM sources ORDER BY rank")]

    def _add_queries(self, source: str, parent_seq: int, queries: Iterable[Query]) -> None:
        self.db.executemany(
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
        row = self.db.execute(
            "SELECT max(wave) FROM queries WHERE source = ?", (source,)
        ).fetchone()
        return -1 if row[0] is None else int(row[0])

    def wave_begins(self, source: str, wave: int) -> int:
        """The lowest place in line of a wave's queries; photos below it are of earlier waves."""
        row = self.db.execute(
            "SELECT min(seq) FROM queries WHERE source = ? AND wave = ?", (source, wave)
        ).fetchone()
        return 0 if row[0] is None else int(row[0])

    def unanswered(self, source: str) -> list[OpenQuery]:
        """The queries of the current wave that have no answer, in their order."""
        rows = self.db.execute(
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
        rows = self.db.execute(
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
        with self.transaction():
            first = self.db.execute("SELECT coalesce(max(seq) + 1, 0) FROM queries").fetchone()[0]
            chosen: list[int] = []
            for province, number in numbers:
                rows = self.db.execute(
                    "SELECT id FROM queries WHERE source = ? AND state = 'open' AND wave IS NULL "
                    "AND province IS ? ORDER BY parent_seq, position LIMIT ?",
                    (source, province, number),
                )
                chosen += [row for (row,) in rows]
            self.db.executemany(
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
        before = self.db.total_changes
        with self.transaction():
            self.db.execute(
                "UPDATE queries SET state = 'done', error = NULL, seen = ? WHERE id = ?",
                (answer.seen, asked.id),
            )
            after_query = self.db.total_changes
            self.db.executemany(
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
            new = self.db.total_changes - after_query
            self._renew_pictures(source, asked.seq, answer.photos, barred)
            self._add_queries(source, asked.seq, answer.more)
            self._add_refused(source, asked.seq, answer.refused)
        assert self.db.total_changes >= before
        return new

    def _renew_pictures(
        self, source: str, seq: int, photos: Sequence[FoundPhoto], barred: Sequence[str | None]
    ) -> None:
        """Of photos that wait and were found before, takes where the picture is from this answer.

        Addresses and names of pictures may be good for a while only, or be of another size now.
        """
        for position, (photo, why) in enumerate(zip(photos, barred, strict=True)):
            row = self.db.execute(
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
            self.db.execute(
                "UPDATE photos SET record = ?, barred = ? WHERE id = ?",
                (record, why if is_size else row[2], row[0]),
            )

    def _add_refused(self, source: str, seq: int, refused: Iterable[Refused]) -> None:
        self.db.executemany(
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
        self.db.execute(
            "UPDATE queries SET tries = tries + 1, error = ?, state = ? WHERE id = ?",
            (storable(error), "failed" if final else "open", asked.id),
        )

    # --- photos -------------------------------------------------------------------------------

    def judge(self, judge: Any) -> None:
        """Judges all photos anew, after the settings have changed.

        Args:
            judge: function of a record (:class:`FoundPhoto`) and a province, to why the photo is
                not wanted, or ``None``.
        """
        rows = self.db.execute("SELECT id, record, province, barred FROM photos").fetchall()
        changed = []
        for row, record, province, before in rows:
            now = judge(FoundPhoto(**json.loads(record)), province)
            if now != before:
                changed.append((now, row))
        with self.transaction():
            self.db.executemany("UPDATE photos SET barred = ? WHERE id = ?", changed)

    def candidates(self, source: str, below_seq: int) -> list[Candidate]:
        """Photos that wait for a download, of queries before a place in line, in their order."""
        rows = self.db.execute(
            "SELECT id, province FROM photos WHERE source = ? AND state = 'found' "
            "AND barred IS NULL AND query_seq < ? ORDER BY query_seq, position",
            (source, below_seq),
        )
        return [Candidate(row, province) for row, province in rows]

    def photo(self, candidate: Candidate) -> FoundPhoto:
        """What the source told of a photo."""
        row = self.db.execute("SELECT record FROM photos WHERE id = ?", (candidate.id,)).fetchone()
        return FoundPhoto(**json.loads(row[0]))

    def rejected(self, candidate: Candidate, reason: str, detail: str) -> None:
        """Commits that a photo cannot be had or used."""
        self.db.execute(
            "UPDATE photos SET state = 'rejected', reason = ?, detail = ?, tries = tries + 1 "
            "WHERE id = ?",
            (reason, storable(detail), candidate.id),
        )

    def tallies(self) -> dict[str | None, Tally]:
        """Numbers per province, of all sources; ``None``: outside the region."""
        rows = self.db.execute(
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
        rows = self.db.execute(
            "SELECT province, count(*) FROM photos WHERE source = ? AND state = 'found' "
            "AND barred IS NULL GROUP BY province",
            (source,),
        )
        return dict(rows.fetchall())

    def usable_per_query(self, source: str) -> dict[str, float]:
        """Photos that were wanted per answered query of a province, on average."""
        answered = dict(
            self.db.execute(
                "SELECT province, count(*) FROM queries WHERE source = ? AND state = 'done' "
                "AND province IS NOT NULL GROUP BY province",
                (source,),
            ).fetchall()
        )
        usable = dict(
            self.db.execute(
                "SELECT province, count(*) FROM photos WHERE source = ? AND barred IS NULL "
                "AND state != 'rejected' GROUP BY province",
                (source,),
            ).fetchall()
        )
        return {name: usable.get(name, 0) / number for name, number in answered.items()}

    def wanted_files(self) -> set[str]:
        """Paths of all files that belong to the collection."""
        rows = self.db.execute("SELECT path FROM photos WHERE state = 'downloaded'")
        return {path for (path,) in rows}

    # --- requests -----------------------------------------------------------------------------

    def count_request(self, source: str, kind: str, day: str, limit: int | None) -> bool:
        """Counts a request before it is sent; ``False``: the day's are used up, none is counted."""
        # Where nothing depends on the number, it need not be on the disk before the request goes.
        level = "NORMAL" if limit is None else self.synchronous
        self.db.execute(f"PRAGMA synchronous = {level}")
        try:
            return self._count_request(source, kind, day, limit)
        finally:
            self.db.execute(f"PRAGMA synchronous = {self.synchronous}")

    def _count_request(self, source: str, kind: str, day: str, limit: int | None) -> bool:
        with self.transaction():
            row = self.db.execute(
                "SELECT number FROM requests WHERE source = ? AND kind = ? AND day = ?",
                (source, kind, day),
            ).fetchone()
            number = row[0] if row else 0
            if limit is not None and number >= limit:
                return False
            self.db.execute(
                "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?)",
                (source, kind, day, number + 1),
            )
        return True

    def requests(self, source: str) -> dict[str, int]:
        """All requests of a source so far, by kind."""
        rows = self.db.execute(
            "SELECT kind, sum(number) FROM requests WHERE source = ? GROUP BY kind ORDER BY kind",
            (source,),
        )
        return dict(rows.fetchall())

    def query_numbers(self, source: str) -> Mapping[str, int]:
        """How many queries are open, done and failed."""
        rows = self.db.execute(
            "SELECT state, count(*) FROM queries WHERE source = ? GROUP BY state", (source,)
        )
        return {"open": 0, "done": 0, "failed": 0, **dict(rows.fetchall())}


def _record(photo: FoundPhoto) -> str:
    fields = dataclasses.asdict(photo)
    told = {k: v for k, v in fields.items() if v not in (None, {})}
    return storable(json.dumps(told, ensure_ascii=False))
