"""Any image as the model sees it. Needs neither tables nor a prepared set."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError
from simplejpeg import decode_jpeg, decode_jpeg_header
from torch import Tensor
from torch.nn import functional

from geopak.data.photo_facts import IMAGE_SUFFIXES
from geopak.errors import ConfigError, PhotoError, nearest_name
from geopak.schema.model import CROP, FRAMINGS, SQUEEZE

_JPEG = b"\xff\xd8\xff"
# Kinds of colour, by simplejpeg's names, that are decoded without Pillow.
_COLOURS = ("YCbCr", "RGB", "Gray")
_APP1, _START_OF_SCAN, _EXIF = 0xE1, 0xDA, b"Exif\0\0"
# How the square of a photo is turned upright, by its EXIF orientation; (3, S, S) -> (3, S, S).
_TURNS: dict[int, Callable[[Tensor], Tensor]] = {
    1: lambda x: x,
    2: lambda x: x.flip(2),
    3: lambda x: x.flip(1, 2),
    4: lambda x: x.flip(1),
    5: lambda x: x.transpose(1, 2),
    6: lambda x: x.transpose(1, 2).flip(2),
    7: lambda x: x.transpose(1, 2).flip(1, 2),
    8: lambda x: x.transpose(1, 2).flip(1),
}

_STRIP_ROWS = 64

Photo = str | Path | Image.Image | NDArray[Any] | bytes | BinaryIO


def load_image(source: Photo, size: int, framing: str = CROP) -> Tensor:
    """Any image as the model sees it: upright, in RGB, a square.

    ``crop`` takes the square in the middle. Large JPEGs are decoded at a reduced scale, which
    changes their pixels by a shade. ``squeeze`` takes the whole photo as the published model does,
    decoded in full and resized by Pillow: its very pixels.

    Args:
        source: a file path, a file open in binary mode, the bytes of one, a PIL image, or an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8, uint16, or float in [0, 1].
        size: side of the square, pixels.
        framing: one of :data:`geopak.schema.model.FRAMINGS`.

    Returns:
        (3, size, size) uint8, in memory pixel after pixel.

    Raises:
        ConfigError: an unknown framing.
        PhotoError: missing, not an image, truncated, or an array of another shape or type.
    """
    if framing not in FRAMINGS:
        raise ConfigError(
            f"framing={framing!r} is unknown.{nearest_name(framing, FRAMINGS)} "
            f"Known: {', '.join(FRAMINGS)}."
        )
    if isinstance(source, np.ndarray):
        return _square(_image_of_array(source), size, framing)
    try:
        # PIL decodes late: an image that is open already can still turn out to be truncated.
        if isinstance(source, Image.Image):
            undecoded = _undecoded(source)
            if undecoded is None:
                return _square(source, size, framing)
            content = undecoded
        else:
            content = _content(source)
        if framing == CROP and content.startswith(_JPEG):
            square = _decode_jpeg(content, size)
            if square is not None:
                return square
        with Image.open(io.BytesIO(content)) as image:
            if framing == CROP:
                # JPEG can be decoded at 1/2, 1/4 or 1/8 scale; it stays as large as needed.
                image.draft("RGB", (size, size))
            return _square(image, size, framing)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise PhotoError(f"No photo at {name_of(source)}.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        kind = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise PhotoError(f"Cannot read the photo {name_of(source)}: {kind}.") from error


def files_of(folder: str | Path) -> Iterator[Path]:
    """Image files of a folder and its subfolders, by their suffix, in the order of their names.

    They are looked for as they are asked for, one folder at a time.
    """
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


def name_of(source: Any) -> str:
    """What to call a photo in an error: a file by its name, bytes by their number."""
    if isinstance(source, bytes):
        return f"of {len(source)} bytes"
    if isinstance(source, np.ndarray):
        return f"of shape {source.shape}"
    if isinstance(source, (str, Path, Image.Image)):
        return str(source)
    return str(getattr(source, "name", source))


def _undecoded(image: Image.Image) -> bytes | None:
    """The file of an open JPEG whose pixels nobody has asked for yet; ``None``: it is no such one.

    It then looks to the model as its path does: two decoders differ by a shade.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format != "JPEG":
        return None
    if not image.tile or image.fp is None:
        return None
    position = image.fp.tell()
    image.fp.seek(0)
    content: bytes = image.fp.read()
    image.fp.seek(position)
    return content


def _content(source: str | Path | bytes | BinaryIO) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    content = source.read()
    if not isinstance(content, bytes):
        raise ValueError("it is open as text: open it in binary mode, 'rb'")
    return content


def stack_images(images: Iterable[Tensor], num: int, size: int) -> Tensor:
    """A batch in the channels-last layout, in which photos are decoded and convolutions run.

    Args:
        images: ``num`` of (3, size, size) uint8.
        num, size: number and side.

    Returns:
        (num, 3, size, size) uint8.
    """
    # A loader process writes where the batch is handed over.
    shared = torch.utils.data.get_worker_info() is not None
    num_bytes = num * size * size * 3
    storage = (
        torch.UntypedStorage._new_shared(num_bytes) if shared else torch.UntypedStorage(num_bytes)
    )
    batch = torch.empty(0, dtype=torch.uint8).set_(storage).view(num, size, size, 3)
    for place, image in zip(batch, images, strict=True):
        place.copy_(image.permute(1, 2, 0))
    return batch.permute(0, 3, 1, 2)


def _image_of_array(array: NDArray[Any]) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise PhotoError(
            f"An image array must have shape (H, W), (H, W, 3) or (H, W, 4), got {array.shape}."
        )
    if 0 in array.shape:
        raise PhotoError(f"The image array is empty: {array.shape}.")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise PhotoError("A float image array must have finite values in [0, 1].")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise PhotoError(f"An image array must be uint8, uint16 or float, got {array.dtype}.")
    return Image.fromarray(array)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image)
        # 32-bit modes carry no range of their own; 16-bit data is the usual content.
        top = 65535.0
        if image.mode == "F":
            greatest = np.nan_to_num(values).max()
            top = 1.0 if greatest <= 1 else 65535.0 if greatest > 255 else 255.0
        grey = np.empty(values.shape, np.uint8)
        # In strips: as float64 a large photo is eight times its size, several times over.
        for start in range(0, len(values), _STRIP_ROWS):
            strip = np.nan_to_num(values[start : start + _STRIP_ROWS].astype(np.float64))
            grey[start : start + _STRIP_ROWS] = np.clip(strip / top * 255, 0, 255)
        return Image.fromarray(grey).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it, in RGB, decoded: its file may be closed."""
    image.load()
    upright = 1
    is_turned = image.getexif().get(ExifTags.Base.Orientation, upright) != upright
    return _rgb(ImageOps.exif_transpose(image) if is_turned else image)


def _decode_jpeg(content: bytes, size: int) -> Tensor | None:
    """A JPEG by libjpeg-turbo alone, up to twice as fast as through Pillow; ``None``: not so.

    Decodes at the smallest scale of its DCT that is large enough. Files with the least flaw, or of
    an unusual kind, are left to Pillow, which says what is wrong with them, or forgives it.
    """
    try:
        height, width, colours, _ = decode_jpeg_header(content)
        if colours not in _COLOURS or height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
            return None
        pixels = decode_jpeg(content, "RGB", min_height=size, min_width=size)
    except ValueError:
        return None
    orientation = _jpeg_orientation(content)
    if orientation not in _TURNS:
        return None
    square = _fit(torch.from_numpy(pixels).permute(2, 0, 1), size)
    return _TURNS[orientation](square)


def _jpeg_orientation(content: bytes) -> int:
    """The EXIF orientation of a JPEG, 1 to 8; 0 where it is for Pillow to tell."""
    exif = None
    for marker, segment in _segments(content):
        if marker != _APP1:
            continue
        if segment.startswith(_EXIF):
            if exif is not None:
                return 0
            exif = segment
        elif b"tiff:Orientation" in segment:
            return 0
    if exif is None:
        return 1
    found = Image.Exif()
    try:
        found.load(exif)
        orientation = found.get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow lets broken EXIF raise whatever it causes
        return 0
    return orientation if type(orientation) is int else 0


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of every segment that goes before the pixels of a JPEG."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:
            # Any number of these may go before a marker.
            place += 1
            continue
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == _START_OF_SCAN or length < 2:
            return
        yield marker, content[place + 4 : place + 2 + length]
        place += 2 + length


def _square(image: Image.Image, size: int, framing: str) -> Tensor:
    upright = upright_rgb(image)
    if framing == SQUEEZE:
        upright = upright.resize((size, size), Image.Resampling.BILINEAR)
    return _fit(torch.from_numpy(np.array(upright)).permute(2, 0, 1), size)


def _fit(image: Tensor, size: int) -> Tensor:
    """(3, H, W) uint8 -> (3, size, size): the square in the middle, resized like Pillow does."""
    height, width = image.shape[1:]
    side = min(height, width)
    if (height + width) % 2:
        # The middle lies between two pixels; only Pillow crops there.
        whole = Image.fromarray(image.permute(1, 2, 0).numpy())
        fitted = ImageOps.fit(whole, (size, size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[:, top : top + side, left : left + side].unsqueeze(0)
    if side != size:
        # Without gaps in memory the resizing is twice as fast, and its result lies alike.
        square = square.contiguous(memory_format=torch.channels_last)
        square = functional.interpolate(
            square, (size, size), mode="bilinear", antialias=True, align_corners=False
        )
    return square[0]
