"""Asks a source until nothing is open, as the collector does, and holds what a ledger would."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from geopak.sources.http import HttpClient, Manners
from geopak.sources.records import Answer, FoundPhoto, Query, Refused, Source

# As fast as it goes, and without long pauses.
QUICK = Manners(
    rate_per_s=100_000.0, concurrency=8, retries=4, timeout_s=5.0, backoff_s=0.01,
    longest_pause_s=0.05,
)  # fmt: skip


class Asking:
    """What a source was asked and has said.

    Args:
        known: identities of queries that were answered before.

    Attributes:
        answers: by identity of the query.
        open: queries that have no answer, by identity.
        asked: every query that has one, in order.
        requests: that were sent, by the client's own count.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self.answers: dict[str, Answer] = {}
        self.open: dict[str, Query] = {}
        self.asked: list[Query] = []
        self.requests = 0
        self._known = set(known)

    @property
    def photos(self) -> list[FoundPhoto]:
        """In the order of their coming, with repetitions."""
        return [photo for answer in self.answers.values() for photo in answer.photos]

    @property
    def refused(self) -> list[Refused]:
        """Entries that could not be used."""
        return [refused for answer in self.answers.values() for refused in answer.refused]

    @property
    def seen(self) -> int:
        """Entries that were looked through."""
        return sum(answer.seen for answer in self.answers.values())

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
        return Counter(self.ids())

    def ids(self) -> list[str]:
        """Ids of the photos."""
        return [photo.source_id for photo in self.photos]

    def reasons(self) -> dict[str, str]:
        """Reason by id."""
        return {entry.source_id: entry.reason for entry in self.refused}

    def add(self, queries: Iterable[Query]) -> None:
        """Puts queries in line, each once."""
        for query in queries:
            # What the ledger holds must go through JSON unharmed.
            kept = Query(*json.loads(query.identity), query.province)
            assert (kept.kind, kept.params) == (query.kind, dict(query.params))
            if query.identity not in self.answers and query.identity not in self._known:
                self.open.setdefault(query.identity, kept)

    async def run(
        self,
        source: Source,
        client: HttpClient | None = None,
        order: random.Random | None = None,
        most: int | None = None,
        at_once: int = 1,
    ) -> None:
        """Asks what is open; if nothing ever was, what the source begins with.

        Args:
            source: to ask.
            client: handed to it.
            order: draws the next query; ``None``: the first in line.
            most: so many rounds, as if the process were killed then.
            at_once: queries of a round.
        """
        if not (self.answers or self.open):
            # Once, as the collector does.
            self.add(source.start())
        for _ in itertools.count() if most is None else range(most):
            if not self.open:
                return
            names = list(self.open)
            chosen = [order.choice(names)] if order else names[:at_once]
            answers = await asyncio.gather(
                *(source.ask(self.open[name], client) for name in chosen)  # type: ignore[arg-type]
            )
            for name, answer in zip(chosen, answers, strict=True):
                self.asked.append(self.open.pop(name))
                self.answers[name] = answer
                self.add(answer.more)
            assert len(self.asked) < 20_000, "the queries do not end"


def ask_everything(
    source: Any,
    stop_after: int | None = None,
    known: set[str] | None = None,
    waiting: Iterable[Query] = (),
) -> Asking:
    """Asks a source that needs no network all queries and those that follow from them, each once.

    Args:
        source: to ask.
        stop_after: so many queries, as if the process were killed then.
        known: identities of queries that were answered before; those of this time are added.
        waiting: queries to begin with; none: the source's own.
    """
    asking = Asking(known or ())
    asking.add(waiting)
    asyncio.run(asking.run(source, most=stop_after))
    if known is not None:
        known |= set(asking.answers)
    return asking


def client(hosts: Sequence[str] = (), manners: Manners = QUICK, **more: Any) -> HttpClient:
    """A client that may ask servers of this machine."""
    return HttpClient(hosts, manners, allow_private=True, **more)


def collect(source: Source, at_once: int = 4, first: Iterable[Query] = (), **more: Any) -> Asking:
    """Asks until nothing follows, over real connections.

    Args:
        source: to ask.
        at_once: so many queries at a time.
        first: queries to begin with; none: the source's own.
        more: for the client.
    """
    asking = Asking()
    asking.add(first)

    async def run() -> None:
        async with client(source.api_hosts, **more) as http:
            await asking.run(source, http, at_once=at_once)
            asking.requests = http.sent

    asyncio.run(run())
    return asking


def located(source: Any, photo: FoundPhoto) -> str:
    """Where a photo's picture is, for a photo that has been through the ledger's JSON."""
    extra = json.loads(json.dumps(dict(photo.extra)))

    async def ask() -> str:
        async with client(source.api_hosts) as http:
            return await source.locate(replace(photo, extra=extra), http)

    return asyncio.run(ask())
