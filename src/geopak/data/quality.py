"""Photo quality: what can be decoded, is sharp and large enough, and was not seen before.

Examining a photo (decode, measure, hash) needs no thresholds and nothing but its file, so that it
is one function over any part of the photos; judging then compares the measures of all photos.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy.fft import dctn

from geopak.data.table import natural_order, rejections
from geopak.errors import ConfigError

# All measures are taken at this size, so that thresholds do not depend on the camera.
_WORKING_PX = 256
_HASH_SIDE = 16
HASH_BITS = _HASH_SIDE * _HASH_SIDE
_HASH_WORDS = HASH_BITS // 64
_CHUNK = 64
# A process needs seconds to start; this many photos are examined in that time.
_PHOTOS_WORTH_A_PROCESS = 1500


@dataclass(frozen=True)
class QualitySettings:
    """Which photos are good enough.

    Attributes:
        min_side_px: fewest pixels of the shorter side.
        min_contrast: least standard deviation of the grey values (0..255).
        min_sharpness: least variance of the Laplacian of the grey values, at no more than 256
            pixels of the longer side.
        drop_exact_duplicates: drop files with the same bytes as an earlier photo.
        drop_near_duplicates: drop photos that look like an earlier one.
        near_duplicate_bits: two photos look alike when at most so many of the 256 bits of their
            perceptual hashes differ. Unrelated photos differ in about half of them.
    """

    min_side_px: int = 64
    min_contrast: float = 4.0
    min_sharpness: float = 4.0
    drop_exact_duplicates: bool = True
    drop_near_duplicates: bool = True
    near_duplicate_bits: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.near_duplicate_bits <= 24:
            raise ConfigError(
                f"quality.near_duplicate_bits is {self.near_duplicate_bits}; it must be 0 to 24 "
                f"of the {HASH_BITS} bits."
            )


def examine_files(paths: Sequence[str]) -> pd.DataFrame:
    """Decodes photos in full and measures them.

    Args:
        paths: files.

    Returns:
        A row per path, in order: ``error`` (text, or missing when the photo decodes),
        ``width, height`` (pixels, after EXIF rotation), ``contrast``, ``sharpness``, ``sha256``
        (hexadecimal, of the file) and ``phash`` (32 bytes).
    """
    rows = [_examine_file(path) for path in paths]
    columns = ["error", "width", "height", "contrast", "sharpness", "sha256", "phash"]
    return pd.DataFrame(rows, columns=columns)


def _examine_file(path: str) -> tuple[object, ...]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return (f"cannot be read: {error.strerror}", 0, 0, 0.0, 0.0, "", b"")
    digest = hashlib.sha256(content).hexdigest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if image.getexif().get(0x0112, 1) >= 5:  # orientations that turn by a quarter
                width, height = height, width
            # Every byte of the file is still decoded; only the inverse transform is made smaller.
            image.draft("L", (_WORKING_PX, _WORKING_PX))
            image.load()
            grey = _flat_grey(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise whatever a broken file causes
        return (f"cannot be decoded: {error}", 0, 0, 0.0, 0.0, digest, b"")
    grey.thumbnail((_WORKING_PX, _WORKING_PX), Image.Resampling.BOX)
    pixels = np.asarray(grey, np.float32)
    return (
        None, width, height, float(pixels.std()), _sharpness(pixels), digest, perceptual_hash(grey),
    )  # fmt: skip


def _flat_grey(image: Image.Image) -> Image.Image:
    """Grey values, transparency on white."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float32)
        span = float(values.max() - values.min()) or 1.0
        return Image.fromarray(((values - values.min()) * (255 / span)).astype(np.uint8))
    return image.convert("L")


def _sharpness(pixels: NDArray[np.float32]) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000)."""
    if min(pixels.shape) < 3:
        return 0.0
    core = pixels[1:-1, 1:-1]
    around = pixels[:-2, 1:-1] + pixels[2:, 1:-1] + pixels[1:-1, :-2] + pixels[1:-1, 2:]
    return float((around - 4 * core).var())


def perceptual_hash(grey: Image.Image) -> bytes:
    """256 bits that survive scaling and recompression: signs of the low cosine frequencies.

    The lowest 16 by 16 coefficients of a 64 by 64 picture against their median (pHash).
    """
    small = np.asarray(grey.resize((64, 64), Image.Resampling.BILINEAR), np.float32)
    low = dctn(small, norm="ortho")[:_HASH_SIDE, :_HASH_SIDE]
    return np.packbits(low > np.median(low)).tobytes()


def examine(paths: Sequence[str], root: str, workers: int | None = None) -> Iterator[pd.DataFrame]:
    """Examines photos in parallel processes, a batch at a time, in order.

    Args:
        paths: relative to ``root``.
        root: folder that holds all photos.
        workers: at most so many processes; ``None`` for one per core; 1, and few photos, stay in
            this process.

    Yields:
        Tables as :func:`examine_files` makes them, together a row per path.
    """
    files = [os.path.join(root, path) for path in paths]
    batches = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    workers = min(workers or os.cpu_count() or 1, 1 + len(paths) // _PHOTOS_WORTH_A_PROCESS)
    if workers == 1:
        yield from map(examine_files, batches)
        return
    pool = Parallel(n_jobs=workers, return_as="generator", batch_size=1)
    yield from pool(delayed(examine_files)(batch) for batch in batches)


def near_pairs(
    hashes: NDArray[np.uint64], max_bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs of hashes that differ in at most ``max_bits`` bits.

    Multi-index hashing (Norouzi et al. 2012): cut into ``max_bits + 1`` bands, two such hashes
    agree exactly in one of them, so only hashes that share a band are compared.

    Args:
        hashes: (N, 4) uint64.
        max_bits: at least 0.

    Returns:
        Row numbers (M,) and (M,), the first below the second, every pair once.
    """
    num = len(hashes)
    bits = np.unpackbits(
        np.ascontiguousarray(hashes).view(np.uint8).reshape(num, HASH_BITS // 8), axis=1
    )
    bands = max_bits + 1
    found = []
    for band in range(bands):
        # Every bands-th bit: each band gets low and high frequencies alike, and stays selective.
        packed = np.packbits(bits[:, band::bands], axis=1)
        keys = np.zeros((num, -(-packed.shape[1] // 8) * 8), np.uint8)
        keys[:, : packed.shape[1]] = packed
        words = keys.view(np.uint64)
        order = np.lexsort(words.T)
        same = (words[order[1:]] == words[order[:-1]]).all(1)
        run = np.concatenate(([0], np.cumsum(~same)))
        start = np.arange(num)
        for step in range(1, num):
            start = start[: np.searchsorted(start, num - step)]
            start = start[run[start] == run[start + step]]
            if not len(start):
                break
            a, b = order[start], order[start + step]
            near = np.bitwise_count(hashes[a] ^ hashes[b]).sum(1) <= max_bits
            found.append(np.stack((np.minimum(a, b)[near], np.maximum(a, b)[near]), 1))
    pairs = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
    pairs = np.unique(pairs, axis=0)
    return pairs[:, 0], pairs[:, 1]


def judge(
    photos: pd.DataFrame, measures: pd.DataFrame, settings: QualitySettings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Parts examined photos into good ones and rejections.

    Of equal files the first in order of ``id`` is kept, of photos that look alike the one with the
    most pixels, then the first. Reasons: ``undecodable``,
    ``too_small``, ``near_uniform``, ``blurred``, ``exact_duplicate``, ``near_duplicate``.

    Args:
        photos: with ``id``.
        measures: as :func:`examine_files` makes them, a row per photo, in the same order.
        settings: thresholds.

    Returns:
        The good photos, with ``width`` and ``height`` as measured; and the rejections. When near
        duplicates are kept, photos that look alike share a number in the column ``alike``.
    """
    measured = measures.set_axis(photos.index)
    side = measured[["width", "height"]].min(axis=1)
    size = measured["width"].astype(str) + " x " + measured["height"].astype(str)
    rejected = []
    left = pd.Series(True, index=photos.index)

    def reject(rows: pd.Series, reason: str, detail: pd.Series) -> None:
        now = rows & left
        left[now] = False
        rejected.append(rejections(photos.index[now], reason, detail[now]))

    reject(measured["error"].notna(), "undecodable", measured["error"].astype("string"))
    reject(
        side < settings.min_side_px,
        "too_small",
        size + f" pixels; the shorter side must have {settings.min_side_px}",
    )
    reject(
        measured["contrast"] < settings.min_contrast,
        "near_uniform",
        "grey values vary by " + measured["contrast"].map("{:.2f}".format)
        + f"; at least {settings.min_contrast:g} is asked",
    )  # fmt: skip
    reject(
        measured["sharpness"] < settings.min_sharpness,
        "blurred",
        "sharpness is " + measured["sharpness"].map("{:.2f}".format)
        + f"; at least {settings.min_sharpness:g} is asked",
    )  # fmt: skip

    ids = photos["id"]
    order = natural_order(ids).sort_values(kind="stable").index
    if settings.drop_exact_duplicates:
        candidates = measured.loc[order[left[order]], "sha256"]
        first = ids[candidates.drop_duplicates().index].set_axis(candidates.drop_duplicates())
        again = candidates.duplicated().reindex(photos.index, fill_value=False)
        same = measured["sha256"].map(first)
        reject(again, "exact_duplicate", "the same file as photo " + same.astype("string"))

    # Of two that look alike the larger is the original more often than the scaled copy.
    area = (measured["width"] * measured["height"])[order]
    order = area.sort_values(ascending=False, kind="stable").index
    candidates_at = order[left[order]]
    if len(candidates_at):
        raw = b"".join(measured.loc[candidates_at, "phash"])
        hashes = np.frombuffer(raw, np.uint64).reshape(-1, _HASH_WORDS)
        a, b = near_pairs(hashes, settings.near_duplicate_bits)
    else:
        a = b = np.zeros(0, np.int64)
    if settings.drop_near_duplicates:
        original = _first_alike(a, b)
        rows = candidates_at[list(original)]
        named = ids[candidates_at].to_numpy(object)
        looks = pd.Series(pd.NA, index=photos.index, dtype="string")
        looks[rows] = [f"looks like photo {named[first]}" for first in original.values()]
        reject(looks.notna(), "near_duplicate", looks)
    good = photos[left].copy()
    good["width"] = measured.loc[good.index, "width"].astype("Int64")
    good["height"] = measured.loc[good.index, "height"].astype("Int64")
    if not settings.drop_near_duplicates:
        good["alike"] = pd.Series(_components(len(candidates_at), a, b), candidates_at)
    return good, pd.concat(rejected)


def _first_alike(a: NDArray[np.int64], b: NDArray[np.int64]) -> dict[int, int]:
    """Dropped row -> the kept earlier row it looks like; rows only look like kept ones."""
    original: dict[int, int] = {}
    for first, later in sorted(zip(a.tolist(), b.tolist(), strict=True), key=lambda p: p[::-1]):
        # Pairs come by their later row, so that it is known by now whether the first was kept.
        if first not in original:
            original.setdefault(later, first)
    return original


def _components(num: int, a: Iterable[int], b: Iterable[int]) -> NDArray[np.int64]:
    """Number of the connected component of every row."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.asarray(a, np.int64), np.asarray(b, np.int64)
    links = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(num, num))
    return connected_components(links, directed=False)[1].astype(np.int64)
