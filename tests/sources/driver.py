"""Asks a source until nothing is open, over real connections, as the collector does."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from typing import Any

from geopak.sources.http import HttpClient, Manners
from geopak.sources.records import Answer, FoundPhoto, Query, Refused, Source
from tests.sources.stand_in import StandIn


def client(server: StandIn | None = None, **more: Any) -> HttpClient:
    hosts = [f"127.0.0.1:{server.port}"] if server else []
    manners = Manners(rate_per_s=10_000, backoff_s=0.01, retries=2, timeout_s=5)
    return HttpClient(hosts, manners, allow_private=True, **more)


class Driver:
    """Asks a source until nothing is open, as the collector does; holds what a ledger would."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.open: dict[str, Query] = {}

    @property
    def photos(self) -> list[FoundPhoto]:
        return [photo for answer in self.answers.values() for photo in answer.photos]

    @property
    def refused(self) -> list[Refused]:
        return [refused for answer in self.answers.values() for refused in answer.refused]

    @property
    def seen(self) -> int:
        return sum(answer.seen for answer in self.answers.values())

    def add(self, queries: Any) -> None:
        for query in queries:
            # What the ledger holds must go through JSON unharmed.
            kept = json.loads(query.identity)
            assert kept == [query.kind, dict(query.params)]
            if query.identity not in self.answers:
                self.open.setdefault(query.identity, query)

    async def run(
        self, source: Source, client: HttpClient, order: random.Random | None = None,
        most: int | None = None,
    ) -> None:  # fmt: skip
        if not (self.answers or self.open):
            # Once, as the collector does.
            self.add(source.start())
        for _ in itertools.count() if most is None else range(most):
            if not self.open:
                return
            names = list(self.open)
            query = self.open[order.choice(names) if order else names[0]]
            answer = await source.ask(query, client)
            self.answers[query.identity] = answer
            del self.open[query.identity]
            self.add(answer.more)


def collect(
    source: Source, server: StandIn | None = None, driver: Driver | None = None, **more: Any
) -> Driver:
    """Asks all of it; ``more`` for the client."""
    driver = driver or Driver()

    async def go() -> None:
        async with client(server, **more) as http:
            await driver.run(source, http)

    asyncio.run(go())
    return driver
