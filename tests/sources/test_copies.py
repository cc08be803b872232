"""Of photos with equal files one stays."""

from __future__ import annotations

from geopak.sources import copies
from geopak.sources.ledger import Candidate, Download, Ledger
from tests.sources.filling import fill


def test_a_copy_finds_its_first_whatever_came_first(ledger: Ledger) -> None:
    fill(ledger, 0, 3)
    first, second, third = ledger.candidates("made", 2**62)

    def same(candidate: Candidate) -> Download:
        return Download("same", f"photos/{candidate.id}.jpg", 1, 1, 1)

    assert copies.keep(ledger, third, same(third)).province == "north"
    kept = copies.keep(ledger, first, same(first))
    assert (kept.province, kept.displaced, kept.removed) == (
        "north", "north", f"photos/{third.id}.jpg",
    )  # fmt: skip
    lost = copies.keep(ledger, second, same(second))
    assert (lost.province, lost.removed) == (None, f"photos/{second.id}.jpg")
    states = ledger.rows("SELECT source_id, state, path FROM photos ORDER BY source_id")
    assert [state for _, state, _ in states] == ["downloaded", "rejected", "rejected"]
    assert ledger.wanted_files() == {f"photos/{first.id}.jpg"}
