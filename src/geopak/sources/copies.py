"""Of photos with equal files one stays: that of the source collected first, there the first found.

The others are rejected as ``duplicate``, and keep the sum of their file, so that a further copy
finds its way to the first all the same.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from geopak.sources.ledger import Candidate, Download, Ledger


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


def keep(ledger: Ledger, candidate: Candidate, file: Download) -> Kept:
    """Commits a photo's file; of equal files one stays, whichever was there first.

    It is that of the source that was collected first, there the one found first.
    """
    db = ledger.db
    with ledger.transaction():
        own = _place(db, candidate.id)
        same = db.execute(
            "SELECT id, path, province, source, source_id FROM photos "
            "WHERE sha256 = ? AND state = 'downloaded' AND barred IS NULL AND id != ?",
            (file.sha256, candidate.id),
        ).fetchone()
        values = (
            file.sha256, file.path, file.width, file.height, file.num_bytes, file.changes,
            candidate.id,
        )  # fmt: skip
        db.execute(
            "UPDATE photos SET state = 'downloaded', sha256 = ?, path = ?, width = ?, "
            "height = ?, num_bytes = ?, changes = ?, tries = tries + 1 WHERE id = ?",
            values,
        )
        if same is not None and _place(db, same[0]) < own:
            _lose(db, [candidate.id], f"{same[3]} {same[4]}")
            return Kept(None, removed=file.path)
        mine = db.execute(
            "SELECT source || ' ' || source_id FROM photos WHERE id = ?", (candidate.id,)
        ).fetchone()[0]
        # Those that lost to another have lost to this one.
        losers = db.execute(
            "SELECT id FROM photos WHERE sha256 = ? AND id != ? AND "
            "(state = 'downloaded' AND barred IS NULL OR "
            "state = 'rejected' AND reason = 'duplicate')",
            (file.sha256, candidate.id),
        )
        _lose(db, [row for (row,) in losers.fetchall()], mine)
        if same is None:
            return Kept(candidate.province)
        return Kept(candidate.province, displaced=same[2], removed=same[1])


def settle(ledger: Ledger) -> int:
    """Decides anew which of equal files stays, after photos were barred, freed or lost.

    Of those that are not barred the first one stays, as if the others had never been: if its
    file was given up as a copy, it waits for a download again.

    Returns:
        How many photos wait for a download again.
    """
    db = ledger.db
    again: list[int] = []
    kept_or_lost = (
        "sha256 IS NOT NULL AND barred IS NULL AND "
        "(state = 'downloaded' OR state = 'rejected' AND reason = 'duplicate')"
    )
    with ledger.transaction():
        rows = db.execute(
            "SELECT sha256, photos.id, state, source || ' ' || source_id FROM photos "
            f"JOIN sources ON name = source WHERE {kept_or_lost} AND sha256 IN (SELECT sha256 "
            f"FROM photos WHERE {kept_or_lost} GROUP BY sha256 "
            "HAVING count(*) > 1 OR state = 'rejected') "
            "ORDER BY sha256, rank, query_seq, position"
        )
        for _, group in itertools.groupby(rows.fetchall(), key=lambda row: row[0]):
            (_, first, state, told), *others = group
            if state == "downloaded":
                _lose(db, [other for _, other, *_ in others], told)
            else:
                # When it comes, it takes the place of whichever has it now.
                again.append(first)
        db.executemany(
            "UPDATE photos SET state = 'found', reason = NULL, detail = NULL, sha256 = NULL "
            "WHERE id = ?",
            ((row,) for row in again),
        )
    return len(again)


def _place(db: sqlite3.Connection, photo: int) -> tuple[int, int, int]:
    row = db.execute(
        "SELECT rank, query_seq, position FROM photos JOIN sources ON name = source "
        "WHERE photos.id = ?",
        (photo,),
    ).fetchone()
    return (row[0], row[1], row[2])


def _lose(db: sqlite3.Connection, photos: Iterable[int], to: str) -> None:
    # The sum stays, so that a third copy finds its way to the first all the same.
    db.executemany(
        "UPDATE photos SET state = 'rejected', reason = 'duplicate', detail = ?, path = NULL "
        "WHERE id = ?",
        ((f"the same file as {to}", photo) for photo in photos),
    )
