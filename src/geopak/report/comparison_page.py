"""What the page of a comparison says; its tables are those of the terminal too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geopak.report.comparison import METRICS, TESTS, Comparison, Estimate, RunComparison
from geopak.report.groups import FEW_GROUPS, FEW_PHOTOS
from geopak.report.page import Page, Section, Table
from geopak.report.wording import format_km, rule_title

TITLES = {
    "median_km": "median error",
    "mean_km": "mean error",
    "p90_km": "90th percentile",
    "macro_median_km": "macro median",
    "within_25km": "within 25 km",
    "within_200km": "within 200 km",
    "province_acc": "right province",
    "province_macro_acc": "province macro accuracy",
}
MAIN_METRICS = ("median_km", "mean_km", "within_25km", "province_macro_acc")


def show(name: str, estimate: Estimate | None, interval: bool = True) -> str:
    """A metric with its interval: ``57 km (51 to 63)``, ``41.7% (38.0 to 45.5)``."""
    if estimate is None:
        return ""
    ends = ""
    if interval:
        ends = f" ({_range(name, estimate.low, estimate.high, '')})"
    return f"{_value(name, estimate.value)}{ends}"


def show_difference(name: str, estimate: Estimate | None, interval: bool = True) -> str:
    """A difference with its sign and interval, in the unit of :func:`difference_title`."""
    if estimate is None:
        return ""
    ends = f" ({_range(name, estimate.low, estimate.high, '+')})" if interval else ""
    return f"{_number(name, estimate.value, '+')}{ends}"


def difference_title(name: str) -> str:
    """Name of a metric with the unit of its differences: km, or percentage points of a share."""
    return f"{TITLES[name]}, {'km' if _is_km(name) else 'points'}"


def _is_km(name: str) -> bool:
    return name.endswith("_km")


def _number(name: str, value: float, sign: str) -> str:
    if np.isnan(value):
        return "n/a"
    mark = ("+" if value > 0 else "−" if value < 0 else "") if sign else ""
    return mark + (format_km(abs(value)) if _is_km(name) else f"{100 * abs(value):.1f}")


def _value(name: str, value: float) -> str:
    return f"{_number(name, value, '')}{' km' if _is_km(name) else '%'}"


def _range(name: str, low: float, high: float, sign: str) -> str:
    if np.isnan(low) or np.isnan(high):
        return "n/a"
    return f"{_number(name, low, sign)} to {_number(name, high, sign)}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def runs_table(comparison: Comparison) -> Table:
    """Which label is which run."""
    rows = []
    for run in comparison.runs:
        context = run.run.report["context"]
        seed = run.run.seed
        rows.append(
            [
                run.label,
                run.run.title,
                str(context.get("phase", "")),
                str(context.get("checkpoint", "")),
                "" if seed is None else str(seed),
                rule_title(run.run.report["rule"]),
                f"{len(run.run.predictions):,}",
            ]
        )
    columns = ("", "run", "phase", "checkpoint", "seed", "decoding rule", "photos evaluated")
    return Table(columns, rows, strong=(0,), words=(1, 2, 3, 5))


def metrics_table(comparison: Comparison, names: Sequence[str] = METRICS) -> Table:
    """Every run's metrics with intervals, and the baselines below."""
    rows = [[run.label, *(show(n, run.metrics[n]) for n in names)] for run in comparison.runs]
    for title, values in comparison.baselines.items():
        if not set(names) & set(values):
            continue
        rows.append([f"baseline: {rule_title(title)}", *(show(n, values.get(n)) for n in names)])
    faint = range(len(comparison.runs), len(rows))
    return Table(("", *(TITLES[n] for n in names)), rows, faint=tuple(faint))


def differences_table(comparison: Comparison) -> Table:
    """Every run minus the baseline run, and the paired tests' p-values."""
    base = comparison.runs[0].label
    rows = []
    for run in comparison.runs[1:]:
        rows.append(
            [
                f"{run.label} − {base}",
                *(show_difference(n, run.differences[n]) for n in MAIN_METRICS),
                *(_p(run.tests[t].adjusted) for t in TESTS),
            ]
        )
    columns = (
        "",
        *(difference_title(n) for n in MAIN_METRICS),
        *(f"p: {title}" for title in TESTS.values()),
    )
    return Table(columns, rows)


def tests_table(comparison: Comparison) -> Table:
    """The tests in full: unadjusted, adjusted, and McNemar's counts."""
    base = comparison.runs[0].label
    rows = []
    for run in comparison.runs[1:]:
        for name, title in TESTS.items():
            test = run.tests[name]
            counts = test.mcnemar
            rows.append(
                [
                    f"{run.label} against {base}: {title}",
                    _p(test.p_value),
                    _p(test.adjusted),
                    "" if counts is None else f"{counts.only_first:,}",
                    "" if counts is None else f"{counts.only_second:,}",
                    "" if counts is None else _p(counts.p_value),
                ]
            )
    columns = ("", "p", "p, Holm", "baseline run alone right", "this run alone right", "McNemar p")
    return Table(columns, rows)


def variants_table(comparison: Comparison, brief: bool = False) -> Table:
    """Mean and spread over seeds, and the differences to the baseline's variant.

    Args:
        comparison: with variants.
        brief: without the columns that only a page has room for.
    """
    rows = []
    for variant in comparison.variants:
        for name in MAIN_METRICS:
            found = variant.metrics[name]
            seeds = found.over_seeds
            between, difference = found.difference_over_seeds, found.difference
            cells = {
                "": f"{variant.title}: {TITLES[name]}",
                "runs": " ".join(variant.labels),
                "seeds": ", ".join(map(str, variant.seeds)),
                "mean": _value(name, seeds.mean),
                "std": _number(name, seeds.std, ""),
                "95% over seeds": _range(name, seeds.low, seeds.high, ""),
                "95% over photos": _range(name, *_ends(found.over_photos), ""),
                "difference": show_difference(name, difference, interval=False),
                "its 95% over seeds": "" if between is None else _range(name, *between, "+"),
                "its 95% over photos": ""
                if difference is None
                else _range(name, *_ends(difference), "+"),
            }
            if brief:
                del cells["seeds"], cells["95% over seeds"], cells["95% over photos"]
            rows.append(cells)
    columns = list(rows[0])
    return Table(columns, [list(row.values()) for row in rows])


def _ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def parts_table(comparison: Comparison, name: str) -> Table:
    """A metric per province: each run's, and its difference to the baseline run.

    Differences are in kilometres, or percentage points of a share.
    """
    base, *others = comparison.runs
    rows = []
    for part in comparison.parts:
        few = part.is_small
        cells = []
        for k in range(len(comparison.runs)):
            value = part.metrics[k].get(name)
            cells.append(show(name, value, interval=False) if value else "n/a")
            if k:
                text = show_difference(name, part.differences[k].get(name), interval=not few)
                cells.append(f"{text} (too few)" if few and text else text or "n/a")
        rows.append([part.name, f"{part.num_photos:,}", f"{part.num_groups:,}", *cells])
    columns = ["", "photos", "groups", base.label]
    for run in others:
        columns += [run.label, f"{run.label} − {base.label}"]
    small = [row for row, part in enumerate(comparison.parts) if part.is_small]
    return Table(columns, rows, faint=small)


def config_table(comparison: Comparison) -> Table:
    """The configuration's keys that differ, a column per run."""
    labels = [run.label for run in comparison.runs]
    rows = [[key, *values] for key, values in comparison.config.items()]
    return Table(("", *labels), rows, words=range(1, len(labels) + 1))


def headline(comparison: Comparison) -> str:
    """How many photos are compared, and of how many."""
    text = f"{comparison.num_photos:,} {comparison.split} photos of {comparison.region}"
    left_out = comparison.num_any - comparison.num_photos
    if left_out:
        text += (
            f"; ATTENTION: the runs were evaluated on different photos, {left_out:,} of "
            f"{comparison.num_any:,} are not shared and left out"
        )
        if comparison.num_other_truth:
            text += f" ({comparison.num_other_truth:,} of them since their truth differs)"
    return text


def comparison_page(
    comparison: Comparison, has_curves: bool, without_curves: Sequence[str] = ()
) -> Page:
    """The page of a comparison.

    Args:
        comparison: what it says.
        has_curves: ``curves.png`` was drawn.
        without_curves: labels of the runs that left no CSV log.
    """
    runs = comparison.runs
    several = len(runs) > 1
    base = runs[0].label
    sections = [
        Section("Which runs?", points=comparison.warnings, table=runs_table(comparison)),
        Section(
            "How far off?",
            ["End-to-end figures on the same photos, with 95% intervals in brackets."],
            table=metrics_table(comparison, METRICS[:4]),
        ),
        Section(
            "How often right?",
            ["Shares of the same photos, with 95% intervals in brackets."],
            table=metrics_table(comparison, METRICS[4:]),
        ),
    ]
    if several:
        sections += [
            Section(
                f"Differences to {base}",
                [
                    f"Each run minus {base} on the same photos. For kilometres less is better, for "
                    "shares (in percentage points) more. An interval without 0, and a small p, say "
                    "that other photos would most likely show the difference too; they say nothing "
                    "about another seed. The p-values are adjusted for the number of runs."
                ],
                table=differences_table(comparison),
                figure="differences.png",
                caption="95% intervals of the paired differences; grey ones hold 0.",
            ),
            Section("The tests in full", table=tests_table(comparison)),
        ]
    if comparison.variants:
        sections.append(
            Section(
                "Over seeds",
                [
                    "Runs whose configuration differs in the seed alone, taken together. The "
                    "interval over seeds covers another training on these photos, the one over "
                    "photos covers other photos for these trainings. A difference to rely on has "
                    "no 0 in either. Differences are to the first variant, in kilometres or "
                    "percentage points."
                ],
                table=variants_table(comparison),
            )
        )
    sections += [
        Section(
            "Median error, province by province",
            [f"Differences to {base} are in km, with 95% intervals."] if several else [],
            table=parts_table(comparison, "median_km"),
        ),
        Section(
            "Right province, province by province",
            [f"Differences to {base} are in percentage points."] if several else [],
            table=parts_table(comparison, "province_acc"),
        ),
    ]
    if several:
        same = "The configurations are equal, or not known." if not comparison.config else ""
        sections.append(
            Section(
                "What was configured differently",
                [same] if same else [],
                table=config_table(comparison) if comparison.config else None,
            )
        )
    if has_curves or without_curves:
        missing = ", ".join(without_curves)
        sections.append(
            Section(
                "Training",
                [
                    f"No curves of {missing}: no CSV log lies in the run's folder (logger=csv "
                    "writes one; W&B keeps its own)."
                ]
                if without_curves
                else [],
                figure="curves.png" if has_curves else None,
                caption="Each run's own validation photos and steps; many points are smoothed by a "
                "running mean over a fortieth of the run."
                if has_curves
                else "",
            )
        )
    sections.append(Section("How to read this", points=notes(comparison)))
    return Page(
        title=f"{comparison.region}: {len(runs)} run{'s' if several else ''} compared",
        subtitle=headline(comparison),
        tiles=_tiles(comparison),
        sections=sections,
    )


def _tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    def best(name: str) -> RunComparison:
        sign = 1 if _is_km(name) else -1
        return min(comparison.runs, key=lambda run: sign * run.metrics[name].value)

    tiles = []
    for name in ("median_km", "within_25km", "province_macro_acc"):
        run = best(name)
        estimate = run.metrics[name]
        which = "lowest" if _is_km(name) else "highest"
        title = f"{which} {TITLES[name]}" if len(comparison.runs) > 1 else TITLES[name]
        ends = _range(name, estimate.low, estimate.high, "")
        tiles.append((title, _value(name, estimate.value), f"{run.label}; 95%: {ends}"))
    others = comparison.runs[1:]
    if others:
        clear = sum(run.tests["location"].adjusted <= 0.05 for run in others)
        base = comparison.runs[0].label
        tiles.append(
            (f"differ from {base} in distance", f"{clear} of {len(others)}", "p ≤ 0.05, Holm")
        )
    return tiles


def notes(comparison: Comparison) -> list[str]:
    """What every figure is, and what it is not."""
    out = []
    if comparison.split != "test":
        out.append(
            f"These are {comparison.split} photos: training or the choice of the checkpoint has "
            "used them, so the figures flatter every run, and not all alike."
        )
    out += [
        "Only photos that every run was evaluated on, with the same truth, are compared. Error is "
        "the great-circle distance between the true place and the one predicted from the image "
        "alone. The runs' geocells may differ; accuracy by cell is therefore not compared.",
        f"Intervals hold 95% of {comparison.num_resamples:,} bootstrap resamples of "
        f"{comparison.num_groups:,} groups of photos that resemble each other (the largest of "
        f"{comparison.largest_group:,}), the same resamples for all runs, so that differences are "
        "paired.",
        "p: sign-flip permutation test of the paired differences (up to "
        "9,999 patterns, or all of them where there are fewer), which exchanges two runs' results "
        "group by group; two-sided. 'Distance' is the mean difference of the logarithm of the "
        "error, errors below 0.1 km counting as 0.1 km; the others are differences of the share "
        "of photos. 'Holm' is adjusted for the number of runs compared with the first, each test "
        "by itself.",
        "McNemar's exact test asks the same of single photos as if they were independent. They are "
        "not, so its p tends to be too small; it stands here because it is commonly reported.",
        "The baselines look at no photo and know only the train split's cells, those of the first "
        "run.",
        f"Provinces with fewer than {FEW_PHOTOS} groups of photos are set apart, without "
        "intervals: resampling so few says nothing about others.",
    ]
    if comparison.num_groups < FEW_GROUPS:
        out.append(
            f"There are only {comparison.num_groups} groups of photos: their resamples vary too "
            "little, so the intervals are too narrow."
        )
    out.append(
        "Looking at the test photos to choose between runs uses them up: choose on split=val, and "
        "report the choice's test figures."
    )
    return out
