"""The picture of one prediction."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from geopak.report.prediction_figure import draw_prediction

from .squareland import OUTLINES, REGION


@pytest.mark.parametrize("kind", ["path", "grey image", "none"])
def test_prediction_picture(tmp_path: Path, kind: str) -> None:
    result = {
        "province": "East",
        "province_probabilities": {"East": 0.7, "West | Coast": 0.3, "Middle <b>": 0.0},
        "lat": -42.0,
        "lon": 15.0,
        "confidence": 0.4,
        "confidence_km": 25.0,
        "hypotheses": [
            {"lat": 42.0, "lon": 15.0, "probability": 0.7, "province": "East", "cell_id": 3,
             "radius_km": 30.0},
        ],
    }  # fmt: skip
    turned, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), (6, 120, 90)).save(turned, exif=exif)
    photo = {"path": turned, "grey image": Image.new("L", (30, 90)), "none": None}
    out = tmp_path / "map.png"
    draw_prediction(out, result, REGION, OUTLINES, photo[kind])
    with Image.open(out) as image:
        assert image.size[0] > 1000
