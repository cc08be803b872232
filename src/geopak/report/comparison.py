"""Several runs on the same photos: what each measures, and whether they differ.

Every statistic is computed on the same resamples for all runs, so that the interval of a difference
is that of paired results: photos that are hard for one model are mostly hard for the other too.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geopak import metrics
from geopak.data.ties import components
from geopak.errors import ComparisonError
from geopak.paired import (
    McNemar,
    SeedSummary,
    holm,
    mcnemar,
    seed_difference,
    seed_summary,
    sign_flip_p_value,
)
from geopak.report.groups import FEW_PHOTOS
from geopak.report.runs import SEED_KEYS, EvaluatedRun, config_differences

CONFIDENCE = 0.95
METRICS = (
    "median_km", "mean_km", "p90_km", "macro_median_km", "within_25km", "within_200km",
    "province_acc", "province_macro_acc",
)  # fmt: skip
PART_METRICS = ("median_km", "province_acc")
# Name of a paired test -> what it asks.
TESTS = {"location": "distance", "within_25km": "within 25 km", "province": "right province"}
# A photo placed closer than this counts as this far off: below, the logarithm of the error would
# weigh differences of some metres like those of some hundred kilometres.
_LEAST_ERROR_KM = 0.1

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; the ends are NaN where resamples say nothing."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Two-sided p-value of a run against the baseline run.

    Attributes:
        p_value: sign-flip permutation test over groups of photos.
        adjusted: the same, Holm-adjusted for all runs compared with the baseline.
        mcnemar: of correctness, photos taken for independent; ``None`` for distances.
    """

    p_value: float
    adjusted: float
    mcnemar: McNemar | None = None


@dataclass(frozen=True)
class RunComparison:
    """One run beside the baseline run.

    Attributes:
        label: short name in tables.
        run: what was compared.
        metrics: of :data:`METRICS`.
        differences: run minus baseline run, of each; empty for the baseline.
        tests: of :data:`TESTS`; empty for the baseline.
    """

    label: str
    run: EvaluatedRun
    metrics: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    tests: Mapping[str, PairedTest]


@dataclass(frozen=True)
class Part:
    """The photos of one province.

    Attributes:
        key, name: of the province.
        num_photos, num_groups: in it.
        metrics: of :data:`PART_METRICS`, one mapping per run.
        differences: to the baseline run, one mapping per run; empty for the baseline.
    """

    key: str
    name: str
    num_photos: int
    num_groups: int
    metrics: Sequence[Mapping[str, Estimate]]
    differences: Sequence[Mapping[str, Estimate]]

    @property
    def is_small(self) -> bool:
        """So few independent photos that intervals say nothing."""
        return self.num_groups < FEW_PHOTOS


@dataclass(frozen=True)
class VariantMetric:
    """A metric of runs that differ in their seed alone.

    Attributes:
        over_seeds: mean, spread and t interval over trainings, on these very photos.
        over_photos: mean over the seeds with its bootstrap interval, for these very trainings.
        difference: to the baseline run's variant, with its bootstrap interval; ``None`` for itself.
        difference_over_seeds: Welch's t interval of that difference; ``None`` for itself.
    """

    over_seeds: SeedSummary
    over_photos: Estimate
    difference: Estimate | None
    difference_over_seeds: tuple[float, float] | None


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed alone.

    Attributes:
        title: in what its configuration differs from the other variants'.
        labels: of its runs.
        seeds: theirs.
        metrics: of :data:`METRICS`.
    """

    title: str
    labels: Sequence[str]
    seeds: Sequence[int]
    metrics: Mapping[str, VariantMetric]


@dataclass(frozen=True)
class Comparison:
    """Runs compared on the photos that all of them were measured on.

    Attributes:
        split: of the photos.
        region: title.
        num_photos: compared.
        num_groups, largest_group: groups of photos that are drawn and exchanged together.
        num_other_truth: photos left out since the runs disagree about their truth.
        num_any: photos that at least one run was measured on.
        num_resamples, seed: of the bootstrap.
        runs: the baseline run first.
        baselines: name -> metrics of distances, with the cells of the baseline run.
        parts: per province.
        variants: empty unless some runs differ in their seed alone.
        config: nested key -> value per run, where they differ.
        warnings: what to know before reading on.
    """

    split: str
    region: str
    num_photos: int
    num_groups: int
    largest_group: int
    num_other_truth: int
    num_any: int
    num_resamples: int
    seed: int
    runs: Sequence[RunComparison]
    baselines: Mapping[str, Mapping[str, Estimate]]
    parts: Sequence[Part]
    variants: Sequence[Variant]
    config: Mapping[str, Sequence[str]]
    warnings: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON, which knows no NaN: ``None`` in its place."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        content["runs"] = [
            {
                "label": r.label,
                "title": r.run.title,
                "phase": r.run.report["context"].get("phase"),
                "checkpoint": r.run.report["context"].get("checkpoint"),
                "rule": r.run.report["rule"],
                "seed": r.run.seed,
                "metrics": _plain(r.metrics),
                "differences": _plain(r.differences),
                "tests": _plain(r.tests),
            }
            for r in self.runs
        ]
        plain: dict[str, Any] = _plain(content)
        return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def run_labels(num: int) -> list[str]:
    """``A, B, …, Z, A2, B2, …``."""
    letters = string.ascii_uppercase
    return [
        letters[k % len(letters)] + (str(k // len(letters) + 1) if k >= len(letters) else "")
        for k in range(num)
    ]


def shared_photos(runs: Sequence[EvaluatedRun]) -> tuple[list[pd.DataFrame], int, int]:
    """The photos that all runs were measured on, in one order.

    Returns:
        Predictions of each run, their rows of the same photos; the number of photos that are in
        every run but with another truth, and so left out; the number of photos in any run.

    Raises:
        ComparisonError: an id that occurs twice, or no photo in common.
    """
    frames = []
    for run in runs:
        frame = run.predictions.set_index("id")
        if not frame.index.is_unique:
            raise ComparisonError(f"{run.title} has photo ids twice; its report is broken.")
        frames.append(frame)
    shared = everything = frames[0].index
    for frame in frames[1:]:
        shared = shared[shared.isin(frame.index)]
        everything = everything.union(frame.index)
    frames = [frame.loc[shared] for frame in frames]
    same = np.ones(len(shared), bool)
    for frame in frames[1:]:
        for column in ("latitude", "longitude", "province"):
            same &= frame[column].to_numpy() == frames[0][column].to_numpy()
    if not same.any():
        raise ComparisonError(
            "The runs share no photo with the same truth: they were evaluated on other sets. "
            "Evaluate them on one set: python -m geopak.evaluate prepared=…"
        )
    return [frame[same] for frame in frames], int((~same).sum()), len(everything)


def compare_runs(
    runs: Sequence[EvaluatedRun], *, num_resamples: int = 1000, seed: int = 0
) -> Comparison:
    """Compares runs with the first of them, the baseline run.

    Args:
        runs: of one region and split; a single one is a table of one.
        num_resamples: of the bootstrap.
        seed: of the bootstrap and the permutation tests.

    Raises:
        ComparisonError: runs of different regions or splits, or without a photo in common.
    """
    first = runs[0]
    context = first.report["context"]
    for run in runs[1:]:
        theirs = run.report["context"]
        if (theirs["region"], run.provinces) != (context["region"], first.provinces):
            raise ComparisonError(
                f"{run.title} is of {theirs['region']} ({', '.join(run.provinces.values())}), "
                f"{first.title} of {context['region']} ({', '.join(first.provinces.values())}): "
                "only runs of one region can be compared."
            )
        if theirs["split"] != context["split"]:
            raise ComparisonError(
                f"{run.title} was evaluated on the {theirs['split']} split, {first.title} on the "
                f"{context['split']} split."
            )
    frames, num_other_truth, num_any = shared_photos(runs)
    group = _common_groups(frames)
    labels = run_labels(len(runs))
    variants = _variants(runs)
    statistic = _Statistics(frames, list(first.provinces.values()), [v for _, v in variants])
    num_photos = len(group)
    points = statistic(np.ones((1, num_photos)))
    intervals = metrics.bootstrap_intervals(
        statistic,
        num_photos,
        num_resamples=num_resamples,
        confidence=CONFIDENCE,
        seed=seed,
        group=group,
    )
    estimates = {
        name: Estimate(float(value[0]), *intervals[name]) for name, value in points.items()
    }

    def of(section: str, names: Sequence[str] = METRICS) -> dict[str, Estimate]:
        found = {name: estimates.get(f"{section}/{name}") for name in names}
        return {name: estimate for name, estimate in found.items() if estimate is not None}

    tests = _tests(statistic, group, seed)
    sizes = np.unique(group, return_counts=True)[1]
    return Comparison(
        split=context["split"],
        region=context["region"],
        num_photos=num_photos,
        num_groups=len(sizes),
        largest_group=int(sizes.max()),
        num_other_truth=num_other_truth,
        num_any=num_any,
        num_resamples=num_resamples,
        seed=seed,
        runs=[
            RunComparison(label, run, of(f"run/{k}"), of(f"difference/{k}"), tests[k])
            for k, (label, run) in enumerate(zip(labels, runs, strict=True))
        ],
        baselines={name: of(f"baseline/{name}") for name in statistic.baselines_km},
        parts=[
            Part(
                key=key,
                name=name,
                num_photos=int((inside := statistic.province_id == index).sum()),
                num_groups=len(np.unique(group[inside])),
                metrics=[of(f"part/{index}/run/{k}", PART_METRICS) for k in range(len(runs))],
                differences=[
                    of(f"part/{index}/difference/{k}", PART_METRICS) for k in range(len(runs))
                ],
            )
            for index, (key, name) in enumerate(first.provinces.items())
        ],
        variants=[
            Variant(
                title=title,
                labels=[labels[k] for k in members],
                seeds=[int(runs[k].seed or 0) for k in members],
                metrics={
                    name: _variant_metric(name, index, variants, points, estimates)
                    for name in METRICS
                },
            )
            for index, (title, members) in enumerate(variants)
        ],
        config=_differences(runs),
        warnings=[
            f"{label}: {warning}."
            for label, run in zip(labels, runs, strict=True)
            for warning in run.warnings
        ]
        + _twins(frames, labels),
    )


class _Statistics:
    """All metrics of all runs as one function of the counts, so that they share the resamples."""

    def __init__(
        self,
        frames: Sequence[pd.DataFrame],
        provinces: Sequence[str],
        variants: Sequence[Sequence[int]],
    ) -> None:
        index = {name: k for k, name in enumerate(provinces)}
        first = frames[0]
        self.province_id = np.asarray(first["province"].map(index), np.int64)
        self.error_km = [frame["error_km"].to_numpy(float) for frame in frames]
        self.correct = [
            (frame["predicted_province"] == frame["province"]).to_numpy(float) for frame in frames
        ]
        prefix = "baseline_km_"
        self.baselines_km = {
            str(column).removeprefix(prefix): first[column].to_numpy(float)
            for column in first
            if str(column).startswith(prefix)
        }
        self.variants = variants

    def __call__(self, counts: Array) -> dict[str, Array]:
        out: dict[str, Array] = {}
        for k, (error_km, correct) in enumerate(zip(self.error_km, self.correct, strict=True)):
            values = self._distances(error_km, counts)
            values["province_acc"] = metrics.mean_of(correct, counts)
            values["province_macro_acc"] = metrics.macro(
                metrics.mean_of, correct, self.province_id, counts
            )
            out |= {f"run/{k}/{name}": values[name] for name in METRICS}
        for name, error_km in self.baselines_km.items():
            values = self._distances(error_km, counts)
            out |= {f"baseline/{name}/{m}": values[m] for m in METRICS if m in values}
        for index in np.unique(self.province_id).tolist():
            rows = np.flatnonzero(self.province_id == index)
            mine = counts[:, rows]
            for k, (error_km, correct) in enumerate(zip(self.error_km, self.correct, strict=True)):
                section = f"part/{index}/run/{k}"
                out[f"{section}/median_km"] = metrics.median_of(error_km[rows], mine)
                out[f"{section}/province_acc"] = metrics.mean_of(correct[rows], mine)
        for name in [name for name in out if "run/" in name and "run/0/" not in name]:
            section, _, rest = name.partition("run/")
            metric = rest.partition("/")[2]
            out[f"{section}difference/{rest}"] = out[name] - out[f"{section}run/0/{metric}"]
        for v, members in enumerate(self.variants):
            for name in METRICS:
                mean = np.mean([out[f"run/{k}/{name}"] for k in members], axis=0)
                out[f"variant/{v}/{name}"] = mean
                out[f"variant_difference/{v}/{name}"] = mean - out[f"variant/0/{name}"]
        return out

    def _distances(self, error_km: Array, counts: Array) -> dict[str, Array]:
        values = metrics.error_summary(error_km, counts=counts)
        values["macro_median_km"] = metrics.macro(
            metrics.median_of, error_km, self.province_id, counts
        )
        return values


def _twins(frames: Sequence[pd.DataFrame], labels: Sequence[str]) -> list[str]:
    """Runs that answer as an earlier one does, each with that one."""
    columns = [c for c in frames[0] if str(c).startswith(("predicted_", "error_km", "prob_"))]
    found = []
    for k, frame in enumerate(frames):
        for before in range(k):
            if set(columns) <= set(frame) and frame[columns].equals(frames[before][columns]):
                found.append(
                    f"{labels[k]} predicts exactly what {labels[before]} does, photo by photo: "
                    "whatever was configured differently had no effect."
                )
                break
    return found


def _common_groups(frames: Sequence[pd.DataFrame]) -> NDArray[np.int64]:
    """Groups that hold together whatever any of the reports grouped."""
    num = len(frames[0])
    edges, num_nodes = [], num
    for frame in frames:
        code = np.unique(frame["group"].to_numpy(), return_inverse=True)[1]
        edges.append((np.arange(num), num_nodes + code))
        num_nodes += int(code.max()) + 1
    return components(num, edges, num_nodes)


def _tests(
    statistic: _Statistics, group: NDArray[np.int64], seed: int
) -> list[dict[str, PairedTest]]:
    """Each run's paired tests against the first run's results; none for the first."""
    log_error = [np.log(np.maximum(e, _LEAST_ERROR_KM)) for e in statistic.error_km]
    within = [(e <= 25).astype(float) for e in statistic.error_km]
    results = {"location": log_error, "within_25km": within, "province": statistic.correct}
    tests: list[dict[str, PairedTest]] = [{} for _ in log_error]
    for name, (base, *others) in results.items():
        p_values = [sign_flip_p_value(other - base, group, seed=seed) for other in others]
        for k, (p_value, adjusted) in enumerate(zip(p_values, holm(p_values), strict=True)):
            counts = None if name == "location" else mcnemar(base, others[k])
            tests[k + 1][name] = PairedTest(p_value, adjusted, counts)
    return tests


def _variants(runs: Sequence[EvaluatedRun]) -> list[tuple[str, list[int]]]:
    """Title and runs of every variant, the first run's first; none if no two runs share one."""
    members: dict[str, list[int]] = {}
    for k, run in enumerate(runs):
        key = run.variant_key() or f"run {k}"
        # A training repeated with its seed is no further seed.
        if run.seed not in [runs[other].seed for other in members.get(key, [])]:
            members.setdefault(key, []).append(k)
    groups = list(members.values())
    if max(map(len, groups)) < 2:
        return []
    different = _differences([runs[group[0]] for group in groups], SEED_KEYS)
    labels = run_labels(len(runs))
    titles = []
    for v, group in enumerate(groups):
        title = ", ".join(f"{key}={values[v]}" for key, values in different.items())
        short = title if title and len(title) <= 60 else f"as {labels[group[0]]}"
        titles.append(short if len(groups) > 1 else "all runs")
    return list(zip(titles, groups, strict=True))


def _variant_metric(
    name: str,
    index: int,
    variants: Sequence[tuple[str, Sequence[int]]],
    points: Mapping[str, Array],
    estimates: Mapping[str, Estimate],
) -> VariantMetric:
    own, base = ([float(points[f"run/{k}/{name}"][0]) for k in variants[v][1]] for v in (index, 0))
    return VariantMetric(
        over_seeds=seed_summary(own, CONFIDENCE),
        over_photos=estimates[f"variant/{index}/{name}"],
        difference=estimates[f"variant_difference/{index}/{name}"] if index else None,
        difference_over_seeds=seed_difference(own, base, CONFIDENCE) if index else None,
    )


def _differences(runs: Sequence[EvaluatedRun], without: Sequence[str] = ()) -> dict[str, list[str]]:
    """Configuration keys that differ, the phases before included."""
    configs = []
    for run in runs:
        config = {k: v for k, v in run.config.items() if k not in without}
        before = [[o for o in a if o.partition("=")[0] not in without] for a in run.ancestors]
        for step, overrides in enumerate(before if config else [], start=1):
            config[f"overrides {step} phase{'s' if step > 1 else ''} before"] = " ".join(overrides)
        configs.append(config)
    return config_differences(configs)
