"""The demo: every step in order, and what it promises of its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import TINY, run_command


def quoted(overrides: list[str]) -> str:
    return "[" + ",".join(f"'{o}'" for o in overrides) + "]"


def test_demo_runs_every_step_and_sums_up(home: Path) -> None:
    phase = quoted(TINY)
    outcome = run_command(
        "demo",
        f"synthetic={quoted(['num_photos=420', 'workers=1', 'image.short_side_px=[72,80]'])}",
        f"prepare={quoted(['workers=1'])}",
        f"train={{0: {phase}, 1: {phase}, 2: {phase}}}",
        f"root={home / 'data' / 'demo'}",
    )
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
    assert report["end_to_end"]["median_km"]["value"] == summary["phases"]["2"]["median_km"]
    assert (folder / "report" / "report.html").is_file()
    assert (folder / "prediction.png").is_file()
    assert "baseline: densest cell" in outcome.text


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
