"""Folder -> collection -> published set -> collection, by the commands, killed on the way."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import ExifTags, Image

from ..end_to_end.conftest import run_command
from .photo_files import exif, takeout

# In Sindh, Punjab, Islamabad, Gilgit-Baltistan, Balochistan; the last is in India.
PLACES = [(24.86, 67.0), (31.55, 74.34), (33.69, 73.05), (35.9, 74.3), (30.2, 67.0), (28.61, 77.2)]
COLUMNS = ["latitude", "longitude", "province", "license", "author", "captured_at", "accuracy_km"]


def make_photos(folder: Path, number: int) -> Path:
    """Photos in subfolders, every third with its position in a Takeout's sidecar."""
    for k in range(number):
        lat, lon = PLACES[k % 6]
        lat += k // 6 / 1000
        pixels = np.random.default_rng(k).integers(0, 255, (24, 32, 3), np.uint8)
        picture = Image.fromarray(pixels).resize((320, 240))
        path = folder / f"trip {k % 4}" / f"é {k:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        base = {ExifTags.Base.Artist: f"Author {k % 3}", ExifTags.Base.Copyright: "CC BY-SA 4.0"}
        if k % 3:
            details = {ExifTags.Base.DateTimeOriginal: f"2021:05:03 10:11:{k % 60:02d}"}
            made = exif(lat, lon, gps={0x1F: 8.0}, base=base, details=details)
        else:
            made = exif(base=base)
            sidecar = path.with_name(f"{path.name}.supplemental-metadata.json")
            sidecar.write_text(takeout(path.name, camera=(lat, lon)))
        picture.save(path, exif=made)
    return folder


def table_of(out: Path) -> pd.DataFrame:
    """The photo table with the hash of each file, by hash."""
    table = pd.read_csv(out / "photos.csv", dtype={"author": str, "captured_at": str})
    table["sha256"] = [hashlib.sha256((out / p).read_bytes()).hexdigest() for p in table["path"]]
    assert table["sha256"].is_unique
    return table.set_index("sha256").sort_index()


def collect(*arguments: str) -> str:
    ran = run_command("collect", *arguments)
    assert ran.status == 0, ran.text
    return ran.text


def number_of_queries(out: Path) -> int:
    with sqlite3.connect(out / "ledger.sqlite") as ledger:
        return ledger.execute("SELECT count(*) FROM queries").fetchone()[0]


def test_a_folder_that_has_got_photos_is_asked_again(tmp_path):
    photos, out = make_photos(tmp_path / "photos", 6), tmp_path / "out"
    arguments = ["source=folder", f"source.root={photos}", f"out={out}"]
    collect(*arguments)
    assert len(table_of(out)) == 5
    # Number 8 lies in Islamabad and has its position in the file.
    more = make_photos(tmp_path / "more", 12) / "trip 0" / "é 0008.jpg"
    (photos / "trip 0" / "new.jpg").write_bytes(more.read_bytes())
    before = number_of_queries(out)
    collect(*arguments)
    assert number_of_queries(out) == before + 1
    assert table_of(out)["province"].value_counts()["ICT"] == 2
    assert len(table_of(out)) == 6


@pytest.mark.parametrize("form", ["parquet", "imagefolder"])
def test_what_was_collected_and_published_can_be_collected_again(tmp_path, monkeypatch, form):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    photos = make_photos(tmp_path / "photos", 24)
    (photos / "none.heic").write_bytes(b"x")
    first, second, to = tmp_path / "first", tmp_path / "second", tmp_path / "published"
    collect("source=folder", f"source.root={photos}", f"out={first}")
    rejected = pd.read_csv(first / "rejected.csv")
    assert rejected["reason"].value_counts().to_dict() == {"outside_region": 4, "no_decoder": 1}
    ran = run_command(
        "publish", f"root={first}", f"table={first / 'photos.csv'}", f"to={to}", f"format={form}"
    )
    assert ran.status == 0, ran.text
    assert "left out" not in ran.text
    collect("source=huggingface", f"source.dataset={to}", f"out={second}")
    before, after = table_of(first), table_of(second)
    assert len(before) == 20
    pd.testing.assert_frame_equal(before[COLUMNS], after[COLUMNS])
    assert set(after["source"]) == {"huggingface"}
    # Nothing is read twice.
    text = collect("source=huggingface", f"source.dataset={to}", f"out={second}")
    assert "20 photos in" in text
    pd.testing.assert_frame_equal(table_of(second), after)


def ledger_of(out: Path) -> list[tuple]:
    with sqlite3.connect(out / "ledger.sqlite") as database:
        queries = database.execute("SELECT identity, state FROM queries ORDER BY identity")
        photos = database.execute(
            "SELECT source_id, state, sha256, path FROM photos ORDER BY source_id"
        )
        return [*queries.fetchall(), *photos.fetchall()]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "huggingface"])
def test_a_killed_collection_ends_as_an_undisturbed_one(tmp_path, source):
    photos = make_photos(tmp_path / "photos", 240)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    section = ["source=folder", f"source.root={photos}", "source.photos_per_query=7"]
    if source == "huggingface":
        collect(*section, f"out={tmp_path / 'first'}")
        table = f"table={tmp_path / 'first' / 'photos.csv'}"
        ran = run_command(
            "publish", f"root={tmp_path / 'first'}", table, f"to={tmp_path / 'set'}",
            "rows_per_group=10",
        )  # fmt: skip
        assert ran.status == 0, ran.text
        section = ["source=huggingface", f"source.dataset={tmp_path / 'set'}",
                   "source.rows_per_query=4"]  # fmt: skip

    def run(out: Path, kill_after_s: float | None) -> int:
        process = subprocess.Popen(
            [sys.executable, "-m", "geopak.collect", *section, f"out={out}"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return process.wait(kill_after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return process.wait()

    begun = time.monotonic()
    assert run(tmp_path / "whole", None) == 0
    took_s = time.monotonic() - begun
    delays = np.random.default_rng(1).uniform(0.4, 1.0, 6) * took_s
    statuses = [run(tmp_path / "killed", float(delay)) for delay in delays]
    assert -signal.SIGKILL in statuses
    assert run(tmp_path / "killed", None) == 0
    assert ledger_of(tmp_path / "killed") == ledger_of(tmp_path / "whole")
    pd.testing.assert_frame_equal(table_of(tmp_path / "killed"), table_of(tmp_path / "whole"))
