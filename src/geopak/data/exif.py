"""What a photo's EXIF data say of its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image


def degrees_of_gps(gps: Mapping[int, Any]) -> dict[str, float]:
    """``latitude`` and ``longitude`` of a GPS directory, degrees; what is not stated is left out.

    Args:
        gps: by tag, as Pillow gives it.
    """
    found = {}
    for name, value, positive, negative in (
        ("latitude", ExifTags.GPS.GPSLatitude, "N", "S"),
        ("longitude", ExifTags.GPS.GPSLongitude, "E", "W"),
    ):
        reference = exif_text(gps.get(value - 1, positive)).upper()[:1]
        try:
            degrees, minutes, seconds = (float(part) for part in gps[value])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
        sign = -1 if reference == negative else 1
        found[name] = sign * (degrees + minutes / 60 + seconds / 3600)
    return found


def exif_text(value: object) -> str:
    """A text value of EXIF data, whatever they hold."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    text = str(value).encode(errors="replace").decode()
    return text.replace("\0", " ").strip()


def gps_of_file(path: str | Path) -> tuple[float, float] | None:
    """Latitude and longitude that a photo states, degrees.

    Returns:
        ``None`` where it states none, or what cannot be: outside of the degrees there are, or the
        0, 0 of a receiver without a fix.
    """
    try:
        with Image.open(path) as image:
            found = degrees_of_gps(image.getexif().get_ifd(ExifTags.IFD.GPSInfo))
    except Exception:  # decoders raise whatever a broken file causes
        return None
    if len(found) < 2:
        return None
    latitude, longitude = found["latitude"], found["longitude"]
    if not (abs(latitude) <= 90 and abs(longitude) <= 180) or math.hypot(latitude, longitude) == 0:
        return None
    return latitude, longitude
