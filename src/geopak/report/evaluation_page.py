"""What the page of an evaluation says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geopak.geo.region import Region
from geopak.report.certainty import KEPT, LESS, MORE, verdict_in_words
from geopak.report.groups import FEW_GROUPS, FEW_PHOTOS
from geopak.report.page import Page, Section, Table
from geopak.report.wording import format_km, rule_title
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
                f"the top cell at {calibration['cell']['mean_confidence']:.0%} and "
                f"{calibration['cell']['accuracy']:.0%}; "
                f"'within {within['confidence_km']:g} km' is claimed at "
                f"{within['mean_confidence']:.0%} and holds for {within['accuracy']:.0%}.",
                "The model is calibrated: all figures of this report are of the calibrated one, "
                "and this section shows its claims before and after."
                if "before" in calibration
                else "The model is not calibrated. python -m geopak.calibrate fits temperatures "
                "on val, and with them come regions that hold the place with a promised "
                "probability.",
            ],
            points=_caution(report),
            table=_claim_table(calibration),
            figure="reliability.png",
            caption="Expected calibration error (ECE) is the mean gap to the diagonal. It has no "
            "interval, because resampling can only add to it; the bars show how sure each point "
            "is.",
        ),
        *(_region_sections(report) if "regions" in report else []),
        _silence_section(report),
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


def _caution(report: Mapping[str, Any]) -> list[str]:
    """Why claims look better on these photos than on photos never seen; empty: they do not."""
    split = report["context"].get("split")
    if not report["context"].get("same set as training", True):
        return []
    if split == "train":
        return [
            "The model has learned these photos by heart: how honest its claims are, and what its "
            "silence is worth, cannot be seen here."
        ]
    if split == "val" and "before" in report["calibration"]:
        return [
            "Half of these photos are those that the calibration's temperatures and confidence "
            "were fitted on, and what is familiar is told by the other half: claims and silence "
            "look better here than on photos never seen."
        ]
    return []


def _claim_table(calibration: Mapping[str, Any]) -> Table:
    states = {"before": calibration.get("before"), "after": calibration}
    if states["before"] is None:
        states = {"": calibration}
    names = {
        "province": "top province is right",
        "cell": "top cell is right",
        "within_confidence_km": "prediction is within "
        f"{calibration['within_confidence_km']['confidence_km']:g} km",
    }
    columns = [f"{figure} {state}".strip() for state in states for figure in ("claimed", "ECE")]
    rows = []
    for key, title in names.items():
        row = [title]
        for content in states.values():
            assert content is not None
            row += [
                f"{content[key]['mean_confidence']:.1%}",
                f"{content[key]['expected_calibration_error']:.3f}",
            ]
        rows.append([*row, f"{calibration[key]['accuracy']:.1%}"])
    return Table(("", *columns, "holds"), rows)


def _region_sections(report: Mapping[str, Any]) -> list[Section]:
    regions = report["regions"]
    promises, made_of = regions["promises"], regions["calibration"]
    overall = [p for p in promises.values() if not p["per_province"]]
    rows = []
    for promise in overall:
        part = promise["overall"]
        rows.append(
            [
                f"{promise['coverage']:.0%}",
                _share(part["covered"]),
                _range(part["covered"], "%"),
                _range(part["covered"]["binomial"], "%"),
                verdict_in_words(part, regions["doubts"]),
                f"{part['cells']['median']:,.0f}",
                f"{part['area_km2']['median']:,.0f} km²",
                f"{part['area_km2']['mean']:,.0f} km²",
                f"{part['country_share']:.1%}",
            ]
        )
    columns = (
        "promised", "holds the place", "95% interval, groups", "photos one by one",
        "promise (range if kept)", "median cells", "median area", "mean area", "of the country",
    )  # fmt: skip
    explanation = [
        "A region is the smallest set of cells, most probable first, whose probability exceeds a "
        f"threshold. The thresholds were read off {made_of['num_photos']:,} val photos of "
        f"{made_of['num_groups']:,} groups, so that the promise does not depend on the model's "
        "probabilities being right (split-conformal prediction). The ground of a cell is all that "
        "is nearer to its center than to another's in its province: a place outside every cell's "
        "own photos counts as held if the nearest cell of its province is in the region, and as "
        "not held otherwise. Val has also chosen the checkpoint, which makes its photos a little "
        "easier than unseen ones.",
        "Photos of one place are dependent. The range in which the coverage of a kept promise "
        "lies takes both samples for as many independent photos as their groups make them worth; "
        "the interval beside it counts photos one by one, and is too narrow.",
    ]
    if made_of["num_groups"] < FEW_GROUPS:
        explanation.append(
            f"Thresholds read off so few groups as {made_of['num_groups']} say little: the range "
            "is wide, and what lies in it proves nothing."
        )
    if any(p["overall"]["verdict"] == MORE for p in overall):
        explanation.append(
            "More than promised: no region is smaller than one cell, so that where the first cell "
            "alone is right more often than promised, it is the region."
        )
    wide = [key for key in promises if promises[key]["per_province"]]
    names = {key: part["name"] for key, part in report["per_province"].items()}
    province_rows = []
    for key, name in names.items():
        parts = [promises[p]["provinces"].get(key) for p in wide]
        plain = [p["provinces"].get(key) for p in overall]
        if parts[0] is None:
            continue
        province_rows.append(
            [
                name,
                f"{made_of['per_province'][key]:,}",
                f"{parts[0]['num_photos']:,}",
                *(_coverage_in_words(part) for part in parts),
                f"{parts[-2]['area_km2']['median']:,.0f} km²",
                *(f"{part['covered']['value']:.1%}" for part in plain[-2:-1]),
            ]
        )
    share = f"{promises[wide[-2]]['coverage']:.0%}"
    return [
        Section(
            "A region that holds the place",
            explanation,
            points=regions["doubts"],
            table=Table(columns, rows),
            figure="regions.png",
            caption="Left: coverage with its interval over groups, and in grey where it lies if "
            "the promise is kept. Right: the share of photos whose region is smaller.",
        ),
        Section(
            "Regions promised to every province apart",
            [
                "With one threshold for all, a promise holds on average: provinces that the model "
                "knows well get more than their share, others less. With a threshold per province "
                "(Mondrian) each cell is held against its own province's, and the promise holds "
                "for the photos of every province. Where a province has too few calibration "
                "photos for a promise, all of its cells are in every region ('all cells'). In "
                "brackets: the range in which the coverage of a kept promise lies."
            ],
            points=regions["doubts"],
            table=Table(
                ("", "calibration photos", "photos",
                 *(f"promised {promises[p]['coverage']:.0%}" for p in wide),
                 f"median area at {share}", f"with one threshold at {share}"),
                province_rows,
            ),
        ),
    ]  # fmt: skip


def _coverage_in_words(part: Mapping[str, Any]) -> str:
    if part["expected"]["low"] == 1:
        return f"{_share(part['covered'])}, all cells"
    mark = {KEPT: "in range", MORE: "more", LESS: "less"}[part["verdict"]]
    low, high = part["expected"]["low"], part["expected"]["high"]
    return f"{_share(part['covered'])}, {mark} ({low:.0%} to {high:.0%})"


def _silence_section(report: Mapping[str, Any]) -> Section:
    silence = report["silence"]
    wrong, mean = silence["areas"]["wrong"], silence["areas"]["mean_km"]
    rows = []
    lines = [(f"the surest {line['share']:.0%}", line) for line in silence["answered"]]
    if (chosen := silence["abstain_below"]) is not None:
        score = f"{chosen['score']:g}"
        lines += [(f"answer score from {score}", chosen["answered"])]
        lines += [(f"answer score below {score}", chosen["not_answered"])]
    for title, line in lines:
        if not line["num_photos"]:
            rows.append([title, "0", "0.0%", *["n/a"] * 4])
            continue
        rows.append(
            [
                title,
                f"{line['num_photos']:,}",
                f"{line['share']:.1%}",
                f"{line['lowest_score']:.3f}",
                f"{line['within']:.1%}",
                f"{format_km(line['median_km'])} km",
                f"{format_km(line['mean_km'])} km",
            ]
        )
    kind = (
        "the calibrated confidence, cut down for photos unlike those that the model knows"
        if "before" in report["calibration"]
        else "the confidence: the model is not calibrated, so that nothing tells it what is unlike "
        "the photos it knows"
    )
    points = _caution(report)
    if chosen is not None:
        shares = ", ".join(
            f"{report['per_province'][key]['name']} {share:.0%}"
            for key, share in chosen["per_province"].items()
        )
        points.append(f"Share answered with abstain_below={chosen['score']:g}: {shares}.")
    return Section(
        "What if it answers only when it is sure?",
        [
            f"The answer score is {kind}. With abstain_below a photo of a lower score gets no "
            "answer. The area under the curve is what answers cost on average over all shares "
            f"answered: of answers more than {silence['within_km']:g} km off {wrong['score']:.3f}, "
            f"between {wrong['random']:.3f} without a score and {wrong['oracle']:.3f} for one that "
            f"knows the error ({wrong['gained']:.0%} of the way); of the mean error "
            f"{format_km(mean['score'])} km, between {format_km(mean['random'])} and "
            f"{format_km(mean['oracle'])} km ({mean['gained']:.0%})."
        ],
        points=points,
        table=Table(
            ("", "photos", "answered", "lowest score", f"within {silence['within_km']:g} km",
             "median error", "mean error"),
            rows,
        ),
        figure="silence.png",
        caption="Lower is better. All photos here are of the region and show a place; how the "
        "score treats others is in docs/certainty.md.",
    )  # fmt: skip


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
