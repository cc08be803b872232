"""What sources may ask of the network: limited in rate, counted, repeated, without secrets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx


class Client(Protocol):
    """What a source may ask of the network; the collector gives it.

    Every call waits for its turn (rate and concurrency), is counted against the quota of its
    ``kind`` before it is sent, is repeated after 429 (as ``Retry-After`` says), 5xx and broken
    connections with growing random pauses, and raises :class:`geopak.errors.SourceError` for other
    refusals: :class:`geopak.errors.RefusedQueryError` where it is this query that is refused (other
    queries go on), another one where nothing would be answered (401, 403). ``secrets`` (query
    parameters or headers with keys) never reach a log, the ledger or a message.
    """

    async def get_json(
        self,
        url: str,
        params: Mapping[str, Any] | None = None,
        *,
        kind: str = "request",
        secrets: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        secret_headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON of an answer; a 200 that holds no JSON is repeated, then an error."""
        ...

    async def post_json(
        self,
        url: str,
        body: Any,
        *,
        kind: str = "request",
        headers: Mapping[str, str] | None = None,
        secret_headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The same of a POST with a JSON body."""
        ...

    @asynccontextmanager
    def stream(
        self,
        url: str,
        *,
        kind: str = "request",
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """An open answer (status 200 or 206), to read large files from as they come."""
        ...
