"""What the ledger's file promises, and what it keeps of answers."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from geopak.errors import SourceError
from geopak.sources.ledger import Ledger
from geopak.sources.records import Answer, FoundPhoto, Query


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


def test_a_photo_that_waits_is_fetched_where_it_was_told_last(tmp_path: Path) -> None:
    with Ledger(tmp_path / "one.sqlite") as ledger:
        ledger.begin("made", [Query("q", {"n": n}, "a") for n in range(3)])
        ledger.choose("made", [("a", 3)])
        first, second, third = ledger.unanswered("made")
        photo = FoundPhoto("x", 5.0, 5.0, url="old", title="first", width=9, extra={"a": 1})
        newer = FoundPhoto("x", 6.0, 6.0, url="new", title="second", extra={"b": 2})
        ledger.answered("made", second, Answer((photo,)), ["a"], ["too_small"])
        ledger.answered("made", third, Answer((newer,)), ["b"], [None])
        [candidate] = ledger.candidates("made", 9)
        assert candidate.province == "a"
        told = FoundPhoto("x", 5.0, 5.0, url="new", title="first", extra={"b": 2})
        assert ledger.photo(candidate) == told
        # Of an earlier query all is taken.
        ledger.answered("made", first, Answer((photo,)), ["a"], [None])
        assert ledger.photo(candidate) == photo
        ledger.rejected(candidate, "gone", "")
        ledger.answered("made", third, Answer((newer,)), ["b"], [None])
        assert ledger.photo(candidate) == photo
