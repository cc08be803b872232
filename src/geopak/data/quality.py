"""Photo quality: what can be decoded, is a photo, sharp and large enough, and was not seen before.

Examining a photo (decode, measure, hash) needs no thresholds and nothing but its file, so that it
is one function over any part of the photos; judging then compares the measures of all photos.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from geopak.data.duplicates import (
    find_look_alikes,
    hashes_of_frequencies,
    low_frequencies,
    stack_hashes,
)
from geopak.schema.preparation import QualitySettings

# All measures are taken at this size, so that thresholds do not depend on the camera.
_WORKING_PX = 256
_BATCH = 64
# Beyond this no photo, and more than a process should read at once.
_MOST_BYTES = 1 << 30
# Formats that are decoded here; Pillow knows others that call programs or are no pictures.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000")

_MEASURES = {
    "error": "string", "error_kind": "string", "width": "int64", "height": "int64",
    "contrast": "float64", "sharpness": "float64", "flat_design": "float64",
    "text_lines": "float64", "sha256": "string", "phash": "object",
}  # fmt: skip
# Raised whenever a measure changes, so that measures kept from earlier are taken anew.
MEASURES_VERSION = 2
ERROR_KINDS = {
    "missing": "there is no such file",
    "unreadable": "the file cannot be read: no permission, a folder, a failing disk",
    "too_many_bytes": "larger than a gibibyte",
    "empty": "no bytes at all",
    "not_an_image": "the content is something else, such as a web page",
    "unsupported_format": "an image of a format that is not decoded here, such as HEIC",
    "truncated": "the file ends too early",
    "too_many_pixels": "more pixels than can be decoded safely, as decompression bombs have",
    "corrupt": "an image whose content cannot be decoded",
    "crashed": "examining it ended the process, by memory or a fault in a decoder",
}


def examine_files(paths: Sequence[str]) -> pd.DataFrame:
    """Decodes photos in full and measures them.

    Args:
        paths: files.

    Returns:
        A row per path, in order:

        - ``error`` (text, missing when the photo decodes) and ``error_kind`` (a key of
          :data:`ERROR_KINDS`);
        - ``width, height``: pixels, after EXIF rotation;
        - ``contrast``: standard deviation of the grey values;
        - ``sharpness``: variance of the Laplacian (Pech-Pacheco et al. 2000);
        - ``flat_design``: share of pixels in the four commonest grey values, times the share of
          steep ones among all changes between neighbours; 0 where hard edges are not along rows
          and columns, and where the first share is below 0.4;
        - ``text_lines``: changes between line and gap per pixel, see :class:`QualitySettings`;
        - ``sha256``: hexadecimal, of the file; ``phash``: 32 bytes.

        Measures of what cannot be decoded are 0 or empty.
    """
    rows: list[tuple[object, ...]] = []
    with warnings.catch_warnings():
        # Of odd metadata and of large pictures; what is too large raises an error of its own.
        warnings.simplefilter("ignore")
        for start in range(0, len(paths), _BATCH):
            rows += _examine_batch(paths[start : start + _BATCH])
    columns = zip(*rows, strict=True) if rows else ((),) * len(_MEASURES)
    return pd.DataFrame(
        {
            name: pd.array(list(values), dtype=pd.StringDtype())
            if kind == "string"
            else np.array(values, kind)
            for (name, kind), values in zip(_MEASURES.items(), columns, strict=True)
        }
    )


def crashed_files(paths: Sequence[str], why: str) -> pd.DataFrame:
    """The rows of photos that ended every process that examined them.

    Args:
        paths: files.
        why: what happened, in words.

    Returns:
        As :func:`examine_files`.
    """
    frame = examine_files(())
    row = (f"cannot be examined: {why}", "crashed", 0, 0, 0.0, 0.0, 0.0, 0.0, "", b"")
    return pd.DataFrame([row] * len(paths), columns=frame.columns).astype(frame.dtypes.to_dict())


def may_pass(measures: pd.DataFrame) -> pd.Series:
    """(N,) whether a photo's error is one of the moment, such as a disk that does not answer."""
    return measures["error_kind"].isin(["missing", "unreadable"])


@dataclass(frozen=True)
class _Decoded:
    """A photo at the working size."""

    digest: str
    width: int
    height: int
    grey: NDArray[np.uint8]


class _DecodeError(Exception):
    def __init__(self, kind: str, why: str, digest: str = "") -> None:
        super().__init__(why)
        self.kind, self.digest = kind, digest


def _examine_batch(paths: Sequence[str]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    good: list[_Decoded] = []
    place: list[int] = []
    for path in paths:
        try:
            good.append(_decode(path))
            place.append(len(rows))
            rows.append(())
        except _DecodeError as error:
            rows.append((str(error), error.kind, 0, 0, 0.0, 0.0, 0.0, 0.0, error.digest, b""))
    if not good:
        return rows
    # Step by step for all, not photo by photo: with small photos the processor would spend more
    # on bringing back the code and tables of each step than on the step.
    greys = [photo.grey for photo in good]
    shares = np.stack([_shares(grey) for grey in greys])
    tones, one_tone = _commonest_tones(shares), _largest_tone(shares)
    room = np.empty(_WORKING_PX * _WORKING_PX, np.float32)  # fresh memory for each costs time, too
    waves, contrast = zip(*(_waves_and_contrast(grey, room) for grey in greys), strict=True)
    sharpness = [_sharpness(grey) for grey in greys]
    hashes = hashes_of_frequencies(np.stack(waves))
    for k, photo in enumerate(good):
        # Hardly any photo comes so far that these costlier measures are taken.
        flat = tones[k] * _crispness(photo.grey) if tones[k] >= _FEW_TONES else 0.0
        lines = _text_lines(photo.grey) if one_tone[k] >= _ONE_TONE else 0.0
        rows[place[k]] = (
            None, None, photo.width, photo.height, contrast[k], sharpness[k], float(flat), lines,
            photo.digest, hashes[k].tobytes(),
        )  # fmt: skip
    return rows


def _decode(path: str) -> _Decoded:
    content = _read(path)
    digest = hashlib.sha256(content).hexdigest()
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            # Every byte of the file is still decoded; only the inverse transform is made smaller.
            longer = max(width, height, 1)
            working = [max(1, side * _WORKING_PX // longer) for side in (width, height)]
            image.draft("L", (working[0], working[1]))
            image.load()
            turn = _turn(image)
            grey = _flat_grey(image)
        if max(grey.size) > _WORKING_PX:
            grey.thumbnail((_WORKING_PX, _WORKING_PX), Image.Resampling.BOX)
        if turn is not None:
            grey = grey.transpose(turn)
            if turn in _QUARTER_TURNS:
                width, height = height, width
        return _Decoded(digest, width, height, np.asarray(grey))
    except Exception as error:  # decoders raise whatever a broken file causes
        kind, why = _reason(error, content)
        raise _DecodeError(kind, f"cannot be decoded: {why}", digest) from error


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _DecodeError("unreadable", "cannot be read: not a regular file")
            if status.st_size > _MOST_BYTES:
                raise _DecodeError(
                    "too_many_bytes", f"cannot be read: {status.st_size:,} bytes are no photo"
                )
            content = file.read()
    except FileNotFoundError as error:
        raise _DecodeError("missing", f"cannot be read: {error.strerror}") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = getattr(error, "strerror", None) or str(error)
        raise _DecodeError("unreadable", f"cannot be read: {why}") from error
    if not content:
        raise _DecodeError(
            "empty", "cannot be decoded: the file is empty", hashlib.sha256().hexdigest()
        )
    return content


_SAID_OF_SHORT_FILES = (
    "truncated", "not enough", "unexpected end", "eof", "incomplete", "buffer is not large",
)  # fmt: skip
_OTHER_IMAGES = {
    b"%!ps": "PostScript", b"8bps": "Photoshop", b"<svg": "SVG", b"fujifilmccd-raw": "a raw photo",
}  # fmt: skip
_NO_IMAGES = {
    b"<": "a web page or XML", b"{": "JSON", b"%pdf": "a PDF", b"pk\3\4": "a ZIP archive",
    b"version https://git-lfs": "the pointer that Git LFS leaves in a file's place",
}  # fmt: skip


def _reason(error: Exception, content: bytes) -> tuple[str, str]:
    """Kind and words for what a decoder raised."""
    text = str(error).replace("\n", " ")[:200] or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        return _foreign(content)
    if isinstance(error, Image.DecompressionBombError):
        return "too_many_pixels", "more pixels than are decoded safely: " + text
    if isinstance(error, MemoryError):
        return "too_many_pixels", "memory does not suffice for its pixels"
    short = (
        "truncated",
        "not enough",
        "unexpected end",
        "eof",
        "incomplete",
        "buffer is not large",
    )
    if isinstance(error, EOFError) or any(word in text.lower() for word in short):
        return "truncated", text
    return "corrupt", text


def _foreign(content: bytes) -> tuple[str, str]:
    """What a file is that no decoder takes."""
    head = content[:512].lstrip().lower()
    if content[4:8] == b"ftyp":
        brand = content[8:12].decode("latin-1").strip()
        return "unsupported_format", f"a {brand} container (HEIC or video); save it as JPEG"
    for start, name in _OTHER_IMAGES.items():
        if head.startswith(start):
            return "unsupported_format", f"{name}; save it as JPEG"
    for start, name in _NO_IMAGES.items():
        if head.startswith(start):
            return "not_an_image", f"not an image, but {name}"
    known = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*", b"BM", b"GIF8")
    if content.startswith(known) or any(magic.startswith(content[:4]) for magic in known):
        return "corrupt", "it begins like an image, but its header cannot be read"
    return "not_an_image", "not an image"


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_QUARTER_TURNS = {_TURNS[orientation] for orientation in (5, 6, 7, 8)}


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the picture upright, by its EXIF orientation."""
    if image.format == "JPEG" and "xmp" not in image.info:
        # Parsing costs a fifth of decoding a small photo; few that are small have this tag.
        exif = image.info.get("exif", b"")
        if b"\x01\x12" not in exif and b"\x12\x01" not in exif:
            return None
    try:
        return _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # a picture with broken metadata is a picture
        return None


def _flat_grey(image: Image.Image) -> Image.Image:
    """Grey values, transparency on white."""
    if image.mode == "L" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, np.float32), posinf=0.0, neginf=0.0)
        # By the largest value alone, lest a wall be stretched to full contrast.
        most = float(values.max())
        scaled = np.clip(values * (255 / most if most > 0 else 0.0), 0, 255)
        return Image.fromarray(scaled.astype(np.uint8))
    return image.convert("L")


def _waves_and_contrast(
    grey: NDArray[np.uint8], room: NDArray[np.float32]
) -> tuple[NDArray[np.float32], float]:
    """Low cosine frequencies of the grey values, and their standard deviation."""
    pixels = room[: grey.size].reshape(grey.shape)
    pixels[...] = grey
    pixels -= 128  # near the mean, so that the sum of squares loses no digit
    waves = low_frequencies(pixels)
    # The first coefficient is the mean times the root of the number of pixels.
    squares = float(np.vdot(pixels, pixels)) - float(waves[0]) ** 2
    waves[0] += 128 * math.sqrt(grey.size)
    return waves, math.sqrt(max(0.0, squares / grey.size))


def _sharpness(grey: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian."""
    if min(grey.shape) < 3:
        return 0.0
    height, width = grey.shape
    # Whole rows one after the other are faster than a window of them; the first and the last
    # column, which wrap around, are then taken out of the sums.
    row = grey.ravel().astype(np.int16)
    laplacian = row[width:-width] * np.int16(-4)
    laplacian += row[: -2 * width]
    laplacian += row[2 * width :]
    laplacian += row[width - 1 : -width - 1]
    laplacian += row[width + 1 : -width + 1]
    values = laplacian.astype(np.float32)
    outside = values.reshape(height - 2, width)[:, :: width - 1].ravel()
    num = (height - 2) * (width - 2)
    mean = (float(values.sum()) - float(outside.sum())) / num
    squares = float(np.dot(values, values)) - float(np.dot(outside, outside))
    return max(0.0, squares / num - mean * mean)


# How far neighbours differ: hardly at all, so little as in soft shades, and as at edges.
_NO_CHANGE, _SOFT, _EDGE = 2, 8, 24
# Pictures with less than this share of the four commonest grey values are no screenshots.
_FEW_TONES = 0.4
# Grey values within so many of each other are one tone, and so much of a page is one.
_TONE_WIDTH, _ONE_TONE = 25, 0.55
# Letters make so many hard edges at least, of all pairs of neighbours.
_LETTERS = 0.08
# Text: lines are looked for in strips so wide, about a mean over so many pixels, where they differ
# from it by so much.
_STRIP, _AROUND, _LINE_CONTRAST = 48, 9, 10.0


def _shares(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(256,) how often each grey value is, among every other pixel of every other row."""
    some = grey[::2, ::2]
    return np.bincount(some.ravel(), minlength=256) / some.size


def _commonest_tones(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) share of the four commonest grey values, each with its two neighbours."""
    left = np.pad(shares, ((0, 0), (1, 1)))
    total = np.zeros(len(left))
    rows = np.arange(len(left))
    for _ in range(4):
        three = left[:, :-2] + left[:, 1:-1] + left[:, 2:]
        at = three.argmax(1)
        total += three[rows, at]
        for beside in range(3):
            left[rows, at + beside] = 0
    return total


def _largest_tone(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) the largest share of grey values within one tone."""
    total = np.cumsum(np.pad(shares, ((0, 0), (1, 0))), axis=1)
    return np.asarray((total[:, _TONE_WIDTH:] - total[:, :-_TONE_WIDTH]).max(1))


def _steps(grey: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """How much each pixel differs from the next one across and down, (H - 1, W - 1) each."""
    corner, right, below = grey[:-1, :-1], grey[:-1, 1:], grey[1:, :-1]
    across = np.maximum(corner, right) - np.minimum(corner, right)
    return across, np.maximum(corner, below) - np.minimum(corner, below)


def _crispness(grey: NDArray[np.uint8]) -> float:
    """How many of the changes between neighbours are steep; 0 unless edges are level or upright.

    Photos are full of soft shades, and twigs before the sky are crisp but lie in all directions.
    """
    across, down = _steps(grey)
    count = np.count_nonzero
    changes = max(1, int(count(across >= _NO_CHANGE) + count(down >= _NO_CHANGE)))
    steep = count(across >= _SOFT) + count(down >= _SOFT)
    edge = np.maximum(across, down) >= _EDGE
    straight = count(edge & (np.minimum(across, down) <= _NO_CHANGE)) / max(1, int(count(edge)))
    return float(steep / changes * np.clip((straight - 0.15) / 0.1, 0, 1))


def _text_lines(grey: NDArray[np.uint8]) -> float:
    """Changes between line and gap per pixel across the lines; 0 if lines are not of letters."""
    across, down = (np.count_nonzero(steps >= _EDGE) for steps in _steps(grey))
    if across + down < _LETTERS * 2 * grey.size:
        return 0.0
    pixels = grey.astype(np.float32)
    # Slats and courses of bricks change across their lines alone, letters along them too.
    level = _alternations(pixels) if 4 * across >= down else 0.0
    upright = _alternations(pixels.T) if 4 * down >= across else 0.0
    return max(level, upright)


def _alternations(pixels: NDArray[np.float32]) -> float:
    """How often strips of the picture change between darker and lighter than around, per row."""
    height, width = pixels.shape
    strips = max(1, width // _STRIP)
    edges = np.arange(strips + 1) * width // strips
    belongs = np.zeros((width, strips), np.float32)
    for strip in range(strips):
        belongs[edges[strip] : edges[strip + 1], strip] = 1 / (edges[strip + 1] - edges[strip])
    mean = pixels @ belongs
    beside = _AROUND // 2
    total = np.cumsum(
        np.concatenate((mean[:1].repeat(beside + 1, 0), mean, mean[-1:].repeat(beside, 0))), axis=0
    )
    around = (total[_AROUND:] - total[:-_AROUND]) / _AROUND
    side = np.sign(mean - around) * (np.abs(mean - around) > _LINE_CONTRAST)
    changes = 0
    for column in side.T:
        seen = column[column != 0]
        changes += int(np.count_nonzero(seen[1:] != seen[:-1]))
    return changes / (height * strips)


def judge(
    photos: pd.DataFrame, measures: pd.DataFrame, settings: QualitySettings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Parts examined photos into good ones and rejections.

    A photo has the first reason that applies, in this order: ``undecodable_<kind>`` (see
    :data:`ERROR_KINDS`), ``too_small``, ``aspect``, ``near_uniform``, ``blurred``, ``document``,
    ``screenshot``, ``duplicate_elsewhere``, ``exact_duplicate``, ``near_duplicate``.

    Of equal files the first in natural order of ``id`` is kept, of photos that look alike the one
    with the most pixels, then the first: what is kept does not depend on the order of rows.

    Args:
        photos: with ``id``, and ``latitude, longitude`` in degrees where places matter.
        measures: as :func:`examine_files` makes them, a row per photo, in the same order.
        settings: thresholds.

    Returns:
        The good photos, with ``width, height`` as measured, ``sha256`` (text), ``phash`` (32 bytes)
        and ``look`` (int64: photos that look alike share a number); and the rejections. Where near
        duplicates are dropped, every number of ``look`` is there once. The good photos' ``attrs``
        have ``num_crowded``: photos of which look-alikes may have been missed, see
        :class:`~geopak.data.duplicates.LookAlikes`.
    """
    # Imported late: examining needs none of it, and its processes should start fast.
    from geopak.data.table import rejections

    measured = measures.set_axis(photos.index)
    left = np.ones(len(photos), bool)
    rejected = []

    def reject(applies: NDArray[np.bool_], reason: str, detail: _Detail) -> None:
        rows = np.flatnonzero(applies & left)
        if len(rows):
            left[rows] = False
            # Words are made for the rejected alone: of ten million photos most are good.
            rejected.append(rejections(photos.index[rows], reason, list(detail(rows))))

    for applies, reason, detail in _defects(measured, settings):
        reject(applies, reason, detail)

    places = _Places(photos)
    order = _order_of_ids(photos["id"])
    first, farthest, away_km = _equal_files(measured["sha256"], order[left[order]], places)
    if settings.max_duplicate_km is not None:
        reject(
            away_km > settings.max_duplicate_km,
            "duplicate_elsewhere",
            lambda rows: [
                f"the same file as photo {name}, {km:,.1f} km away: no telling which place is right"
                for name, km in zip(places.ids(farthest[rows]), away_km[rows], strict=True)
            ],
        )
    if settings.drop_exact_duplicates:
        reject(
            first != np.arange(len(photos)),
            "exact_duplicate",
            lambda rows: [
                f"the same file as photo {name}{where}"
                for name, where in places.told(rows, first[rows])
            ],
        )

    # Of two that look alike the larger is the original more often than the scaled copy.
    area = (measured["width"] * measured["height"]).to_numpy(np.int64)[order]
    candidates = order[np.argsort(-area, kind="stable")]
    candidates = candidates[left[candidates]]
    alike = find_look_alikes(
        stack_hashes(measured["phash"].to_numpy(object)[candidates].tolist()),
        settings.near_duplicate_bits,
    )
    look = np.arange(len(photos))
    if settings.drop_near_duplicates:
        original = look.copy()
        original[candidates] = candidates[alike.originals()]
        reject(
            original != look,
            "near_duplicate",
            lambda rows: [
                f"looks like photo {name}{where}"
                for name, where in places.told(rows, original[rows])
            ],
        )
    else:
        look[candidates] = candidates[alike.components()]

    good = photos[left].copy()
    good["width"] = measured["width"][left].astype("Int64")
    good["height"] = measured["height"][left].astype("Int64")
    good["sha256"] = measured["sha256"][left]
    good["phash"] = measured["phash"][left]
    good["look"] = look[left]
    good.attrs["num_crowded"] = alike.num_crowded
    return good, pd.concat([rejections(photos.index[:0], "", ""), *rejected])


_Detail = Callable[[NDArray[np.int64]], Sequence[str]]


def _defects(
    measured: pd.DataFrame, settings: QualitySettings
) -> Iterator[tuple[NDArray[np.bool_], str, _Detail]]:
    """Which photos have which defect, in the order in which they count, and words for rows."""
    kind = measured["error_kind"].fillna("").to_numpy(object)
    error = measured["error"].to_numpy(object)
    for name in ERROR_KINDS:
        yield np.equal(kind, name), f"undecodable_{name}", lambda rows: list(error[rows])

    width, height = (measured[name].to_numpy(np.int64) for name in ("width", "height"))
    shorter, longer = np.minimum(width, height), np.maximum(width, height)

    def size(rows: NDArray[np.int64]) -> Iterator[str]:
        return (f"{w} x {h}" for w, h in zip(width[rows], height[rows], strict=True))

    if settings.min_side_px is not None:
        yield (
            shorter < settings.min_side_px,
            "too_small",
            lambda rows: [
                f"{text} pixels; the shorter side must have {settings.min_side_px}"
                for text in size(rows)
            ],
        )
    if settings.max_aspect is not None:
        yield (
            longer > settings.max_aspect * shorter,
            "aspect",
            lambda rows: [
                f"{text} pixels; the longer side may be {settings.max_aspect:g} times the shorter"
                for text in size(rows)
            ],
        )
    for column, limit, below, reason, words in (
        ("contrast", settings.min_contrast, True, "near_uniform",
         "grey values vary by {:.2f}; at least {:g} is asked"),
        ("sharpness", settings.min_sharpness, True, "blurred",
         "sharpness is {:.2f}; at least {:g} is asked"),
        ("text_lines", settings.max_text_lines, False, "document",
         "lines of text on one background: {:.2f}; at most {:g} is allowed"),
        ("flat_design", settings.max_flat_design, False, "screenshot",
         "a few flat tones with straight, crisp edges: {:.2f}; at most {:g} is allowed"),
    ):  # fmt: skip
        if limit is not None:
            value = measured[column].to_numpy(float)
            yield value < limit if below else value > limit, reason, _words(words, value, limit)


def _words(words: str, value: NDArray[np.float64], limit: float) -> _Detail:
    return lambda rows: [words.format(number, limit) for number in value[rows]]


def _order_of_ids(ids: pd.Series) -> NDArray[np.int64]:
    """(N,) row numbers in natural order of ids, whatever the order of rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from geopak.data.table import natural_order

    # p2 and p02 have the same natural key: the text itself decides.
    table = pa.table({"key": natural_order(ids).astype("string"), "id": ids.astype("string")})
    keys = [("key", "ascending"), ("id", "ascending")]
    return np.asarray(pc.sort_indices(table, sort_keys=keys), np.int64)


class _Places:
    """Names and distances of photos, for what is said about copies."""

    def __init__(self, photos: pd.DataFrame) -> None:
        self._ids = photos["id"].to_numpy(object)
        self._latlon_deg = None
        if {"latitude", "longitude"} <= set(photos.columns):
            self._latlon_deg = photos[["latitude", "longitude"]].to_numpy(float)

    def ids(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        return np.asarray(self._ids[rows], object)

    def away_km(self, rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
        """Kilometres between photos; 0 where places are unknown."""
        if self._latlon_deg is None or not len(rows):
            return np.zeros(len(rows))
        from geopak.geo.distance import haversine_km_array

        return np.nan_to_num(haversine_km_array(self._latlon_deg[rows], self._latlon_deg[others]))

    def told(
        self, rows: NDArray[np.int64], originals: NDArray[np.int64]
    ) -> Iterator[tuple[str, str]]:
        """The original's id, and how far away it is where that is worth a word."""
        for name, km in zip(self.ids(originals), self.away_km(rows, originals), strict=True):
            yield name, f", {km:,.1f} km away" if km >= 0.1 else ""


def _equal_files(
    digest: pd.Series, order: NDArray[np.int64], places: _Places
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Groups of files with the same bytes.

    Args:
        digest: (N,) hashes of the files.
        order: (C,) rows to look at; of equal ones the first in this order is the original.
        places: where the photos are.

    Returns:
        Per row (N,): the original (the row itself outside groups), the copy farthest from the
        original (for that copy itself: the original), and the kilometres between these two.
    """
    num = len(digest)
    first, farthest, away_km = np.arange(num), np.arange(num), np.zeros(num)
    code = pd.factorize(digest.to_numpy(object)[order])[0]
    shared = np.flatnonzero(np.bincount(code, minlength=1)[code] > 1)
    if not len(shared):
        return first, farthest, away_km
    rows = order[shared]
    by_group = np.argsort(code[shared], kind="stable")  # the original comes first in each group
    rows, group = rows[by_group], code[shared][by_group]
    start = np.flatnonzero(np.concatenate(([True], group[1:] != group[:-1])))
    size = np.diff(np.append(start, len(rows)))
    original = np.repeat(rows[start], size)
    first[rows] = original
    km = places.away_km(rows, original)
    most = np.repeat(np.maximum.reduceat(km, start), size)
    # The first of the farthest copies, by order.
    at = np.minimum.reduceat(np.where(km == most, np.arange(len(rows)), len(rows)), start)
    copy = np.repeat(rows[at], size)
    farthest[rows] = np.where(rows == copy, original, copy)
    away_km[rows] = most
    return first, farthest, away_km
