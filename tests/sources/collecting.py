"""A Flickr with lasting and passing faults, and collections from it, in this process or another."""

from __future__ import annotations

import csv
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from geopak.cli import compose
from geopak.options import options, plain
from geopak.schema.collecting import CollectConfig
from geopak.sources.running import Ended, collect
from tests.sources.flickr_server import KEY, FlickrServer, Shot, shots
from tests.sources.stand_in import Reply, Request, as_jpeg, html_page, jpeg, unavailable

# The box around Pakistan, and one in a corner of Balochistan where there is nothing else.
BOX = (24.0, 61.0, 37.0, 77.0)
DESERT = (27.5, 63.0, 29.0, 65.5)


def some_shots(count: int = 400, seed: int = 3) -> list[Shot]:
    """Photos all over the country, and some more in its emptiest province."""
    few = count // 5
    return shots(count - few, BOX, seed) + shots(few, DESERT, seed + 1, first_id=10_000)


class FaultyFlickr(FlickrServer):
    """A Flickr whose pictures have faults that depend on nothing but the photo.

    Every 13th is gone, every 17th a web page, every 19th small; every 11th has the same content as
    its neighbour.

    Args:
        shots: its photos.
        stumbles: the first request for each picture and each search is answered with 503.
        how: as of :class:`FlickrServer`.
    """

    def __init__(self, shots: list[Shot], stumbles: bool = False, **how: Any) -> None:
        super().__init__(shots, **how)
        self._stumbles = stumbles
        self._asked: set[str] = set()
        self._asked_lock = threading.Lock()
        self._pictures: dict[tuple[int, int], bytes] = {}

    def begin_anew(self) -> None:
        """Forgets who has asked."""
        self.forget()
        self._asked.clear()

    def respond(self, request: Request) -> Reply:
        if self._stumbles:
            with self._asked_lock:
                first = request.target not in self._asked
                self._asked.add(request.target)
            if first:
                return unavailable()
        if not request.path.startswith("/pictures/"):
            return super().respond(request)
        number = int(request.path.rpartition("/")[2].partition("_")[0])
        if number % 13 == 0:
            return Reply(b"gone", 404)
        if number % 17 == 0:
            return html_page("image/jpeg")
        side = 16 if number % 19 == 0 else 40
        seed = number + 1 if number % 11 == 0 else number
        if (seed, side) not in self._pictures:
            self._pictures[seed, side] = jpeg(side, side, seed)
        return as_jpeg(self._pictures[seed, side])


def typed(source: str, out: Path, **more: Any) -> list[str]:
    """What makes a collection from a server of this machine quick, as one would type it."""
    settings = {
        "source": source, "allow_private_hosts": "true", "min_side_px": 32, "rate_per_s": 10000,
        "photos_per_s": 10000, "backoff_s": 0.01, "targets": "null", "out": out, **more,
    }  # fmt: skip
    return [f"{key}={value}" for key, value in settings.items()]


def checked(overrides: list[str]) -> CollectConfig:
    """The configuration of a collection."""
    cfg = compose("collect", overrides)
    return options(CollectConfig, {k: v for k, v in plain(cfg).items() if k != "hydra"}, "")


def overrides(server: FlickrServer, out: Path, **more: Any) -> list[str]:
    """What makes a collection from the stand-in of Flickr quick, as one would type it."""
    settings = {
        "source.api": server.api, "source.photo_hosts": "[127.0.0.1]",
        "source.result_cap": server.cap, "source.per_page": min(server.most_per_page, server.cap),
        "source.pause_s": 0.01, "source.uploaded_until": "2024-01-01", **more,
    }  # fmt: skip
    return typed("flickr", out, **settings)


def configured(server: FlickrServer, out: Path, **more: Any) -> CollectConfig:
    """The configuration of such a collection."""
    return checked(overrides(server, out, **more))


def collect_here(server: FlickrServer, out: Path, **more: Any) -> Ended:
    """Collects in this process."""
    os.environ["FLICKR_API_KEY"] = KEY
    return collect(configured(server, out, **more))


def start(server: FlickrServer, out: Path, **more: Any) -> subprocess.Popen[str]:
    """Begins a collection in a process of its own."""
    environment = {**os.environ, "FLICKR_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "geopak.collect", *overrides(server, out, **more)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ledger_of(out: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All of a ledger that must not depend on when it was interrupted."""
    with sqlite3.connect(out / "ledger.sqlite") as db:
        return {
            "queries": db.execute(
                "SELECT source, identity, province, wave, seq, state, error, seen "
                "FROM queries ORDER BY source, identity"
            ).fetchall(),
            "photos": db.execute(
                "SELECT source, source_id, record, province, query_seq, position, state, barred, "
                "reason, detail, sha256, path, width, height, num_bytes, changes "
                "FROM photos ORDER BY source, source_id"
            ).fetchall(),
            "refused": db.execute("SELECT * FROM refused ORDER BY 1, 2, 3").fetchall(),
        }


def files_of(out: Path) -> dict[str, bytes]:
    """All files of a collection but the ledger and the summary, which counts requests."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and "ledger" not in path.name and path.name != "summary.json"
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
