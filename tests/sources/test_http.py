"""The client: paced, patient, guarded, and silent about keys; over real sockets."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import itertools
import logging
import socket
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopak.errors import QuotaSpentError, RefusedQueryError, SourceError
from geopak.sources.addresses import (
    ForbiddenAddressError,
)
from geopak.sources.client import Client
from geopak.sources.http import HttpClient, Manners, retry_after_s
from geopak.sources.http_errors import DeniedError, TooLargeError, UnavailableError
from geopak.sources.pace import Pace
from tests.sources.stand_in import (
    Reply,
    Request,
    StandIn,
    as_json,
    broken,
    html_page,
    hung_up,
    redirect,
    slow,
    too_many_requests,
    unavailable,
)

T = TypeVar("T")
QUICK = Manners(10_000.0, 8, retries=3, timeout_s=2.0, backoff_s=0.01, longest_pause_s=0.02,
                outage_s=0.0)  # fmt: skip
KEY = "sEcret/key+1234"


def with_client(
    work: Callable[[HttpClient], Awaitable[T]], manners: Manners = QUICK, **how: Any
) -> T:
    """Does something with a client that may ask the stand-in."""

    async def run() -> T:
        async with HttpClient(("127.0.0.1",), manners, allow_private=True, **how) as client:
            return await work(client)

    return asyncio.run(run())


def echo(request: Request) -> Reply:
    return as_json({"query": dict(request.query), "headers": dict(request.headers)})


def test_it_is_the_client_that_sources_are_promised() -> None:
    async def run() -> None:
        async with HttpClient(()) as client:
            promised: Client = client
            assert promised is client

    asyncio.run(run())


def test_json_is_asked_for_with_parameters_secrets_and_an_agent() -> None:
    with StandIn(echo) as server:
        told = with_client(
            lambda c: c.get_json(
                server.url + "/x", {"a": 1, "b": "ä &"}, secrets={"key": KEY},
                headers={"X-Field": "mask"}, secret_headers={"X-Key": KEY},
            ),
            user_agent="geopak/1 someone@example.org",
        )  # fmt: skip
    assert told["query"] == {"a": "1", "b": "ä &", "key": KEY}
    assert told["headers"]["x-field"] == "mask"
    assert told["headers"]["x-key"] == KEY
    assert told["headers"]["user-agent"] == "geopak/1 someone@example.org"


def test_a_body_is_posted_as_json() -> None:
    with StandIn(lambda r: as_json(r.json() | {"type": r.headers["content-type"]})) as server:
        told = with_client(lambda c: c.post_json(server.url, {"text": "قلعہ"}))
    assert told == {"text": "قلعہ", "type": "application/json"}


@pytest.mark.parametrize(
    "fault",
    [unavailable(), unavailable(500), too_many_requests(None), hung_up(), html_page(),
     broken(as_json({"long": "x" * 1000})), Reply(b"", 408)],
)  # fmt: skip
def test_what_may_pass_is_asked_again(fault: Reply) -> None:
    with StandIn(echo) as server:
        server.faults.add(fault, times=3)
        assert with_client(lambda c: c.get_json(server.url))["query"] == {}
        assert len(server.requests) == 4
        server.faults.add(fault, times=4)
        with pytest.raises(UnavailableError):
            with_client(lambda c: c.get_json(server.url))
        assert len(server.requests) == 8


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, RefusedQueryError), (404, RefusedQueryError), (401, DeniedError), (403, DeniedError)],
)
def test_what_does_not_pass_is_not_asked_again(status: int, kind: type[Exception]) -> None:
    with StandIn(lambda _: as_json({"error": "no such field"}, status)) as server:
        with pytest.raises(kind, match=f"answered {status} .*no such field"):
            with_client(lambda c: c.get_json(server.url))
        assert len(server.requests) == 1


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_kept_by_all_requests(as_date: bool) -> None:
    with StandIn(echo) as server:
        # A date has whole seconds, so that up to one is lost.
        server.faults.add(too_many_requests(2 if as_date else 1, as_date))

        async def both(client: HttpClient) -> None:
            first = asyncio.ensure_future(client.get_json(server.url + "/first"))
            await asyncio.sleep(0.3)
            await asyncio.gather(first, client.get_json(server.url + "/second"))

        with_client(both)
        refused, *later = server.requests
    assert refused.status == 429
    assert len(later) == 2
    assert min(r.time_s for r in later) - refused.time_s >= 0.9


def test_a_retry_after_beyond_all_patience_is_a_quota_that_is_used_up() -> None:
    with StandIn(lambda _: too_many_requests(86_400)) as server:
        began = time.monotonic()
        with pytest.raises(QuotaSpentError, match="'search' requests is used up until 20"):
            with_client(lambda c: c.get_json(server.url, kind="search"))
        assert len(server.requests) == 1
    assert time.monotonic() - began < 2


@given(st.integers(0, 10**6))
def test_retry_after_in_seconds_and_as_a_date(seconds: int) -> None:
    now = datetime.datetime(2024, 5, 6, 7, 8, 9, tzinfo=datetime.UTC)
    later = email.utils.format_datetime(now + datetime.timedelta(seconds=seconds), usegmt=True)
    assert retry_after_s({"retry-after": str(seconds)}) == seconds
    assert retry_after_s({"retry-after": later}, now) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "nan", "1e400"])
def test_a_retry_after_that_is_none(text: str) -> None:
    assert retry_after_s({"retry-after": text}) is None


def test_pauses_grow_at_random() -> None:
    manners = Manners(10_000.0, 1, retries=5, backoff_s=0.04, longest_pause_s=0.16, outage_s=0)
    with StandIn(lambda _: unavailable()) as server:
        with pytest.raises(UnavailableError):
            with_client(lambda c: c.get_json(server.url), manners)
        times = [r.time_s for r in server.requests]
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert len(pauses) == 5
    for k, pause in enumerate(pauses):
        assert pause <= min(0.04 * 2**k, 0.16) + 0.15
    assert len({round(pause, 4) for pause in pauses}) > 1


def test_a_host_that_cannot_be_reached_is_tried_for_longer_than_attempts_last() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    manners = Manners(1000.0, 1, retries=1, backoff_s=0.01, longest_pause_s=0.05, outage_s=30)

    async def run() -> Any:
        async with HttpClient(("127.0.0.1",), manners, allow_private=True) as client:
            asked = asyncio.ensure_future(client.get_json(f"http://127.0.0.1:{port}/"))
            await asyncio.sleep(0.5)
            assert not asked.done()
            server = StandIn(echo)
            server._server.server_close()
            server._server = type(server._server)(
                ("127.0.0.1", port), server._server.RequestHandlerClass
            )
            server._thread._target = server._server.serve_forever  # type: ignore[attr-defined]
            with server:
                return await asked

    assert asyncio.run(run())["query"] == {}
    with pytest.raises(UnavailableError):
        with_client(lambda c: c.get_json(f"http://127.0.0.1:{port}/"), QUICK)


@pytest.mark.parametrize("rate", [40.0, 150.0])
def test_the_rate_is_kept_and_used(rate: float) -> None:
    number = int(rate)
    with StandIn(echo) as server:
        manners = Manners(rate, 8, backoff_s=0.01)
        with_client(
            lambda c: asyncio.gather(*(c.get_json(server.url) for _ in range(number))), manners
        )
        # The first of each connection comes late.
        times = sorted(r.time_s for r in server.requests)[8:]
    in_all = (len(times) - 1) / (times[-1] - times[0])
    assert 0.8 * rate <= in_all <= 1.1 * rate
    # In no stretch were there more than the rate and one, give or take the server's clock.
    for first in range(0, len(times), 7):
        for last in range(first + 10, len(times), 11):
            assert last - first <= (times[last] - times[first] + 0.05) * rate + 2


def test_no_more_requests_at_a_time_than_allowed() -> None:
    with StandIn(lambda _: as_json({}, delay_s=0.05)) as server:
        manners = Manners(10_000.0, 3)
        with_client(lambda c: asyncio.gather(*(c.get_json(server.url) for _ in range(12))), manners)
        assert server.most_at_once == 3


def test_an_answer_that_does_not_come_is_given_up() -> None:
    manners = Manners(1000.0, 1, retries=1, timeout_s=0.2, backoff_s=0.01, outage_s=0)
    with StandIn(lambda _: slow(as_json({"x": "y" * 100}), 1.0)) as server:
        with pytest.raises(UnavailableError, match="ReadTimeout"):
            with_client(lambda c: c.get_json(server.url), manners)
        assert len(server.requests) == 2


# --- keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        as_json({"error": f"API key {KEY} is wrong"}, 403),
        as_json({"error": f"bad: {KEY}"}, 400),
        as_json({"error": KEY}, 503),
        Reply(f"<html>{KEY}</html>".encode()),
        hung_up(),
        redirect("http://127.0.0.2/elsewhere"),
        redirect("http://169.254.169.254/latest"),
    ],
)
def test_keys_are_in_no_message_log_or_traceback(
    reply: Reply, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    # Someone who asks for everything that the libraries log.
    for name in ("httpx", "httpcore", "httpcore.http11", "httpcore.connection"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    with StandIn(lambda _: reply) as server:
        try:
            with_client(
                lambda c: c.get_json(
                    server.url, secrets={"api_key": KEY}, secret_headers={"X-Key": f"Bearer {KEY}"}
                )
            )
        except (SourceError, httpx.HTTPError) as error:
            told = "".join(traceback.format_exception(error))
            chain: BaseException | None = error
            while chain is not None:
                told += repr(chain.args) + repr(getattr(chain, "_request", None))
                chain = chain.__context__
        else:
            pytest.fail("it was answered")
    for form in (KEY, "sEcret%2Fkey%2B1234", "sEcret"):
        assert form not in told
        assert form not in caplog.text


def test_keys_do_not_follow_to_another_host() -> None:
    with StandIn(echo) as other:
        there = other.url.replace("127.0.0.1", "localhost")
        with StandIn(lambda _: redirect(there + "/moved?plain=1")) as server:

            async def run() -> Any:
                hosts = ("127.0.0.1", "localhost")
                async with HttpClient(hosts, QUICK, allow_private=True) as client:
                    return await client.get_json(
                        server.url, {"a": 1}, secrets={"key": KEY}, secret_headers={"X-Key": KEY}
                    )

            told = asyncio.run(run())
    assert told["query"] == {"plain": "1"}
    assert "x-key" not in told["headers"]


def test_keys_do_not_follow_to_another_port() -> None:
    with StandIn(echo) as other, StandIn(lambda _: redirect(other.url + "/moved")) as server:
        told = with_client(lambda c: c.get_json(server.url, secret_headers={"X-Key": KEY}))
    assert "x-key" not in told["headers"]


@pytest.mark.parametrize(("length", "status"), [(80, 200), (400, 400)])
@pytest.mark.parametrize("shown", [1, 6, 12])
def test_half_a_key_is_a_key(length: int, status: int, shown: int) -> None:
    """Answers are cut for messages, and the cut may go through a key."""
    text = b"x" * (length - shown) + KEY.encode()
    refused = pytest.raises((UnavailableError, RefusedQueryError))
    with StandIn(lambda _: Reply(text, status)) as server, refused as told:
        with_client(
            lambda c: c.get_json(server.url, secrets={"key": KEY}), Manners(10_000.0, retries=0)
        )
    assert "xxx*" in str(told.value)
    assert "xs" not in str(told.value)


def test_a_key_that_can_be_none_is_refused_before_it_is_sent() -> None:
    with StandIn(echo) as server:
        with pytest.raises(SourceError, match="X-Key has characters that no key has") as told:
            with_client(lambda c: c.get_json(server.url, secret_headers={"X-Key": "0123…abc"}))
        assert server.requests == []
    assert "0123" not in str(told.value)


class Spent:
    """A quota of which nothing is left of one kind until the day ends."""

    def __init__(self) -> None:
        self.midnight = asyncio.Event()

    async def take(self, kind: str) -> None:
        if kind == "media":
            await self.midnight.wait()


def test_requests_that_wait_for_the_next_day_hold_up_no_other_and_keep_the_pace() -> None:
    async def run() -> None:
        spent = Spent()
        manners = Manners(20.0, 2)
        how: Any = {"allow_private": True, "quota": spent}
        async with HttpClient(("127.0.0.1",), manners, **how) as client:
            waiting = [
                asyncio.ensure_future(client.get_json(server.url, kind="media")) for _ in range(6)
            ]
            await asyncio.sleep(0.05)
            await asyncio.wait_for(client.get_json(server.url, kind="search"), 5)
            assert len(server.requests) == 1
            spent.midnight.set()
            await asyncio.gather(*waiting)

    with StandIn(echo) as server:
        asyncio.run(run())
        times = sorted(r.time_s for r in server.requests[1:])
    assert times[-1] - times[0] >= 0.8 * 5 / 20


# --- where it goes ----------------------------------------------------------------------------


def test_redirects_are_followed_to_listed_hosts_and_not_in_circles() -> None:
    def respond(request: Request) -> Reply:
        if request.path == "/circle":
            return redirect("/circle")
        return echo(request) if request.path == "/there" else redirect("/there?x=1", 307)

    with StandIn(respond) as server:
        assert with_client(lambda c: c.get_json(server.url + "/here"))["query"] == {"x": "1"}
        with pytest.raises(SourceError, match="circle"):
            with_client(lambda c: c.get_json(server.url + "/circle"))


@pytest.mark.parametrize(
    "target",
    ["http://example.org/", "ftp://127.0.0.1/", "file:///etc/passwd", "http://user@127.0.0.1/",
     "//other.example/x", "http://127.0.0.1.example.org/"],
)  # fmt: skip
def test_a_redirect_elsewhere_is_not_followed(target: str) -> None:
    with StandIn(lambda _: redirect(target)) as server:
        with pytest.raises(ForbiddenAddressError):
            with_client(lambda c: c.get_json(server.url))
        assert len(server.requests) == 1


@pytest.mark.parametrize("trickle", [0.02, 1e9])
def test_an_answer_that_trickles_is_given_up(trickle: float) -> None:
    manners = Manners(1000.0, 1, retries=1, timeout_s=5, backoff_s=0.01, whole_timeout_s=trickle)

    async def use(body: bytes) -> int:
        return len(body)

    with StandIn(lambda _: slow(as_json("y" * 60), 500)) as server:

        def file() -> int:
            return with_client(lambda c: c.get_file(server.url, max_bytes=99, use=use), manners)

        if trickle > 1:
            assert file() == 62
            return
        with pytest.raises(UnavailableError, match=r"no whole answer in 0\.02 seconds"):
            file()
        with pytest.raises(UnavailableError, match=r"no whole answer in 0\.02 seconds"):
            with_client(lambda c: c.get_json(server.url), manners)
        assert len(server.requests) == 4


def test_a_redirect_to_nonsense_is_a_forbidden_address() -> None:
    nonsense = pytest.raises(ForbiddenAddressError, match="what is no address")
    with StandIn(lambda _: redirect("http://[bad")) as server, nonsense:
        with_client(lambda c: c.get_json(server.url))


@pytest.mark.parametrize("target", ["gopher:x", "http://[::1/", "http://127.0.0.1:x/"])
def test_a_redirect_that_is_no_address_is_an_answer_like_none(target: str) -> None:
    refused = pytest.raises((SourceError, UnavailableError))
    with StandIn(lambda _: redirect(target)) as server, refused:
        with_client(lambda c: c.get_json(server.url))


def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with StandIn(echo) as proxy, StandIn(echo) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        with_client(lambda c: c.get_json(server.url))
        assert not proxy.requests


# --- files ------------------------------------------------------------------------------------


async def _same(body: bytes) -> bytes:
    return body


@pytest.mark.parametrize("told", [None, -1, 10])
def test_a_file_that_is_too_large_is_broken_off(told: int | None) -> None:
    body = bytes(3_000_000)
    # A length that is a lie breaks the answer instead.
    with StandIn(lambda _: Reply(body, told_length=told, bytes_per_s=20e6)) as server:

        async def get(client: HttpClient) -> bytes:
            return await client.get_file(server.url, max_bytes=100_000, use=_same)

        if told == 10:
            assert with_client(get) == body[:10]
        else:
            with pytest.raises(TooLargeError):
                with_client(get)
        assert len(server.requests) == 1


def test_a_file_that_breaks_is_read_again_from_the_start() -> None:
    body = bytes(range(256)) * 400
    with StandIn(lambda _: Reply(body)) as server:
        server.faults.add(broken(Reply(body)), times=2)
        got = with_client(lambda c: c.get_file(server.url, max_bytes=10**6, use=_same))
        assert got == body
        assert len(server.requests) == 3


def test_a_stream_is_read_as_it_comes_and_breaks_as_an_http_error() -> None:
    body = bytes(500_000)

    async def read(client: HttpClient) -> int:
        size = 0
        async with client.stream(client_url, headers={"Range": "bytes=0-"}) as response:
            async for piece in response.aiter_bytes():
                size += len(piece)
        return size

    with StandIn(lambda _: Reply(body)) as server:
        client_url = server.url
        server.faults.add(unavailable(), times=2)
        assert with_client(read) == len(body)
        assert server.requests[-1].request.headers["range"] == "bytes=0-"
        server.faults.add(broken(Reply(body)))
        with pytest.raises(httpx.HTTPError):
            with_client(read)


def test_each_attempt_is_counted_before_it_is_sent() -> None:
    counted: list[tuple[str, int]] = []

    class Counter:
        async def take(self, kind: str) -> None:
            counted.append((kind, len(server.requests)))

    with StandIn(echo) as server:
        server.faults.add(unavailable(), times=2)
        with_client(lambda c: c.get_json(server.url, kind="search"), quota=Counter())
    assert counted == [("search", 0), ("search", 1), ("search", 2)]


def test_a_pace_does_not_catch_up_after_a_rest() -> None:
    async def run() -> list[float]:
        pace = Pace(100.0)
        await pace.turn()
        await asyncio.sleep(0.3)
        began, times = time.monotonic(), []
        for _ in range(10):
            await pace.turn()
            times.append(time.monotonic() - began)
        return times

    times = asyncio.run(run())
    assert times[-1] >= 0.08
