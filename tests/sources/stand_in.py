"""A server on a real socket that stands in for an interface of the web, faults included.

A test gives it a function from request to reply and, before or while it runs, faults: so many 429s,
a burst of 503s, a download that breaks off. It keeps every request with its time.

    with StandIn(lambda request: as_json({"path": request.path})) as server:
        server.faults.add(too_many_requests(1), when="/photos", times=2)
        ... ask server.url + "/photos" ...
        assert [r.status for r in server.requests] == [429, 429, 200]
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from PIL import Image


@dataclass(frozen=True)
class Request:
    """A request as it came in.

    Attributes:
        method: in capitals.
        path: decoded, without the query.
        query: its parameters, the last one of a name.
        headers: names in lower case.
        body: as sent.
        time_s: of the monotonic clock, when it had come in whole.
        target: path and query as sent, for looking for secrets.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    time_s: float
    target: str

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What the server says, and how well it says it.

    Attributes:
        body: the content.
        status: of HTTP.
        headers: further ones.
        content_type: as told, which may be a lie.
        delay_s: pause before the first byte.
        bytes_per_s: how slowly the body comes; ``None``: at once.
        cut_after: the connection breaks after so many bytes of the body; ``None``: it does not.
            0 breaks it before the status line.
        told_length: ``Content-Length`` as told; ``None``: the true one; -1: none, the end of the
            body is the end of the connection.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/octet-stream"
    delay_s: float = 0.0
    bytes_per_s: float | None = None
    cut_after: int | None = None
    told_length: int | None = None


@dataclass(frozen=True)
class Record:
    """A request that was answered.

    Attributes:
        request: as it came in.
        status: of the reply; 0: the connection was broken without one.
        fault: whether a fault answered it, or the limit of the rate.
    """

    request: Request
    status: int
    fault: bool

    @property
    def path(self) -> str:
        return self.request.path

    @property
    def query(self) -> Mapping[str, str]:
        return self.request.query

    @property
    def time_s(self) -> float:
        return self.request.time_s


Responder = Callable[[Request], Reply]


def as_json(value: Any, status: int = 200, **how: Any) -> Reply:
    """A reply of JSON; ``how`` as the fields of :class:`Reply`."""
    return Reply(json.dumps(value).encode(), status, content_type="application/json", **how)


def as_text(text: str, status: int = 200, content_type: str = "text/plain", **how: Any) -> Reply:
    """A reply of text."""
    return Reply(text.encode(), status, content_type=f"{content_type}; charset=utf-8", **how)


def jpeg(width: int = 64, height: int = 48, seed: int = 0, quality: int = 80) -> bytes:
    """The bytes of a JPEG that differ by seed, and whose picture does too."""
    value = (seed * 2654435761 + 97) & 0xFFFFFF
    picture = Image.new("RGB", (width, height), (value & 255, value >> 8 & 255, value >> 16))
    # A stripe by the seed's bits: pictures of one colour would be alike to a perceptual hash.
    for bit in range(24):
        if value >> bit & 1:
            left = bit * width // 24
            right = max(left + 1, (bit + 1) * width // 24)
            picture.paste((255 - (value & 255), 255, bit * 10), (left, 0, right, height // 2))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def as_jpeg(body: bytes, **how: Any) -> Reply:
    """A reply of a JPEG."""
    return Reply(body, content_type="image/jpeg", **how)


def too_many_requests(retry_after_s: float | None, as_date: bool = False) -> Reply:
    """429; ``Retry-After`` in whole seconds, or as the date of then; ``None``: without it."""
    headers = {}
    if retry_after_s is not None:
        later = formatdate(time.time() + retry_after_s, usegmt=True)
        headers["Retry-After"] = later if as_date else str(math.ceil(retry_after_s))
    return as_json({"error": "too many requests"}, 429, headers=headers)


def unavailable(status: int = 503) -> Reply:
    """A 5xx with a page of HTML, as proxies send it."""
    page = f"<html><body><h1>{status} Service Unavailable</h1></body></html>"
    return as_text(page, status, "text/html")


def html_page(content_type: str = "text/html", status: int = 200) -> Reply:
    """A page where something else was asked for; say ``image/jpeg`` to have it lie."""
    return as_text("<!DOCTYPE html><html><body>Not here.</body></html>", status, content_type)


def redirect(url: str, status: int = 302) -> Reply:
    """A redirect."""
    return Reply(status=status, headers={"Location": url})


def broken(reply: Reply, after: int | None = None) -> Reply:
    """The reply, but the connection breaks after so many bytes of it (half of them)."""
    return replace(reply, cut_after=len(reply.body) // 2 if after is None else after)


def hung_up() -> Reply:
    """The connection breaks without a word."""
    return Reply(cut_after=0)


def slow(reply: Reply, bytes_per_s: float, delay_s: float = 0.0) -> Reply:
    """The reply, drop by drop."""
    return replace(reply, bytes_per_s=bytes_per_s, delay_s=delay_s)


@dataclass
class Fault:
    """Answers in place of the server, a number of times.

    Attributes:
        reply: or a function of the request that makes it; ``None`` from it: no fault this time.
        when: beginning of the path, or a function of the request; ``None``: any.
        times: how often; ``None``: always.
        after: so many requests that it would concern pass first.
        every: of the requests that it concerns only each so-manieth.
    """

    reply: Reply | Callable[[Request], Reply | None]
    when: str | Callable[[Request], bool] | None = None
    times: int | None = 1
    after: int = 0
    every: int = 1
    met: int = 0
    done: int = 0

    def answer(self, request: Request) -> Reply | None:
        """The fault's reply, if it is its turn."""
        if self.times is not None and self.done >= self.times:
            return None
        if isinstance(self.when, str):
            concerned = request.path.startswith(self.when)
        else:
            concerned = self.when is None or self.when(request)
        if not concerned:
            return None
        self.met += 1
        if self.met <= self.after or (self.met - self.after - 1) % self.every:
            return None
        reply = self.reply if isinstance(self.reply, Reply) else self.reply(request)
        self.done += reply is not None
        return reply


class Faults:
    """The faults of a server, the first that is concerned answers."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, reply: Reply | Callable[[Request], Reply | None], **when: Any) -> Fault:
        """Adds a fault; ``when`` as the fields of :class:`Fault`."""
        fault = Fault(reply, **when)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Takes all faults away."""
        with self._lock:
            self._faults.clear()

    def answer(self, request: Request) -> Reply | None:
        """The reply of the first fault whose turn it is."""
        with self._lock:
            for fault in self._faults:
                reply = fault.answer(request)
                if reply is not None:
                    return reply
        return None


class RateLimit:
    """A token bucket: requests beyond the rate get 429 and are told when to come again.

    Args:
        per_s: requests a second in the long run.
        burst: that may come at once.
        when: beginning of the path that it limits; empty: all.
    """

    def __init__(self, per_s: float, burst: int = 1, when: str = "") -> None:
        self.per_s, self.burst, self.when = per_s, burst, when
        self.refused = 0
        self._tokens, self._then = float(burst), time.monotonic()
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Reply | None:
        """429 where the bucket is empty."""
        if not request.path.startswith(self.when):
            return None
        with self._lock:
            now = time.monotonic()
            grown = self._tokens + (now - self._then) * self.per_s
            self._tokens, self._then = min(float(self.burst), grown), now
            if self._tokens >= 1:
                self._tokens -= 1
                return None
            self.refused += 1
            return too_many_requests((1 - self._tokens) / self.per_s)


class StandIn:
    """The server; a context manager, in its own threads, ready as soon as it is entered.

    Args:
        respond: answers what no fault answers; an exception in it becomes a 500 and is kept.
        limit: of the rate; ``None``: none.
        tls: certificate and key, for https.
    """

    def __init__(
        self,
        respond: Responder | None = None,
        limit: RateLimit | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._respond = respond
        self.limit = limit
        self.faults = Faults()
        self.requests: list[Record] = []
        self.errors: list[Exception] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        handler = type("Handler", (_Handler,), {"stand_in": self})
        # Bound already, so that an address is known before the first request is answered.
        self._server = _Server(("127.0.0.1", 0), handler)
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            # Who hangs up in the middle of it must not hold up others: each in its own thread.
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True, name="stand-in"
        )

    def respond(self, request: Request) -> Reply:
        """What the server says; classes of servers override it."""
        if self._respond is not None:
            return self._respond(request)
        return as_json({"error": f"nothing is at {request.path}"}, 404)

    @property
    def port(self) -> int:
        """Of 127.0.0.1."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def asked(self, path: str = "", status: int | None = None) -> list[Record]:
        """The requests so far whose path begins so, those with a status alone if one is given."""
        with self._lock:
            records = list(self.requests)
        return [
            r for r in records if r.path.startswith(path) and (status is None or r.status == status)
        ]

    def forget(self) -> None:
        """Forgets the requests so far."""
        with self._lock:
            self.requests.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            # Ends the threads that wait for another request of a client that keeps its connection.
            _shut(connection)
        self._thread.join()
        if self.errors:
            raise self.errors[0]

    def _answer(self, request: Request) -> tuple[Reply, bool]:
        for part in (self.limit, self.faults):
            reply = part.answer(request) if part is not None else None
            if reply is not None:
                return reply, True
        try:
            return self.respond(request), False
        except Exception as error:
            self.errors.append(error)
            return as_text(repr(error), 500), False

    def _keep(self, request: Request, reply: Reply, fault: bool) -> None:
        status = 0 if reply.cut_after == 0 else reply.status
        with self._lock:
            self.requests.append(Record(request, status, fault))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stand_in: StandIn

    def setup(self) -> None:
        super().setup()
        with self.stand_in._lock:
            self.stand_in._connections.add(self.connection)

    def finish(self) -> None:
        with self.stand_in._lock:
            self.stand_in._connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else b""
        parts = urlsplit(self.path)
        request = Request(
            self.command,
            unquote(parts.path),
            dict(parse_qsl(parts.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            body,
            time.monotonic(),
            self.path,
        )
        server = self.stand_in
        with server._lock:
            server._at_once += 1
            server.most_at_once = max(server.most_at_once, server._at_once)
        try:
            reply, fault = server._answer(request)
            # Kept before it is sent: who has the answer finds its request.
            server._keep(request, reply, fault)
            self._send(reply)
        except OSError:
            self.close_connection = True
        finally:
            with server._lock:
                server._at_once -= 1

    do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = _serve  # noqa: N815

    def _send(self, reply: Reply) -> None:
        self._wait(reply.delay_s)
        if reply.cut_after == 0:
            self._break_off()
            return
        told = len(reply.body) if reply.told_length is None else reply.told_length
        self.send_response(reply.status)
        if reply.status not in (204, 304):
            self.send_header("Content-Type", reply.content_type)
            if told >= 0:
                self.send_header("Content-Length", str(told))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if told != len(reply.body) or reply.cut_after is not None:
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        head = b"".join(self._headers_buffer) + b"\r\n"
        self._headers_buffer: list[bytes] = []
        body = b"" if self.command == "HEAD" else reply.body[: reply.cut_after]
        if reply.bytes_per_s is None:
            # In one piece: two small ones wait for each other's acknowledgement.
            self.wfile.write(head + body)
        else:
            self.wfile.write(head)
            step = max(1, int(reply.bytes_per_s / 20))
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                self._wait(step / reply.bytes_per_s)
        if reply.cut_after is not None:
            self._break_off()

    def _wait(self, seconds: float) -> None:
        """Sleeps, but wakes when the client goes away."""
        if seconds > 0 and select.select([self.connection], [], [], seconds)[0]:
            raise ConnectionResetError("the client has gone, or asked again without waiting")

    def _break_off(self) -> None:
        self.close_connection = True
        _shut(self.connection)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
