"""Calibration through the commands: what it stores, who uses it, and who must not."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from geopak import GeopakPredictor
from geopak.calibrate import fit
from geopak.calibration import (
    KEY,
    calibrated,
    calibrated_confidence,
    cell_nll,
    confidence_is_calibrated,
    fit_confidence,
    fit_temperature,
    halves,
    ids_fingerprint,
    province_nll,
    seen,
    tempered_cells,
)
from geopak.checkpoint import newest_finished, read_checkpoint
from geopak.conformal import mass_before
from geopak.data.dataset import PreparedSet
from geopak.data.images import load_image
from geopak.data.manifest import split_settings
from geopak.geo.distance import haversine_km_array
from geopak.models.decode import decode, joint_log_prob
from geopak.report.groups import group_photos
from geopak.schema.training import DECODING_RULES
from geopak.trained import load_trained

from .conftest import TINY, Outcome, run_command

Command = Callable[..., Outcome]


@pytest.fixture(scope="module")
def calibrated_run(phases: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a calibrated checkpoint of phase 1, in a run folder of its own."""
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "best.ckpt"
    outcome = run_command("calibrate", f"ckpt={phases[1]}", f"out={path}", "num_workers=0")
    assert outcome.status == 0, outcome.text
    for text in ("temperature", "nats before", "ECE after", f"stored in {path}"):
        assert text in outcome.text, text
    return path


@pytest.fixture(scope="module")
def report(calibrated_run: Path) -> dict[str, Any]:
    outcome = run_command(
        "evaluate", f"ckpt={calibrated_run}", "bootstrap_resamples=50", "num_workers=0",
        "abstain_below=0.3",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    assert "region of 90%: holds" in outcome.text
    folder = calibrated_run.parents[1] / "report-test"
    assert "A region that holds the place" in (folder / "report.html").read_text()
    content = json.loads((folder / "report.json").read_text())
    assert isinstance(content, dict)
    return content


def test_the_checkpoint_itself_is_left_alone(phases: dict[int, Path], calibrated_run: Path) -> None:
    assert KEY not in read_checkpoint(phases[1])["geopak"]
    plain, found = load_trained(phases[1]), load_trained(calibrated_run)
    assert plain.calibration is None
    assert found.calibration is not None
    torch.testing.assert_close(found.model.state_dict(), plain.model.state_dict())
    # Whichever rule is asked for, its confidence is an honest one, or is not called so.
    assert set(found.calibration.confidence_maps) == set(DECODING_RULES)
    for rule in DECODING_RULES:
        assert GeopakPredictor(calibrated_run, rule=rule).calibrated
    odd = dataclasses.replace(found.decoding, confidence_km=3.0)
    assert not confidence_is_calibrated(found.calibration, odd.rule, odd.confidence_km)
    photos = found.calibration.fitted_on["num_photos"]
    assert abs(photos["regions"] - photos["temperatures"]) <= 10


def test_val_alone_is_used_and_each_photo_by_one_half(home: Path, calibrated_run: Path) -> None:
    trained = load_trained(calibrated_run)
    calibration = trained.calibration
    assert calibration is not None
    root = home / "data/synthetic"
    prepared = PreparedSet.read(root / "prepared", root, trained.region)
    val = prepared.photos[prepared.photos["split"] == "val"]
    assert calibration.fitted_on["ids"] == ids_fingerprint(val["id"])
    assert sum(calibration.fitted_on["num_photos"].values()) == len(val)
    assert len(calibration.scores.score) == calibration.fitted_on["num_photos"]["regions"]
    assert len(calibration.familiarity.distance) == len(calibration.scores.score)
    assert calibration.cell_area_km2.sum() == pytest.approx(890_000, rel=0.05)


def test_nothing_is_measured_on_the_photos_that_it_was_fitted_on(
    home: Path, phases: dict[int, Path]
) -> None:
    """Which half each number is of: a model that is far surer on one half than on the other."""
    trained = load_trained(phases[1])
    root = home / "data/synthetic"
    prepared = PreparedSet.read(root / "prepared", root, trained.region)
    rows = prepared.rows("val")
    val = prepared.photos.iloc[rows]
    block_km = float(split_settings(root / "prepared")["block_km"])
    group = group_photos(val, block_km).label
    province = val["province_id"].to_numpy(np.int64, copy=True)
    latlon = val[["latitude", "longitude"]].to_numpy(float, copy=True)
    first = halves(group, province, seed=3)
    assert not set(group[first]) & set(group[~first])
    provinces = torch.from_numpy(province)
    cell = torch.from_numpy(trained.cells.nearest(latlon, province))
    image = torch.stack([load_image(root / p, trained.model.image_size) for p in val["path"]])
    with torch.inference_mode():
        raw = trained.model(image.float() / 255)
    sizes = tuple(np.bincount(trained.cells.province_id, minlength=7).tolist())
    torch.manual_seed(0)
    noise = torch.where(torch.from_numpy(first), 1.0, 3.0).unsqueeze(1)

    def sure(values: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        hot = torch.nn.functional.one_hot(true, values.shape[1])
        return 3.0 * hot + noise * torch.randn(values.shape)

    output = dataclasses.replace(
        raw,
        province_logits=sure(raw.province_logits, provinces),
        cell_log_prob=tempered_cells(sure(raw.cell_log_prob, cell), sizes, 1.0),
    )
    calibration, changes = fit(trained, prepared, rows, output, None, block_km, seed=3)

    def on(side: NDArray[np.bool_]) -> dict[str, float]:
        return {
            "province": fit_temperature(
                lambda t: province_nll(output.province_logits[side], provinces[side], t)
            ),
            "cell": fit_temperature(
                lambda t: cell_nll(output.cell_log_prob[side], cell[side], sizes, t)
            ),
        }

    fitted, else_fitted = on(first), on(~first)
    assert calibration.province_temperature == pytest.approx(fitted["province"], rel=1e-3)
    assert calibration.cell_temperature == pytest.approx(fitted["cell"], rel=1e-3)
    for name in fitted:
        assert else_fitted[name] > 1.5 * fitted[name]
    other = output.province_logits[~first].double()
    for state, temperature in (("before", 1.0), ("after", fitted["province"])):
        nll = province_nll(other, provinces[~first], temperature)
        assert changes["province"][state]["nll"] == pytest.approx(nll, rel=1e-3)
    after = calibrated(output, calibration)
    decoded = decode(trained.model, after, trained.decoding, DECODING_RULES)
    for rule, answer in decoded.items():
        error_km = haversine_km_array(answer.latlon_deg.double().numpy(), latlon)
        within = torch.from_numpy(error_km <= trained.decoding.confidence_km)
        of_first = fit_confidence(answer.confidence[first], within[first])
        assert calibration.confidence_maps[rule] == pytest.approx(of_first, rel=0.01, abs=0.01)
    joint = joint_log_prob(after, trained.model.cell_province_id).double().exp()
    score = mass_before(joint).gather(1, cell.unsqueeze(1)).squeeze(1).numpy()
    assert calibration.scores.score == pytest.approx(score[~first], abs=1e-4)
    assert calibration.scores.group.tolist() == group[~first].tolist()
    assert calibration.scores.province_id.tolist() == province[~first].tolist()
    distance = calibration.familiarity.distance_of(seen(raw)[~first])
    torch.testing.assert_close(calibration.familiarity.distance, distance.sort().values)


def test_the_report_tells_both_states_and_the_regions(
    report: dict[str, Any], home: Path, calibrated_run: Path
) -> None:
    """Everything recomputed photo by photo from the test photos themselves."""
    trained = load_trained(calibrated_run)
    calibration = trained.calibration
    assert calibration is not None
    root = home / "data/synthetic"
    prepared = PreparedSet.read(root / "prepared", root, trained.region)
    test = prepared.photos[prepared.photos["split"] == "test"]
    image = torch.stack([load_image(root / p, trained.model.image_size) for p in test["path"]])
    with torch.inference_mode():
        raw = trained.model(image.float() / 255)
        output = calibrated(raw, calibration)
        decoded = decode(trained.model, output, trained.decoding)[trained.decoding.rule]
        confidence = calibrated_confidence(
            decoded.confidence, calibration, trained.decoding.rule, trained.decoding.confidence_km
        )
    top = raw.province_logits.softmax(-1).amax(-1)
    calibration_of = report["calibration"]
    before = calibration_of["before"]["province"]["mean_confidence"]
    assert before == pytest.approx(float(top.mean()), abs=1e-3)
    after = output.province_logits.softmax(-1).amax(-1)
    found = calibration_of["province"]["mean_confidence"]
    assert found == pytest.approx(float(after.mean()), abs=1e-3)
    within = calibration_of["within_confidence_km"]["mean_confidence"]
    assert within == pytest.approx(float(confidence.mean()), abs=1e-3)
    cell = trained.cells.nearest(
        test[["latitude", "longitude"]].to_numpy(), test["province_id"].to_numpy()
    )
    joint = joint_log_prob(output, trained.model.cell_province_id).exp().double().numpy()
    score = np.sort(calibration.scores.score)
    for coverage in (0.5, 0.8, 0.9):
        rank = int(np.ceil(round((len(score) + 1) * coverage, 9)))
        hits, areas = [], []
        for prob, true in zip(joint, cell, strict=True):
            order = np.argsort(-prob, kind="stable")
            mass = np.concatenate(([0.0], np.cumsum(prob[order])[:-1]))
            taken = order[mass <= score[rank - 1]]
            hits.append(true in taken)
            areas.append(calibration.cell_area_km2[taken].sum())
        part = report["regions"]["promises"][f"{100 * coverage:g}"]["overall"]
        assert part["covered"]["value"] == pytest.approx(np.mean(hits), abs=0.03)
        assert part["area_km2"]["median"] == pytest.approx(np.median(areas), rel=0.1)
    assert report["regions"]["doubts"] == []
    chosen = report["silence"]["abstain_below"]
    assert chosen["score"] == 0.3
    assert chosen["answered"]["num_photos"] + chosen["not_answered"]["num_photos"] == len(test)


def test_a_phase_that_starts_from_it_is_not_calibrated(
    home: Path, calibrated_run: Path, command: Command
) -> None:
    outcome = command(
        "train", "phase=2", "name=from-calibrated", f"init_from={calibrated_run}", *TINY,
        "phase.epochs=1",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    best = newest_finished(home / "outputs/from-calibrated", 2)
    assert best is not None
    assert KEY not in read_checkpoint(best)["geopak"]
    assert load_trained(best).calibration is None


def test_a_run_that_goes_on_from_one_is_not_calibrated(
    home: Path, phases: dict[int, Path], command: Command
) -> None:
    one = [*TINY, "name=goes-on", "phase=1"]
    first = command("train", *one, f"init_from={phases[0]}", "phase.epochs=1")
    assert first.status == 0, first.text
    (last,) = (home / "outputs/goes-on/phase-1").glob("*/checkpoints/last.ckpt")
    outcome = command("calibrate", f"ckpt={last}", "num_workers=0")
    assert outcome.status == 0, outcome.text
    assert KEY in read_checkpoint(last)["geopak"]
    outcome = command("train", *one, "phase.epochs=2", f"resume_from={last}")
    assert outcome.status == 0, outcome.text
    for path in last.parent.glob("*.ckpt"):
        assert KEY not in read_checkpoint(path)["geopak"] or path.name == "last-previous.ckpt"
    assert read_checkpoint(last)["epoch"] == 1


def test_other_photos_than_those_of_the_calibration_are_refused(
    home: Path, calibrated_run: Path, command: Command, tmp_path: Path
) -> None:
    other = tmp_path / "prepared"
    shutil.copytree(home / "data/synthetic/prepared", other)
    photos = pd.read_parquet(other / "photos.parquet")
    row = photos.index[photos["split"] == "val"][0]
    photos.loc[row, "split"] = "test"
    photos.to_parquet(other / "photos.parquet")
    arguments = [f"ckpt={calibrated_run}", f"prepared={other}", f"out={tmp_path / 'report'}"]
    outcome = command("evaluate", *arguments)
    assert outcome.status == 2
    assert "was calibrated on other photos than the val photos" in outcome.text
    assert f"python -m geopak.calibrate ckpt={calibrated_run}" in outcome.text.replace("\n", "")


def test_what_cannot_be_calibrated_is_refused(
    home: Path, phases: dict[int, Path], command: Command, tmp_path: Path
) -> None:
    other = tmp_path / "prepared"
    shutil.copytree(home / "data/synthetic/prepared", other)
    photos = pd.read_parquet(other / "photos.parquet")
    val = photos.index[photos["split"] == "val"]
    photos.loc[val[1:], "split"] = "buffer"
    photos.to_parquet(other / "photos.parquet")
    arguments = [f"ckpt={phases[1]}", f"prepared={other}", "num_workers=0"]
    outcome = command("calibrate", *arguments)
    assert outcome.status == 2
    assert "1 val photos are of 1 place" in outcome.text
    photos.loc[val, "split"] = "buffer"
    photos.to_parquet(other / "photos.parquet")
    outcome = command("calibrate", *arguments)
    assert outcome.status == 2
    assert "no val photos" in outcome.text
    outcome = command("calibrate", f"ckpt={tmp_path / 'none.ckpt'}")
    assert outcome.status == 2
    assert "No checkpoint at" in outcome.text
    assert KEY not in read_checkpoint(phases[1])["geopak"]
