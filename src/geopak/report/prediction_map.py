"""Answers on a map: one HTML file that needs no network and no other file.

Its beginning holds the outlines, the cells and the code that draws; a line per photo follows.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import shapely
from markupsafe import Markup
from shapely.geometry import Polygon

from geopak.geo.boundaries import Outlines
from geopak.geo.extents import Ground
from geopak.geo.region import Region
from geopak.report.maps import province_colors
from geopak.report.prediction_records import Entry, written

_RECORDS = "<!--records-->"
# Coordinates on the map: a hundred metres, about the thickness of its lines when zoomed in.
_DECIMALS, _TOLERANCE_DEG = 3, 0.003


def page_around(region: Region, outlines: Outlines, grounds: Sequence[Ground]) -> tuple[str, str]:
    """Beginning and end of the page; records go between them, one per line.

    Args:
        region: names the provinces.
        outlines: of the provinces.
        grounds: of the cells; empty where no regions are drawn.
    """
    base = map_base(region, outlines, grounds)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("geopak.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    # Nothing in it may end the element.
    text = json.dumps(base, separators=(",", ":")).replace("<", "\\u003c")
    page = environment.get_template("predictions.html.j2").render(
        title=f"Where in {region.title}?", base=Markup(text)
    )
    start, end = page.split(_RECORDS)
    return start, end


def map_base(region: Region, outlines: Outlines, grounds: Sequence[Ground] = ()) -> dict[str, Any]:
    """What a page draws below the answers, as JSON has it.

    Args:
        region: names the provinces.
        outlines: of the provinces.
        grounds: of the cells; empty where no regions are drawn from them.

    Returns:
        ``names, colors, labels`` (latitude, longitude and room, degrees) and ``provinces`` (see
        :func:`rings`) in class-index order, ``cells``, and ``bounds``: south, west, north, east,
        degrees.
    """
    simple = shapely.coverage_simplify(np.array(outlines.polygons, object), _TOLERANCE_DEG)
    labels = []
    for polygon in outlines.polygons:
        circle = shapely.maximum_inscribed_circle(polygon, tolerance=0.05)
        lon, lat = circle.coords[0]
        # Names stand where there is room for them.
        labels.append([round(value, _DECIMALS) for value in (lat, lon, circle.length)])
    return {
        "names": list(region.names),
        "colors": province_colors(region.num_provinces),
        "bounds": list(outlines.bounds_deg),
        "labels": labels,
        "provinces": [rings(polygon) for polygon in simple],
        "cells": [rings(ground) for ground in grounds],
    }


def rings(area: Ground) -> list[list[list[float]]]:
    """Polygons as lists of rings, each ``[lon, lat, lon, lat, …]``."""
    parts = [p for p in shapely.get_parts(area) if isinstance(p, Polygon)]
    return [
        [
            np.round(np.asarray(ring.coords)[:-1].ravel(), _DECIMALS).tolist()
            for ring in (part.exterior, *part.interiors)
        ]
        for part in parts
        if not part.is_empty
    ]


def page_record(entry: Entry, record: Mapping[str, Any]) -> dict[str, Any]:
    """What the page needs of a photo.

    Args:
        entry: the answer with its thumbnail.
        record: of :func:`geopak.report.prediction_records.record_of`.
    """
    kept = {key: record[key] for key in ("photo", "error", "photo_state", "model")}
    kept["name"] = written(os.path.basename(str(entry.answer.photo)))
    if entry.thumbnail:
        kept["thumbnail"] = base64.b64encode(entry.thumbnail).decode()
    if record["error"] is not None:
        return kept
    for key in ("province", "confidence_km", "calibrated", "answered"):
        kept[key] = record[key]
    for key in ("lat", "lon", "confidence", "answer_score"):
        kept[key] = round(record[key], 5)
    likely = sorted(record["province_probabilities"].items(), key=lambda item: -item[1])
    kept["provinces"] = [[name, round(p, 4)] for name, p in likely]
    kept["hypotheses"] = [
        [
            round(h["lat"], 4), round(h["lon"], 4), round(h["probability"], 4), h["province"],
            h["cell_id"], round(h["radius_km"], 2),
        ]
        for h in record["hypotheses"]
    ]  # fmt: skip
    if record["region"] is not None:
        region = record["region"]
        kept["region"] = {
            "coverage": region["coverage"],
            "area_km2": round(region["area_km2"], 1),
            "cells": region["cell_ids"],
        }
    if "gps" in record:
        kept["gps"] = record["gps"]
    return kept
