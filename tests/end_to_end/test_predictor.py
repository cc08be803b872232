"""The predictor: what it imports, and that many photos at once are what each is alone."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geopak import GeopakPredictor
from geopak.errors import PhotoError

# What trains, prepares, draws or reads tables and maps.
NOT_NEEDED = (
    "lightning", "lightning_fabric", "pytorch_lightning", "torchmetrics", "wandb", "hydra",
    "omegaconf", "pandas", "pyarrow", "pandera", "sklearn", "hdbscan", "scipy", "matplotlib",
    "geopandas", "pyogrio", "pyproj", "joblib", "dask", "webdataset", "modal", "rich", "jinja2",
    "geopak.task", "geopak.metrics", "geopak.cli", "geopak.data.dataset",
    "geopak.data.datamodule", "geopak.data.augment", "geopak.geo.clustering",
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(home: Path) -> list[Path]:
    return sorted((home / "data/synthetic/photos").rglob("*.jpg"))[:11]


def test_a_first_answer_imports_nothing_that_only_training_needs(
    phases: dict[int, Path], photos: list[Path]
) -> None:
    code = f"""
import json, sys
from geopak import GeopakPredictor
result = GeopakPredictor({str(phases[2])!r}, device="cpu").predict({str(photos[0])!r})
unneeded = [name for name in {NOT_NEEDED!r} if name in sys.modules]
print(json.dumps([result["lat"], result["lon"], unneeded]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lat, lon, unneeded = json.loads(run.stdout.splitlines()[-1])
    assert unneeded == []
    here = GeopakPredictor(phases[2], device="cpu").predict(photos[0])
    assert (lat, lon) == pytest.approx((here["lat"], here["lon"]), abs=1e-4)


def test_many_photos_are_what_each_is_alone_in_the_order_given(
    phases: dict[int, Path], photos: list[Path]
) -> None:
    predictor = GeopakPredictor(phases[2], device="cpu", batch_size=3)
    together = predictor.predict(photos)
    assert len(together) == 11
    for photo, result in zip(photos, together, strict=True):
        alone = predictor.predict(photo)
        assert result.keys() == alone.keys()
        assert result["province"] == alone["province"]
        for key in ("lat", "lon", "confidence", "gate"):
            assert result[key] == pytest.approx(alone[key], abs=1e-3), key
    assert len({(r["lat"], r["lon"]) for r in together}) > 5
    assert predictor.predict([]) == []


def test_every_kind_of_source_is_one_photo(phases: dict[int, Path], photos: list[Path]) -> None:
    predictor = GeopakPredictor(phases[2], device="cpu", batch_size=2)
    content = photos[0].read_bytes()
    expected = predictor.predict(photos[0])
    with Image.open(photos[0]) as image:
        same = [content, io.BytesIO(content), str(photos[0]), image, image]
        for result in (*predictor.predict(same), *map(predictor.predict, same[:1])):
            assert (result["lat"], result["lon"]) == pytest.approx(
                (expected["lat"], expected["lon"]), abs=1e-3
            )
    with photos[0].open("rb") as file:
        assert predictor.predict(file)["province"] == expected["province"]
    array = np.asarray(Image.open(io.BytesIO(content)))
    assert predictor.predict((array, array))[1]["province"] == expected["province"]


@pytest.mark.parametrize("place", [0, 4, 10])
def test_a_broken_photo_among_many_is_named(
    phases: dict[int, Path], photos: list[Path], tmp_path: Path, place: int
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:200])
    predictor = GeopakPredictor(phases[2], device="cpu", batch_size=3)
    with pytest.raises(PhotoError, match=r"broken\.jpg"):
        predictor.predict([*photos[:place], broken, *photos[place:]])
