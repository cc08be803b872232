"""Photos of strangers: what is refused, and what is kept of those that are not."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile

from geopak.data.images import upright_rgb
from geopak.errors import PhotoError

# Of Pillow. Others have decoders that few look after.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
_QUALITY = 95
# On each side of a kept picture. Models look at far smaller ones.
_LARGEST_PX = 2048
_TOO_THIN = 100


@dataclass(frozen=True)
class Limits:
    """What a server takes upon itself.

    Attributes:
        max_mb: of a photo's file, in 1,000,000 bytes.
        max_megapixels: of a photo.
        max_photos: at once.
        max_batch_mb: of all files at once.
        timeout_s: for the body of a request, and again for its answer.
        max_waiting: requests that wait for the model; further ones are told to come back.
        keep_minutes: uploaded pictures and files of results are deleted after that time.
    """

    max_mb: float = 20
    max_megapixels: float = 60
    max_photos: int = 100
    max_batch_mb: float = 200
    timeout_s: float = 60
    max_waiting: int = 40
    keep_minutes: float = 10


def check_photo(content: bytes, limits: Limits) -> None:
    """Refuses what is too large, or no photo, without decoding it.

    Raises:
        PhotoError: with the limit, in words for whoever sent it.
    """
    size_mb = len(content) / 1e6
    if size_mb > limits.max_mb:
        raise PhotoError(f"The file has {size_mb:.1f} MB, more than the {limits.max_mb:g} allowed.")
    with _opened(content) as image:
        width, height = image.size
    megapixels = width * height / 1e6
    if megapixels > limits.max_megapixels:
        raise PhotoError(
            f"The photo has {megapixels:.0f} megapixels, more than the "
            f"{limits.max_megapixels:g} allowed."
        )
    if max(width, height) > _TOO_THIN * min(width, height):
        raise PhotoError(f"A picture of {width} x {height} pixels is no photo.")


def without_metadata(content: bytes, limits: Limits) -> bytes:
    """A photo's pixels alone, upright, as JPEG: no EXIF, no place, no thumbnail, no comment.

    Raises:
        PhotoError: as :func:`check_photo`, or a file that is broken.
    """
    check_photo(content, limits)
    try:
        with _opened(content) as image:
            image.draft("RGB", (_LARGEST_PX, _LARGEST_PX))
            plain = upright_rgb(image)
    except PhotoError:
        raise
    except Exception as error:  # decoders raise whatever a broken file causes
        raise PhotoError("The photo is damaged: it cannot be decoded.") from error
    if max(plain.size) > _LARGEST_PX:
        plain.thumbnail((_LARGEST_PX, _LARGEST_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    # A new image: Pillow would keep comments and profiles of the old one.
    Image.fromarray(np.asarray(plain)).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()


def _opened(content: bytes) -> ImageFile.ImageFile:
    try:
        with warnings.catch_warnings():
            # Of large photos: the limit here is another one.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PhotoError("The photo has far more pixels than are allowed.") from error
    except Exception as error:  # decoders raise whatever a broken file causes
        raise PhotoError(
            "This is no photo that can be read: JPEG, PNG, WebP, AVIF, TIFF, BMP and GIF can."
        ) from error
