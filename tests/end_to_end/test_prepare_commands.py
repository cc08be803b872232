"""Preparation through its real commands: sources of all kinds, a kill, Dask, doctor and leaks."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely

from geopak.data.manifest import read_manifest

from .conftest import run_command

ONE = "executor.workers=1"


@pytest.fixture(scope="module")
def root(home: Path) -> Path:
    return home / "data" / "synthetic"


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_manifest(folder)["content"]
    return found


def test_the_set_says_what_it_is(root: Path) -> None:
    folder = root / "prepared"
    manifest = read_manifest(folder)
    photos = pd.read_parquet(folder / "photos.parquet")
    rejected = pd.read_parquet(folder / "rejected.parquet")
    summary = json.loads((folder / "summary.json").read_text())
    num_rows = sum(entry["rows"] for entry in manifest["inputs"]["tables"])
    assert num_rows == len(photos) + len(rejected) == summary["rows"]["in"]
    assert photos["phash"].map(len).eq(32).all()
    assert photos["sha256"].str.fullmatch("[0-9a-f]{64}").all()
    assert photos["look"].is_unique
    lines = (root / "photos.csv").read_text().splitlines()
    for _, row in photos.sample(20, random_state=0).iterrows():
        assert lines[row["line"] - 1].split(",")[0] == row["id"]
    assert summary["set_id"] == manifest["set_id"]


def test_the_report_needs_nothing_else(root: Path) -> None:
    page = (root / "prepared" / "report.html").read_text()
    references = re.findall(r"""(?:src|href)=["']([^"']{0,30})|url\(([^)]{0,30})""", page)
    assert references
    assert all((a or b).startswith("data:image/") for a, b in references)
    for reason in pd.read_parquet(root / "prepared" / "rejected.parquet")["reason"].unique():
        assert reason in page
    assert page.count('src="data:image/jpeg') >= 5


def test_cells_open_as_areas(root: Path) -> None:
    areas = gpd.read_file(root / "prepared" / "cells.geojson")
    assert areas.crs.to_epsg() == 4326
    assert areas.geometry.is_valid.all()
    photos = pd.read_parquet(root / "prepared" / "photos.parquet")
    train = photos[photos["split"] == "train"]
    own = areas.set_index("cell_id").geometry.loc[train["cell_id"]]
    inside = shapely.contains_xy(own.values, train["longitude"], train["latitude"])
    assert inside.all()


def test_doctor(root: Path, tmp_path: Path) -> None:
    outcome = run_command("prepare", "doctor")
    assert outcome.status == 0, outcome.text
    lines = outcome.text.splitlines()
    assert lines[1].startswith("leaks: 0 of ")
    assert lines[2].startswith("0 wrong, ")
    assert any(line.startswith("[weak] few test photos: ") for line in lines)
    assert "What would help most:" in lines

    other = tmp_path / "other"
    outcome = run_command("prepare", ONE, "seed=3", f"out={other}", "split=random")
    assert outcome.status == 0, outcome.text
    assert "split: a random split puts photos of one scene into train and test" in outcome.text
    outcome = run_command("prepare", "doctor", f"prepared={other}", f"against={root / 'prepared'}")
    text = outcome.text
    assert "[wrong] random split" in text
    assert "[wrong] leaks: Of " in text
    assert "config.seed: 3 here, 17 there" in text
    assert "config.split.method: random here, places there" in text
    same = run_command("prepare", "doctor", f"against={root / 'prepared'}")
    assert same.text.rstrip().endswith("is the same set.")

    photos = pd.read_parquet(other / "photos.parquet")
    last = int(photos["cell_id"].max())
    wrong = photos.index[(photos["split"] == "val") & (photos["cell_id"] < last)][0]
    photos.loc[wrong, "cell_id"] = last
    photos.to_parquet(other / "photos.parquet", index=False)
    text = run_command("prepare", "doctor", f"prepared={other}").text
    assert "[wrong] altered file: photos.parquet is missing or not what manifest.json says." in text
    assert "1 photos that are not in train are not in the nearest cell" in text
    photos.drop(columns="near_border").to_parquet(other / "photos.parquet", index=False)
    outcome = run_command("prepare", "doctor", f"prepared={other}")
    assert outcome.status == 2
    assert "has no column near_border" in outcome.text
    assert "photos.parquet is missing or not what manifest.json says" in outcome.text
    outcome = run_command("prepare", "doctor", f"prepared={tmp_path}")
    assert outcome.status == 2
    assert "No manifest.json in" in outcome.text


def test_leaks_of_a_split_made_elsewhere(root: Path, tmp_path: Path) -> None:
    photos = pd.read_parquet(root / "prepared" / "photos.parquet")
    table = photos[["id", "path", "latitude", "longitude", "author", "captured_at"]].copy()
    table["split"] = np.where(np.arange(len(table)) % 4 == 0, "holdout", "fit")
    table = table.rename(columns={"latitude": "lat", "longitude": "lon"})
    table.to_csv(tmp_path / "theirs.csv", index=False)
    out = tmp_path / "leaks.json"
    names = ["train=fit", "held_out=[holdout]"]
    outcome = run_command("prepare", "leaks", f"table={tmp_path / 'theirs.csv'}", f"out={out}",
                          *names)  # fmt: skip
    assert outcome.status == 0, outcome.text
    leak = json.loads(out.read_text())["held_out"]["holdout"]
    assert leak["within_km"]["0.25"] > 0
    assert leak["same_author_day"] > 0
    assert leak["near_duplicate"] is None
    assert "unknown" in outcome.text

    copied = table.iloc[[0]].assign(id="again", split="fit")
    outside = table.iloc[[0, 0]].assign(id=["out", "none"], path=["../secret.jpg", None])
    pd.concat([table, copied, outside]).to_csv(tmp_path / "hashed.csv", index=False)
    outcome = run_command(
        "prepare",
        "leaks",
        f"table={tmp_path / 'hashed.csv'}",
        "workers=1",
        "hash_photos=true",
        f"root={root}",
        *names,
        f"out={out}",
    )
    assert outcome.status == 0, outcome.text
    assert json.loads(out.read_text())["held_out"]["holdout"]["near_duplicate"] == 1
    table.drop(columns="split").to_csv(tmp_path / "none.csv", index=False)
    outcome = run_command("prepare", "leaks", f"table={tmp_path / 'none.csv'}")
    assert outcome.status == 2
    assert "no column 'split'" in outcome.text


def test_sources_of_all_kinds_make_one_set(root: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(root / "photos.csv", dtype=str)
    third = len(frame) // 3
    frame[:third].rename(columns={"latitude": "Lat", "longitude": "breite"}).to_csv(
        tmp_path / "a.tsv", sep="\t", index=False
    )
    frame[third : 2 * third].to_parquet(tmp_path / "b.parquet", index=False)
    rest = frame[2 * third :]
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Point",
                "coordinates": [float(row["longitude"]), float(row["latitude"])],
            },
            "properties": {
                k: v for k, v in row.items() if k not in ("latitude", "longitude") and pd.notna(v)
            },
        }
        for _, row in rest.iterrows()
    ]
    (tmp_path / "c.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": features})
    )
    tables = ",".join(str(tmp_path / name) for name in ("a.tsv", "b.parquet", "c.geojson"))
    outcome = run_command(
        "prepare", ONE, f"tables=[{tables}]", f"out={tmp_path / 'set'}",
        "columns.longitude=[breite]",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    mine, whole = content(tmp_path / "set"), content(root / "prepared")
    assert {k: mine[k] for k in ("photos", "cells", "photo_files")} == {
        k: whole[k] for k in ("photos", "cells", "photo_files")
    }
    files = pd.read_parquet(tmp_path / "set" / "photos.parquet")["file"]
    assert set(files) == {"a.tsv", "b.parquet", "c.geojson"}


def test_a_folder_of_photos_is_a_source(root: Path, tmp_path: Path) -> None:
    outcome = run_command(
        "prepare", ONE, "tables=[]", f"folders=[{root / 'photos'}]", f"out={tmp_path / 'set'}"
    )
    assert outcome.status == 0, outcome.text
    photos = pd.read_parquet(tmp_path / "set" / "photos.parquet")
    known = pd.read_parquet(root / "prepared" / "photos.parquet")
    assert len(photos) > 0.9 * len(known)
    places = photos.merge(known, on="path", suffixes=("", "_known"))
    assert (places["latitude"] - places["latitude_known"]).abs().max() < 1e-4


def test_dask_makes_the_same_set(root: Path, tmp_path: Path) -> None:
    outcome = run_command(
        "prepare", "executor=dask", "executor.workers=2", "executor.partition_size=100",
        f"out={tmp_path / 'set'}", f"work={tmp_path / 'work'}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    assert content(tmp_path / "set") == content(root / "prepared")


def test_killed_and_started_again(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("prepared", ".*"))
    command = [
        sys.executable, "-m", "geopak.prepare", f"root={copy}", ONE, "executor.partition_size=20",
    ]  # fmt: skip
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list((copy / ".examined").glob("*/*/*.arrow")) and time.monotonic() < until:
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not (copy / "prepared").exists()
    assert list((copy / ".examined").glob("*/*/*.arrow"))
    outcome = run_command("prepare", f"root={copy}", ONE)
    assert outcome.status == 0, outcome.text
    assert content(copy / "prepared") == content(root / "prepared")
    hidden = {p.name for p in copy.iterdir() if p.name.startswith(".")}
    assert hidden == {".examined", ".prepared.lock"}


@pytest.mark.parametrize("method", ["places", "spatial_blocks"])
def test_no_held_out_photo_is_shown_in_train(root: Path, tmp_path: Path, method: str) -> None:
    outcome = run_command("prepare", ONE, f"split={method}", f"out={tmp_path / 'set'}", "seed=2")
    assert outcome.status == 0, outcome.text
    summary = json.loads((tmp_path / "set" / "summary.json").read_text())
    km = summary["config"]["split"]["min_distance_km"]
    out = tmp_path / "leaks.json"
    outcome = run_command(
        "prepare", "leaks", f"table={tmp_path / 'set/photos.parquet'}", f"distances_km=[{km}]",
        f"out={out}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    for leak in json.loads(out.read_text())["held_out"].values():
        assert leak["num_photos"] > 0
        assert leak["within_km"] == {f"{km:g}": 0}
        assert leak["same_author_day"] == leak["near_duplicate"] == 0


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["split=place"], "Did you mean split=places?"),
        (["split.block_km=-1"], "split.block_km must be between"),
        (["quality.min_side_px=big"], "quality.min_side_px='big' must be an integer or null"),
        (["cells.rural_radius_cap=3"], "Did you mean 'cells.rural_radius_cap_km'"),
        (["executor.workers=0"], "executor.workers"),
        (["indoor.checkpoint=x.pth"], "indoor.categories"),
        (["split.previous=nowhere"], "split.previous takes the folder of a prepared set"),
        (["tables=[nothing.csv]"], "nothing.csv"),
        (["columns.lattitude=[lat]"], "columns.lattitude"),
        (["region.boundaries=none.gpkg"], "none.gpkg"),
    ],
)
def test_mistakes_are_told_before_any_work(
    root: Path, tmp_path: Path, arguments: list[str], needle: str
) -> None:
    outcome = run_command("prepare", f"out={tmp_path / 'set'}", *arguments)
    assert outcome.status != 0
    assert needle in outcome.text
    assert "Traceback" not in outcome.text
    assert list(tmp_path.iterdir()) == []


def test_nothing_odd_about_a_rejected_row_ends_the_run(root: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(root / "photos.csv", dtype=str)
    (root / "photos" / "page.jpg").write_text("%!PS-Adobe-3.0\nshowpage\n")
    odd = frame.iloc[[0, 1, 2]].assign(
        id=["long", "<script>alert(1)</script>", "page"],
        path=["x" * 5000, "none.jpg", "photos/page.jpg"],
    )
    pd.concat([frame, odd]).to_csv(tmp_path / "t.csv", index=False)
    outcome = run_command(
        "prepare", ONE, f"tables=[{tmp_path / 't.csv'}]", f"out={tmp_path / 'set'}"
    )
    (root / "photos" / "page.jpg").unlink()
    assert outcome.status == 0, outcome.text
    rejected = pd.read_parquet(tmp_path / "set" / "rejected.parquet").set_index("id")["reason"]
    assert rejected["long"] == "file_missing"
    assert rejected["page"].startswith("undecodable_")
    assert "<script>" not in (tmp_path / "set" / "report.html").read_text()


def test_the_id_of_a_set_is_of_its_content(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "photos.csv", tmp_path / "renamed.csv")
    outcome = run_command(
        "prepare", ONE, f"tables=[{tmp_path / 'renamed.csv'}]", f"out={tmp_path / 'set'}"
    )
    assert outcome.status == 0, outcome.text
    own, renamed = read_manifest(root / "prepared"), read_manifest(tmp_path / "set")
    assert own["set_id"] == renamed["set_id"]
    assert own["inputs"]["tables"][0]["file"] != renamed["inputs"]["tables"][0]["file"]
