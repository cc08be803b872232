"""From the test results of every variant and seed to a table with intervals and differences."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from geopak.errors import GeopakError
from geopak.report.wording import rule_title

CONFIDENCE = 0.95
BEGIN, END = "<!-- ablations: begin -->", "<!-- ablations: end -->"
# Metric -> heading, and whether less is better.
METRICS = {
    "median_km": ("median km", True),
    "within_25km": ("within 25 km", False),
    "province_macro_acc": ("province, macro", False),
    "mean_km": ("mean km", True),
}
COMPARED = ("median_km", "mean_km", "within_25km")


@dataclass(frozen=True)
class Variant:
    """Test results of one variant.

    Attributes:
        name: of its experiment.
        about: what it changes, a sentence.
        seeds: seed -> metric -> value; a metric that the variant has no answer to is left out.
        photo_interval: metric -> ends of the interval over photos, of a variant that is the same
            for every seed.
    """

    name: str
    about: str
    seeds: Mapping[int, Mapping[str, float]]
    photo_interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def seed_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's t interval of a mean over seeds; ``None``: fewer than two of them."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * spread
    reach /= math.sqrt(len(values))
    return mean - reach, mean + reach


def summarize(variants: Sequence[Variant], context: Mapping[str, Any]) -> dict[str, Any]:
    """Means and intervals over seeds, and each variant's differences to the first, seed by seed.

    Args:
        variants: the first is the reference.
        context: what was measured, kept as it is.

    Returns:
        Plain containers: ``context``, ``reference``, and ``variants`` by name with ``metrics`` and,
        but for the reference, ``differences``.

    Raises:
        GeopakError: there is no reference.
    """
    if not variants or not variants[0].seeds:
        raise GeopakError("No results of the reference variant: nothing to compare with.")
    reference = variants[0]
    rows: dict[str, Any] = {}
    for variant in variants:
        measured = {}
        for metric in METRICS:
            values = {s: v[metric] for s, v in variant.seeds.items() if metric in v}
            if values:
                measured[metric] = _measured(values, variant.photo_interval.get(metric))
        row: dict[str, Any] = {"about": variant.about, "metrics": measured}
        if variant is not reference:
            row["differences"] = _differences(variant, reference)
        rows[variant.name] = row
    return {"context": dict(context), "reference": reference.name, "variants": rows}


def _measured(
    values: Mapping[int, float], photo_interval: tuple[float, float] | None
) -> dict[str, Any]:
    listed = list(values.values())
    interval, over = seed_interval(listed), "seeds"
    if photo_interval is not None and len(set(listed)) == 1:
        interval, over = photo_interval, "photos"
    return {
        "mean": math.fsum(listed) / len(listed),
        "interval": None if interval is None else list(interval),
        "interval_over": over,
        "seeds": {str(seed): value for seed, value in values.items()},
    }


def _differences(variant: Variant, reference: Variant) -> dict[str, Any]:
    found = {}
    for metric in COMPARED:
        pairs = {
            seed: values[metric] - reference.seeds[seed][metric]
            for seed, values in variant.seeds.items()
            if seed in reference.seeds and metric in values
        }
        if not pairs:
            continue
        listed = list(pairs.values())
        interval = seed_interval(listed)
        found[metric] = {
            "mean": math.fsum(listed) / len(listed),
            "interval": None if interval is None else list(interval),
            "verdict": _verdict(listed, interval, less_is_better=METRICS[metric][1]),
            "seeds": {str(seed): value for seed, value in pairs.items()},
        }
    return found


def _verdict(
    differences: Sequence[float], interval: tuple[float, float] | None, less_is_better: bool
) -> str:
    if not any(differences):
        return "the same"
    if interval is None:
        return "one seed"
    low, high = interval if less_is_better else (-interval[1], -interval[0])
    return "worse" if low > 0 else "better" if high < 0 else "within noise"


def markdown(summary: Mapping[str, Any]) -> str:
    """Both tables, and what they were measured on."""
    context, rows = summary["context"], summary["variants"]
    lines = [
        f"{context['num_test']:,} test photos, {context['num_train']:,} train and "
        f"{context['num_val']:,} val; {context['num_cells']} cells in "
        f"{context['num_provinces']} provinces. Model `{context['model']}`, phases "
        f"{', '.join(map(str, context['phases']))} of {', '.join(map(str, context['epochs']))} "
        f"epochs, seeds {', '.join(map(str, context['seeds']))}. geopak {context['version']}; "
        f"photo table {context['photos_sha256'][:12]}.",
        "",
        _line(["variant", *(heading for heading, _ in METRICS.values()), "what it changes"]),
        _line(["---", *["---:"] * len(METRICS), "---"]),
    ]
    for name, row in rows.items():
        cells = [_with_interval(metric, row["metrics"].get(metric)) for metric in METRICS]
        lines.append(_line([rule_title(name), *cells, row["about"]]))
    lines += [
        "",
        f"Mean over seeds ± half of the {CONFIDENCE:.0%} interval (Student's t). † the same for "
        "every seed: interval over photos.",
        "",
        f"Difference to `{summary['reference']}`, taken seed by seed:",
        "",
        _line(["variant", *(f"Δ {METRICS[m][0]}" for m in COMPARED), "each seed's Δ median km"]),
        _line(["---", *["---:"] * len(COMPARED), "---"]),
    ]
    for name, row in rows.items():
        if name == summary["reference"]:
            continue
        found = row["differences"]
        cells = [_difference(metric, found.get(metric)) for metric in COMPARED]
        each = ", ".join(
            f"{v:+.1f}" for v in found.get("median_km", {"seeds": {}})["seeds"].values()
        )
        lines.append(_line([rule_title(name), *cells, each]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _with_interval(metric: str, value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "–"
    text = _number(metric, value["mean"])
    if value["interval"] is None:
        return text
    low, high = value["interval"]
    if value["interval_over"] == "photos":
        return f"{text} ({_number(metric, low)} to {_number(metric, high)})†"
    return f"{text} ± {_number(metric, (high - low) / 2)}"


def _difference(metric: str, value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "–"
    if value["verdict"] == "the same":
        return "0"
    factor, unit = (1, "") if metric.endswith("_km") else (100, " pp")
    text = f"{factor * value['mean']:+.1f}"
    if value["interval"] is not None:
        low, high = value["interval"]
        text += f" ± {factor * (high - low) / 2:.1f}"
    text += unit
    strong = value["verdict"] in ("worse", "better")
    return f"**{text}** {value['verdict']}" if strong else f"{text} {value['verdict']}"


def _number(metric: str, value: float) -> str:
    return f"{value:.1f}" if metric.endswith("_km") else f"{value:.1%}"


def with_block(page: str, block: str) -> str:
    """A page with the text between its marks replaced.

    Raises:
        GeopakError: a page without the marks.
    """
    found = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(found.findall(page)) != 1:
        raise GeopakError(f"The page lacks the marks {BEGIN} and {END}, or has several.")
    return found.sub(lambda _: f"{BEGIN}\n{block}{END}", page)
