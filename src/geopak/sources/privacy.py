"""What of a photo is not kept: faces, number plates, metadata, the exact place.

Faces and plates are found by the Haar cascades that come with OpenCV 4 (P. Viola and M. Jones,
"Rapid Object Detection using a Boosted Cascade of Simple Features", CVPR 2001): frontal and profile
faces, and plates of the Russian shape. They need no download, and they are old: they miss small,
turned, covered and dark faces and most plates, and find some where there are none. Who has promised
that nobody can be recognised must not rely on them.
"""

from __future__ import annotations

import functools
import io
import math
import threading
from typing import TYPE_CHECKING, Any

from geopak.errors import ConfigError
from geopak.schema.collecting import PrivacyOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

# Cascades see little more at a larger size, and take longer.
_SEEN_PX = 1600
_FACES = (
    "haarcascade_frontalface_default.xml",
    "haarcascade_frontalface_alt2.xml",
    "haarcascade_profileface.xml",
)
_PLATES = ("haarcascade_russian_plate_number.xml", "haarcascade_license_plate_rus_16stages.xml")
_QUALITY = 92
_one_at_a_time = threading.Lock()
# As in geopak.geo.distance, which brings torch with it; a collector does without.
_KM_PER_DEGREE = math.radians(6371.0088)


@functools.cache
def _cascades(names: tuple[str, ...]) -> list[Any]:
    try:
        import cv2
        import cv2.data

        return [cv2.CascadeClassifier(f"{cv2.data.haarcascades}{name}") for name in names]
    except (ImportError, AttributeError):
        raise ConfigError(
            "privacy.faces and privacy.plates need OpenCV 4, whose wheel holds the detectors: "
            "pip install 'geopak[privacy]', or set them to keep."
        ) from None


def check_detectors(options: PrivacyOptions) -> None:
    """Loads the detectors that the options ask for.

    Raises:
        ConfigError: they are not installed.
    """
    for treatment, names in ((options.faces, _FACES), (options.plates, _PLATES)):
        if treatment != "keep":
            _cascades(names)


def _find(
    grey: NDArray[np.uint8], names: tuple[str, ...], least_px: int, flip: bool
) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, width, height) in pixels."""
    found: list[tuple[int, int, int, int]] = []
    for name, cascade in zip(names, _cascades(names), strict=True):
        # Profiles are trained looking one way.
        for mirrored in (False, True) if flip and "profile" in name else (False,):
            picture = grey[:, ::-1].copy() if mirrored else grey
            # A cascade cannot look at two pictures at once; it has threads of its own.
            with _one_at_a_time:
                boxes = cascade.detectMultiScale(
                    picture, scaleFactor=1.1, minNeighbors=4, minSize=(least_px, least_px)
                )
            for left, top, width, height in boxes:
                at = grey.shape[1] - left - width if mirrored else left
                found.append((int(at), int(top), int(width), int(height)))
    return found


def find_faces(
    picture: Image.Image, min_share: float = 0.02
) -> list[tuple[float, float, float, float]]:
    """Faces in a picture, as far as they are found.

    Args:
        picture: upright.
        min_share: smallest face, as a share of the shorter side.

    Returns:
        Boxes (left, top, right, bottom) in pixels of the picture; a face may have several.
    """
    return _boxes(picture, _FACES, min_share, flip=True)


def find_plates(picture: Image.Image) -> list[tuple[float, float, float, float]]:
    """Number plates in a picture, as far as they are found; boxes as of :func:`find_faces`."""
    return _boxes(picture, _PLATES, 0.01, flip=False)


def _boxes(
    picture: Image.Image, names: tuple[str, ...], min_share: float, flip: bool
) -> list[tuple[float, float, float, float]]:
    import numpy as np

    grey = picture.convert("L")
    scale = min(1.0, _SEEN_PX / max(grey.size))
    if scale < 1:
        grey = grey.resize((max(1, round(grey.width * scale)), max(1, round(grey.height * scale))))
    array = np.asarray(grey)
    least_px = max(12, round(min_share * min(grey.size)))
    found = _find(array, names, least_px, flip)
    return [(x / scale, y / scale, (x + w) / scale, (y + h) / scale) for x, y, w, h in found]


def blur(picture: Image.Image, boxes: list[tuple[float, float, float, float]]) -> Image.Image:
    """The picture with boxes made coarse, so that no sharpening brings back what was there."""
    from PIL import ImageFilter

    out = picture.copy()
    for left, top, right, bottom in boxes:
        grow = 0.15 * max(right - left, bottom - top)
        area = (
            max(0, math.floor(left - grow)), max(0, math.floor(top - grow)),
            min(out.width, math.ceil(right + grow)), min(out.height, math.ceil(bottom + grow)),
        )  # fmt: skip
        part = out.crop(area)
        # A blur alone can be undone in part; of six by six averages nothing can.
        small = part.resize((6, 6), resample=4)
        part = small.resize(part.size, resample=2).filter(ImageFilter.GaussianBlur(2))
        out.paste(part, area[:2])
    return out


class Privacy:
    """What is done to a photo before it is written.

    Args:
        options: section ``privacy`` of the configuration.
    """

    def __init__(self, options: PrivacyOptions) -> None:
        check_detectors(options)
        self.options = options

    @property
    def changes_files(self) -> bool:
        """Whether files may differ from what the source sent."""
        o = self.options
        return (
            o.strip_metadata or o.coarsen_km is not None or "blur" in (o.faces, o.plates)
        )  # fmt: skip

    def apply(self, body: bytes, picture: Image.Image) -> tuple[bytes | None, str]:
        """The file to write, and what was done to it.

        Args:
            body: the file as it came.
            picture: the same, decoded.

        Returns:
            The file, ``None`` for a photo that is dropped; and ``faces``, ``plates``, ``metadata``
            joined by commas: what was changed, or is why it is dropped.
        """
        from PIL import ImageOps

        o = self.options
        if not self.changes_files and (o.faces, o.plates) == ("keep", "keep"):
            return body, ""
        upright = ImageOps.exif_transpose(picture).convert("RGB")
        boxes: list[tuple[float, float, float, float]] = []
        changes = []
        for name, treatment in (("faces", o.faces), ("plates", o.plates)):
            if treatment == "keep":
                continue
            found = (
                find_faces(upright, o.min_face_share) if name == "faces" else find_plates(upright)
            )
            if found and treatment == "drop":
                return None, name
            if found:
                boxes += found
                changes.append(name)
        if o.strip_metadata or o.coarsen_km is not None or changes:
            changes.append("metadata")
            out = io.BytesIO()
            # Written anew, with nothing of the file but its pixels.
            blur(upright, boxes).save(out, "JPEG", quality=_QUALITY, optimize=True)
            return out.getvalue(), ",".join(changes)
        return body, ""


def coarsened(latitude: float, longitude: float, side_km: float) -> tuple[float, float]:
    """The middle of the square of ground that a coordinate lies in.

    Squares lie in rows of equal latitude; each row is divided at its own middle latitude, so that
    squares are about as wide as high everywhere.

    Args:
        latitude, longitude: degrees.
        side_km: of the squares.

    Returns:
        Latitude and longitude in degrees; at most :func:`coarsening_error_km` away.
    """
    step = side_km / _KM_PER_DEGREE
    middle = (math.floor(latitude / step) + 0.5) * step
    middle = max(-90.0, min(90.0, middle))
    width = step / max(math.cos(math.radians(middle)), 1e-6)
    east = (math.floor(longitude / width) + 0.5) * width
    east = (east + 180) % 360 - 180
    return round(middle, 6), round(east, 6)


def coarsening_error_km(side_km: float) -> float:
    """How far a coarsened coordinate is from the true one, at most: half a diagonal, and a bit."""
    return 0.75 * side_km
