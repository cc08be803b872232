"""Metrics against naive oracles, by properties, and gathered from two processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score

from geopak import metrics
from geopak.errors import PreparedSetError
from geopak.geo.cells import NUM_NEIGHBOURS, CellTable
from geopak.geo.distance import haversine_km_array
from geopak.metrics import GeolocationMetrics

KEYS = ("north", "south", "island")
Rows = dict[str, torch.Tensor]

kilometres = st.lists(st.floats(0, 20_000), min_size=1, max_size=40)


def make_rows(num: int, seed: int = 0, provinces: Sequence[int] = (0, 1)) -> Rows:
    rng = np.random.default_rng(seed)
    truth = rng.uniform((20, 60), (30, 70), (num, 2))
    return {
        "predicted_latlon_deg": torch.tensor(truth + rng.normal(0, 1, (num, 2))),
        "latlon_deg": torch.tensor(truth),
        "province_logits": torch.tensor(rng.normal(0, 1, (num, len(KEYS)))),
        "province_id": torch.tensor(rng.choice(provinces, num)),
        "cell_rank": torch.tensor(rng.integers(0, 12, num)),
        "teacher_forced_latlon_deg": torch.tensor(truth + rng.normal(0, 0.01, (num, 2))),
        "urban": torch.tensor(rng.random(num) < 0.5),
        "row": torch.tensor(rng.permutation(num) + (1 << 24)),
    }


def select(rows: Rows, index: NDArray[np.int64] | slice) -> Rows:
    return {name: column[index] for name, column in rows.items()}


def computed(*batches: Rows) -> dict[str, float]:
    metric = GeolocationMetrics(KEYS)
    for batch in batches:
        metric.update(**batch)
    return {name: float(value) for name, value in metric.compute().items()}


def make_cells(province: list[int], center: list[tuple[float, float]], count: list[int]):
    n = len(province)
    return CellTable(
        province_id=np.array(province),
        center_latlon_deg=np.array(center, float),
        radius_km=np.ones(n),
        count=np.array(count),
        urban=np.zeros(n, bool),
        sparse=np.zeros(n, bool),
        neighbours=np.full((n, NUM_NEIGHBOURS), -1),
    )


@given(kilometres)
def test_error_summary_equals_numpy(error_km: list[float]) -> None:
    summary = metrics.error_summary(error_km, thresholds_km=(1, 750))
    assert summary["median_km"] == pytest.approx(np.median(error_km))
    assert summary["p90_km"] == pytest.approx(np.quantile(error_km, 0.9))
    assert summary["mean_km"] == pytest.approx(np.mean(error_km))
    assert summary["within_1km"] == pytest.approx(sum(e <= 1 for e in error_km) / len(error_km))
    assert summary["within_750km"] >= summary["within_1km"]


@given(kilometres, st.data())
def test_counts_mean_repetition(error_km: list[float], data: st.DataObject) -> None:
    size = len(error_km)
    counts = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size).filter(any))
    province = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    repeated = np.repeat(np.arange(size), counts)
    v, p = np.array(error_km), np.array(province)
    by_counts = metrics.error_summary(v, counts=[counts])
    for name, value in metrics.error_summary(v[repeated]).items():
        assert by_counts[name].shape == (1,)
        assert by_counts[name][0] == pytest.approx(float(value))
    for statistic in (metrics.mean_of, metrics.median_of):
        one = metrics.macro(statistic, v, p, [counts])
        assert one[0] == pytest.approx(float(metrics.macro(statistic, v[repeated], p[repeated])))


def test_nan_error_is_not_hidden() -> None:
    assert all(np.isnan(metrics.error_summary([1.0, np.nan])[k]) for k in ("median_km", "mean_km"))


def test_macro_accuracy_equals_balanced_accuracy() -> None:
    rng = np.random.default_rng(1)
    true, predicted = rng.choice(4, 200, p=(0.7, 0.2, 0.09, 0.01)), rng.integers(0, 4, 200)
    assert metrics.macro(metrics.mean_of, true == predicted, true) == pytest.approx(
        balanced_accuracy_score(true, predicted)
    )


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_error_equals_naive_loop(claims: list[tuple[float, bool]]) -> None:
    gap = 0.0
    for index in range(10):
        inside = [c for c in claims if min(int(c[0] * 10), 9) == index]
        if inside:
            claim = sum(c[0] for c in inside) / len(inside)
            hits = sum(c[1] for c in inside) / len(inside)
            gap += abs(claim - hits) * len(inside) / len(claims)
    confidence, correct = zip(*claims, strict=True)
    assert metrics.expected_calibration_error(confidence, correct) == pytest.approx(gap)
    bins = metrics.reliability(confidence, correct)
    assert bins.count.sum() == len(claims)
    assert (bins.low <= bins.accuracy + 1e-9).all()
    assert (bins.accuracy <= bins.high + 1e-9).all()


@pytest.mark.parametrize("claims", [[], [1.5], [-0.1], [float("nan")]])
def test_calibration_refuses_what_is_no_probability(claims: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        metrics.reliability(claims, [True] * len(claims))


def test_bootstrap_covers_the_truth_about_as_often_as_it_claims() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        sample = rng.exponential(1.0, 80)
        low, high = metrics.bootstrap_intervals(
            lambda counts, v=sample: {"median": metrics.median_of(v, counts)},
            80,
            num_resamples=300,
            seed=trial,
        )["median"]
        covered += low <= np.log(2) <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_bootstrap_is_reproducible_and_does_not_depend_on_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(3).normal(0, 1, 500)
    blocks = []

    def statistic(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        blocks.append(len(counts))
        assert (counts.sum(1) == 500).all()
        return {"mean": metrics.mean_of(values, counts)}

    first = metrics.bootstrap_intervals(statistic, 500, num_resamples=9000, seed=4)
    assert len(blocks) == 2
    assert sum(blocks) == 9000
    assert first == metrics.bootstrap_intervals(statistic, 500, num_resamples=9000, seed=4)
    assert first != metrics.bootstrap_intervals(statistic, 500, num_resamples=9000, seed=5)
    assert first["mean"] == pytest.approx(
        (values.mean() - 1.96 / 500**0.5, values.mean() + 1.96 / 500**0.5), abs=0.02
    )


def test_photos_of_one_group_are_drawn_together() -> None:
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(40), 10)
    values = rng.normal(0, 1, 40)[group]

    def mean(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {"mean": metrics.mean_of(values, counts)}

    def width(group: NDArray[np.int64] | None) -> float:
        low, high = metrics.bootstrap_intervals(mean, 400, group=group)["mean"]
        return high - low

    assert width(group) == pytest.approx(width(None) * 10**0.5, rel=0.15)


def test_bootstrap_of_one_photo_is_that_photo() -> None:
    interval = metrics.bootstrap_intervals(lambda c: metrics.error_summary([7.0], counts=c), 1)
    assert interval["median_km"] == (7.0, 7.0)
    with pytest.raises(ValueError, match="at least one photo"):
        metrics.bootstrap_intervals(lambda c: {}, 0)
    with pytest.raises(ValueError, match="confidence"):
        metrics.bootstrap_intervals(lambda c: {}, 1, confidence=95)


def test_baselines() -> None:
    centers = [(25.0, 67.0), (25.0, 69.0), (30.0, 70.0)]
    cells = make_cells([0, 0, 2], centers, [30, 10, 20])
    assert metrics.densest_cell_latlon(cells).tolist() == [25.0, 67.0]
    centroid = metrics.province_centroid_latlon(cells, [2, 0, 2])
    assert centroid[[0, 2]] == pytest.approx(np.array([[30.0, 70.0]] * 2))
    assert centroid[1] == pytest.approx([25.0, 67.5], abs=0.02)
    with pytest.raises(PreparedSetError, match="Province index 1"):
        metrics.province_centroid_latlon(cells, [1])


def test_metric_equals_naive_oracle() -> None:
    rows = make_rows(101)
    got = computed(rows)
    true, province = rows["latlon_deg"].numpy(), rows["province_id"].numpy()
    error_km = haversine_km_array(rows["predicted_latlon_deg"], true)
    forced_km = haversine_km_array(rows["teacher_forced_latlon_deg"], true)
    predicted = rows["province_logits"].argmax(1).numpy()
    rank, urban = rows["cell_rank"].numpy(), rows["urban"].numpy()
    expected = {
        "median_km": np.median(error_km),
        "mean_km": np.mean(error_km),
        "p90_km": np.quantile(error_km, 0.9),
        **{f"within_{t}km": np.mean(error_km <= t) for t in (1, 5, 25, 200, 750)},
        "province_acc": np.mean(predicted == province),
        "province_macro_acc": np.mean([(predicted == p)[province == p].mean() for p in (0, 1)]),
        "cell_top1": np.mean(rank == 0),
        "cell_top5": np.mean(rank <= 4),
        "teacher_forced/median_km": np.median(forced_km),
        **{f"province/{KEYS[p]}/median_km": np.median(error_km[province == p]) for p in (0, 1)},
        **{f"province/{KEYS[p]}/acc": np.mean(predicted[province == p] == p) for p in (0, 1)},
        "urban/median_km": np.median(error_km[urban]),
        "rural/median_km": np.median(error_km[~urban]),
    }
    # Coordinates are kept in float32, good to about a metre. "island" has no photos, so no entry.
    assert got == pytest.approx(expected, rel=1e-5, abs=2e-3)


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**16), st.data())
def test_order_batching_and_padding_do_not_matter(num: int, seed: int, data: st.DataObject) -> None:
    rows = make_rows(num, seed, provinces=(0, 1, 2))
    order = np.random.default_rng(seed).permutation(num)
    cut = data.draw(st.integers(0, num))
    padding = order[: data.draw(st.integers(0, num))]
    batches = [select(rows, index) for index in (order[:cut], order[cut:], padding)]
    assert computed(*batches) == pytest.approx(computed(rows))


def test_reset_and_no_photos() -> None:
    metric = GeolocationMetrics(KEYS)
    metric.update(**make_rows(4))
    metric.compute()
    metric.reset()
    metric.update(**select(make_rows(4), slice(0, 0)))
    with pytest.raises(ValueError, match="before any photo"):
        metric.compute()


def test_half_precision_predictions_are_accepted() -> None:
    rows = make_rows(8)
    rows["province_logits"] = rows["province_logits"].bfloat16()
    rows["predicted_latlon_deg"] = rows["latlon_deg"].bfloat16()
    assert np.isfinite(computed(rows)["median_km"])


def gather(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    results = []
    rows = make_rows(31)
    # Alternating, as the loaders deal them, and the first row once more in the other process.
    dealt = np.append(np.arange(31), 0)[rank::2]
    for mine in (dealt, np.arange(31) if rank == 0 else None):
        metric = GeolocationMetrics(KEYS)
        if mine is not None:
            for chunk in np.array_split(mine, 3):
                metric.update(**select(rows, chunk))
        metric._update_count += mine is None  # a process without photos is no mistake here
        results.append({name: float(value) for name, value in metric.compute().items()})
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    # Forked processes need not import everything again, which takes longest here.
    processes = torch.multiprocessing.start_processes(
        gather, args=(str(tmp_path),), nprocs=2, join=False, start_method="fork"
    )
    deadline = time.monotonic() + 60
    while not processes.join(timeout=5):
        assert time.monotonic() < deadline, "the two processes wait for each other"
    expected = pytest.approx(computed(make_rows(31)))
    for rank in (0, 1):
        dealt, one_process_idle = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert dealt == expected
        assert one_process_idle == expected
