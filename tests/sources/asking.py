"""Asks a source everything, as the collector would, without one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from geopak.sources.records import Answer, FoundPhoto, Query, Refused


@dataclass
class Asked:
    """What a source has said.

    Attributes:
        queries: in the order in which they were asked.
        photos: found.
        refused: entries that are none.
        seen: entries that were looked through.
        waiting: queries that were not asked.
    """

    queries: list[Query] = field(default_factory=list)
    photos: list[FoundPhoto] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    seen: int = 0
    waiting: list[Query] = field(default_factory=list)

    def ids(self) -> list[str]:
        return [photo.source_id for photo in self.photos]

    def reasons(self) -> dict[str, str]:
        """Reason by id."""
        return {entry.source_id: entry.reason for entry in self.refused}


def ask_everything(
    source: Any,
    client: Any = None,
    stop_after: int | None = None,
    known: set[str] | None = None,
    waiting: list[Query] | None = None,
) -> Asked:
    """Asks all queries and those that follow from them, each once.

    Args:
        source: to ask.
        client: handed to it.
        stop_after: so many queries, as if the process were killed then.
        known: identities of queries that were answered before; those of this time are added.
        waiting: queries to begin with; ``None``: the source's own.
    """
    return asyncio.run(_ask_everything(source, client, stop_after, known, waiting))


async def _ask_everything(
    source: Any,
    client: Any,
    stop_after: int | None,
    known: set[str] | None,
    begun: list[Query] | None,
) -> Asked:
    asked, done = Asked(), set() if known is None else known
    waiting = list(source.start()) if begun is None else list(begun)
    while waiting and (stop_after is None or len(asked.queries) < stop_after):
        # Out of the ledger they come as JSON.
        query = _through_json(waiting.pop(0))
        if query.identity in done:
            continue
        answer: Answer = await source.ask(query, client)
        done.add(query.identity)
        asked.queries.append(query)
        asked.photos += answer.photos
        asked.refused += answer.refused
        asked.seen += answer.seen
        waiting += answer.more
    asked.waiting = waiting
    return asked


def _through_json(query: Query) -> Query:
    return Query(query.kind, json.loads(json.dumps(dict(query.params))), query.province)


def located(source: Any, photo: FoundPhoto, client: Any = None) -> str:
    """Where a photo's picture is, for a photo that has been through JSON."""
    changed = FoundPhoto(**json.loads(json.dumps({**vars(photo), "extra": dict(photo.extra)})))
    return asyncio.run(source.locate(changed, client))
