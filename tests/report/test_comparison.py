"""Comparisons of made-up runs against a naive restatement, and the reading of what runs leave."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from geopak.compare import evaluation_overrides
from geopak.errors import ComparisonError
from geopak.report.comparison import METRICS, Comparison, compare_runs, run_labels
from geopak.report.comparison_page import comparison_page, parts_table
from geopak.report.page import write_page
from geopak.report.runs import (
    EvaluatedRun,
    config_differences,
    find_runs,
    read_curves,
    read_runs,
    short_titles,
)

PROVINCES = {"west": "West | Coast", "middle": "Middle <b>", "east": "East"}
NUM = 150


def make_run(
    title: str = "run",
    *,
    worse: float = 0.0,
    draw: int = 0,
    rows: slice = slice(None),
    config: dict[str, Any] | None = None,
    ancestors: tuple[tuple[str, ...], ...] = (),
    **context: Any,
) -> EvaluatedRun:
    """Photos in groups of five; errors of another ``draw`` are other, of ``worse`` larger."""
    photos = np.random.default_rng(99)
    hard = photos.normal(3, 1, NUM)
    # Few photos are of the last province.
    province = np.array(list(PROVINCES.values()))[
        np.where(np.arange(NUM) < 4, 2, np.arange(NUM) % 2)
    ]
    latlon = photos.random((NUM, 2)) + 30
    own = np.random.default_rng(draw)
    error_km = np.exp(hard + 0.3 * own.normal(size=NUM) + worse)
    right = own.random(NUM) < 0.8 - 0.3 * worse
    frame = pd.DataFrame(
        {
            "id": [f"photo{k}" for k in range(NUM)],
            "latitude": latlon[:, 0],
            "longitude": latlon[:, 1],
            "province": province,
            "group": np.arange(NUM) // 5,
            "predicted_province": np.where(right, province, np.roll(province, 1)),
            "error_km": error_km,
            "error_km_argmax": error_km * 2,
            "baseline_km_densest_cell": np.full(NUM, 300.0),
        }
    )
    report = {
        "context": {"region": "Squareland", "split": "test", "phase": "1", **context},
        "per_province": {key: {"name": name} for key, name in PROVINCES.items()},
        "rule": "mean",
    }
    return EvaluatedRun(title, None, report, frame.iloc[rows], config or {}, ancestors)


@pytest.fixture(scope="module")
def compared() -> Comparison:
    return compare_runs([make_run("a"), make_run("b", draw=1, worse=0.5)], num_resamples=200)


def naive(run: EvaluatedRun, rows: np.ndarray) -> dict[str, float]:
    columns = ("error_km", "province", "predicted_province")
    error, province, predicted = (run.predictions[c].to_numpy()[rows] for c in columns)
    inside = [province == p for p in set(province)]
    return {
        "median_km": np.median(error),
        "mean_km": np.mean(error),
        "p90_km": np.quantile(error, 0.9),
        "macro_median_km": np.mean([np.median(error[i]) for i in inside]),
        "within_25km": np.mean(error <= 25),
        "within_200km": np.mean(error <= 200),
        "province_acc": np.mean(predicted == province),
        "province_macro_acc": np.mean([np.mean(predicted[i] == province[i]) for i in inside]),
    }


def test_every_figure_and_paired_interval_is_that_of_a_loop_over_resamples(
    compared: Comparison,
) -> None:
    first, second = (r.run for r in compared.runs)
    everything = np.arange(NUM)
    for run in compared.runs:
        expected = naive(run.run, everything)
        assert {n: e.value for n, e in run.metrics.items()} == pytest.approx(expected)
    # The same groups, drawn one by one: intervals agree as far as 2 x 200 resamples can.
    rng = np.random.default_rng(5)
    drawn: dict[str, list[float]] = {name: [] for name in METRICS}
    for _ in range(200):
        picks = rng.integers(30, size=30)
        rows = np.concatenate([everything[5 * g : 5 * g + 5] for g in picks])
        a, b = naive(first, rows), naive(second, rows)
        for name in METRICS:
            drawn[name].append(b[name] - a[name])
    for name, found in compared.runs[1].differences.items():
        spread = np.std(drawn[name])
        low, high = np.quantile(drawn[name], (0.025, 0.975))
        assert (found.low, found.high) == pytest.approx((low, high), abs=0.8 * spread)
        assert found.value == pytest.approx(naive(second, everything)[name]
                                            - naive(first, everything)[name])  # fmt: skip
    assert not compared.runs[0].differences


def test_a_difference_of_all_photos_is_sure_though_each_runs_own_interval_is_wide() -> None:
    first, second = compare_runs(
        [make_run("a"), make_run("b", draw=1, worse=0.2)], num_resamples=200
    ).runs
    assert first.metrics["median_km"].high > second.metrics["median_km"].low
    assert second.differences["median_km"].low > 0
    assert second.tests["location"].p_value < 0.001
    wilcoxon = stats.wilcoxon(
        np.log(first.run.predictions["error_km"]), np.log(second.run.predictions["error_km"])
    )
    assert wilcoxon.pvalue < 0.001


def test_equal_runs_differ_in_nothing_and_are_told_to() -> None:
    result = compare_runs([make_run("a"), make_run("b")], num_resamples=50)
    for estimate in result.runs[1].differences.values():
        assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)
    for test in result.runs[1].tests.values():
        assert (test.p_value, test.adjusted) == (1, 1)
    assert any("B predicts exactly what A does" in w for w in result.warnings)


def test_p_values_are_adjusted_for_the_number_of_runs() -> None:
    runs = [make_run(str(k), draw=k, worse=0.05 * k) for k in range(4)]
    result = compare_runs(runs, num_resamples=20)
    raw = sorted(r.tests["location"].p_value for r in result.runs[1:])
    adjusted = sorted(r.tests["location"].adjusted for r in result.runs[1:])
    assert adjusted[0] == pytest.approx(min(1, 3 * raw[0]))
    assert adjusted[2] == pytest.approx(max(raw[2], adjusted[1]))


def test_only_photos_with_the_same_truth_in_every_run_are_compared() -> None:
    moved = make_run("b", rows=slice(20, None), draw=1)
    moved.predictions.loc[25, "latitude"] += 1
    # Another order and other numbers of the same groups.
    moved = EvaluatedRun(
        "b", None, moved.report,
        moved.predictions.iloc[::-1].assign(group=lambda f: 1000 - f["group"]), {},
    )  # fmt: skip
    result = compare_runs([make_run("a"), moved], num_resamples=20)
    assert (result.num_photos, result.num_any, result.num_other_truth) == (129, 150, 1)
    shared = [k for k in range(20, 150) if k != 25]
    assert result.num_groups == 26
    expected = make_run("a").predictions.iloc[shared]["error_km"].median()
    assert result.runs[0].metrics["median_km"].value == pytest.approx(expected)
    page = comparison_page(result, False)
    assert "ATTENTION" in page.subtitle
    assert "21 of 150 are not shared" in page.subtitle
    with pytest.raises(ComparisonError, match="share no photo"):
        compare_runs([make_run("a", rows=slice(0, 9)), make_run("b", rows=slice(9, None))])


@pytest.mark.parametrize(
    ("context", "message"),
    [({"region": "Roundland"}, "only runs of one region"), ({"split": "val"}, "on the val split")],
)
def test_runs_of_another_region_or_split_are_refused(context: dict[str, str], message: str) -> None:
    with pytest.raises(ComparisonError, match=message):
        compare_runs([make_run(), make_run(**context)])


def test_small_provinces_are_told_and_have_no_interval(compared: Comparison) -> None:
    small = {part.key: part.is_small for part in compared.parts}
    assert small == {"west": False, "middle": False, "east": True}
    table = parts_table(compared, "median_km")
    assert "(too few)" in table.rows[2][-1]
    assert " to " in table.rows[0][-1]
    assert table.faint == [2]
    west = compared.runs[0].run.predictions.query("province == 'West | Coast'")
    assert compared.parts[0].num_photos == len(west)
    assert compared.parts[0].metrics[0]["median_km"].value == pytest.approx(
        west["error_km"].median()
    )


def test_runs_that_differ_in_their_seed_alone_are_taken_together() -> None:
    runs = [
        make_run(
            f"{bias}/{seed}", draw=10 * seed + round(10 * bias), worse=bias,
            config={"seed": seed, "name": f"n{seed}", "model": {"bias": bias}},
            ancestors=((f"seed={seed}", "x=1"),),
        )
        for bias in (0.0, 0.4)
        for seed in (1, 2, 3)
    ]  # fmt: skip
    result = compare_runs([*runs, runs[0]], num_resamples=100)
    assert [v.title for v in result.variants] == ["model.bias=0.0", "model.bias=0.4"]
    # A training named twice is no further seed.
    assert [v.labels for v in result.variants] == [["A", "B", "C"], ["D", "E", "F"]]
    own = [r.metrics["median_km"].value for r in result.runs]
    first, second = (v.metrics["median_km"] for v in result.variants)
    assert first.over_seeds.mean == pytest.approx(np.mean(own[:3]))
    assert first.over_seeds.std == pytest.approx(np.std(own[:3], ddof=1))
    assert first.difference is None
    assert second.difference is not None
    assert second.difference.value == pytest.approx(np.mean(own[3:6]) - np.mean(own[:3]))
    assert second.difference.low < second.difference.value < second.difference.high
    welch = stats.ttest_ind(own[3:6], own[:3], equal_var=False).confidence_interval()
    assert second.difference_over_seeds == pytest.approx((welch.low, welch.high))
    # A phase before that was trained otherwise makes another variant.
    other = make_run(config=runs[1].config, ancestors=(("seed=2", "x=2"),))  # type: ignore[arg-type]
    assert compare_runs([runs[0], other], num_resamples=10).variants == []


def test_configurations_are_compared_key_by_key() -> None:
    configs = [
        {"seed": 1, "model": {"sizes": {"dim": 4}, "fusion": {"bias": None}}},
        {"seed": 1, "model": {"sizes": {"dim": 8}, "fusion": {"bias": None}, "extra": [1, 2]}},
        {},
    ]
    assert config_differences(configs) == {
        "model.sizes.dim": ["4", "8", "?"],
        "model.extra": ["–", "[1, 2]", "?"],
    }


def test_the_page_names_everything_and_escapes_it(compared: Comparison, tmp_path: Path) -> None:
    from geopak.report.comparison_figures import draw_differences

    draw_differences(tmp_path / "differences.png", compared)
    write_page(comparison_page(compared, False, ["A"]), tmp_path, stem="comparison")
    html = (tmp_path / "comparison.html").read_text()
    assert "Middle &lt;b&gt;" in html
    assert "Middle <b>" not in html
    assert "data:image/png;base64," in html
    for text in ("sign-flip permutation test", "McNemar", "No curves of A"):
        assert text in html
    markdown = (tmp_path / "comparison.md").read_text()
    assert "West \\| Coast" in markdown
    json.dumps(compared.to_dict(), allow_nan=False)


def test_a_single_run_is_a_table_of_one(tmp_path: Path) -> None:
    result = compare_runs([make_run()], num_resamples=20)
    write_page(comparison_page(result, False), tmp_path, stem="comparison")
    assert "1 run compared" in (tmp_path / "comparison.md").read_text()
    assert result.runs[0].tests == {}


def test_val_photos_are_told_not_to_be_test_photos() -> None:
    page = comparison_page(compare_runs([make_run(split="val")], num_resamples=10), False)
    assert any("These are val photos" in point for point in page.sections[-1].points)


def test_labels_go_on_after_z() -> None:
    labels = run_labels(60)
    assert labels[:2] + labels[26:28] == ["A", "B", "A2", "B2"]
    assert len(set(labels)) == 60


@pytest.mark.parametrize(
    ("paths", "titles"),
    [
        (["/o/n/phase-1/a", "/o/n/phase-1/b"], ["a", "b"]),
        (["/o/n/phase-1/a", "/o/n/phase-2/a"], ["phase-1/a", "phase-2/a"]),
        (["/o/n/phase-1/a"], ["phase-1/a"]),
        (["/o/n", "/o/n/x"], ["n", "n/x"]),
    ],
)
def test_titles_tell_runs_apart(paths: list[str], titles: list[str]) -> None:
    assert short_titles([Path(p) for p in paths]) == titles


@pytest.fixture
def lay(tmp_path: Path) -> Callable[..., Path]:
    """Lays out a run folder."""

    def make(name: str, finished: bool = True, split: str | None = "test", **more: Any) -> Path:
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints/best.ckpt").write_bytes(b"")
        if finished:
            (folder / "run.json").write_text(json.dumps({"best": "best.ckpt", "overrides": []}))
        if split:
            run = make_run(split=split, checkpoint="best.ckpt")
            report = folder / f"report-{split}"
            report.mkdir()
            content = {**run.report, "config": {"seed": 1}, **more}
            (report / "report.json").write_text(json.dumps(content))
            run.predictions.to_parquet(report / "predictions.parquet")
        return folder

    return make


def test_runs_are_found_by_folder_checkpoint_report_and_glob_once_each(
    lay: Callable[..., Path], tmp_path: Path
) -> None:
    a, b = lay("IMG (1)"), lay("b=2")
    (tmp_path / "multirun.yaml").write_text("")
    for named in (a, a / "checkpoints/best.ckpt", a / "report-test", tmp_path / "IMG*"):
        (run,) = find_runs([str(named)], "test", False)
        assert run.report == a / "report-test"
        assert run.folder == a
    runs = find_runs([str(b), str(tmp_path / "*")], "test", False)
    assert [r.folder for r in runs] == [b, a]
    read = read_runs(runs)
    assert [r.title for r in read] == ["b=2", "IMG (1)"]
    assert read[0].seed == 1
    (doubled,) = read_runs(runs[:1], "argmax")
    assert (doubled.predictions["error_km"] / read[0].predictions["error_km"]).eq(2).all()
    assert doubled.report["rule"] == "argmax"
    with pytest.raises(ComparisonError, match=r"no rule=best\. Known: argmax"):
        read_runs(runs, "best")


def test_what_cannot_be_compared_is_refused_in_words(
    lay: Callable[..., Path], tmp_path: Path
) -> None:
    unfinished, val = lay("unfinished", finished=False, split=None), lay("val", split="val")
    with pytest.raises(ComparisonError, match=r"(?s)unfinished.*unfinished=skip"):
        find_runs([str(unfinished), str(val)], "val", False)
    assert len(find_runs([str(unfinished), str(val)], "val", True)) == 1
    with pytest.raises(ComparisonError, match="No finished run"):
        find_runs([str(unfinished)], "val", True)
    (run,) = find_runs([str(val)], "test", False)
    assert run.report is None
    with pytest.raises(ComparisonError, match="report of the val split"):
        find_runs([str(val / "report-val")], "test", False)
    with pytest.raises(ComparisonError, match="There is no run at"):
        find_runs([str(tmp_path / "nowhere")], "test", False)
    with pytest.raises(ComparisonError, match=r"no run folder.*Runs lie below it, such as .*val"):
        find_runs([str(tmp_path)], "test", False)
    with pytest.raises(ComparisonError, match="No run, checkpoint or report matches"):
        find_runs([str(tmp_path / "z*")], "test", False)
    (val / "report-val/predictions.parquet").write_bytes(b"broken")
    with pytest.raises(ComparisonError, match=r"predictions\.parquet cannot be read"):
        read_runs(find_runs([str(val)], "val", False))


def test_a_report_of_an_earlier_version_is_to_be_made_again(lay: Callable[..., Path]) -> None:
    folder = lay("old")
    table = folder / "report-test/predictions.parquet"
    pd.read_parquet(table).drop(columns="group").to_parquet(table)
    with pytest.raises(ComparisonError, match=r"lacks group.*Evaluate the run again"):
        read_runs(find_runs([str(folder)], "test", False))


def test_phases_before_are_known_by_the_overrides_that_could_change_them(
    lay: Callable[..., Path],
) -> None:
    zero, one, two = lay("zero"), lay("one"), lay("two")
    for child, parent in ((one, zero), (two, one)):
        record = {"parent": str(parent / "checkpoints/best.ckpt"), "overrides": ["seed=1", "y=2"]}
        (child / "run.json").write_text(json.dumps(record))
    # The last of a key counts, and what is a run's own (where it runs and logs) does not.
    typed = ["phase=0", "phase.epochs=2", "seed=1", "trainer=cpu", "logger.kind=csv", "+x=1"]
    started = {"overrides": [*typed, "phase.epochs=3"]}
    (zero / "provenance.json").write_text(json.dumps(started))
    (run,) = read_runs(find_runs([str(two)], "test", False))
    assert run.ancestors == (("seed=1", "y=2"), ("+x=1", "phase.epochs=3", "seed=1"))
    assert run.variant_key() is not None
    assert "seed" not in str(run.variant_key())


def test_a_report_older_than_its_checkpoint_is_told(lay: Callable[..., Path]) -> None:
    folder = lay("run")
    (run,) = read_runs(find_runs([str(folder)], "test", False))
    assert run.warnings == ()
    os.utime(folder / "checkpoints/best.ckpt", (2e9, 2e9))
    (run,) = read_runs(find_runs([str(folder)], "test", False))
    assert "was written after its report" in run.warnings[0]


def test_the_command_that_evaluates_knows_the_runs_photos_and_spares_the_best_ones_report(
    lay: Callable[..., Path],
) -> None:
    folder = lay("run", split=None)
    (run,) = find_runs([str(folder)], "val", False)
    assert evaluation_overrides(run, "val") == [f"ckpt={folder}/checkpoints/best.ckpt", "split=val"]
    (folder / ".hydra").mkdir()
    record = "data:\n  root: /photos\n  prepared: ${data.root}/prepared\n"
    (folder / ".hydra/config.yaml").write_text(record)
    assert evaluation_overrides(run, "val")[2:] == ["root=/photos"]
    (folder / ".hydra/config.yaml").write_text(record.replace("/prepared", "/other"))
    (folder / "checkpoints/last.ckpt").write_bytes(b"")
    (last,) = find_runs([str(folder / "checkpoints/last.ckpt")], "val", False)
    assert evaluation_overrides(last, "val")[2:] == [
        f"out={folder}/report-val-last", "root=/photos", "prepared=/photos/other",
    ]  # fmt: skip


def test_a_resumed_run_has_one_curve(tmp_path: Path) -> None:
    assert read_curves(tmp_path) is None
    for name, text in {
        "csv": "step,val/median_km\n1,9\n2,8\n3,7\n4,6\n",
        "csv-2": "step,val/median_km,train/loss\n3,5,1\n4,4,1\n",
        "csv-10": "step,val/median_km\n5,3\n",
        "csv-11": "",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(text)
    curves = read_curves(tmp_path)
    assert curves is not None
    assert curves["val/median_km"].tolist() == [9, 8, 5, 4, 3]
