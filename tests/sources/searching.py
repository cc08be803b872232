"""Asks a source everything, several queries at a time, with the real client."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from geopak.sources.http import HttpClient, Manners
from geopak.sources.records import Answer, FoundPhoto, Query, Refused, Source

# As fast as it goes, and without long pauses.
QUICK = Manners(
    rate_per_s=100_000.0, concurrency=8, retries=4, timeout_s=5.0, backoff_s=0.01,
    longest_pause_s=0.05,
)  # fmt: skip


@dataclass
class Collected:
    """All that a source said.

    Attributes:
        photos: in the order of their coming, with repetitions.
        refused: entries that could not be used.
        asked: every query, in order.
        requests: that were sent, by the client's own count.
    """

    photos: list[FoundPhoto] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    asked: list[Query] = field(default_factory=list)
    requests: int = 0

    @property
    def by_id(self) -> dict[str, FoundPhoto]:
        """The photos, the first of each id."""
        out: dict[str, FoundPhoto] = {}
        for photo in self.photos:
            out.setdefault(photo.source_id, photo)
        return out

    @property
    def times_found(self) -> Counter[str]:
        """How often each id was found."""
        return Counter(photo.source_id for photo in self.photos)

    def add(self, answer: Answer) -> None:
        """Keeps an answer."""
        self.photos.extend(answer.photos)
        self.refused.extend(answer.refused)


def collect(
    source: Source, manners: Manners = QUICK, at_once: int = 4, first: Sequence[Query] | None = None
) -> Collected:
    """Asks until nothing follows; each query once, as the ledger has it."""
    return asyncio.run(_collect(source, manners, at_once, first))


async def _collect(
    source: Source, manners: Manners, at_once: int, first: Sequence[Query] | None
) -> Collected:
    out, known = Collected(), set[str]()
    open_queries = list(source.start() if first is None else first)
    hosts = source.api_hosts
    async with HttpClient(hosts, manners, allow_private=True) as client:
        while open_queries:
            batch, open_queries = open_queries[:at_once], open_queries[at_once:]
            batch = [query for query in batch if query.identity not in known]
            known |= {query.identity for query in batch}
            out.asked += batch
            for answer in await asyncio.gather(*(source.ask(q, client) for q in batch)):
                out.add(answer)
                open_queries += answer.more
            assert len(out.asked) < 20_000, "the queries do not end"
        out.requests = client.sent
    return out


def locate(source: Source, photo: FoundPhoto) -> str:
    """Where a photo's picture is."""

    async def ask() -> str:
        async with HttpClient(source.api_hosts, QUICK, allow_private=True) as client:
            return await source.locate(photo, client)

    return asyncio.run(ask())
