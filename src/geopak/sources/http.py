"""Requests over HTTP: paced, counted, repeated, guarded, and without secrets in any text."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urljoin, urlsplit

import httpx
import tenacity

from geopak import __version__
from geopak.errors import QuotaSpentError, RefusedQueryError, SourceError
from geopak.sources.addresses import ForbiddenAddressError, SafeTransport, check_url
from geopak.sources.http_errors import (
    DeniedError,
    RefusedStatusError,
    TooLargeError,
    TryAgainError,
    UnavailableError,
)
from geopak.sources.pace import Pace
from geopak.sources.redaction import Redaction

T = TypeVar("T")
log = logging.getLogger(__name__)

USER_AGENT = f"geopak/{__version__} (photo collection for research)"
# Answers that are another one a moment later; all else is final.
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NO_ANSWER = (httpx.ConnectError, httpx.ConnectTimeout)
_LONGEST_JSON = 256 * 1024 * 1024
# httpx logs whole URLs, httpcore headers, and both may hold keys.
_LOGGERS = (
    "httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy",
    "httpcore.socks",
)  # fmt: skip


@dataclass(frozen=True)
class Manners:
    """How a server is treated.

    Attributes:
        rate_per_s: requests a second, attempts included.
        concurrency: most requests at a time.
        retries: further attempts after the first.
        timeout_s: of connecting, and of each wait for data.
        backoff_s: the first pause before a further attempt is up to this, each next up to twice.
        longest_pause_s: a pause is never longer, unless ``Retry-After`` says so.
        longest_retry_after_s: of a ``Retry-After``; one beyond this is a quota that is used up.
        whole_timeout_s: of a whole file or JSON answer, from when it is asked for: a server that
            sends a byte now and then holds a place for no longer.
        outage_s: a host that does not answer at all is tried again for so long, whatever
            ``retries`` says: one's own network may be down.
        max_redirects: followed by hand, each checked.
    """

    rate_per_s: float = 1.0
    concurrency: int = 4
    retries: int = 5
    timeout_s: float = 30.0
    backoff_s: float = 1.0
    longest_pause_s: float = 60.0
    longest_retry_after_s: float = 3600.0
    whole_timeout_s: float = 600.0
    outage_s: float = 3600.0
    max_redirects: int = 5


class QuotaCounter(Protocol):
    """Counts requests before they are sent."""

    async def take(self, kind: str) -> None:
        """Counts one; waits for the next day, or raises a QuotaSpentError, where none is left."""
        ...


def retry_after_s(headers: Mapping[str, str], now: datetime.datetime | None = None) -> float | None:
    """Seconds that a ``Retry-After`` header asks for (RFC 9110: seconds or a date)."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(text)
        return seconds if 0 <= seconds < 1e9 else None
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    now = now or datetime.datetime.now(datetime.UTC)
    return max(0.0, (date - now).total_seconds())


class HttpClient:
    """The collector's :class:`geopak.sources.client.Client`.

    Args:
        hosts: that requests may go to.
        manners: towards them.
        quota: counts every attempt before it is sent; ``None``: nothing is counted.
        user_agent: says who asks; with an address to write to, if there is one.
        allow_private: permit private addresses, for tests and intranets.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        manners: Manners | None = None,
        *,
        quota: QuotaCounter | None = None,
        user_agent: str = USER_AGENT,
        allow_private: bool = False,
    ) -> None:
        for name in _LOGGERS:
            logging.getLogger(name).disabled = True
        self.hosts = tuple(hosts)
        self.manners = manners or Manners()
        self.pace = Pace(self.manners.rate_per_s)
        self.redact = Redaction()
        self.sent = 0
        self._quota = quota
        self._allow_private = allow_private
        self._places = asyncio.Semaphore(self.manners.concurrency)
        self._http = httpx.AsyncClient(
            transport=SafeTransport(self.manners.concurrency, allow_private),
            timeout=self.manners.timeout_s,
            headers={"User-Agent": user_agent},
            follow_redirects=False,
            trust_env=False,
        )

    async def __aenter__(self) -> HttpClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

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
        """See :meth:`geopak.sources.client.Client.get_json`."""
        self._learn(secrets, secret_headers)
        request = _Request(
            "GET", url, kind, dict(params or {}), dict(secrets or {}), dict(headers or {}),
            dict(secret_headers or {}),
        )  # fmt: skip
        return await self._json(request)

    async def post_json(
        self,
        url: str,
        body: Any,
        *,
        kind: str = "request",
        headers: Mapping[str, str] | None = None,
        secret_headers: Mapping[str, str] | None = None,
    ) -> Any:
        """See :meth:`geopak.sources.client.Client.post_json`."""
        self._learn(secret_headers)
        request = _Request(
            "POST", url, kind, {}, {}, dict(headers or {}), dict(secret_headers or {}),
            json.dumps(body, ensure_ascii=False).encode(),
        )  # fmt: skip
        return await self._json(request)

    def _learn(self, *sections: Mapping[str, str] | None) -> None:
        for section in sections:
            for name, value in (section or {}).items():
                if not (value.isascii() and value.isprintable()):
                    raise SourceError(
                        f"What is given as {name} has characters that no key has. Look whether "
                        "something came along when it was copied."
                    )
        self.redact.learn(*sections)

    @asynccontextmanager
    async def stream(
        self, url: str, *, kind: str = "request", headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.Response]:
        """See :meth:`geopak.sources.client.Client.stream`."""
        request = _Request("GET", url, kind, {}, {}, dict(headers or {}), {})
        opened = contextlib.AsyncExitStack()

        async def open_it() -> httpx.Response:
            return await opened.enter_async_context(self._answer(request))

        broken: TryAgainError | None = None
        try:
            # The place among the requests at a time is kept until the stream is closed.
            async with opened:
                yield await self.attempts(open_it)
        except TryAgainError as error:
            broken = error
        if broken:
            raise UnavailableError(str(broken), broken.status)

    async def _json(self, request: _Request) -> Any:
        async def once() -> Any:
            async with self._answer(request, self.manners.whole_timeout_s) as response:
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > _LONGEST_JSON:
                        raise SourceError(f"{response.url.host} sent an endless answer.")
                try:
                    return json.loads(bytes(body))
                except ValueError:
                    start = self.redact.start_of(body, 80)
                    raise TryAgainError(f"no JSON but {start!r}", response.status_code) from None

        return await self.attempts(once)

    async def get_file(
        self,
        url: str,
        *,
        max_bytes: int,
        use: Callable[[bytes], Awaitable[T]],
        kind: str = "download",
    ) -> T:
        """Reads a file, and hands it on.

        Args:
            url: of the file.
            max_bytes: most that it may have; the reading is broken off there.
            use: of the file, to what is returned; a :class:`TryAgainError` of it is one more failed
                attempt.
            kind: of request.

        Raises:
            TooLargeError: it has more.
            UnavailableError: all attempts failed.
            SourceError: it is refused, or leads to where it may not.
        """
        # What is small when packed may be endless when unpacked.
        request = _Request("GET", url, kind, {}, {}, {"Accept-Encoding": "identity"}, {})

        async def once() -> T:
            async with self._answer(request, self.manners.whole_timeout_s) as response:
                told = response.headers.get("content-length", "")
                if told.isdigit() and int(told) > max_bytes:
                    raise TooLargeError(f"{int(told):,} bytes, more than {max_bytes:,}.")
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > max_bytes:
                        raise TooLargeError(f"More than {max_bytes:,} bytes.")
            return await use(bytes(body))

        return cast(T, await self.attempts(once))

    async def attempts(self, once: Callable[[], Awaitable[Any]]) -> Any:
        """Calls a function until it succeeds.

        Args:
            once: an attempt; what ends in a transport error or a passing refusal is repeated.

        Raises:
            UnavailableError: all attempts failed.
            SourceError: as the function does.
        """
        manners, counted, began = self.manners, 0, time.monotonic()

        def is_enough(state: tenacity.RetryCallState) -> bool:
            nonlocal counted
            error = state.outcome.exception() if state.outcome else None
            assert isinstance(error, TryAgainError)
            if not error.answered and time.monotonic() - began < manners.outage_s:
                return False
            counted += 1
            return counted > manners.retries

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            assert isinstance(error, TryAgainError)
            # Drawn from 0 up: those that were refused together do not come back together.
            grown = manners.backoff_s * 2.0 ** min(state.attempt_number - 1, 30)
            drawn = random.uniform(0, min(grown, manners.longest_pause_s))
            log.debug("again after %s", error)
            return drawn if error.wait_s is None else error.wait_s + 0.1 * drawn

        failed: TryAgainError | None = None
        try:
            async for attempt in tenacity.AsyncRetrying(
                stop=is_enough, wait=pause, retry=tenacity.retry_if_exception_type(TryAgainError),
                reraise=True,
            ):  # fmt: skip
                with attempt:
                    return await once()
        except TryAgainError as error:
            failed = error
        # Outside the handler: the error must not drag along one that knows the whole URL.
        assert failed is not None
        raise UnavailableError(str(failed), failed.status)

    @asynccontextmanager
    async def _answer(
        self, request: _Request, within_s: float | None = None
    ) -> AsyncIterator[httpx.Response]:
        """One attempt: an open answer with status 200 or 206.

        Args:
            request: what is asked.
            within_s: the answer must have been read in; ``None``: whenever.

        Raises:
            TryAgainError: a failure that may pass.
            QuotaSpentError: the server wants to be left alone for longer than is waited.
            SourceError: one that does not.
        """
        url, headers = request.url, {**request.headers, **request.secret_headers}
        params: dict[str, Any] = {**request.params, **request.secrets}
        for _ in range(self.manners.max_redirects + 1):
            host = check_url(url, self.hosts, self._allow_private)
            async with self._send(request, url, params, headers, host, within_s) as response:
                if response.status_code not in _REDIRECTS:
                    await self._check_status(response, host, request.kind)
                    yield response
                    return
                try:
                    target = urljoin(url, response.headers.get("location", ""))
                except ValueError:
                    raise ForbiddenAddressError(
                        f"{host} redirects to what is no address."
                    ) from None
                check_url(target, self.hosts, self._allow_private)
                if urlsplit(url).scheme == "https" != urlsplit(target).scheme:
                    raise ForbiddenAddressError(f"{host} redirects to where nothing is encrypted.")
                if _origin(target) != _origin(url):
                    # Keys are for the server that they were made for.
                    headers = dict(request.headers)
                url, params = target, {}
        raise SourceError(f"{host} redirects in a circle.")

    @asynccontextmanager
    async def _send(
        self,
        request: _Request,
        url: str,
        params: Mapping[str, Any],
        headers: Mapping[str, str],
        host: str,
        within_s: float | None,
    ) -> AsyncIterator[httpx.Response]:
        # Who waits for the next day must hold no place, and gets a turn when it has come.
        if self._quota is not None:
            await self._quota.take(request.kind)
        async with self._places:
            await self.pace.turn()
            self.sent += 1
            body_headers = {"Content-Type": "application/json"} if request.body else {}
            failure: tuple[str, bool] | None = None
            handed_over = False
            try:
                async with asyncio.timeout(within_s) as limit, self._http.stream(
                    request.method, url, params=params or None, content=request.body,
                    headers={**body_headers, **headers},
                ) as response:  # fmt: skip
                    handed_over = True
                    yield response
            except TimeoutError:
                if not limit.expired():
                    raise
                failure = (f"no whole answer in {within_s:g} seconds", True)
            except httpx.TransportError as error:
                text = self.redact(f"{type(error).__name__} {error}".strip())
                failure = (text, handed_over or not isinstance(error, _NO_ANSWER))
            except httpx.InvalidURL as error:
                raise RefusedQueryError(f"{host}: {self.redact(str(error))}.") from None
            if failure:
                raise TryAgainError(f"{host}: {failure[0]}", answered=failure[1])

    async def _check_status(self, response: httpx.Response, host: str, kind: str) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        wait_s = retry_after_s(response.headers)
        start = bytearray()
        with contextlib.suppress(httpx.TransportError):
            async for piece in response.aiter_bytes():
                start += piece
                if len(start) > 10_000:
                    break
        told = " ".join(self.redact.start_of(start, 400).split())
        phrase = self.redact(response.reason_phrase)
        text = f"{host} answered {status} {phrase}: {told}".rstrip(": ")
        if status in _TRANSIENT:
            if wait_s is not None and wait_s > self.manners.longest_retry_after_s:
                until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=wait_s)
                log.warning("%s Retry-After says %s seconds.", text, f"{wait_s:,.0f}")
                raise QuotaSpentError(kind, f"{until:%Y-%m-%d %H:%M UTC}")
            if wait_s is not None:
                self.pace.hold(wait_s)
            raise TryAgainError(text, status, wait_s)
        if status in (401, 403):
            raise DeniedError(f"{text}. Check the key, its rights and its restrictions.", status)
        raise RefusedStatusError(f"{text}.", status)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, port


@dataclass(frozen=True)
class _Request:
    method: str
    url: str
    kind: str
    params: Mapping[str, Any]
    secrets: Mapping[str, str]
    headers: Mapping[str, str]
    secret_headers: Mapping[str, str]
    body: bytes | None = None
