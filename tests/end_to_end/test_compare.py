"""Runs compared through the command, from what training and evaluation left."""

from __future__ import annotations

import glob
import json
import shlex
import shutil
from pathlib import Path

import pytest

from .conftest import Outcome, run_command

Compared = tuple[Outcome, Path]
EVALUATION = 'evaluate_with=["num_workers=0","bootstrap_resamples=20"]'


@pytest.fixture(scope="module")
def runs(phases: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Copies of the runs of phases 1 and 2, not evaluated by anyone else."""
    folder = tmp_path_factory.mktemp("runs (1)")
    copies = {}
    for phase in (1, 2):
        copies[phase] = folder / f"phase-{phase}" / "run"
        shutil.copytree(
            phases[phase].parents[1], copies[phase], ignore=shutil.ignore_patterns("report*")
        )
    return copies


@pytest.fixture(scope="module")
def compared(runs: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """The first comparison, which finds nothing evaluated."""
    out = tmp_path_factory.mktemp("out") / "a (1)"
    arguments = [str(runs[1]), str(runs[2]), "resamples=50", f"out={out}"]
    refused = run_command("compare", *arguments)
    assert refused.status == 2
    assert not out.exists()
    # The command printed is one that works, for a run folder with spaces and brackets.
    (typed, _) = (line for line in refused.text.splitlines() if "geopak.evaluate" in line)
    words = shlex.split(typed)
    assert words[:3] == ["python", "-m", "geopak.evaluate"]
    outcome = run_command("evaluate", *words[3:], "num_workers=0", "bootstrap_resamples=20")
    assert outcome.status == 0, outcome.text
    outcome = run_command("compare", *arguments, "evaluate=true", EVALUATION)
    assert outcome.status == 0, outcome.text
    assert outcome.text.count("$ python -m geopak.evaluate") == 1
    return outcome, out


def test_runs_are_compared_by_what_their_reports_hold(
    runs: dict[int, Path], compared: Compared
) -> None:
    outcome, out = compared
    content = json.loads((out / "comparison.json").read_text())
    for phase, run in zip((1, 2), content["runs"], strict=True):
        report = json.loads((runs[phase] / "report-test/report.json").read_text())
        for name, estimate in run["metrics"].items():
            assert estimate["value"] == pytest.approx(report["end_to_end"][name]["value"])
    for name, baseline in report["baselines"].items():
        assert content["baselines"][name]["median_km"]["value"] == pytest.approx(
            baseline["median_km"]["value"]
        )
    assert content["num_groups"] == report["intervals"]["num_groups"]
    assert content["config"]["phase.index"] == ["1", "2"]
    assert not any(key.startswith(("model.", "region.")) for key in content["config"])
    assert content["variants"] == []
    html = (out / "comparison.html").read_text()
    assert html.count("data:image/png;base64,") == 2
    assert "No curves" not in html
    for text in ("phase-1/run", "phase-2/run", "baseline: densest cell", "phase.index"):
        assert text in outcome.text
        assert text in html


def test_the_baseline_comes_first_and_reports_and_globs_are_named_as_well(
    runs: dict[int, Path], compared: Compared, tmp_path: Path
) -> None:
    outcome = run_command(
        "compare", f"{glob.escape(str(runs[1].parents[1]))}/*/run",
        f"baseline={runs[2] / 'report-test'}", "resamples=20", f"out={tmp_path}",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [run["title"] for run in content["runs"]] == ["phase-2/run", "phase-1/run"]


def test_mistakes_are_told(runs: dict[int, Path]) -> None:
    for arguments, message in (
        ([], "Name the runs to compare"),
        ([str(runs[1] / "csv")], "is no run folder"),
        ([str(runs[1]), "split=tests"], "split='tests' must be one of train, val, test"),
        ([str(runs[1]), "resamples=0"], "at least 1"),
        ([str(runs[1]), "unfinished=drop"], "unfinished='drop' must be one of"),
    ):
        outcome = run_command("compare", *arguments)
        assert outcome.status == 2, outcome.text
        assert message in outcome.text
