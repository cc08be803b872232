"""Photos of strangers: refused where too large or none; of the rest the pixels alone are kept."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from geopak.errors import PhotoError
from geopak.web.photos import Limits, check_photo, without_metadata

SECRET = b"secret-of-the-sender"


def photo(width: int = 64, height: int = 48, kind: str = "JPEG", **options: object) -> bytes:
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    ramp[: height // 2, : width // 2] = (250, 20, 20)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int = 1) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    data[0x010F] = SECRET.decode()
    data.get_ifd(0x8825).update({1: "N", 2: (31.0, 30.0, 0.0), 3: "E", 4: (74.0, 20.0, 0.0)})
    return data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_nothing_but_the_pixels_is_kept(kind: str) -> None:
    content = photo(kind=kind, exif=exif())
    assert SECRET in content
    kept = without_metadata(content, Limits())
    assert SECRET not in kept
    with Image.open(io.BytesIO(kept)) as image:
        assert image.format == "JPEG"
        assert dict(image.getexif()) == {}
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        with Image.open(io.BytesIO(content)) as given:
            difference = np.asarray(image, float) - np.asarray(given.convert("RGB"), float)
        assert np.abs(difference).mean() < 2


def test_comments_profiles_texts_and_what_lies_behind_the_picture_are_gone() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", SECRET.decode())
    for content in (
        photo(comment=SECRET, icc_profile=SECRET * 9),
        photo() + SECRET,
        photo(kind="PNG", pnginfo=texts),
    ):
        assert SECRET in content
        assert SECRET not in without_metadata(content, Limits())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_kept_upright(orientation: int) -> None:
    content = photo(exif=exif(orientation))
    with Image.open(io.BytesIO(content)) as given:
        upright = ImageOps.exif_transpose(given)
    with Image.open(io.BytesIO(without_metadata(content, Limits()))) as kept:
        assert kept.size == upright.size
        assert np.abs(np.asarray(kept, float) - np.asarray(upright, float)).mean() < 3


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that states a size; its pixels are not there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no photo that can be read"),
        (b"no photo", "no photo that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no photo that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no photo that can be read"),
        (photo(512, 512)[:3000], "damaged"),
        (b"x" * 3_000_001, "3.0 MB, more than the 3"),
        (png_of_size(9000, 9000), "81 megapixels, more than the 50"),
        (png_of_size(60_000, 60_000), "pixels"),
        (png_of_size(5000, 3), "no photo"),
    ],
)
def test_what_is_no_photo_or_too_large_is_refused_in_plain_words(
    content: bytes, message: str
) -> None:
    with pytest.raises(PhotoError, match=message):
        without_metadata(content, Limits(max_mb=3, max_megapixels=50))


def test_the_limits_themselves_are_allowed() -> None:
    content = photo(200, 100)
    check_photo(content, Limits(max_mb=len(content) / 1e6, max_megapixels=0.02))
    with pytest.raises(PhotoError, match="megapixels"):
        check_photo(content, Limits(max_megapixels=0.0199))


def test_a_large_photo_is_kept_smaller() -> None:
    with Image.open(io.BytesIO(without_metadata(photo(5000, 2500), Limits()))) as kept:
        assert kept.size == (2048, 1024)
