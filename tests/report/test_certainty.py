"""What the evaluation report says of regions, reliability before and after, and silence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geopak.conformal import ConformalScores
from geopak.evaluate import doubts
from geopak.report.certainty import (
    LESS,
    MORE,
    Claims,
    MeasuredRegions,
    PhotoRegions,
    summarize_regions,
    summarize_silence,
)
from geopak.report.evaluation import Evaluation, write_report
from geopak.report.evaluation_page import evaluation_page
from geopak.report.groups import PhotoGroups

from .squareland import CELLS, CONTEXT, OUTLINES, REGION, make_evaluation

NUM = 600
COVERAGES = (0.5, 0.8, 0.9, 0.95)


def make_regions(
    true_coverage: float | None = None, seed: int = 0, doubts: tuple[str, ...] = ()
) -> MeasuredRegions:
    """Regions that hold as often as promised, or as often as said."""
    rng = np.random.default_rng(seed)
    scores = ConformalScores(rng.random(400), np.arange(400) % 2, np.arange(400) // 2)
    promises = []
    for per_province in (False, True):
        for coverage in COVERAGES:
            share = coverage if true_coverage is None else true_coverage
            covered = rng.random(NUM) < share
            num_cells = 1 + (rng.random(NUM) * 10 * coverage).astype(int)
            promises.append(
                PhotoRegions(coverage, per_province, covered, num_cells, 500.0 * num_cells)
            )
    return MeasuredRegions(promises, scores, 250_000.0, doubts)


def calibrated_evaluation(regions: MeasuredRegions) -> Evaluation:
    evaluation = make_evaluation(NUM)
    rng = np.random.default_rng(1)
    group = rng.integers(0, 150, NUM)
    return dataclasses.replace(
        evaluation,
        regions=regions,
        uncalibrated=Claims(
            province=rng.random(NUM),
            province_right=rng.random(NUM) < 0.5,
            cell=rng.random(NUM),
            cell_right=rng.random(NUM) < 0.5,
            confidence=rng.random(NUM),
            within=rng.random(NUM) < 0.5,
        ),
        abstain_below=0.4,
        groups=PhotoGroups(group, {"place": 1.0}),
    )


def test_coverage_area_and_intervals_equal_recomputation() -> None:
    regions = make_regions()
    province, group = np.arange(NUM) % 2, np.arange(NUM)
    found = summarize_regions(
        regions, province, group, REGION, num_resamples=400, confidence=0.95, seed=0
    )
    for promise in regions.promises:
        entry = found["promises"][promise.name]
        part = entry["overall"]
        share = promise.covered.mean()
        assert part["covered"]["value"] == pytest.approx(share)
        assert part["area_km2"]["mean"] == pytest.approx(promise.area_km2.mean())
        assert part["country_share"] == pytest.approx(promise.area_km2.mean() / 250_000)
        assert part["cells"]["median"] == np.median(promise.num_cells)
        # Where every photo is its own group the bootstrap gives what the binomial does.
        error = 1.96 * np.sqrt(share * (1 - share) / NUM)
        for low, high in (
            (part["covered"]["low"], part["covered"]["high"]),
            part["covered"]["binomial"].values(),
        ):
            assert low == pytest.approx(share - error, abs=0.012)
            assert high == pytest.approx(share + error, abs=0.012)
        west = entry["provinces"]["west"]
        assert west["num_photos"] == NUM // 2
        assert west["covered"]["value"] == pytest.approx(promise.covered[province == 0].mean())
        assert "east" not in entry["provinces"]
        # What is promised to all is not promised to a province, and the other way round.
        assert (part["verdict"] is None) == promise.per_province
        assert (west["verdict"] is None) != promise.per_province
    assert found["calibration"]["per_province"] == {"west": 200, "middle": 200, "east": 0}


@pytest.mark.parametrize(("true", "verdict"), [(0.35, LESS), (0.999, MORE)])
def test_a_broken_promise_is_told(true: float, verdict: str) -> None:
    found = summarize_regions(
        make_regions(true), np.arange(NUM) % 2, np.arange(NUM), REGION,
        num_resamples=50, confidence=0.95, seed=0,
    )  # fmt: skip
    assert found["promises"]["50"]["overall"]["verdict"] == verdict
    assert found["promises"]["50_per_province"]["provinces"]["west"]["verdict"] == verdict


def test_a_kept_promise_is_told_in_19_of_20_draws() -> None:
    verdicts = [
        summarize_regions(
            make_regions(seed=seed), np.arange(NUM) % 2, np.arange(NUM), REGION,
            num_resamples=10, confidence=0.95, seed=0,
        )["promises"]["80"]["overall"]["verdict"]
        for seed in range(60)
    ]  # fmt: skip
    assert verdicts.count("kept") >= 54


def test_the_range_is_wider_where_photos_come_in_groups() -> None:
    regions = make_regions()
    promise = regions.promises[2]
    together = np.repeat(np.random.default_rng(0).random(60) < 0.9, 10)
    grouped = dataclasses.replace(
        regions, promises=[dataclasses.replace(promise, covered=together)]
    )
    widths = []
    for group in (np.arange(NUM), np.repeat(np.arange(60), 10)):
        part = summarize_regions(
            grouped, np.arange(NUM) % 2, group, REGION, num_resamples=300, confidence=0.95, seed=0
        )["promises"]["90"]["overall"]
        widths.append(part["expected"]["high"] - part["expected"]["low"])
        widths.append(part["covered"]["high"] - part["covered"]["low"])
    assert widths[2] > 1.5 * widths[0]
    assert widths[3] > 2 * widths[1]


def test_silence_equals_recomputation() -> None:
    rng = np.random.default_rng(0)
    score, error_km = rng.random(200), rng.exponential(40, 200)
    found = summarize_silence(score, error_km, np.arange(200) % 2, REGION, 25.0, 0.7)
    best = np.argsort(-score)[:100]
    half = found["answered"][1]
    assert half["share"] == 0.5
    assert half["median_km"] == pytest.approx(np.median(error_km[best]))
    assert half["within"] == pytest.approx((error_km[best] <= 25).mean())
    chosen = found["abstain_below"]
    assert chosen["answered"]["share"] == pytest.approx((score >= 0.7).mean())
    assert chosen["answered"]["num_photos"] + chosen["not_answered"]["num_photos"] == 200
    assert chosen["per_province"]["middle"] == pytest.approx((score[1::2] >= 0.7).mean())
    assert found["areas"]["mean_km"]["random"] == pytest.approx(error_km.mean())
    none = summarize_silence(score, error_km, np.zeros(200), REGION, 25.0, 1.0)
    assert none["abstain_below"]["answered"] == {"num_photos": 0, "share": 0.0}


def test_the_page_shows_it_all(tmp_path: Path) -> None:
    spoken = doubts("test", True, "spatial_blocks")
    evaluation = calibrated_evaluation(make_regions(doubts=tuple(spoken)))
    write_report(tmp_path, evaluation, REGION, OUTLINES, CELLS, CONTEXT, tmp_path, num_resamples=50)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for part in (
        "A region that holds the place", "Regions promised to every province apart",
        "The promise is not guaranteed here", "ECE before", "ECE after",
        "What if it answers only when it is sure?", "answer score below 0.4",
        "(regions.png)", "(silence.png)", "promise (range if kept)", "| not guaranteed (",
    ):  # fmt: skip
        assert part in text, part
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    before = report["calibration"]["before"]["cell"]
    assert before["mean_confidence"] == pytest.approx(evaluation.uncalibrated.cell.mean())
    # What was fitted on photos is not measured on them without a word.
    for split, same_set, word in (
        ("test", True, None), ("val", True, "were fitted on"), ("train", True, "by heart"),
        ("val", False, None),
    ):  # fmt: skip
        context = report["context"] | {"split": split, "same set as training": same_set}
        sections = evaluation_page(report | {"context": context}, REGION).sections
        claims, silence = (
            next(s for s in sections if s.title == title)
            for title in (
                "Does it know when it is right?",
                "What if it answers only when it is sure?",
            )
        )
        for section in (claims, silence):
            if word is None:
                assert not any("look better" in p or "by heart" in p for p in section.points)
            else:
                assert word in section.points[0]
    frame = pd.read_parquet(tmp_path / "predictions.parquet")
    assert frame["region_covered_90"].tolist() == evaluation.regions.promises[2].covered.tolist()
    # A report of the same model without calibration takes this one's place.
    write_report(
        tmp_path, make_evaluation(20), REGION, OUTLINES, CELLS, CONTEXT, tmp_path, num_resamples=20
    )
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "python -m geopak.calibrate" in text
    assert "regions.png" not in text
    assert not (tmp_path / "regions.png").exists()


def test_doubts_are_spoken_where_photos_are_not_exchangeable() -> None:
    assert doubts("test", True, "places") == doubts("test", True, "random") == []
    for case, words in {
        ("test", True, "spatial_blocks"): "not guaranteed",
        ("test", True, None): "not known",
        ("test", False, "places"): "another prepared set",
        ("val", True, "places"): "calibrated on",
        ("train", True, "places"): "by heart",
    }.items():
        (sentence,) = doubts(*case)
        assert words in sentence
