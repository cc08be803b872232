"""Privacy: coarse coordinates, no metadata, faces and plates blurred or photos dropped."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from geopak.errors import ConfigError
from geopak.geo.distance import haversine_km_array
from geopak.schema.collecting import PrivacyOptions
from geopak.sources import privacy
from geopak.sources.privacy import Privacy, blur, coarsened, coarsening_error_km, find_faces
from tests.sources.collecting import collect_here, rows_of
from tests.sources.flickr_server import FlickrServer, shots
from tests.sources.stand_in import as_jpeg

# A portrait that comes with matplotlib (Grace Hopper, United States Navy).
PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="module")
def portrait() -> Image.Image:
    with Image.open(PORTRAIT) as picture:
        return picture.convert("RGB")


def landscape() -> Image.Image:
    """Hills under a sky, without a soul."""
    picture = Image.new("RGB", (480, 360), (150, 190, 230))
    draw = ImageDraw.Draw(picture)
    draw.polygon(
        [(0, 250), (150, 120), (300, 260), (480, 160), (480, 360), (0, 360)], (90, 110, 70)
    )
    return picture


def as_bytes(picture: Image.Image, **how: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=92, **how)
    return out.getvalue()


def apply(body: bytes, **options: Any) -> tuple[bytes | None, str]:
    with Image.open(io.BytesIO(body)) as picture:
        picture.load()
        return Privacy(PrivacyOptions(**options)).apply(body, picture)


@given(st.floats(-89, 89), st.floats(-180, 180), st.sampled_from([0.5, 1.0, 5.0, 25.0, 100.0]))
def test_coarsened_coordinates_are_near_and_shared(lat: float, lon: float, side: float) -> None:
    there = coarsened(lat, lon, side)
    away = float(haversine_km_array(np.array([lat, lon]), np.array(there)))
    assert away <= coarsening_error_km(side) + 1e-3
    assert -90 <= there[0] <= 90
    assert -180 <= there[1] <= 180


def test_a_square_has_one_coordinate() -> None:
    rng = np.random.default_rng(0)
    points = np.array([31.5, 74.3]) + rng.uniform(-0.1, 0.1, (2000, 2))
    squares = {coarsened(lat, lon, 5.0) for lat, lon in points}
    # 22 by 19 kilometres.
    assert 12 <= len(squares) <= 40


def test_nothing_is_changed_that_is_not_asked_for(portrait: Image.Image) -> None:
    body = as_bytes(portrait)
    assert apply(body) == (body, "")


def test_a_face_is_found_and_blurred(portrait: Image.Image) -> None:
    boxes = find_faces(portrait)
    assert boxes
    # The face, not the cap or the medals.
    middle = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
    assert any(180 < x < 350 and 120 < y < 320 for x, y in middle)
    kept, changes = apply(as_bytes(portrait), faces="blur")
    assert changes == "faces,metadata"
    assert kept is not None
    with Image.open(io.BytesIO(kept)) as picture:
        blurred = picture.convert("RGB")
    assert blurred.size == portrait.size
    assert not find_faces(blurred)
    # Away from the boxes all is as it was, but for the encoding.
    mask = np.ones((portrait.height, portrait.width), bool)
    for left, top, right, bottom in boxes:
        grow = 0.3 * max(right - left, bottom - top)
        mask[
            max(0, int(top - grow)) : int(bottom + grow),
            max(0, int(left - grow)) : int(right + grow),
        ] = False
    difference = np.abs(np.asarray(blurred, int) - np.asarray(portrait, int))[mask]
    assert mask.mean() > 0.2
    assert difference.mean() < 3


def test_a_photo_with_a_face_is_dropped_and_one_without_is_kept(portrait: Image.Image) -> None:
    assert apply(as_bytes(portrait), faces="drop") == (None, "faces")
    body = as_bytes(landscape())
    assert apply(body, faces="drop", plates="drop") == (body, "")
    # Nothing found, nothing changed.
    assert apply(body, faces="blur") == (body, "")


def test_what_is_blurred_cannot_be_made_out() -> None:
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (200, 200, 3), np.uint8))
    out = np.asarray(blur(noise, [(50, 50, 150, 150)]), float)
    before = np.asarray(noise, float)
    # Inside, the detail is gone; outside, nothing has changed.
    assert np.abs(np.diff(out[60:140, 60:140], axis=0)).mean() < 2
    assert (out[:30] == before[:30]).all()
    again = np.asarray(blur(noise, [(-20, -20, 10, 10), (190, 190, 260, 260)]), float)
    assert again.shape == before.shape


def test_metadata_is_taken_out_and_the_picture_stays_upright() -> None:
    picture = Image.new("RGB", (300, 200))
    picture.paste((255, 0, 0), (0, 0, 150, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "A Camera With A Serial Number"
    exif.get_ifd(0x8825)[2] = (31.0, 30.0, 0.0)
    body = as_bytes(picture, exif=exif)
    assert b"A Camera With" in body
    kept, changes = apply(body, strip_metadata=True)
    assert changes == "metadata"
    assert kept is not None
    assert b"A Camera With" not in kept
    with Image.open(io.BytesIO(kept)) as turned:
        assert turned.size == (200, 300)
        assert not turned.getexif()
        assert turned.getpixel((100, 20))[0] > 200  # type: ignore[index]
    # Coarsened coordinates would be of no use beside exact ones in the file.
    kept, changes = apply(body, coarsen_km=5.0)
    assert changes == "metadata"


def test_without_the_detectors_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    privacy._cascades.cache_clear()
    with pytest.raises(ConfigError, match=r"geopak\[privacy\]"):
        Privacy(PrivacyOptions(faces="blur"))
    Privacy(PrivacyOptions())
    privacy._cascades.cache_clear()


def test_a_collection_without_faces_and_exact_places(tmp_path: Path) -> None:
    with FlickrServer(shots(6, (31, 72, 31.5, 72.5), clustered=False)) as server:
        server.faults.add(as_jpeg(PORTRAIT.read_bytes()), when="/pictures/1_", times=None)
        server.faults.add(as_jpeg(as_bytes(landscape())), when="/pictures/2_", times=None)
        how: Any = {"source.licenses": "null", "licenses": "null", "source.min_accuracy": 1,
                    "privacy.faces": "drop", "privacy.coarsen_km": 2}  # fmt: skip
        collect_here(server, tmp_path, **how)
        exact = {shot.id: shot for shot in server.shots}
    told = {row["source_id"]: row["reason"] for row in rows_of(tmp_path / "rejected.csv")}
    assert told == {"1": "faces"}
    kept = rows_of(tmp_path / "photos.csv")
    assert len(kept) == 5
    for row in kept:
        shot = exact[row["id"].removeprefix("flickr-")]
        there = np.array([float(row["latitude"]), float(row["longitude"])])
        away = float(haversine_km_array(there, np.array([shot.latitude, shot.longitude])))
        assert 0 < away <= float(row["accuracy_km"])
        assert row["changes"] == "metadata"
