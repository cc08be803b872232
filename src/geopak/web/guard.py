"""What stands before the page: which requests are let in, how large, and what becomes of them.

Gradio's server can do much more than this page needs. Only the routes that the page uses are open,
an uploaded photo loses its metadata before Gradio sees it, and no page may load anything from
elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse, PlainTextResponse, Response

from geopak.data.photo_facts import IMAGE_SUFFIXES
from geopak.errors import PhotoError
from geopak.web.photos import Limits, without_metadata

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

UPLOAD = "/gradio_api/upload"
# What is open: the page, its own files, a photo that it shows, and its events.
_READ = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
    r"|/(assets|static)/[\w./-]+|/map/[\w.-]+|/api|/api/(model|openapi\.json)"
    r"|/gradio_api/(info|app_id|theme\.css|startup-events|upload_progress|queue/data)"
    r"|/gradio_api/heartbeat/\w+|/gradio_api/file=.+"
)
_WRITE = re.compile(r"/api/locate|/gradio_api/(upload|queue/join|cancel|reset|startup-events)")
_EVENT_BYTES = 1_000_000
_PART_BYTES = 1 << 20
# Bodies in memory at once, of the largest allowed.
_MOST_BODIES = 4
_CONTENT_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' blob: data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": _CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "geolocation=(), camera=(), microphone=()",
    "cross-origin-resource-policy": "same-origin",
}
# Of a file that is left out of many: it takes the photo's place.
REFUSED = b"geopak: refused: "


@dataclass
class _Held:
    """Bytes of a request's body that were received."""

    num_bytes: int = 0


class RefusedError(Exception):
    """A request that is not let in."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Guard:
    """An ASGI application around another.

    Args:
        app: the page and API.
        limits: of requests.
        folder: the only one that uploads are in.
        hosts: names that the server may be called by, without port; empty: any. A page elsewhere
            that has its name point to this machine is not served.
    """

    def __init__(self, app: App, limits: Limits, folder: Path, hosts: Sequence[str]) -> None:
        self._app, self._limits, self._hosts = app, limits, frozenset(hosts)
        self._folder = folder.resolve()
        # Decoding takes a photo's size many times over.
        self._cleaning = asyncio.Semaphore(2)
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = {k.encode(): v.encode() for k, v in _HEADERS.items()}
                if not scope["path"].startswith(("/assets/", "/static/", "/map/")):
                    own[b"cache-control"] = b"no-store"
                given = [(k, v) for k, v in message["headers"] if k.lower() not in own]
                message = {**message, "headers": [*given, *own.items()]}
            await send(message)

        held = _Held()
        try:
            try:
                receive = await self._checked(scope, receive, held)
            except RefusedError as refused:
                response: Response = PlainTextResponse(refused.reason, refused.status)
                if scope["path"].startswith("/api/"):
                    response = JSONResponse({"error": refused.reason}, refused.status)
                response.headers["connection"] = "close"
                if refused.status == 503:
                    response.headers["retry-after"] = "30"
                await response(scope, receive, send_with_headers)
                return
            await self._app(scope, receive, send_with_headers)
        finally:
            self._held_bytes -= held.num_bytes

    async def _checked(self, scope: Scope, receive: Receive, held: _Held) -> Receive:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts and _name_in(host) not in self._hosts:
            raise RefusedError(400, "This server is not known by that name.")
        path, method = scope["path"], scope["method"]
        sender = headers.get("origin")
        # A page elsewhere could read no answer, but put this machine to work.
        by_others = sender and _name_in(sender.partition("//")[2]) not in self._hosts
        if self._hosts and method == "POST" and by_others:
            raise RefusedError(403, "Pages of other servers are not served.")
        if ".." in PurePosixPath(path).parts:
            raise RefusedError(404, "Not found.")
        if method in ("GET", "HEAD") and _READ.fullmatch(path):
            if path.startswith("/gradio_api/file="):
                self._check_path(path.removeprefix("/gradio_api/file="))
            # Such a link would have Gradio read a file of its own.
            scope["query_string"] = b"" if path == "/" else scope["query_string"]
            return receive
        if method != "POST" or not _WRITE.fullmatch(path):
            raise RefusedError(404, "Not found.")
        if path == UPLOAD:
            most = self._limits.max_batch_mb * 1e6
        elif path == "/api/locate":
            most = self._limits.max_mb * 1e6
        else:
            most = _EVENT_BYTES
        body = await self._body(headers, receive, most, held)
        if path == UPLOAD:
            kind, body = await self._cleaned(headers, body)
            replaced = (b"content-type", b"content-length")
            kept = [(k, v) for k, v in scope["headers"] if k not in replaced]
            length = str(len(body)).encode()
            scope["headers"] = [*kept, (b"content-type", kind), (b"content-length", length)]
        elif path.startswith("/gradio_api/"):
            self._check_event(body)
        return _replayed(body, receive)

    def _check_path(self, path: str) -> None:
        file = Path(path if path.startswith("/") else f"/{path}")
        try:
            inside = file.resolve().is_relative_to(self._folder)
        except (OSError, ValueError):
            # Too long, or with a null byte.
            inside = False
        if not inside:
            raise RefusedError(404, "Not found.")

    def _check_event(self, body: bytearray) -> None:
        """Refuses an event with a file that was not uploaded here."""
        try:
            event = json.loads(body) if body else None
        except (ValueError, RecursionError) as error:
            raise RefusedError(400, "This is no event of the page.") from error
        for value in _objects(event):
            for key in ("path", "url"):
                named = value.get(key)
                if named is None:
                    continue
                if not isinstance(named, str):
                    raise RefusedError(400, "This is no event of the page.")
                if key == "path":
                    self._check_path(named)
                elif named.startswith("data:"):
                    raise RefusedError(400, "Photos are uploaded, not sent as text.")

    async def _body(
        self, headers: Headers, receive: Receive, most: float, held: _Held
    ) -> bytearray:
        """The whole body, in memory.

        Raises:
            RefusedError: it is too large, or takes too long, or others fill the memory.
        """
        too_large = RefusedError(413, f"That is more than the {most / 1e6:g} MB allowed.")
        stated = headers.get("content-length", "")
        if stated.isdigit() and int(stated) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(400, "The connection ended.")
                    part = message.get("body", b"")
                    held.num_bytes += len(part)
                    self._held_bytes += len(part)
                    if self._held_bytes > _MOST_BODIES * self._limits.max_batch_mb * 1e6:
                        raise RefusedError(
                            503, "Too many photos arrive at once. Please try again in a minute."
                        )
                    body += part
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return body
        except TimeoutError as error:
            raise RefusedError(408, "Sending the photo took too long.") from error

    async def _cleaned(self, headers: Headers, body: bytearray) -> tuple[bytes, bytearray]:
        """Kind and body of an upload with each photo's pixels alone.

        A single file that is no photo is refused; among others its place is taken by the reason.
        """
        files = await self._files(headers, body)
        # The parser has its own copy.
        body.clear()
        boundary = secrets.token_hex(16)
        for upload in files:
            content = await upload.read()
            await upload.close()
            try:
                async with self._cleaning:
                    content = await asyncio.to_thread(without_metadata, content, self._limits)
            except PhotoError as error:
                if len(files) == 1:
                    raise RefusedError(400, str(error)) from error
                content = REFUSED + str(error).encode()
            name = _plain_name(upload.filename)
            body += (
                f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"'
                "\r\nContent-Type: image/jpeg\r\n\r\n"
            ).encode()
            body += content
            body += b"\r\n"
        body += f"--{boundary}--\r\n".encode()
        return f"multipart/form-data; boundary={boundary}".encode(), body

    async def _files(self, headers: Headers, body: bytearray) -> list[UploadFile]:
        async def stream() -> AsyncGenerator[bytes, None]:
            for start in range(0, len(body), _PART_BYTES):
                yield bytes(body[start : start + _PART_BYTES])

        # In memory alone: a file of the system's would hold the photo as it was sent.
        class Parser(MultiPartParser):
            spool_max_size = len(body) + 1

        try:
            parser = Parser(headers, stream(), max_files=self._limits.max_photos, max_fields=10)
            form = await parser.parse()
        except (MultiPartException, KeyError, AssertionError) as error:
            reason = getattr(error, "message", "")
            if "Too many files" in reason:
                reason = f"At most {self._limits.max_photos} photos at once."
            raise RefusedError(400, reason or "This is no upload of photos.") from error
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise RefusedError(400, "This upload holds no photo.")
        return files


def _plain_name(name: str | None) -> str:
    """A file's name that says nothing of folders, ends as a photo's does and breaks no header."""
    plain = re.sub(r"[^\w .()-]", "_", PurePosixPath((name or "photo").replace("\\", "/")).name)
    stem, suffix = PurePosixPath(plain).stem[:80] or "photo", PurePosixPath(plain).suffix.lower()
    return f"{stem}{suffix if suffix in IMAGE_SUFFIXES else f'{suffix}.jpg'}"


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects of a JSON document."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _name_in(host: str) -> str:
    """A host's name without its port, in small letters."""
    name = host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]
    return name.lower()


def _replayed(body: bytearray, receive: Receive) -> Receive:
    """The body again, then whatever else is received."""
    start = 0
    done = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal start, done
        if done:
            return await receive()
        part = bytes(body[start : start + _PART_BYTES])
        start += len(part)
        done = start == len(body)
        return {"type": "http.request", "body": part, "more_body": not done}

    return replay
