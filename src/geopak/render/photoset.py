"""The folder of a rendered photo set: written by several processes, claimed for one set.

A set is a folder with ``photos/``, ``photos.csv`` (the photo table), ``defects.csv`` (the rows that
are bad on purpose) and ``synthetic.json`` (settings and counts). Every picture depends on
``[seed, number]`` alone, so a set is the same for any number of processes and an interrupted run
goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from geopak.errors import ConfigError
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.render.contact_sheet import contact_sheet
from geopak.render.photo_files import PhotoWriter, write_atomically
from geopak.render.photo_plan import COLUMNS, plan_photos
from geopak.render.towns import Towns
from geopak.render.world import World
from geopak.schema.rendering import COPIES, PhotoSetConfig

# So many pictures are drawn to tell whether a folder holds this very set.
_PROBES = 16

_writer: PhotoWriter | None = None


def _start_process(writer: PhotoWriter) -> None:
    global _writer
    _writer = writer


def _write_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    assert _writer is not None
    return len(rows), sum(_writer.write(row) for row in rows)


def write_photo_set(settings: Mapping[str, Any]) -> Path:
    """Writes the photo set that the configuration ``synthetic`` describes.

    What is there already of the same set stays. Files are written under a temporary name and
    renamed, so that an interruption leaves no half file.

    Args:
        settings: the composed configuration as plain containers.

    Returns:
        The folder of the set.

    Raises:
        ConfigError: a value that cannot work, or a folder that holds another set.
        RegionError: no usable outlines.
        TableError: no usable towns table.
    """
    config = PhotoSetConfig.from_config(settings)
    workers = settings.get("workers")
    workers = os.cpu_count() or 1 if workers is None else workers
    region = Region.from_config(settings["region"])
    outlines = Outlines.of_region(region)
    towns_path = settings["region"].get("towns")
    if not towns_path:
        raise ConfigError(
            "region.towns is not set. Set it to a towns table; python -m geopak.render.towns makes "
            "one for any country."
        )
    towns = Towns.read(towns_path, region)
    # A region without a landscape of its own gets one that is derived from the seed.
    landscape = settings.get("landscape") or {}
    world = World(region, towns, landscape, config.world)
    shares = landscape.get("photo_shares")
    rows, defects = plan_photos(config, region, towns, outlines, shares)

    out = Path(settings["out"])
    described = {
        "config": {**asdict(config), "defects": dict(config.defects)},
        "region": region.to_dict()["provinces"],
        "landscape": dict(landscape),
    }
    writer = PhotoWriter(world, config, out)
    tasks = _tasks(rows)
    fingerprint = _fingerprint(tasks, writer)
    _claim(out, fingerprint, bool(settings.get("overwrite")))

    chunk = 32
    chunks = [tasks[k : k + chunk] for k in range(0, len(tasks), chunk)]
    written = 0
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    ) as progress:
        bar = progress.add_task("photos", total=len(tasks))
        if workers == 1 or len(chunks) == 1:
            for part in chunks:
                written += sum(writer.write(row) for row in part)
                progress.advance(bar, len(part))
        else:
            with _pool(min(workers, len(chunks)), writer) as pool:
                for done in as_completed([pool.submit(_write_rows, part) for part in chunks]):
                    seen, new = done.result()
                    written += new
                    progress.advance(bar, seen)

    write_atomically(out / "defects.csv", defects.to_csv(index=False).encode())
    table = rows[list(COLUMNS)]
    write_atomically(out / "photos.csv", table.to_csv(index=False).encode())
    summary = {
        "complete": True,
        "fingerprint": fingerprint,
        "num_photos": len(rows),
        "defects": config.defect_counts(),
        "photos_per_province": {n: int((rows["province"] == n).sum()) for n in region.names},
        **described,
    }
    write_atomically(out / "synthetic.json", json.dumps(summary, indent=2).encode())
    if settings.get("contact_sheet"):
        sheet = contact_sheet(out, rows, region, int(settings["contact_sheet"]))
        sheet.save(out / "contact_sheet.jpg", quality=90)
    print(f"{out}: {len(rows)} photos, {written} of them new; {len(defects)} bad on purpose")
    return out


def _pool(workers: int, writer: PhotoWriter) -> ProcessPoolExecutor:
    # A fork of a process with threads may hang; a fork server imports once and forks cheaply.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(workers, context, _start_process, (writer,))


def _tasks(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; a re-encoded copy also knows the size of its original."""
    originals = rows[~rows["defect"].isin(COPIES)].set_index("picture")
    size = originals.loc[rows["picture"], ["width", "height"]].to_numpy()
    tasks = rows.assign(original_width=size[:, 0], original_height=size[:, 1])
    return tasks.to_dict("records")  # type: ignore[return-value]


def _fingerprint(tasks: Sequence[Mapping[str, Any]], writer: PhotoWriter) -> str:
    """Short hash of every row and of some files: another seed, setting or version changes it."""
    digest = hashlib.sha256(json.dumps(tasks, sort_keys=True).encode())
    for task in tasks[:: math.ceil(len(tasks) / _PROBES)]:
        digest.update(writer.encode(task))
    return digest.hexdigest()[:16]


def _claim(out: Path, fingerprint: str, overwrite: bool) -> None:
    """Makes ``out`` the folder of this set, or refuses if it holds another one."""
    marker = out / "synthetic.json"
    if marker.is_file():
        try:
            there = json.loads(marker.read_text(encoding="utf-8")).get("fingerprint")
        except (ValueError, AttributeError):
            there = None
        if there == fingerprint:
            return
        if not overwrite:
            raise ConfigError(
                f"{out} holds a photo set made by other settings or another version. Choose "
                "another folder with out=…, or replace it with overwrite=true."
            )
        shutil.rmtree(out / "photos", ignore_errors=True)
    elif out.exists() and any(out.iterdir()):
        raise ConfigError(
            f"{out} is not empty and holds no rendered photo set. Choose another folder with out=…"
        )
    for name in ("photos.csv", "defects.csv", "contact_sheet.jpg"):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"complete": False, "fingerprint": fingerprint})
    write_atomically(marker, text.encode())
