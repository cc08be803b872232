"""The server of the tests keeps its word, faults included."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.sources.stand_in import (
    RateLimit,
    Reply,
    Request,
    StandIn,
    as_jpeg,
    as_json,
    broken,
    html_page,
    hung_up,
    jpeg,
    redirect,
    slow,
    too_many_requests,
    unavailable,
)


def test_request_arrives_as_sent_and_is_kept() -> None:
    def echo(request: Request) -> Reply:
        return as_json({"path": request.path, "q": request.query, "body": request.body.decode()})

    with StandIn(echo) as s, httpx.Client() as client:
        got = client.post(f"{s.url}/a%20b?x=1&y=%C3%A4", json={"k": 1}, headers={"X-Key": "v"})
        client.get(f"{s.url}/c")
    assert got.json() == {"path": "/a b", "q": {"x": "1", "y": "ä"}, "body": '{"k":1}'}
    assert [(r.request.method, r.path, r.status) for r in s.requests] == [
        ("POST", "/a b", 200),
        ("GET", "/c", 200),
    ]
    assert s.requests[0].request.headers["x-key"] == "v"
    assert s.requests[0].request.json() == {"k": 1}
    assert s.requests[0].time_s < s.requests[1].time_s <= time.monotonic()


def test_faults_answer_as_often_as_said() -> None:
    with StandIn(lambda _: as_json({})) as s, httpx.Client() as client:
        s.faults.add(too_many_requests(7), when="/a", times=2)
        s.faults.add(unavailable(502), when=lambda r: r.query.get("n") == "2", after=1)
        statuses = [client.get(f"{s.url}{p}").status_code for p in ("/a", "/b", "/a", "/a", "/b")]
        assert statuses == [429, 200, 429, 200, 200]
        assert [client.get(f"{s.url}/?n=2").status_code for _ in range(3)] == [200, 502, 200]
    assert [r.fault for r in s.requests[:2]] == [True, False]


def test_retry_after_in_seconds_and_as_date() -> None:
    with StandIn(lambda r: too_many_requests(3, as_date=r.path == "/d")) as s:
        assert httpx.get(s.url).headers["Retry-After"] == "3"
        assert httpx.get(f"{s.url}/d").headers["Retry-After"].endswith("GMT")


def test_broken_and_slow_and_lying_replies() -> None:
    body = jpeg(seed=3)
    with StandIn(lambda _: as_jpeg(body)) as s, httpx.Client() as client:
        s.faults.add(broken(as_jpeg(body)))
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(s.url)
        s.faults.add(hung_up())
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(s.url)
        s.faults.add(slow(as_jpeg(body), bytes_per_s=50))
        with pytest.raises(httpx.ReadTimeout):
            client.get(s.url, timeout=0.01)
        s.faults.add(Reply(b"abc", delay_s=0.05, told_length=-1))
        start = time.monotonic()
        assert client.get(s.url).content == b"abc"
        assert time.monotonic() - start >= 0.05
        s.faults.add(html_page("image/jpeg"))
        lie = client.get(s.url)
        assert lie.headers["Content-Type"].startswith("image/jpeg")
        assert lie.content.startswith(b"<!DOCTYPE html")
        s.faults.add(redirect("http://169.254.169.254/"))
        assert client.get(s.url).next_request.url.host == "169.254.169.254"
        assert client.get(s.url).content == body


def test_rate_limit_refuses_what_is_beyond_it() -> None:
    with StandIn(lambda _: as_json({}), RateLimit(per_s=2, burst=3)) as s, httpx.Client() as client:
        statuses = [client.get(s.url).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert s.limit is not None
    assert s.limit.refused == 2


def test_error_in_a_server_comes_out() -> None:
    def wrong(_: object) -> Reply:
        raise KeyError("mistake of the test")

    with pytest.raises(KeyError, match="mistake"), StandIn(wrong) as s:
        assert httpx.get(s.url).status_code == 500


def test_jpegs_differ_by_seed(tmp_path: Path) -> None:
    assert len({jpeg(seed=n) for n in range(50)}) == 50
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(30, 20, seed=1))
    with Image.open(path) as picture:
        assert picture.size == (30, 20)
