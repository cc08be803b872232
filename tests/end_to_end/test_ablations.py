"""The ablations' command: trains, measures, writes the table, and goes on where it was ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geopak import GeopakPredictor
from geopak.ablations import attempt, decoded_alone, plan, run_all
from geopak.checkpoint import read_checkpoint
from geopak.cli import compose
from geopak.report.ablations import BEGIN, END
from geopak.report.evaluation import NEAREST

from .conftest import TINY, Outcome, run_command


def quoted(overrides: list[str]) -> str:
    return "[" + ",".join(f"'{o}'" for o in overrides) + "]"


# From random weights encoders train too, so that nothing can be cached; the shipped ones are small.
SMALL = [o for o in TINY if not o.startswith(("model.pretrained", "model.semantic", "model.scene"))]
SMALL = [*SMALL, "phase.epochs=1", "data.feature_views=1"]
ONLY_THIS = [
    "evaluate=[bootstrap_resamples=20]",
    f"train={{0: {quoted(SMALL)}, 1: {quoted(SMALL)}}}",
]


def run_ablations(*arguments: str) -> Outcome:
    return run_command("ablations", *ONLY_THIS, *arguments)


@pytest.mark.slow
def test_the_command_measures_every_variant_once_and_writes_the_table(
    home: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Ablations\n\n{BEGIN}\n{END}\n\nReading.\n")
    arguments = [f"page={page}", "variants=[full,flat_cells,decoding_mean]", "seeds=[0]"]
    outcome = run_ablations(*arguments)
    assert outcome.status == 0, outcome.text
    folder = home / "outputs" / "ablations"
    summary = json.loads((folder / "ablations.json").read_text())
    assert list(summary["variants"]) == ["full", "flat_cells", "decoding_mean", "retrieval"]
    shown = {v: row["metrics"] for v, row in summary["variants"].items()}
    for variant in ("full", "flat_cells"):
        (path,) = folder.glob(f"{variant}/seed-0/phase-1-*/report-test/report.json")
        report = json.loads(path.read_text())
        assert report["context"]["split"] == "test"
        value = report["end_to_end"]["median_km"]["value"]
        assert shown[variant]["median_km"]["seeds"] == {"0": value}
        if variant == "full":
            value = report["rules"]["mean"]["mean_km"]["value"]
            assert shown["decoding_mean"]["mean_km"]["seeds"] == {"0": value}
            nearest = report["baselines"][NEAREST]["province_macro_acc"]
            assert shown["retrieval"]["province_macro_acc"]["mean"] == nearest["value"]
        # Each starts from its own phase 0 and seed.
        run = json.loads((path.parents[1] / "run.json").read_text())
        parent = read_checkpoint(run["parent"])["geopak"]
        own = read_checkpoint(path.parents[1] / "checkpoints" / "best.ckpt")["geopak"]
        assert parent["model"]["cell_heads"] == own["model"]["cell_heads"]
        assert parent["config"]["seed"] == own["config"]["seed"]
        # Rebuilt from its checkpoint alone.
        predictor = GeopakPredictor(path.parents[1] / "checkpoints" / "best.ckpt")
        assert (predictor.trained.model.cell_heads is None) == (variant == "flat_cells")
    assert not (folder / "decoding_mean").exists()
    text = page.read_text()
    assert text.startswith("# Ablations\n\n")
    assert text.endswith("\n\nReading.\n")
    assert "| flat cells |" in text
    assert text.count("| retrieval |") == 2

    # What is finished is used again; what was killed is made anew.
    finished = {p: p.stat().st_mtime_ns for p in folder.glob("*/seed-*/*/run.json")}
    assert len(finished) == 4
    (lost,) = folder.glob("flat_cells/seed-0/phase-1-*/run.json")
    lost.unlink()
    again = run_ablations(*arguments)
    assert again.status == 0, again.text
    assert again.text.count("$ python -m geopak.train") == 1
    assert {p for p, when in finished.items() if p.stat().st_mtime_ns != when} == {lost}
    assert page.read_text() == text


def test_variants_share_what_is_the_same_for_them(home: Path) -> None:
    chosen = (
        "full", "no_label_smoothing", "no_auxiliary", "flat_cells", "no_scene_encoder",
        "regression_only", "decoding_mean", "decoding_geometric_median",
    )  # fmt: skip
    cfg = compose("ablations", [f"variants=[{','.join(chosen)}]"])
    chains = {v: plan(cfg, v, 0, [0, 1], "photos") for v in cfg.variants}
    first = {v: chain[0].folder for v, chain in chains.items() if 0 in chain}
    for variant in ("no_label_smoothing", "no_auxiliary", "decoding_mean"):
        assert first[variant] == first["full"]
    for variant in ("flat_cells", "no_scene_encoder"):
        assert first[variant] != first["full"]
    assert chains["regression_only"].keys() == {1}
    assert chains["regression_only"][1].parent is None
    assert chains["full"][1].parent == chains["full"][0]
    folders = {chain[1].folder for chain in chains.values()}
    # An experiment that changes nothing is the reference under another name.
    assert len(folders) == len(cfg.variants)
    alone = {v: decoded_alone(cfg, v, "full") for v in cfg.variants[1:]}
    assert {v for v, rule in alone.items() if rule} == {
        "decoding_mean",
        "decoding_geometric_median",
    }
    less = quoted(["data.batch_size=32"])
    # Other photos, another seed or other settings are other runs.
    other = compose("ablations", [f"train={{0: {less}, 1: {less}}}"])
    runs = [
        plan(cfg, "full", 0, [0, 1], "other photos"),
        plan(cfg, "full", 1, [0, 1], "photos"),
        plan(other, "full", 0, [0, 1], "photos"),
    ]
    for chain in runs:
        assert chain[0].folder.name != chains["full"][0].folder.name
        assert chain[1].folder.name != chains["full"][1].folder.name
    moved = compose("ablations", ["root=/elsewhere", "threads=2", "jobs=2", "name=other"])
    there = plan(moved, "full", 0, [0, 1], "photos")[1].folder
    assert there.name == chains["full"][1].folder.name
    adapted = plan(cfg, "regression_only", 0, [0, 1, 2], "photos")
    assert adapted[2].parent == adapted[1]


def test_a_run_that_fails_says_why_and_ends_no_other(home: Path, tmp_path: Path) -> None:
    cfg = compose("ablations", [f"paths.outputs={tmp_path}", *ONLY_THIS])
    first, second = plan(cfg, "full", 0, [0, 1], "photos").values()
    reason = attempt(second)
    assert reason is not None
    assert reason.startswith(f"CheckpointError: No checkpoint at {first.checkpoint}")
    failed = run_all([second], 1, {})
    assert failed == {second.folder: reason}
    assert run_all([second], 1, {first.folder: "it failed"}) == {second.folder: "its parent failed"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("variants=[full,flat_cell]", "'flat_cells'"),
        ("variants=[full,full]", "none twice"),
        ("seeds=[]", "seeds must name at least one"),
        ("phases=[1]", "phases=[1] must be [0,1] or [0,1,2]"),
        ("train={0: ['phase.epochs=0'], 1: []}", "phase.epochs=0 must be at least 1"),
        ("root=nowhere", "No prepared set at"),
        ("page=nowhere.md", "page=nowhere.md: there is no"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(home: Path, argument: str, message: str) -> None:
    outcome = run_ablations("page=null", "variants=[full]", argument)
    assert outcome.status == 2
    assert message in outcome.text
    assert "Traceback" not in outcome.text


@pytest.mark.slow
def test_several_at_once_give_the_same_table(home: Path) -> None:
    texts = []
    for jobs in (1, 2):
        arguments = ["page=null", f"name=at-once-{jobs}", f"jobs={jobs}", "seeds=[0]"]
        outcome = run_ablations(*arguments, "variants=[full,no_offset,regression_only]")
        assert outcome.status == 0, outcome.text
        texts.append((home / "outputs" / f"at-once-{jobs}" / "ablations.md").read_text())
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_ablations_are_trained_as_they_are_typed(home: Path) -> None:
    """Each branch of the sweep goes on from its own phase 0."""
    arguments = ["name=typed", "phase=0,1", "experiment=ablation/full,ablation/flat_cells"]
    outcome = run_command("train", "-m", *arguments, *SMALL)
    assert outcome.status == 0, outcome.text
    runs = list((home / "outputs" / "typed" / "phase-1").glob("*/run.json"))
    heads = set()
    for run in runs:
        own = read_checkpoint(run.parent / "checkpoints" / "best.ckpt")["geopak"]["model"]
        parent = read_checkpoint(json.loads(run.read_text())["parent"])["geopak"]["model"]
        assert own["cell_heads"] == parent["cell_heads"]
        heads.add(own["cell_heads"])
    assert heads == {"per_province", "flat"}
    alone = run_command(
        "train", "name=typed", "phase=1", "experiment=ablation/regression_only", *SMALL
    )
    assert alone.status == 0, alone.text
    assert "from pretrained encoders" in alone.text
