"""The page that goes with a model: what it is, how well it does, what it is for and what not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geopak.errors import ExportError
from geopak.schema.model import CROP, SQUEEZE

if TYPE_CHECKING:
    import pandas as pd

    from geopak.calibration import Calibration
    from geopak.geo.cells import CellTable
    from geopak.geo.region import Region

_FEWEST = 3
_MOST_SOURCES = 12
_SEEN = {CROP: "the middle square", SQUEEZE: "the whole photo, squeezed into a square"}


def read_report(path: str | Path) -> dict[str, Any]:
    """An evaluation's ``report.json``, of the test split.

    Raises:
        ExportError: missing, none, or of another split: its figures would flatter.
    """
    path = Path(path)
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        split = report["context"]["split"]
        _ = report["end_to_end"]["median_km"]["value"], report["baselines"], report["per_province"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"report={path} is no report.json of an evaluation ({error!r}). Make one: "
            "python -m geopak.evaluate ckpt=…"
        ) from error
    if split != "test":
        raise ExportError(
            f"report={path} is of the {split} split, which the model was chosen by or trained on: "
            "a model card takes the test split's. Make it: python -m geopak.evaluate ckpt=…"
        )
    found: dict[str, Any] = report
    return found


def model_card(
    identity: Mapping[str, Any],
    region: Region,
    cells: CellTable,
    calibration: Calibration | None,
    report: Mapping[str, Any] | None,
    photos: pd.DataFrame | None = None,
    licence: str | None = None,
) -> str:
    """Fills the card.

    Args:
        identity: what the checkpoint carries beside weights.
        region, cells, calibration: of the model.
        report: of its evaluation on test, see :func:`read_report`; ``None``: the card says so.
        photos: table of the prepared set that it was trained on, tells sources and licences.
        licence: that the model is given under; ``None``: the card says nothing of it.

    Returns:
        Markdown with the metadata that the Hugging Face Hub reads.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("geopak.report"), autoescape=False, keep_trailing_newline=True
    )
    config, phase = identity["config"], identity["phase"]
    total = int(cells.count.sum())
    provinces: list[dict[str, Any]] = []
    for index, name in enumerate(region.names):
        of_province = cells.province_id == index
        count = int(cells.count[of_province].sum())
        provinces.append(
            {
                "name": name,
                "photos": f"{count:,}",
                "share": f"{count / max(total, 1):.1%}",
                "cells": f"{int(of_province.sum()):,}",
                "count": count,
            }
        )
    shape = identity["model"]["semantic"]["shape"]
    semantic = config["model"]["semantic"].get("source") or {}
    origin = " ".join(str(semantic[k]) for k in ("architecture", "tag") if semantic.get(k))
    pretrained = bool(config["model"].get("pretrained"))
    fewest = sorted(provinces, key=lambda p: p["count"])[:_FEWEST]
    facts = [
        ("region", f"{region.title}: {', '.join(region.names)}"),
        (
            "semantic encoder",
            f"vision transformer, patches of {shape['patch_size']} px, {shape['layers']} layers of "
            f"{shape['width']}" + (f", weights {origin}" if pretrained and origin else "")
            + ("" if pretrained else ", trained from random weights"),
        ),
        (
            "scene encoder",
            f"{identity['model']['scene']['shape']['architecture']}"
            + (", pretrained on scenes" if pretrained else ", trained from random weights"),
        ),
        ("picture", f"{_SEEN[identity['model'].get('framing', CROP)]}, "
         f"{identity['model']['image_size']} px"),
        ("made by", f"geopak {identity['version']}, phase {phase['index']} ({phase['title']}), "
         f"seed {config.get('seed')}"),
        ("train photos", f"{total:,}"),
        (
            "geocells",
            f"{cells.num_cells:,}; radius {float(_median(cells.radius_km)):.1f} km (median), "
            f"{float(cells.radius_km.max()):.1f} km (largest); {float(cells.sparse.mean()):.0%} "
            "sparse",
        ),
        ("decoding rule", identity["decoding"]["rule"].replace("_", " ")),
        (
            "calibration",
            "none"
            if calibration is None
            else f"{sum(calibration.fitted_on['num_photos'].values()):,} val photos",
        ),
    ]  # fmt: skip
    km = identity["decoding"]["confidence_km"]
    return environment.get_template("model_card.md.j2").render(
        region=region.title,
        region_tag=region.name,
        model=identity["model"]["name"],
        facts=facts,
        provinces=provinces,
        sources=_sources(photos),
        evaluation=None if report is None else _evaluation(report),
        fewest=", ".join(f"{p['name']} ({p['photos']} train photos)" for p in fewest),
        not_here=(
            "It has not been calibrated, so it has no way to say 'not here'."
            if calibration is None
            else "Its `answer_score` is low for photos unlike those it knows; with `abstain_below` "
            "such answers are marked."
        ),
        confidence=(
            f"Its confidence, of being within {km:g} km, is the network's own: often too sure."
            if calibration is None
            else f"Its confidence, of being within {km:g} km, and its regions are calibrated on "
            "photos like its test photos: for others nothing is promised."
        ),
        licence=licence,
    )


def _median(values: Any) -> Any:
    import numpy as np

    return np.median(values)


def _sources(photos: pd.DataFrame | None) -> str:
    """Where the train photos come from, in words."""
    if photos is None:
        return (
            "The checkpoint does not say where its photos come from, nor under which licences "
            "(`prepared=FOLDER` of the export adds that)."
        )
    train = photos[photos["split"] == "train"]
    lines = []
    for column, title in (("source", "Sources"), ("license", "Licences of the photos")):
        known = train[column].dropna().astype(str) if column in train else None
        known = None if known is None else known[known != ""]
        if known is None or not len(known):
            lines.append(f"- {title}: not recorded")
            continue
        counts = known.value_counts()
        named = [f"{name} ({count:,})" for name, count in counts[:_MOST_SOURCES].items()]
        more = len(counts) - len(named)
        missing = len(train) - len(known)
        lines.append(
            f"- {title}: {', '.join(named)}"
            + (f", {more} more" if more else "")
            + (f"; of {missing:,} not recorded" if missing else "")
        )
    if "captured_at" in train:
        years = train["captured_at"].dropna().astype(str).str.extract(r"^(\d{4})")[0].dropna()
        if len(years):
            lines.append(f"- Years: {years.min()} to {years.max()}")
    return "\n".join(lines)


def _number(found: Mapping[str, float] | None, form: str = ".1f") -> str:
    return "–" if found is None else format(found["value"], form)


def _with_interval(found: Mapping[str, float] | None, form: str = ".1f") -> str:
    if found is None:
        return "–"
    low, high = format(found["low"], form), format(found["high"], form)
    return f"{_number(found, form)} ({low} to {high})"


def _title(name: str) -> str:
    titles = {"province_centroid_true": "true province's centroid"}
    return titles.get(name, name.replace("_", " "))


def _evaluation(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report's figures as the card's rows of text."""
    context, baselines = report["context"], report["baselines"]

    def overall(name: str, values: Mapping[str, Any]) -> Sequence[str]:
        shares = " / ".join(_number(values.get(f"within_{k}km"), ".1%") for k in (1, 25, 200))
        micro, macro = values.get("province_acc"), values.get("province_macro_acc")
        accuracy = "–" if micro is None else f"{_number(micro, '.1%')} / {_number(macro, '.1%')}"
        figures = [_with_interval(values.get(k)) for k in ("median_km", "mean_km", "p90_km")]
        return [name, *figures, shares, accuracy]

    def part(name: str, values: Mapping[str, Any]) -> Sequence[str]:
        of_baselines = values.get("baselines", {})
        return [
            name,
            f"{values['num_photos']:,}",
            _with_interval(values.get("median_km")),
            *(_number(of_baselines.get(b, {}).get("median_km")) for b in baselines),
            _number(values.get("within_25km"), ".1%"),
            _number(values.get("province_acc"), ".1%"),
        ]

    parts = [part(values["name"], values) for values in report["per_province"].values()]
    parts += [part(name, report[name]) for name in ("urban", "rural") if name in report]
    lines = [_sentence(context["leaks"].removeprefix("leaks: "))] if context.get("leaks") else []
    claims = report.get("calibration", {})
    for key, what in (
        ("province", "of the province"), ("within_confidence_km", "of the confidence"),
    ):  # fmt: skip
        if key in claims:
            error = claims[key]["expected_calibration_error"]
            lines.append(f"Expected calibration error {what}: {error:.1%}")
    for promise in report.get("regions", {}).get("promises", {}).values():
        if not promise["per_province"]:
            found = promise["overall"]
            lines.append(
                f"Regions that promise {promise['coverage']:.0%} held "
                f"{found['covered']['value']:.1%} of the test photos; median area "
                f"{found['area_km2']['median']:,.0f} km²"
            )
    lines += [_sentence(doubt) for doubt in report.get("regions", {}).get("doubts", [])]
    if forced := report.get("teacher_forced", {}).get("median_km"):
        lines.append(
            f"Teacher-forced median {forced['value']:.1f} km: what is left if the true cell is "
            "given. It says something of the offset head and is no error of the model"
        )
    intervals = report.get("intervals", {})
    of_groups = intervals.get("drawn") == "groups"
    return {
        "scope": f"All on {report['num_photos']:,} {context['split']} photos, end to end: from the "
        "image alone to the true coordinate.",
        "overall": [
            overall("model", report["end_to_end"]),
            *(overall(f"baseline: {_title(n)}", values) for n, values in baselines.items()),
        ],
        "intervals": f", of {intervals['num_groups']:,} groups of photos" if of_groups else "",
        "baseline_names": [_title(name) for name in baselines],
        "parts": parts,
        "lines": lines,
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
