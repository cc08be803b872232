"""The picture of one prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geopak.data.images import load_image
from geopak.report import prediction_figure
from geopak.report.photo_figures import thumbnail
from geopak.report.prediction_figure import draw_prediction

from .squareland import OUTLINES, REGION

RESULT = {
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


@pytest.mark.parametrize("kind", ["path", "grey image", "none"])
def test_prediction_picture(tmp_path: Path, kind: str) -> None:
    turned, exif = tmp_path / "turned.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), (6, 120, 90)).save(turned, exif=exif)
    photo = {"path": turned, "grey image": Image.new("L", (30, 90)), "none": None}
    out = tmp_path / "map.png"
    draw_prediction(out, RESULT, REGION, OUTLINES, photo[kind])
    with Image.open(out) as image:
        assert image.size[0] > 1000


def test_a_photo_of_16_bits_is_drawn_as_the_model_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Image.Image] = []
    monkeypatch.setattr(prediction_figure, "draw_photo", lambda _, image: shown.append(image))
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "16 bits.png")
    draw_prediction(tmp_path / "map.png", RESULT, REGION, OUTLINES, tmp_path / "16 bits.png")
    seen = load_image(tmp_path / "16 bits.png", 64).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.asarray(shown[0]), seen)
    np.testing.assert_array_equal(np.asarray(thumbnail(tmp_path / "16 bits.png", (64, 64))), seen)
