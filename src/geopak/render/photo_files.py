"""The file of a planned photo: drawn, encoded, with its EXIF, and written whole."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from geopak.render.scene_drawing import draw
from geopak.render.world import World
from geopak.schema.rendering import PhotoSetConfig

# A re-encoded copy is coarser than its original.
_COPY_QUALITY = 70


def exif_bytes(latitude: float, longitude: float, captured_at: str, author: str) -> bytes:
    """EXIF with position (to 1e-4 arc seconds), time and author.

    Args:
        latitude, longitude: degrees.
        captured_at: ``YYYY-MM-DDTHH:MM:SS``.
        author: name for the Artist tag.
    """
    stamp = captured_at.replace("-", ":").replace("T", " ")
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = author
    exif[ExifTags.Base.DateTime] = stamp
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = stamp
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps[ExifTags.GPS.GPSLatitudeRef] = "N" if latitude >= 0 else "S"
    gps[ExifTags.GPS.GPSLatitude] = _degrees_minutes_seconds(latitude)
    gps[ExifTags.GPS.GPSLongitudeRef] = "E" if longitude >= 0 else "W"
    gps[ExifTags.GPS.GPSLongitude] = _degrees_minutes_seconds(longitude)
    return exif.tobytes()


def _degrees_minutes_seconds(angle: float) -> tuple[Fraction, Fraction, Fraction]:
    units = round(abs(angle) * 3600 * 10_000)
    minutes, seconds = divmod(units, 60 * 10_000)
    degrees, minutes = divmod(minutes, 60)
    return Fraction(degrees), Fraction(minutes), Fraction(seconds, 10_000)


class PhotoWriter:
    """Draws and writes single photos of a set; every process has its own.

    Args:
        world: what there is to see.
        config: the set.
        out: its folder.
    """

    def __init__(self, world: World, config: PhotoSetConfig, out: Path) -> None:
        self.world, self.config, self.out = world, config, out

    def encode(self, row: Mapping[str, Any]) -> bytes:
        """The content of the file of a row of :func:`plan_photos`."""
        original_size = row["width"], row["height"]
        if row["defect"] == "near_duplicate":
            original_size = row["original_width"], row["original_height"]
        rng = np.random.default_rng([self.config.seed, 1, row["picture"]])
        scene = self.world.scene(
            row["true_latitude"],
            row["true_longitude"],
            row["true_province_id"],
            rng,
            self.config.difficulty,
        )
        image = Image.fromarray(draw(scene, *original_size, rng))
        exif = exif_bytes(row["latitude"], row["longitude"], row["captured_at"], row["author"])
        content = _jpeg(image, self.config.image.quality, exif)
        if row["defect"] == "near_duplicate":
            copy = Image.open(io.BytesIO(content))
            small = copy.resize((row["width"], row["height"]), Image.Resampling.BILINEAR)
            content = _jpeg(small, _COPY_QUALITY, exif)
        elif row["defect"] == "truncated":
            content = content[: int(len(content) * rng.uniform(0.4, 0.7))]
        return content

    def write(self, row: Mapping[str, Any]) -> bool:
        """Writes the file of a row unless it is there already; says whether it wrote."""
        path = self.out / row["path"]
        if row["defect"] == "truncated":
            # Being cut off, it has no mark of completeness: compare.
            content = self.encode(row)
            if path.is_file() and path.read_bytes() == content:
                return False
        elif _is_whole_jpeg(path):
            return False
        else:
            content = self.encode(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        return True


def _jpeg(image: Image.Image, quality: int, exif: bytes) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, exif=exif)
    return buffer.getvalue()


def _is_whole_jpeg(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(2)
            file.seek(-2, os.SEEK_END)
            return start == b"\xff\xd8" and file.read(2) == b"\xff\xd9"
    except OSError:
        return False


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
