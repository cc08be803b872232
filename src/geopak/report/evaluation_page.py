"""What the page of an evaluation says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geopak.geo.region import Region
from geopak.report.figures import format_km, rule_title
from geopak.report.groups import FEW_GROUPS, FEW_PHOTOS
from geopak.report.page import Page, Section, Table
from geopak.schema.training import THRESHOLDS_KM

_TEACHER_FORCED = (
    "The teacher-forced distance is measured after telling the model the true cell, so that only "
    "the last refinement is left to it: it says how small the cells are, while the end-to-end "
    "error also pays for every wrong province and wrong cell, as a user does."
)


def _km(metric: Mapping[str, float]) -> str:
    return f"{format_km(metric['value'])} km"


def _share(metric: Mapping[str, float]) -> str:
    return f"{metric['value']:.1%}"


def _range(metric: Mapping[str, float | None], unit: str) -> str:
    low, high = metric["low"], metric["high"]
    if low is None or high is None:
        return "n/a"
    if unit == "%":
        return f"{low:.1%} to {high:.1%}"
    return f"{format_km(low)} to {format_km(high)} {unit}"


def evaluation_page(report: Mapping[str, Any], region: Region) -> Page:
    """The page of an evaluation.

    Args:
        report: the content of ``report.json``.
        region: names the provinces.
    """
    split = str(report["context"].get("split", "test"))
    whole, baselines = report["end_to_end"], report["baselines"]
    median = whole["median_km"]
    ratio = median["value"] / max(baselines["densest_cell"]["median_km"]["value"], 1e-9)
    tiles = [
        ("median error", _km(median), f"95%: {_range(median, 'km')}"),
        ("within 25 km", _share(whole["within_25km"]), f"95%: {_range(whole['within_25km'], '%')}"),
        (
            "province, macro accuracy",
            _share(whole["province_macro_acc"]),
            f"95%: {_range(whole['province_macro_acc'], '%')}",
        ),
        (
            "of the baseline's median",
            f"{ratio:.0%}",
            f"densest cell: {_km(baselines['densest_cell']['median_km'])}",
        ),
    ]
    calibration = report["calibration"]
    within = calibration["within_confidence_km"]
    sections = [
        Section(
            "How far off is it?",
            [
                f"Half of the photos are placed within {_km(median)} of where they were taken, "
                f"90% within {_km(whole['p90_km'])}. The baselines look at no photo: one always "
                "answers the cell with the most training photos, the other is told the true "
                "province and answers the centroid of its training photos.",
                _TEACHER_FORCED,
            ],
            table=_distance_table(report),
            figure="error_curve.png",
            caption="Further up and to the left is better. The axis is logarithmic; vertical lines "
            "are the distances of the table.",
        ),
        Section(
            "Where is it off?",
            figure="error_map.png",
            caption="Each dot is a photo at its true place, coloured by its error; a faint line "
            "leads to the prediction.",
        ),
        Section(
            "Province by province, town and country",
            [
                "End-to-end error and accuracy of the same predictions, apart by true province and "
                "by the true cell. 'Macro' figures are means over provinces, so that a province "
                "with few photos weighs as much as one with many. The two baselines' medians on "
                "the same photos stand beside the model's."
            ],
            table=_part_table(report),
        ),
        Section("Which provinces are confused?", figure="confusion.png"),
        Section(
            "Does it know when it is right?",
            [
                "A probability is honest when things claimed at 70% happen 70% of the time. The "
                f"top province is claimed at {calibration['province']['mean_confidence']:.0%} on "
                f"average and right for {calibration['province']['accuracy']:.0%} of the photos; "
                f"'within {within['confidence_km']:g} km' is claimed at "
                f"{within['mean_confidence']:.0%} and holds for {within['accuracy']:.0%}."
            ],
            figure="reliability.png",
            caption="Expected calibration error is the mean gap to the diagonal. It has no "
            "interval, because resampling can only add to it; the bars show how sure each point "
            "is.",
        ),
        Section(
            "Photos",
            figure="photos.png",
            caption="The extremes show what is possible in both directions; the middle row, drawn "
            "at random, shows what to expect.",
        ),
        Section(
            "How the answer is chosen",
            [
                "The model weighs several candidate cells. A rule turns them into one coordinate; "
                f"the model answers by '{rule_title(report['rule'])}', the others are shown for "
                "comparison."
            ],
            table=_rule_table(report),
        ),
        Section("How to read this, and what to keep in mind", points=_notes(report, split)),
        Section(
            "What was evaluated",
            table=Table(("", ""), [(k, v) for k, v in _flat(report["context"])]),
        ),
    ]
    return Page(
        title=f"{region.title}: where was this photo taken?",
        subtitle=f"{report['num_photos']:,} photos of the {split} split, "
        f"{region.num_provinces} provinces, decoding rule '{rule_title(report['rule'])}'",
        tiles=tiles,
        sections=sections,
    )


def _distance_cells(content: Mapping[str, Any]) -> list[str]:
    return [
        _km(content["median_km"]),
        _range(content["median_km"], "km"),
        _km(content["mean_km"]),
        _km(content["p90_km"]),
        *(_share(content[f"within_{t:g}km"]) for t in THRESHOLDS_KM),
        _km(content["macro_median_km"]),
    ]


_DISTANCE_COLUMNS = (
    "", "median", "95% interval", "mean", "90th percentile",
    *(f"within {t:g} km" for t in THRESHOLDS_KM), "macro median",
)  # fmt: skip


def _distance_table(report: Mapping[str, Any]) -> Table:
    rows = [["model, end to end", *_distance_cells(report["end_to_end"])]]
    for name, content in report["baselines"].items():
        rows.append([f"baseline: {rule_title(name)}", *_distance_cells(content)])
    rows.append(["teacher-forced (not an error)", *_distance_cells(report["teacher_forced"])])
    return Table(_DISTANCE_COLUMNS, rows, strong=(0,), faint=(len(rows) - 1,))


def _rule_table(report: Mapping[str, Any]) -> Table:
    rules = report["rules"]
    rows = [[rule_title(name), *_distance_cells(content)] for name, content in rules.items()]
    return Table(_DISTANCE_COLUMNS, rows, strong=(list(rules).index(report["rule"]),))


def _part_table(report: Mapping[str, Any]) -> Table:
    parts = [(p["name"], p) for p in report["per_province"].values()]
    parts += [("urban cells", report["urban"]), ("rural cells", report["rural"])]
    rows = []
    for title, part in parts:
        count = part["num_photos"]
        if not count:
            rows.append([title, "0", *["n/a"] * 9])
            continue
        median = part["median_km"]
        rows.append(
            [
                title,
                f"{count:,}",
                _km(median),
                _range(median, "km") if count >= FEW_PHOTOS else "too few photos",
                _km(part["baselines"]["densest_cell"]["median_km"]),
                _km(part["baselines"]["province_centroid_true"]["median_km"]),
                *(_share(part[f"within_{t}km"]) for t in (25, 200)),
                *(_share(part[name]) for name in ("province_acc", "cell_top1", "cell_top5")),
            ]
        )
    whole = report["end_to_end"]
    rows.append(
        [
            "all",
            f"{report['num_photos']:,}",
            _km(whole["median_km"]),
            _range(whole["median_km"], "km"),
            _km(report["baselines"]["densest_cell"]["median_km"]),
            _km(report["baselines"]["province_centroid_true"]["median_km"]),
            *(_share(whole[f"within_{t}km"]) for t in (25, 200)),
            *(_share(whole[name]) for name in ("province_acc", "cell_top1", "cell_top5")),
        ]
    )
    columns = (
        "", "photos", "median error", "95% interval", "densest cell's", "province centroid's",
        "within 25 km", "within 200 km", "right province", "right cell first", "in first 5 cells",
    )  # fmt: skip
    return Table(columns, rows, strong=(len(rows) - 1,))


def _notes(report: Mapping[str, Any], split: str) -> list[str]:
    intervals = report["intervals"]
    few = [p["name"] for p in report["per_province"].values() if p["num_photos"] < FEW_PHOTOS]
    if not report["context"].get("same set as training", True):
        seen = (
            f"These {split} photos are of another prepared set than the one that the model was "
            "trained on. Nothing here rules out that the model was trained on some of them; if it "
            "was, the figures flatter it. The baselines' cells and centroids come from the "
            "model's own train photos."
        )
    elif split == "test":
        seen = (
            "The test photos took no part in training, in choosing the checkpoint, or in making "
            "the geocells; the baselines' cells and centroids come from the train split alone."
        )
    else:
        seen = (
            f"This is the {split} split, not the test split: training or the choice of the "
            "checkpoint has used these photos, so the figures flatter the model."
        )
    notes = [
        "Error is the great-circle distance between the true place and the one predicted from the "
        "image alone. Nothing else is called error here.",
        seen,
        *([_sentence(report["context"]["leaks"])] if "leaks" in report["context"] else []),
        f"Intervals hold {intervals['confidence']:.0%} of {intervals['num_resamples']:,} bootstrap "
        f"resamples of {_drawn(intervals)} They do not cover another training run or other cameras "
        "and years.",
        "Provinces with few photos have wide intervals: a difference between two of them, or two "
        "models, smaller than the intervals says nothing.",
    ]
    if few:
        notes.append(
            f"Fewer than {FEW_PHOTOS} photos: {', '.join(few)}. Their figures are anecdotes. A "
            "province without any is left out of macro figures."
        )
    gate = ", ".join(
        f"{report['per_province'][key]['name']} {value:.2f}"
        for key, value in report["gate"]["per_province"].items()
    )
    notes.append(
        f"Mean weight of the scene encoder in the fusion: {report['gate']['mean']:.2f} ({gate})."
    )
    notes.append(
        "report.json holds every figure, also per province and for urban and rural cells, with "
        "intervals; predictions.parquet holds a row per photo."
    )
    return notes


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _drawn(intervals: Mapping[str, Any]) -> str:
    """What the bootstrap draws, as the end of a sentence and the sentences that explain it."""
    if intervals["drawn"] == "photos":
        return (
            "photos, taken for independent; photos of one place are not, so the intervals are too "
            "narrow."
        )
    num_groups, ties = intervals["num_groups"], intervals["ties"]
    used = [name for name, share in ties.items() if share > 0]
    alternatives = " or ".join(part for part in (", ".join(used[:-1]), used[-1]) if part)
    partly = [f"{name} for {ties[name]:.0%}" for name in used if ties[name] < 1]
    unknown = [name for name in ties if name not in used]
    text = (
        f"{num_groups:,} groups of photos, the largest of {intervals['largest_group']:,}, as "
        f"photos of one group succeed and fail together: those of the same {alternatives}."
    )
    if partly:
        text += f" Known only of a part of the photos: {', '.join(partly)}."
    if unknown:
        text += f" Not known, and so not grouped by: {', '.join(unknown)}."
    if num_groups < FEW_GROUPS:
        text += " Resamples of so few groups vary too little: the intervals are too narrow."
    return text


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows
