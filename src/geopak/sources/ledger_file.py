"""The SQLite file of a ledger: its tables, its format, and transactions.

Whatever a transaction holds is in the file as a whole or not at all, also after a kill; with
``durable`` after a loss of power too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from geopak.errors import SourceError

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


class LedgerFile:
    """An open file; a context manager that closes it.

    Args:
        path: of the SQLite file; made where there is none.
        durable: a commit is on the disk when it returns, so that not even a loss of power takes it
            back. Without, it only outlives the process.
        writable: without, nothing in the folder is changed, and the file must be there.

    Attributes:
        db: the connection; changes go in a :meth:`transaction`.
        synchronous: how SQLite waits for the disk.

    Raises:
        SourceError: another version's file, or no ledger at all.
    """

    def __init__(self, path: str | Path, durable: bool = True, writable: bool = True) -> None:
        self.path = Path(path)
        self.writable = writable
        self.synchronous = "FULL" if durable else "NORMAL"
        try:
            self.db = self._connect(writable)
        except sqlite3.Error as error:
            raise self._unreadable(error) from None
        try:
            if writable:
                self.db.execute("PRAGMA journal_mode = WAL")
                self.db.execute(f"PRAGMA synchronous = {self.synchronous}")
                with self.transaction():
                    self._make_or_check()
            else:
                self._check()
        except sqlite3.DatabaseError as error:
            self.db.close()
            raise self._unreadable(error) from None
        except BaseException:
            self.db.close()
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
        tables = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables:
            for statement in _SCHEMA.split(";\n"):
                self.db.execute(statement)
            self.db.execute("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
        self._check()

    def _check(self) -> None:
        found = self.meta("format")
        if found != str(FORMAT):
            raise SourceError(
                f"{self.path} has format {found}, and this version of geopak reads {FORMAT}. "
                "Choose another out=FOLDER."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done within is committed at its end, or taken back if there is an error."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def meta(self, key: str) -> str | None:
        """A remembered value."""
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def remember(self, key: str, value: str) -> None:
        """Remembers a value."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def rows(self, sql: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a question in SQL, for exports and tests."""
        return self.db.execute(sql, arguments).fetchall()

    def each(self, sql: str, arguments: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The same one by one, for answers that are longer than memory."""
        return iter(self.db.execute(sql, arguments))
