"""The demo: every step in order, in any country, and what it promises of its results."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import geopandas
import pandas as pd
import pytest
from shapely.geometry import box

from geopak.checkpoint import read_checkpoint
from geopak.cli import CONFIG_DIR, compose
from geopak.errors import ConfigError

from .conftest import TINY, Outcome, run_command


def quoted(overrides: list[str]) -> str:
    return "[" + ",".join(f"'{o}'" for o in overrides) + "]"


def run_demo(*arguments: str, num_photos: int = 420) -> Outcome:
    phase = quoted(TINY)
    photos = [f"num_photos={num_photos}", "workers=1", "image.short_side_px=[72,80]"]
    return run_command(
        "demo",
        *arguments,
        f"synthetic={quoted(photos)}",
        f"train={{0: {phase}, 1: {phase}, 2: {phase}}}",
        "evaluate=[bootstrap_resamples=40]",
    )


def test_demo_runs_every_step_and_sums_up(home: Path) -> None:
    outcome = run_demo(f"root={home / 'data' / 'demo'}")
    assert outcome.status == 0, outcome.text
    folder = home / "outputs" / "demo"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["phases"]) == {"0", "1", "2"}
    for values in summary["phases"].values():
        assert values["median_km"] > 0
        assert 0 <= values["province_macro_acc"] <= 1
    assert set(summary["baselines"]) == {"densest_cell", "province_centroid_true"}
    assert summary["seconds"]["total"] > 0
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["context"]["split"] == "test"
    assert report["context"]["calibration"].startswith("temperatures ")
    assert report["end_to_end"]["median_km"]["value"] == summary["phases"]["2"]["median_km"]
    assert (folder / "report" / "report.html").is_file()
    assert (folder / "prediction.png").is_file()
    assert "baseline: densest cell" in outcome.text
    assert summary["leaks"].startswith("leaks: 0 of ")
    assert summary["leaks"] in outcome.text


@pytest.mark.slow
def test_demo_of_another_country_needs_no_change_in_code(home: Path) -> None:
    outcome = run_demo("region=bangladesh", num_photos=560)
    assert outcome.status == 0, outcome.text
    folder, root = home / "outputs" / "demo-bangladesh", home / "data" / "synthetic-bangladesh"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["phases"]) == {"0", "1", "2"}
    divisions = {
        "Barishal", "Chattogram", "Dhaka", "Khulna", "Mymensingh", "Rajshahi", "Rangpur", "Sylhet"
    }  # fmt: skip
    photos = pd.read_parquet(root / "prepared" / "photos.parquet")
    assert set(photos["province"]) == divisions
    for split in ("train", "val", "test"):
        assert set(photos.loc[photos["split"] == split, "province"]) == divisions
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["end_to_end"]["median_km"]["value"] == summary["phases"]["2"]["median_km"]
    assert (folder / "prediction.png").is_file()
    html = (folder / "report" / "report.html").read_text()
    assert "Bangladesh" in html
    assert "Pakistan" not in html
    (best,) = folder.glob("phase-2/*/checkpoints/best.ckpt")
    identity = read_checkpoint(best)["geopak"]
    assert identity["region"]["name"] == "bangladesh"
    assert [p["name"] for p in identity["region"]["provinces"]] == sorted(divisions)
    # Predictions of this model lie in this country, whatever the photo shows.
    south, west, north, east = 20.3, 87.8, 26.8, 92.9
    predictions = pd.read_parquet(folder / "report" / "predictions.parquet")
    lat, lon = (predictions[c] for c in predictions if c.startswith("predicted_l"))
    assert lat.between(south, north).all()
    assert lon.between(west, east).all()


REGION_FILE = """
name: isles
title: The Isles
boundaries: {boundaries}
boundary_layer: districts
boundary_names: {{D1: north_isle, D2: south_isle}}
towns: {towns}
urban: {{places: 3}}
province_defaults: {{min_cluster_size: 8, min_samples: 2, target_cells: 6, batch_quota: 32}}
provinces:
  north_isle: {{}}
  south_isle: {{name: Southland, tau_km: 20}}
"""


def write_isles(folder: Path) -> Path:
    """A country across the antimeridian, from a user's own files alone."""
    outlines = geopandas.GeoDataFrame(
        {"code": ["D1", "D2"]},
        geometry=[box(178, -17, 182, -16), box(178, -18, 182, -17)],
        crs="EPSG:4326",
    )
    outlines.to_crs("EPSG:3832").to_file(folder / "isles.gpkg", layer="districts")
    outlines.to_file(folder / "isles.gpkg", layer="other")
    with open(folder / "towns.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "latitude", "longitude", "population", "province"])
        for k, lon in enumerate((178.4, 179.5, -179.6, -178.5)):
            writer.writerow([f"N{k}", -16.4, lon, 50_000, "North Isle"])
            writer.writerow([f"S{k}", -17.6, lon, 20_000, "Southland"])
    (folder / "region").mkdir()
    (folder / "region" / "isles.yaml").write_text(
        REGION_FILE.format(boundaries=folder / "isles.gpkg", towns=folder / "towns.csv")
    )
    return folder


@pytest.mark.slow
def test_demo_of_a_country_from_the_users_own_files(home: Path, tmp_path: Path) -> None:
    folder = write_isles(tmp_path)
    outcome = run_demo(f"--config-dir={folder}", "region=isles", num_photos=240)
    assert outcome.status == 0, outcome.text
    photos = pd.read_parquet(home / "data" / "synthetic-isles" / "prepared" / "photos.parquet")
    assert set(photos["province"]) == {"North Isle", "Southland"}
    assert photos["longitude"].between(-180, 180).all()
    assert (photos["longitude"] < 0).any()
    assert (photos["longitude"] > 0).any()
    assert (home / "outputs" / "demo-isles" / "summary.json").is_file()


def test_a_region_is_of_the_whole_demo_not_of_a_step(home: Path) -> None:
    outcome = run_command("demo", f"synthetic={quoted(['region=bangladesh'])}")
    assert outcome.status == 2
    assert "python -m geopak.demo region=bangladesh" in outcome.text


@pytest.mark.parametrize(
    "file", sorted((CONFIG_DIR / "region").glob("*.yaml")), ids=lambda f: f.stem
)
def test_a_region_is_called_like_its_file(file: Path) -> None:
    """Commands name a region by its file, landscapes and the demo by its name."""
    for command in ("synthetic", "prepare", "train", "demo"):
        assert compose(command, [f"region={file.stem}"]).region.name == file.stem


def test_the_demo_keeps_regions_apart() -> None:
    plain, other = compose("demo"), compose("demo", ["region=bangladesh"])
    assert (plain.name, Path(plain.root).name) == ("demo", "synthetic")
    assert (other.name, Path(other.root).name) == ("demo-bangladesh", "synthetic-bangladesh")
    assert other.landscape.region == "bangladesh"
    with pytest.raises(ConfigError, match="region"):
        compose("demo", ["region=atlantis"])


@pytest.mark.slow
def test_demo_reaches_what_it_promises(home: Path) -> None:
    """The whole demo as a new user runs it: minutes."""
    outcome = run_command("demo", "name=promise", f"root={home / 'data' / 'promise'}")
    assert outcome.status == 0, outcome.text
    summary = json.loads((home / "outputs" / "promise" / "summary.json").read_text())
    first, last = summary["phases"]["1"], summary["phases"]["2"]
    assert last["median_km"] <= 0.33 * summary["baselines"]["densest_cell"]["median_km"]
    assert last["province_macro_acc"] >= 0.80
    assert last["median_km"] <= 0.9 * first["median_km"]
