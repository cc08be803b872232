"""JPEG files decoded by libjpeg-turbo alone, no differently from Pillow's plain way."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from geopak.data.images import load_image
from geopak.errors import PhotoError

SIZE = 48


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth and unsymmetrical: a wrong turn or crop is far off, a rounding is not."""
    y, x = np.mgrid[0:1:height*1j, 0:1:width*1j]  # fmt: skip
    bands = [x, y, (x * y + np.sin(5 * x)) / 2]
    pixels = (255 * np.stack(bands, -1)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def jpeg(image: Image.Image, orientation: int | None = None, quality: int = 92) -> bytes:
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, exif=exif)
    return file.getvalue()


def plainly(content: bytes, size: int) -> Tensor:
    """The same by Pillow alone, at full size."""
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    square = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def mean_difference(a: Tensor, b: Tensor) -> float:
    return float((a.int() - b.int()).abs().float().mean())


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize(("width", "height"), [(60, 50), (50, 60), (400, 301), (1200, 900)])
def test_photos_are_upright_whatever_their_orientation(
    width: int, height: int, orientation: int | None
) -> None:
    content = jpeg(picture(width, height), orientation)
    loaded = load_image(content, SIZE)
    assert loaded.shape == (3, SIZE, SIZE)
    assert loaded.dtype == torch.uint8
    assert mean_difference(loaded, plainly(content, SIZE)) < 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_four_colour_files_are_rgb(mode: str) -> None:
    content = jpeg(picture(300, 200, mode))
    assert mean_difference(load_image(content, SIZE), plainly(content, SIZE)) < 1


def test_small_photos_are_enlarged_and_equal_ones_untouched() -> None:
    small = jpeg(picture(30, 20))
    assert mean_difference(load_image(small, SIZE), plainly(small, SIZE)) < 1
    exact = jpeg(picture(SIZE, SIZE))
    assert torch.equal(load_image(exact, SIZE), plainly(exact, SIZE))


def test_a_path_its_bytes_and_an_open_file_give_the_same(tmp_path: Path) -> None:
    content = jpeg(picture(333, 222), 6)
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    loaded = load_image(path, SIZE)
    assert torch.equal(load_image(content, SIZE), loaded)
    with open(path, "rb") as file:
        assert torch.equal(load_image(file, SIZE), loaded)


def test_bytes_after_the_end_are_forgiven_and_a_missing_end_is_not() -> None:
    content = jpeg(picture(300, 200))
    plain = load_image(content, SIZE)
    assert mean_difference(load_image(content + b"\0" * 100, SIZE), plain) < 1
    with pytest.raises(PhotoError, match=f"of {len(content) // 2} bytes: .*truncated"):
        load_image(content[: len(content) // 2], SIZE)


def test_a_flaw_within_is_judged_by_pillow() -> None:
    content = bytearray(jpeg(picture(300, 200)))
    # A stray marker among the coded pixels: libjpeg warns, and goes on.
    content[len(content) // 2 : len(content) // 2 + 2] = b"\xff\xd5"
    loaded = load_image(bytes(content), SIZE)
    assert mean_difference(loaded, plainly(bytes(content), SIZE)) < 3


def test_an_orientation_that_only_xmp_tells_is_heeded() -> None:
    xmp = b'<x:xmpmeta xmlns:tiff="t"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    file = io.BytesIO()
    picture(200, 120).save(file, "JPEG", quality=92, xmp=xmp)
    content = file.getvalue()
    assert mean_difference(load_image(content, SIZE), plainly(content, SIZE)) < 1
    assert mean_difference(load_image(content, SIZE), load_image(jpeg(picture(200, 120)), SIZE)) > 5


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    content = jpeg(picture(200, 120), orientation)
    assert mean_difference(load_image(content, SIZE), plainly(content, SIZE)) < 1


def test_the_word_exif_among_the_pixels_or_in_a_comment_is_not_taken_for_exif() -> None:
    file = io.BytesIO()
    picture(200, 120).save(file, "JPEG", quality=92, comment=b"Exif\0\0MM\0*\0\0\0\x08")
    content = file.getvalue()
    assert mean_difference(load_image(content, SIZE), plainly(content, SIZE)) < 1


def with_segments(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG that begins with these segments, and has no other before its tables."""
    content = jpeg(picture(200, 120))
    # Behind the start of the file and its JFIF segment.
    rest = content[4 + int.from_bytes(content[4:6], "big") :]
    added = b"".join(
        bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data
        for marker, data in segments
    )
    return content[:2] + added + rest


def exif_of(value: bytes, kind: int) -> bytes:
    """EXIF data whose orientation has a value of a type."""
    entry = (0x0112).to_bytes(2, "little") + kind.to_bytes(2, "little") + (1).to_bytes(4, "little")
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + value.ljust(4, b"\0") + bytes(4)


@pytest.mark.parametrize(
    "data",
    {
        "upright": exif_of(b"\x01", 3),
        "turned": exif_of(b"\x06", 3),
        "a byte": exif_of(b"\x06", 1),
        "text": exif_of(b"6", 2),
        "undefined": exif_of(b"\x06", 7),
        "a float": exif_of(b"\0\0\xc0\x7f", 11),
        "another file format": b"Exif\0\0II+\0\x08\0\0\0" + bytes(9),
        "cut off": b"Exif\0\0II",
        "nonsense": b"Exif\0\0garbage!",
        "nothing": b"Exif\0\0",
    }.items(),
    ids=lambda item: item[0],
)
def test_whatever_exif_says_is_read_as_pillow_reads_it(data: tuple[str, bytes]) -> None:
    content = with_segments((0xE1, data[1]))
    assert mean_difference(load_image(content, SIZE), plainly(content, SIZE)) < 1


def test_exif_is_found_behind_long_segments_and_not_within_others() -> None:
    profile = [(0xE2, bytes(60_000))] * 3
    behind = with_segments(*profile, (0xE1, exif_of(b"\x06", 3)))
    assert mean_difference(load_image(behind, SIZE), plainly(behind, SIZE)) < 1
    assert mean_difference(load_image(behind, SIZE), load_image(jpeg(picture(200, 120)), SIZE)) > 5
    within = b"\xff\xe1\0\x22" + exif_of(b"\x06", 3)
    comment = with_segments((0xFE, within))
    assert mean_difference(load_image(comment, SIZE), plainly(comment, SIZE)) < 1
