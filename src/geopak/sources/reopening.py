"""What has ended in the ledger and is tried again: failed queries, photos not kept, lost files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from geopak.sources.ledger import Candidate, Ledger


def failed(ledger: Ledger, source: str) -> tuple[int, int]:
    """Gives queries and photos that failed another chance; returns their numbers.

    Photos are those that a server or a defect kept from us, not those that it says are gone.
    """
    with ledger.transaction():
        queries = ledger.db.execute(
            "UPDATE queries SET state = 'open', tries = 0 WHERE source = ? AND state = 'failed'",
            (source,),
        ).rowcount
        photos = _rejected_for(ledger, source, ("denied", "refused", "unavailable", "unchecked"))
    return queries, photos


def rejected_for(ledger: Ledger, source: str, reasons: Sequence[str]) -> int:
    """Lets photos that were rejected for one of some reasons wait again; how many."""
    with ledger.transaction():
        return _rejected_for(ledger, source, reasons)


def _rejected_for(ledger: Ledger, source: str, reasons: Sequence[str]) -> int:
    return ledger.db.execute(
        "UPDATE photos SET state = 'found', reason = NULL, detail = NULL "
        "WHERE source = ? AND state = 'rejected' "
        "AND reason IN (SELECT value FROM json_each(?))",
        (source, json.dumps(list(reasons))),
    ).rowcount


def just_rejected(ledger: Ledger, candidates: Iterable[Candidate]) -> None:
    """Lets photos wait again that were rejected a moment ago."""
    with ledger.transaction():
        ledger.db.executemany(
            "UPDATE photos SET state = 'found', reason = NULL, detail = NULL, "
            "tries = tries - 1 WHERE id = ? AND state = 'rejected'",
            ((candidate.id,) for candidate in candidates),
        )


def lost_files(ledger: Ledger, paths: Iterable[str]) -> int:
    """Lets photos whose files are no longer there wait for a download again."""
    with ledger.transaction():
        before = ledger.db.total_changes
        ledger.db.executemany(
            "UPDATE photos SET state = 'found', path = NULL, sha256 = NULL "
            "WHERE state = 'downloaded' AND path = ?",
            ((path,) for path in paths),
        )
        return ledger.db.total_changes - before
