"""Evaluation and prediction from a checkpoint alone, through the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from geopak import GeopakPredictor
from geopak.data.dataset import PreparedSet
from geopak.errors import CheckpointError, PhotoError
from geopak.geo.distance import haversine_km_array
from geopak.retrieval import nearest_train_photos
from geopak.trained import load_trained

from .conftest import Outcome

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def evaluated(phases: dict[int, Path]) -> Outcome:
    from .conftest import run_command

    return run_command("evaluate", f"ckpt={phases[2]}", "bootstrap_resamples=50", "num_workers=0")


@pytest.fixture(scope="module")
def report_folder(evaluated: Outcome, phases: dict[int, Path]) -> Path:
    assert evaluated.status == 0, evaluated.text
    return phases[2].parents[1] / "report-test"


def test_results_are_printed_beside_baselines_and_leaks(
    evaluated: Outcome, report_folder: Path
) -> None:
    report = json.loads((report_folder / "report.json").read_text())
    leaks = report["context"]["leaks"]
    assert leaks.startswith(f"leaks: 0 of {report['num_photos']} test photos have a train photo")
    for text in (leaks, "baseline: densest cell", "baseline: province centroid true"):
        assert text in evaluated.text
    assert f"{report['end_to_end']['median_km']['value']:.1f}" in evaluated.text
    assert leaks[1:] in (report_folder / "report.html").read_text()


def test_retrieval_is_one_more_baseline(
    phases: dict[int, Path], home: Path, tmp_path: Path, command: Command
) -> None:
    arguments = [
        f"ckpt={phases[1]}", f"out={tmp_path / 'report'}", "bootstrap_resamples=20", "num_workers=0"
    ]  # fmt: skip
    outcome = command("evaluate", *arguments, "retrieval=true")
    assert outcome.status == 0, outcome.text
    assert "baseline: nearest train photo by encoder features" in outcome.text
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    found = report["baselines"]["nearest_train_photo_by_encoder_features"]
    trained = load_trained(phases[1])
    root = home / "data" / "synthetic"
    prepared = PreparedSet.read(root / "prepared", root, trained.region)
    rows = prepared.rows("test")
    folder = home / "outputs" / "features"
    nearest = nearest_train_photos(trained.model, prepared, rows, folder)
    photos = prepared.photos.iloc[rows]
    error_km = haversine_km_array(
        nearest.latlon_deg, photos[["latitude", "longitude"]].to_numpy(float)
    )
    assert found["median_km"]["value"] == pytest.approx(np.median(error_km))
    same = photos["province_id"].to_numpy() == nearest.province_id
    macro = pd.Series(same).groupby(photos["province_id"].to_numpy()).mean().mean()
    assert found["province_macro_acc"]["value"] == pytest.approx(macro)
    assert f"{found['province_macro_acc']['value']:.1%}" in outcome.text
    refused = command("evaluate", *arguments, "retrieval=true", "feature_cache=false")
    assert refused.status == 2
    assert "eave out shards= and feature_cache=false" in refused.text


def test_report_has_all_its_parts(report_folder: Path) -> None:
    for name in (
        "report.json", "report.md", "report.html", "predictions.parquet", "error_map.png",
        "error_curve.png", "confusion.png", "reliability.png", "photos.png",
    ):  # fmt: skip
        assert (report_folder / name).stat().st_size > 500


def test_report_is_end_to_end_over_every_test_photo(
    report_folder: Path, home: Path, phases: dict[int, Path]
) -> None:
    report = json.loads((report_folder / "report.json").read_text())
    photos = pd.read_parquet(home / "data/synthetic/prepared/photos.parquet")
    test = photos[photos["split"] == "test"]
    assert report["num_photos"] == len(test)
    results = GeopakPredictor(phases[2]).predict(
        [home / "data/synthetic" / path for path in test["path"]]
    )
    predicted = np.array([(r["lat"], r["lon"]) for r in results])
    error = haversine_km_array(predicted, test[["latitude", "longitude"]].to_numpy())
    assert report["end_to_end"]["median_km"]["value"] == pytest.approx(np.median(error), rel=1e-3)


def test_every_rule_and_baseline_stands_in_the_report(report_folder: Path) -> None:
    report = json.loads((report_folder / "report.json").read_text())
    assert set(report["rules"]) == {"mean", "argmax", "geometric_median", "max_within_km"}
    assert {"densest_cell", "province_centroid_true"} <= set(report["baselines"])
    assert report["teacher_forced"]["median_km"]["value"] > 0


def test_another_prepared_set_is_refused_unless_meant(
    home: Path, phases: dict[int, Path], command: Command, tmp_path: Path
) -> None:
    other = tmp_path / "prepared"
    outcome = command("prepare", f"out={other}", "executor.workers=1", "seed=5")
    assert outcome.status == 0, outcome.text
    arguments = [f"ckpt={phases[2]}", f"prepared={other}", f"out={tmp_path / 'report'}"]
    outcome = command("evaluate", *arguments)
    assert outcome.status == 2
    assert "other_set=true" in outcome.text
    outcome = command("evaluate", *arguments, "other_set=true", "bootstrap_resamples=20")
    assert outcome.status == 0, outcome.text
    assert "leaks: unknown, the model was trained on photos of another set" in outcome.text


@pytest.mark.parametrize("known", ["none", "half"])
def test_intervals_of_a_set_whose_authors_are_not_all_known(
    home: Path, phases: dict[int, Path], command: Command, tmp_path: Path, known: str
) -> None:
    other = tmp_path / "prepared"
    shutil.copytree(home / "data/synthetic/prepared", other)
    photos = pd.read_parquet(other / "photos.parquet")
    photos.loc[photos.index[:: 2 if known == "half" else 1], ["author", "album"]] = None
    photos.to_parquet(other / "photos.parquet")
    outcome = command(
        "evaluate", f"ckpt={phases[2]}", f"prepared={other}", f"out={tmp_path / 'report'}",
        "bootstrap_resamples=20", "num_workers=0",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    intervals = json.loads((tmp_path / "report/report.json").read_text())["intervals"]
    assert intervals["drawn"] == "groups"
    assert intervals["ties"]["block of ground about 2 km wide"] == 1
    if known == "none":
        assert intervals["ties"]["author and day"] == 0
    else:
        assert 0.2 < intervals["ties"]["author and day"] < 0.8


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_test_photo_ends_the_evaluation(
    home: Path, phases: dict[int, Path], command: Command, tmp_path: Path, workers: int
) -> None:
    root = tmp_path / "root"
    shutil.copytree(home / "data/synthetic", root)
    photos = pd.read_parquet(root / "prepared/photos.parquet")
    path = root / photos["path"][photos["split"] == "test"].iloc[3]
    path.write_bytes(path.read_bytes()[:300])
    outcome = command(
        "evaluate", f"ckpt={phases[2]}", f"root={root}", f"out={tmp_path / 'report'}",
        "bootstrap_resamples=20", f"num_workers={workers}",
    )  # fmt: skip
    assert outcome.status == 2
    assert f"Cannot read the photo {path}" in outcome.text
    assert not (tmp_path / "report").exists()


def test_predict_prints_draws_and_writes(
    home: Path, phases: dict[int, Path], command: Command, tmp_path: Path
) -> None:
    photo = next((home / "data/synthetic/photos").rglob("*.jpg"))
    picture, written = tmp_path / "map.png", tmp_path / "result.json"
    arguments = [f"images={photo}", "name=three", f"map={picture}", f"out={written}"]
    outcome = command("predict", *arguments)
    assert outcome.status == 0, outcome.text
    assert "confidence" in outcome.text
    with Image.open(picture) as image:
        assert image.width > 500
    (row,) = json.loads(written.read_text())
    single = GeopakPredictor(phases[2]).predict(photo)
    assert row["lat"] == pytest.approx(single["lat"])
    assert row["province"] == single["province"]


def test_predictor_takes_paths_images_arrays_and_lists(home: Path, phases: dict[int, Path]) -> None:
    predictor = GeopakPredictor(phases[2])
    photo = next((home / "data/synthetic/photos").rglob("*.jpg"))
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    one = predictor.predict(image)
    same = predictor.predict([image, np.asarray(image)])
    for other in same:
        assert (other["lat"], other["lon"]) == pytest.approx((one["lat"], one["lon"]), abs=1e-4)
    by_path = predictor.predict(str(photo))
    assert set(by_path) == set(one)
    assert sum(one["province_probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert sum(h["probability"] for h in one["hypotheses"]) == pytest.approx(1, abs=1e-5)
    assert 0 <= one["confidence"] <= 1


def test_predictor_decodes_by_the_rule_asked_for(home: Path, phases: dict[int, Path]) -> None:
    photo = next((home / "data/synthetic/photos").rglob("*.jpg"))
    result = GeopakPredictor(phases[2], rule="argmax").predict(photo)
    best = max(result["hypotheses"], key=lambda h: h["probability"])
    assert (result["lat"], result["lon"]) == pytest.approx((best["lat"], best["lon"]))


def test_errors_name_the_file(
    home: Path, phases: dict[int, Path], command: Command, tmp_path: Path
) -> None:
    predictor = GeopakPredictor(phases[2])
    with pytest.raises(PhotoError, match=r"nowhere\.jpg"):
        predictor.predict("nowhere.jpg")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    with pytest.raises(PhotoError, match=r"broken\.jpg"):
        predictor.predict(broken)
    with pytest.raises(CheckpointError, match=r"broken\.jpg"):
        GeopakPredictor(broken)
    outcome = command("predict", "images=nowhere.jpg", "name=three")
    assert outcome.status == 2
    assert "nowhere.jpg" in outcome.text
    outcome = command("evaluate", f"ckpt={tmp_path / 'no.ckpt'}")
    assert outcome.status == 2
    assert "no.ckpt" in outcome.text


def test_checkpoint_is_safe_to_load_and_holds_no_path(phases: dict[int, Path], home: Path) -> None:
    def strings(value: object) -> list[str]:
        if isinstance(value, dict):
            return [s for part in value.values() for s in strings(part)]
        if isinstance(value, list):
            return [s for part in value for s in strings(part)]
        return [value] if isinstance(value, str) else []

    checkout = str(Path(__file__).resolve().parents[2])
    for path in phases.values():
        identity = torch.load(path, weights_only=True)["geopak"]
        assert identity["region"]["name"] == "pakistan"
        assert identity["config"]["model"]["name"] == "tiny"
        for text in strings(identity):
            assert str(home) not in text
            assert checkout not in text
