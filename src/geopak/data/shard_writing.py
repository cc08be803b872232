"""Writes the photos of a prepared set into tar shards, see :mod:`geopak.data.shards`."""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow import feather

import geopak
from geopak.data.dataset import PreparedSet
from geopak.data.images import upright_rgb
from geopak.data.partitions import map_partitions
from geopak.data.shards import (
    FORMAT,
    HELD_OUT,
    INDEX_NAME,
    SHARD_NAME,
    Shard,
    photos_sha256,
    require_webdataset,
)
from geopak.errors import ConfigError, PhotoError
from geopak.geo.region import Region
from geopak.schema.preparation import ExecutorSettings, ShardSettings

_PLAN_NAME = "plan.arrow"
# Photos that an error names.
_NAMED = 5


@dataclass(frozen=True)
class _Planned:
    """A shard that is yet to be written: its name, and its stretch of the plan."""

    name: str
    start: int
    stop: int


def write_shards(
    prepared: PreparedSet,
    region: Region,
    folder: Path,
    settings: ShardSettings,
    seed: int,
    executor: ExecutorSettings,
    set_id: str | None = None,
) -> dict[str, Any]:
    """Writes all shards and their index into a folder.

    The files depend on the photos, the settings and the seed alone, byte for byte.

    Args:
        prepared: the set; its photos of train, val and test are written.
        region: the set's.
        folder: exists and is empty.
        settings: how photos are cut into shards.
        seed: train photos of a province are mixed by it before they are cut.
        executor: where to work; a shard is an item.
        set_id: of the set's manifest, for the reader of the index.

    Returns:
        The content of ``index.json``.

    Raises:
        PhotoError: photos that are missing or cannot be read; named before anything is written
            where the file system knows, else when all that are readable were.
        ConfigError: WebDataset is not installed.
    """
    require_webdataset()
    sizes = _sizes(prepared)
    order, planned = _plan(prepared, region, sizes, settings, seed)
    paths = [str(prepared.root / path) for path in prepared.photos["path"].iloc[order]]
    plan = folder / _PLAN_NAME
    # Uncompressed and mapped into memory, so that a worker reads its own stretch alone.
    feather.write_feather(pa.table({"row": order, "path": paths}), plan, "uncompressed")
    for name in {str(Path(p.name).parent) for p in planned.values()}:
        (folder / name).mkdir(exist_ok=True)
    per_shard = -(-len(order) // max(1, len(planned)))
    written = map_partitions(
        functools.partial(
            _write,
            plan=str(plan),
            folder=str(folder),
            shorter_side_px=settings.shorter_side_px,
            quality=settings.quality,
        ),
        [f"{p.name} {p.start} {p.stop}" for p in planned.values()],
        executor=replace(
            executor,
            partition_size=1,
            items_per_worker=max(1, executor.items_per_worker // max(1, per_shard)),
        ),
        describe="writing shards",
        key=str,
    )
    plan.unlink()
    _check_readable(written)
    index = {
        "format": FORMAT,
        "geopak": geopak.__version__,
        "prepared": {"set_id": set_id, "photos_sha256": photos_sha256(prepared.photos)},
        "region": {"name": region.name, "provinces": [p.key for p in region.provinces]},
        "seed": seed,
        "shorter_side_px": settings.shorter_side_px,
        "splits": _splits(written, region),
    }
    text = json.dumps(index, indent=1, ensure_ascii=False)
    (folder / INDEX_NAME).write_text(text + "\n", encoding="utf-8")
    return index


def _sizes(prepared: PreparedSet) -> NDArray[np.int64]:
    """(N,) bytes of every photo's file; 0 of those that are in no split.

    Raises:
        PhotoError: files that are not there.
    """
    chosen = prepared.photos["split"].isin(("train", *HELD_OUT)).to_numpy(bool)
    sizes = np.zeros(len(chosen), np.int64)
    missing: list[str] = []
    paths = prepared.photos["path"].to_list()
    for row in np.flatnonzero(chosen):
        path = prepared.root / paths[row]
        try:
            sizes[row] = path.stat().st_size
            if not path.is_file():
                missing.append(f"{path}: is no file")
        except OSError as error:
            missing.append(f"{path}: {error.strerror}")
    if missing:
        raise PhotoError(_complaint(missing, len(missing)))
    return sizes


def _complaint(lines: Sequence[str], count: int) -> str:
    more = f"\n  and {count - _NAMED:,} more" if count > _NAMED else ""
    return (
        f"{count:,} photos of the prepared set cannot be read; no shards were made. Bring them "
        "back, or take them out: python -m geopak.prepare makes the set again without them.\n  "
        + "\n  ".join(lines[:_NAMED])
        + more
    )


def _plan(
    prepared: PreparedSet,
    region: Region,
    sizes: NDArray[np.int64],
    settings: ShardSettings,
    seed: int,
) -> tuple[NDArray[np.int64], dict[str, _Planned]]:
    """The rows in the order in which they are written, and every shard's stretch of them."""
    split = prepared.photos["split"].to_numpy()
    province_id = prepared.photos["province_id"].to_numpy(np.int64)
    parts: dict[str, NDArray[np.int64]] = {}
    for province, entry in enumerate(region.provinces):
        rows = np.flatnonzero((split == "train") & (province_id == province))
        parts[f"train/{entry.key}"] = np.random.default_rng([seed, province]).permutation(rows)
    for name in HELD_OUT:
        parts[name] = np.flatnonzero(split == name)
    planned: dict[str, _Planned] = {}
    start = 0
    for part, rows in parts.items():
        # Shards of one size, lest the last have a photo or two.
        count = -(-len(rows) // settings.photos_per_shard)
        if settings.shorter_side_px is None:
            count = max(count, -(-int(sizes[rows].sum()) // int(settings.shard_mb * 1e6 + 1)))
        for number, own in enumerate(np.array_split(rows, min(count, len(rows))) if count else []):
            name = f"{part}-{number:06d}.tar"
            if not SHARD_NAME.fullmatch(name):
                raise ConfigError(
                    f"{name} cannot be the name of a shard: a province's key must be made of "
                    "letters, digits, _ and -. Change the key in the region and prepare again."
                )
            planned[name] = _Planned(name, start, start + len(own))
            start += len(own)
    return np.concatenate(list(parts.values())).astype(np.int64), planned


def _splits(written: pd.DataFrame, region: Region) -> dict[str, Any]:
    entries = [
        {"name": shard.name, "photos": shard.photos, "bytes": shard.bytes}
        for shard in (
            Shard(str(name), int(photos), int(size))
            for name, photos, size in written[["name", "photos", "bytes"]].itertuples(index=False)
        )
    ]

    def of(part: str) -> list[dict[str, Any]]:
        return [e for e in entries if str(e["name"]).rpartition("-")[0] == part]

    train = {p.key: of(f"train/{p.key}") for p in region.provinces}
    return {"train": train, **{name: of(name) for name in HELD_OUT}}


def _check_readable(written: pd.DataFrame) -> None:
    count = int(written["unreadable"].sum())
    if count:
        lines = [line for text in written["problems"] for line in text.splitlines()]
        raise PhotoError(_complaint(lines, count))


# --- what the workers do --------------------------------------------------------------------------


def _write(
    items: list[str], *, plan: str, folder: str, shorter_side_px: int | None, quality: int
) -> pd.DataFrame:
    """Writes shards, each given as name, start and stop of its stretch of the plan."""
    table = feather.read_table(plan, memory_map=True)
    lines = []
    for item in items:
        name, start, stop = item.rsplit(" ", 2)
        stretch = table.slice(int(start), int(stop) - int(start))
        target = Path(folder) / name
        problems = _write_tar(target, stretch, shorter_side_px, quality)
        lines.append((name, len(stretch), target.stat().st_size, len(problems),
                      "\n".join(problems[:_NAMED])))  # fmt: skip
    columns = ["name", "photos", "bytes", "unreadable", "problems"]
    frame = pd.DataFrame(lines, columns=columns)
    numbers = dict.fromkeys(("photos", "bytes", "unreadable"), np.int64)
    return frame.astype({**numbers, "name": "string", "problems": "string"})


def _write_tar(
    target: Path, stretch: pa.Table, shorter_side_px: int | None, quality: int
) -> list[str]:
    """Writes one shard; returns a line for every photo that cannot be read."""
    from webdataset import TarWriter

    problems = []
    with (
        open(target, "wb") as file,
        # Nothing of this machine or moment is in the headers.
        TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False) as tar,
    ):
        rows, paths = stretch["row"].to_pylist(), stretch["path"].to_pylist()
        for row, path in zip(rows, paths, strict=True):
            try:
                data, extension = _content(path, shorter_side_px, quality)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                problems.append(f"{path}: {error}")
                continue
            tar.write({"__key__": str(row), extension: data})
    return problems


def _content(path: str, shorter_side_px: int | None, quality: int) -> tuple[bytes, str]:
    """A photo's bytes and the ending of its name in the shard."""
    data = Path(path).read_bytes()
    suffix = Path(path).suffix[1:].lower()
    extension = suffix if re.fullmatch(r"[a-z0-9]+", suffix) else "img"
    if shorter_side_px is None:
        return data, extension
    with Image.open(io.BytesIO(data)) as image:
        shorter = min(image.size)
        if shorter <= shorter_side_px:
            # To encode it again would only cost quality. Decoded nevertheless: it may be broken.
            image.load()
            return data, extension
        image.draft("RGB", (shorter_side_px, shorter_side_px))
        whole = upright_rgb(image)
    factor = shorter_side_px / min(whole.size)
    width, height = (max(1, round(side * factor)) for side in whole.size)
    small = io.BytesIO()
    whole.resize((width, height), Image.Resampling.LANCZOS).save(small, "JPEG", quality=quality)
    return small.getvalue(), "jpg"
