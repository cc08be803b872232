"""Whole collections from the YFCC100M dump and from Google Landmarks v2, by the real collector."""

from __future__ import annotations

import bz2
import csv
import json
import random
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from geopak.errors import SourceError
from geopak.sources.running import collect
from tests.sources.collecting import checked, files_of, rows_of, typed
from tests.sources.stand_in import Reply, Request, StandIn, as_jpeg, jpeg, redirect
from tests.sources.wikimedia_server import Wiki, WikimediaServer, point
from tests.sources.yfcc_dump import Files, as_text, dump_line

KARACHI, QUETTA, DELHI = (24.86, 67.01), (30.18, 66.99), (28.61, 77.21)


def collected(source: str, out: Path, **more: Any) -> dict[str, Any]:
    return collect(checked(typed(source, out, **more))).summary


def reasons(out: Path) -> dict[str, str]:
    with sqlite3.connect(out / "ledger.sqlite") as db:
        return dict(db.execute("SELECT source_id, reason FROM photos WHERE state = 'rejected'"))


class Flickr(StandIn):
    """Pictures of the dump, and the dump itself."""

    def __init__(self, dump: bytes) -> None:
        super().__init__()
        self.files = Files({"/dump.bz2": dump})

    def respond(self, request: Request) -> Reply:
        if request.path == "/dump.bz2":
            return self.files(request)
        number = int(request.path.rpartition("/")[2].partition("_")[0]) - 6985418911
        if number == 3:
            return Reply(b"not here", 404)
        if number == 4:
            # What Flickr does with photos that were taken down.
            return redirect(f"http://localhost:{self.port}/pw/images/en-us/photo_unavailable.png")
        return as_jpeg(jpeg(64, 48, number))


@pytest.mark.parametrize("over_the_network", [False, True])
def test_yfcc100m(tmp_path: Path, over_the_network: bool) -> None:
    rng = random.Random(1)
    lines = [dump_line(k, *KARACHI) for k in range(5)]
    lines += [dump_line(5, *QUETTA, license_url="http://example.org/none", accuracy=11)]
    lines += [dump_line(6, *QUETTA, marker=1), dump_line(7, *DELHI), dump_line(8)]
    lines += [
        dump_line(k, round(rng.uniform(40, 60), 4), 10, description=rng.randbytes(90).hex())
        for k in range(9, 3000)
    ]
    rng.shuffle(lines)
    dump = bz2.compress(as_text(lines), 1)
    (tmp_path / "dump.bz2").write_bytes(dump)
    out = tmp_path / "out"
    with Flickr(dump) as server:
        file = f"{server.url}/dump.bz2" if over_the_network else tmp_path / "dump.bz2"
        how = {"source.files": file, "source.pictures": server.url, "source.part_mb": 0.05}
        collected("yfcc100m", out, **how)
        assert reasons(out) == {"6985418914": "gone", "6985418915": "forbidden_address"}
        rows = {row["id"].rpartition("-")[2]: row for row in rows_of(out / "photos.csv")}
        assert set(rows) == {"6985418911", "6985418912", "6985418913"}
        row = rows["6985418912"]
        assert (row["source"], row["license"], row["author"]) == (
            "yfcc100m", "cc-by-2.0", "Ana + Bé",
        )  # fmt: skip
        assert float(row["accuracy_km"]) == 0.1
        assert (out / row["path"]).read_bytes() == jpeg(64, 48, 1)
        # Once more: nothing is asked again, nothing changes.
        files, asked = files_of(out), len(server.requests)
        collected("yfcc100m", out, **how)
        assert files_of(out) == files
        assert len(server.requests) == asked
    with sqlite3.connect(out / "ledger.sqlite") as db:
        refused = dict(db.execute("SELECT reason, count(*) FROM refused GROUP BY reason"))
        (seen,) = db.execute("SELECT sum(seen) FROM queries").fetchone()
    assert seen == 3000
    assert refused["video"] == refused["outside_region"] == 1


def test_a_truncated_dump_keeps_what_came_before(tmp_path: Path) -> None:
    rng = random.Random(2)
    lines = [
        dump_line(k, *(KARACHI if k == 20 else (50, 10)), description=rng.randbytes(90).hex())
        for k in range(2000)
    ]
    whole = bz2.compress(as_text(lines), 1)
    dump = tmp_path / "dump.bz2"
    dump.write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    with Flickr(whole) as server:
        how = {"source.files": dump, "source.pictures": server.url, "source.part_mb": 0.02}
        with pytest.raises(SourceError, match=r"dump\.bz2 is truncated at byte"):
            collected("yfcc100m", out, **how)
        dump.write_bytes(whole)
        collected("yfcc100m", out, **how)
    assert len(rows_of(out / "photos.csv")) == 1
    with sqlite3.connect(out / "ledger.sqlite") as db:
        assert db.execute("SELECT sum(seen) FROM queries").fetchone() == (2000,)


def test_landmarks_v2(tmp_path: Path) -> None:
    upload = "https://upload.wikimedia.org/wikipedia/commons/a/ab"
    wiki = Wiki(
        categories={
            "Category:Mohatta Palace": {"coordinates": [point(*KARACHI)]},
            "Category:India Gate": {"coordinates": [point(*DELHI)]},
        }
    )
    images = []
    for number, (title, landmark) in enumerate([("Mohatta Palace", 5)] * 3 + [("India Gate", 6)]):
        name = f"{title} {number}.jpg"
        images.append((f"{number:016x}", f"{upload}/{quote(name.replace(' ', '_'))}", landmark))
        wiki.files[f"File:{name}"] = {
            "width": 1200,
            "height": 900,
            "extmetadata": {
                "LicenseUrl": "https://creativecommons.org/licenses/by-sa/4.0",
                "Artist": "<b>Ana</b>",
            },
        }
    del wiki.files["File:Mohatta Palace 2.jpg"]
    labels = [
        (5, "http://commons.wikimedia.org/wiki/Category:Mohatta_Palace"),
        (6, "http://commons.wikimedia.org/wiki/Category:India_Gate"),
    ]
    for name, header, table in (
        ("labels.csv", ("landmark_id", "category"), labels),
        ("train.csv", ("id", "url", "landmark_id"), images),
    ):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *table])  # type: ignore[list-item]
    out = tmp_path / "out"
    with WikimediaServer(wiki) as server:
        how = {
            "source.images": tmp_path / "train.csv", "source.labels": tmp_path / "labels.csv",
            "source.commons_api": f"{server.url}/commons/w/api.php",
            "source.wikidata_api": f"{server.url}/wikidata/w/api.php",
            "allowed_hosts": "[127.0.0.1]",
        }  # fmt: skip
        with pytest.raises(SourceError, match="Set contact="):
            collected("landmarks_v2", out, **how)
        assert not server.requests
        collected("landmarks_v2", out, contact="me@example.org", **how)
    rows = rows_of(out / "photos.csv")
    assert len(rows) == 2
    assert {(row["license"], row["author"], row["album"]) for row in rows} == {
        ("cc-by-sa-4.0", "Ana", "landmark 5")
    }
    assert {float(row["accuracy_km"]) for row in rows} == {2.0}
    assert {int(row["width"]) for row in rows} == {960}
    with sqlite3.connect(out / "ledger.sqlite") as db:
        refused = dict(db.execute("SELECT reason, count(*) FROM refused GROUP BY reason"))
    assert refused == {"gone": 1, "landmark_outside_region": 1}
    assert json.loads((out / "summary.json").read_text())
