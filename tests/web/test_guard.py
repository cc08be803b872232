"""What the guard lets through to the page: few routes, small bodies, files of its folder alone."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from geopak.web.guard import REFUSED, Guard
from geopak.web.photos import Limits

from .test_photos import SECRET, exif, photo


async def behind(request: Request) -> JSONResponse:
    """Tells what arrived."""
    if "multipart" in request.headers.get("content-type", ""):
        async with request.form() as form:
            files = [[f.filename, (await f.read()).hex()] for _, f in form.multi_items()]
        return JSONResponse({"files": files})
    body = await request.body()
    return JSONResponse(
        {"path": request.url.path, "query": str(request.url.query), "body": body.hex()}
    )


def ask(folder: Path, method: str, path: str, limits: Limits | None = None, hosts: Any = (),
        **options: Any) -> httpx.Response:  # fmt: skip
    app = Starlette(
        routes=[Route("/{path:path}", behind, methods=["GET", "POST", "PUT", "DELETE"])]
    )
    guard = Guard(app, limits or Limits(), folder, hosts)

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/assets/index-1a.js", "/map/map.js", "/map/base.json", "/api", "/api/model",
     "/gradio_api/queue/data?session_hash=a", "/gradio_api/heartbeat/abc", "/theme.css"],
)  # fmt: skip
def test_what_the_page_reads_is_open_and_guarded(tmp_path: Path, path: str) -> None:
    answer = ask(tmp_path, "GET", path)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "http" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=http://example.org/"), ("GET", "/monitoring"),
        ("GET", "/gradio_api/file=http://example.org/a.jpg"), ("GET", "/gradio_api/deep_link"),
        ("GET", "/gradio_api/file=/etc/passwd"), ("GET", "/gradio_api/file=../../etc/passwd"),
        ("GET", "/assets/../../etc/passwd"), ("GET", "/assets/%2e%2e/%2e%2e/etc/passwd"),
        ("GET", "/svelte/x.js"), ("POST", "/gradio_api/vibe-edit"), ("GET", "/gradio_api/runs"),
        ("POST", "/gradio_api/run/predict"), ("POST", "/gradio_api/call/locate"),
        ("POST", "/gradio_api/component_server"), ("PUT", "/api/locate"), ("POST", "/api/model"),
        ("DELETE", "/"), ("POST", "/login"), ("GET", "/docs"), ("GET", "/openapi.json"),
    ],
)  # fmt: skip
def test_all_else_is_closed(tmp_path: Path, method: str, path: str) -> None:
    assert ask(tmp_path, method, path).status_code == 404


def test_a_link_into_gradios_own_files_is_cut(tmp_path: Path) -> None:
    assert ask(tmp_path, "GET", "/?deep_link=x").json()["query"] == ""


def test_files_of_the_folder_alone_are_shown(tmp_path: Path) -> None:
    inside, beside = tmp_path / "in", tmp_path / "in-secret"
    for folder in (inside, beside):
        folder.mkdir()
        (folder / "a.jpg").write_bytes(b"x")
    (inside / "link.jpg").symlink_to(beside / "a.jpg")
    base = "/gradio_api/file="
    assert ask(inside, "GET", f"{base}{inside}/a.jpg").status_code == 200
    for path in (
        f"{beside}/a.jpg", f"{inside}/link.jpg", f"{inside}/../in-secret/a.jpg",
        f"{inside}/%00a.jpg", "a" * 5000, "~root/a.jpg",
    ):  # fmt: skip
        assert ask(inside, "GET", base + path).status_code == 404


@pytest.mark.parametrize("key", ["path", "url"])
@pytest.mark.parametrize(
    "value", ["/etc/passwd", "http://example.org/a.jpg", "data:image/png,x", 5]
)
def test_an_event_names_uploaded_files_alone(tmp_path: Path, key: str, value: object) -> None:
    file = {"path": f"{tmp_path}/a.jpg", "url": None, "meta": {"_type": "gradio.FileData"}}
    good = {"data": [file, [{"deep": {"er": file}}]], "fn_index": 0}
    accepted = ask(tmp_path, "POST", "/gradio_api/queue/join", json=good)
    assert (
        bytes.fromhex(accepted.json()["body"]) == json.dumps(good, separators=(",", ":")).encode()
    )
    bad = {"data": [[{"deep": {"er": {**file, key: value}}}]]}
    answer = ask(tmp_path, "POST", "/gradio_api/queue/join", json=bad)
    # Where a file is shown from is for the browser; it is never fetched here.
    harmless = key == "url" and str(value).startswith(("/", "http"))
    assert answer.status_code == (200 if harmless else 404 if value != 5 and key == "path" else 400)


def test_events_that_are_no_json_or_endless_are_refused(tmp_path: Path) -> None:
    path = "/gradio_api/queue/join"
    assert ask(tmp_path, "POST", path, content=b"{").status_code == 400
    assert ask(tmp_path, "POST", path, content=b"[" * 200_000).status_code == 400
    assert ask(tmp_path, "POST", path, content=b"1" * 1_000_001).status_code == 413


def test_a_body_is_as_large_as_allowed_stated_or_not(tmp_path: Path) -> None:
    limits = Limits(max_mb=0.01)
    most = b"x" * 10_000
    assert ask(tmp_path, "POST", "/api/locate", limits, content=most).status_code == 200
    assert ask(tmp_path, "POST", "/api/locate", limits, content=most + b"x").status_code == 413

    async def unstated() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b"x" * 1000

    answer = ask(tmp_path, "POST", "/api/locate", limits, content=unstated())
    assert answer.status_code == 413
    assert "0.01 MB" in answer.json()["error"]


def test_a_body_that_never_ends_is_given_up(tmp_path: Path) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(20)
        yield b"x"

    sent: list[Any] = []

    async def run() -> None:
        guard = Guard(Starlette(), Limits(timeout_s=0.2), tmp_path, ())
        chunks = slow()

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": await anext(chunks), "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/api/locate", "headers": []}
        await asyncio.wait_for(guard(scope, receive, send), 5)

    asyncio.run(run())
    assert sent[0]["status"] == 408


def test_bodies_fill_no_more_memory_than_four_of_the_largest(tmp_path: Path) -> None:
    size, statuses, inside, go = 1_000_000, [], 0, asyncio.Event()

    async def holding(scope: Any, receive: Any, send: Any) -> None:
        nonlocal inside
        await receive()
        inside += 1
        await go.wait()
        inside -= 1
        await JSONResponse({})(scope, receive, send)

    async def run() -> None:
        guard = Guard(holding, Limits(max_mb=1, max_batch_mb=1), tmp_path, ())
        transport = httpx.ASGITransport(app=guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:

            async def one() -> None:
                answer = await client.post("/api/locate", content=b"x" * size)
                statuses.append(answer.status_code)
                assert answer.status_code == 200 or "retry-after" in answer.headers

            waiting = [asyncio.create_task(one()) for _ in range(7)]
            while len(statuses) + inside < 7:
                await asyncio.sleep(0.01)
            assert (inside, statuses) == (4, [503] * 3)
            go.set()
            await asyncio.gather(*waiting)
            # All that was held is free again, of those refused too.
            await asyncio.gather(*(one() for _ in range(4)))

    asyncio.run(asyncio.wait_for(run(), 20))
    assert statuses == [503] * 3 + [200] * 8


def test_a_long_body_arrives_as_it_was_sent(tmp_path: Path) -> None:
    sent = bytes(range(256)) * 12_345
    arrived = ask(tmp_path, "POST", "/api/locate", content=sent).json()["body"]
    assert bytes.fromhex(arrived) == sent


@pytest.mark.parametrize(
    ("origin", "status"),
    [(None, 200), ("http://127.0.0.1:7860", 200), ("http://[::1]:7860", 200),
     ("https://example.org", 403), ("null", 403), ("http://127.0.0.1.example.org", 403)],
)  # fmt: skip
def test_a_page_elsewhere_sets_nothing_to_work(
    tmp_path: Path, origin: str | None, status: int
) -> None:
    headers = {} if origin is None else {"origin": origin}
    hosts = ("127.0.0.1", "localhost", "[::1]")
    for path in ("/api/locate", "/gradio_api/queue/join"):
        answer = ask(tmp_path, "POST", path, hosts=hosts, headers=headers, content=b"{}")
        assert answer.status_code == status
    # A link to the page is no harm.
    assert ask(tmp_path, "GET", "/", hosts=hosts, headers=headers).status_code == 200


def test_uploads_lose_their_metadata_before_anyone_sees_them(tmp_path: Path) -> None:
    sent = [("files", ("../../a b<>.png", photo(kind="PNG", exif=exif()), "image/png")),
            ("files", ("b.jpg", b"no photo", "image/jpeg")),
            ("files", ('c"\r\nX: y.exe', photo(exif=exif()), "image/jpeg"))]  # fmt: skip
    answer = ask(tmp_path, "POST", "/gradio_api/upload", files=sent)
    (a, content), (b, reason), (c, _) = answer.json()["files"]
    assert (a, b) == ("a b__.png", "b.jpg")
    assert "\n" not in c
    assert c.endswith(".exe.jpg")
    assert SECRET.hex() not in answer.text
    assert bytes.fromhex(content).startswith(b"\xff\xd8\xff")
    assert bytes.fromhex(reason).startswith(REFUSED + b"This is no photo")


def test_an_upload_without_a_photo_is_refused(tmp_path: Path) -> None:
    path = "/gradio_api/upload"
    one = ask(tmp_path, "POST", path, files=[("files", ("a.jpg", b"no photo", "image/jpeg"))])
    assert (one.status_code, "no photo" in one.text) == (400, True)
    for options in ({"content": b"x"}, {"json": {}}, {"files": {}}, {"data": {"a": "b"}}):
        assert ask(tmp_path, "POST", path, **options).status_code == 400
    many = [("files", (f"{k}.jpg", photo(), "image/jpeg")) for k in range(4)]
    assert ask(tmp_path, "POST", path, Limits(max_photos=3), files=many).status_code == 400
    assert ask(tmp_path, "POST", path, Limits(max_photos=4), files=many).status_code == 200
    large = [("files", ("a.jpg", io.BytesIO(b"x" * 2_000_000), "image/jpeg"))]
    assert ask(tmp_path, "POST", path, Limits(max_batch_mb=1), files=large).status_code == 413


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:7860", 200), ("localhost", 200), ("LOCALHOST:80", 200), ("[::1]:7860", 200),
     ("example.org", 400), ("127.0.0.1.example.org:7860", 400), ("", 400)],
)  # fmt: skip
def test_a_name_that_points_here_by_trick_is_not_served(
    tmp_path: Path, host: str, status: int
) -> None:
    names = ("127.0.0.1", "localhost", "[::1]")
    answer = ask(tmp_path, "GET", "/", hosts=names, headers={"host": host})
    assert answer.status_code == status
