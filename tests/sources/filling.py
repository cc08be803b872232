"""Puts photos into a ledger as a collection does."""

from __future__ import annotations

from geopak.sources import copies
from geopak.sources.ledger import Download, Ledger
from geopak.sources.records import Answer, FoundPhoto, Query

NAMES = {"north": "The North", "south": "The South"}


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
        copies.keep(ledger, candidate, Download(name, f"photos/made/{name}.jpg", 10, 10, 5))
