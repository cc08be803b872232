"""Any image as the model sees it. Needs neither tables nor a prepared set."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from geopak.errors import PhotoError

Photo = str | Path | Image.Image | NDArray[Any] | bytes | BinaryIO


def load_image(source: Photo, size: int) -> Tensor:
    """Any image as the model sees it: upright, RGB, shorter side resized, centre-cropped.

    Args:
        source: a file path, a file open in binary mode, the bytes of one, a PIL image, or an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8, uint16, or float in [0, 1].
        size: side of the square, pixels.

    Returns:
        (3, size, size) uint8.

    Raises:
        PhotoError: missing, not an image, truncated, or an array of another shape or type.
    """
    if isinstance(source, np.ndarray):
        return _square(_image_of_array(source), size)
    if isinstance(source, (str, Path)) and not Path(source).is_file():
        raise PhotoError(f"No photo at {source}.")
    try:
        # PIL decodes late: an image that is open already can still turn out to be truncated.
        if isinstance(source, Image.Image):
            return _square(source, size)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            # JPEG can be decoded at 1/2, 1/4 or 1/8 scale; it stays at least as large as needed.
            image.draft("RGB", (size, size))
            return _square(image, size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        kind = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise PhotoError(f"Cannot read the photo {_name(source)}: {kind}.") from error


def _name(source: Any) -> str:
    """What to call a source in an error: a file by its name, bytes by their number."""
    if isinstance(source, bytes):
        return f"of {len(source)} bytes"
    if isinstance(source, (str, Path, Image.Image)):
        return str(source)
    return str(getattr(source, "name", source))


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
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        # 32-bit modes carry no range of their own; 16-bit data is the usual content.
        top = 65535.0 if image.mode != "F" or values.max() > 255 else max(255.0, values.max())
        if image.mode == "F" and values.max() <= 1:
            top = 1.0
        grey = np.clip(values / top * 255, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it, in RGB."""
    return _rgb(ImageOps.exif_transpose(image))


def _square(image: Image.Image, size: int) -> Tensor:
    square = ImageOps.fit(upright_rgb(image), (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()
