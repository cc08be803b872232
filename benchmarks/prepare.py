"""Photos per second of the quality stage against bare decoding of the same files.

    python -m benchmarks.prepare
    python -m benchmarks.prepare --root data/synthetic

The stage is what ``python -m geopak.prepare`` runs: every photo decoded, measured and hashed by
worker processes, its row kept in a store. Bare decoding opens and loads the same files, in colour,
in as many processes, and does nothing else. Both start their own processes, which is part of their
time; they take turns, and the best round of each counts. The same files are read several times
under different names, so that starting up is a small part and the files come from memory. On a
machine that is busy otherwise, ``cpu_ratio`` says more: the same ratio by the processor time of all
processes together.

Kinds: photos rendered by geopak (or those below ``--root``), and generated JPEG files of 640 x 480
and 1600 x 1200 pixels. Prints a JSON line per kind; the last line is about the kind that is worst:
the ``ratio`` of the stage's ``value`` to the ``limit`` of bare decoding, photos per second, and
whether it reaches the ``target``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from joblib.externals.loky import ProcessPoolExecutor
from PIL import Image

from geopak.cli import compose
from geopak.data.partitions import ExecutorSettings, map_partitions
from geopak.data.quality import examine_files
from geopak.data.worker_pools import ONE_THREAD
from geopak.options import plain
from geopak.render.photoset import write_photo_set

TARGET = 0.7
SIZES = {"640 x 480": (640, 480), "1600 x 1200": (1600, 1200)}
QUALITY = 88


def decode_files(paths: Sequence[str]) -> int:
    """Loads photos in full colour; what no stage can do without."""
    pixels = 0
    for path in paths:
        # Some of the rendered photos are truncated on purpose.
        with contextlib.suppress(OSError), Image.open(path) as image:
            image.load()
            pixels += image.width * image.height
    return pixels


def rendered(folder: Path, num_photos: int) -> list[Path]:
    """Photos of the size that geopak renders by default."""
    overrides = [f"num_photos={num_photos}", f"out={folder}", "contact_sheet=0"]
    out = write_photo_set(plain(compose("synthetic", overrides)))
    return sorted(out.glob("photos/**/*.jpg"))


def generated(folder: Path, size: tuple[int, int], num_photos: int) -> list[Path]:
    """JPEG files with structure at every scale, like photos, and a little noise."""
    rng = np.random.default_rng(size[0])
    folder.mkdir()
    paths = []
    for i in range(num_photos):
        field = np.zeros((size[1], size[0], 3), np.float32)
        for cells in (3, 12, 48, 192):
            coarse = rng.integers(0, 256, (cells, cells, 3), np.uint8)
            smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            field += np.asarray(smooth, np.float32) / cells**0.5
        field += rng.normal(0, 3, field.shape)
        field = (field - field.min()) * (255 / float(np.ptp(field)))
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(field.astype(np.uint8)).save(paths[-1], quality=QUALITY)
    return paths


def aliases(paths: Sequence[Path], count: int) -> list[str]:
    """So many different names of the files."""
    return [
        os.path.join(path.parent, *["."] * (i // len(paths)), path.name)
        for i, path in zip(range(count), list(paths) * (-(-count // len(paths))), strict=False)
    ]


class _Stopwatch:
    """Seconds by the clock, and of processor time of this process and those that it has ended."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), self._cpu()

    @staticmethod
    def _cpu() -> float:
        return sum(os.times()[:4])

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._started[0], self._cpu() - self._started[1]


def bare(items: Sequence[str], settings: ExecutorSettings) -> tuple[float, float]:
    """Seconds of decoding everything, by the clock and of processor time."""
    size = settings.partition_size
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    watch = _Stopwatch()
    with ProcessPoolExecutor(settings.workers, env=ONE_THREAD) as pool:
        list(pool.map(decode_files, parts))
    return watch.read()


def stage(items: Sequence[str], settings: ExecutorSettings) -> tuple[float, float]:
    """Seconds of the quality stage, with a new store."""
    with tempfile.TemporaryDirectory() as store:
        watch = _Stopwatch()
        rows = map_partitions(examine_files, items, store, settings, "examining photos")
        seconds = watch.read()
    bad = rows.loc[rows["error"].notna(), "error"]
    if len(bad) > len(rows) // 10:
        sys.exit(f"{len(bad)} of {len(rows)} photos have errors, such as: {bad.iloc[0]}")
    return seconds


def in_one_process(paths: Sequence[str]) -> float:
    """The ratio without processes, partitions and store: what examining costs beside decoding."""
    seconds = []
    for function in (decode_files, examine_files):
        best = np.inf
        for _ in range(3):
            started = time.perf_counter()
            function(paths)
            best = min(best, time.perf_counter() - started)
        seconds.append(best)
    return float(seconds[0] / seconds[1])


def measure(
    name: str, paths: Sequence[Path], settings: ExecutorSettings, seconds: float, rounds: int
) -> dict[str, object]:
    """Takes turns between both on the files of a kind."""
    sample = [str(path) for path in paths[:256]]
    decode_files(sample)
    started = time.perf_counter()
    decode_files(sample)
    per_photo_s = (time.perf_counter() - started) / len(sample)
    workers = settings.workers or 1
    items = aliases(paths, max(len(paths), round(seconds * workers / per_photo_s)))
    taken = [(bare(items, settings), stage(items, settings)) for _ in range(rounds)]
    # (clock, processor) x (bare, stage), the best of all rounds.
    (bare_s, bare_cpu_s), (stage_s, stage_cpu_s) = np.array(taken).min(0)
    value, limit = len(items) / stage_s, len(items) / bare_s
    line = {
        "name": f"quality stage, {name}",
        "photos": len(items),
        "workers": workers,
        "value": round(value, 1),
        "limit": round(limit, 1),
        "ratio": round(value / limit, 4),
        "cpu_ratio": round(bare_cpu_s / stage_cpu_s, 4),
        "ratio_in_one_process": round(in_one_process(sample), 4),
    }
    print(json.dumps(line), flush=True)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, help="JPEG photos to measure instead of rendered ones")
    parser.add_argument("--photos", type=int, default=3000, help="to render")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=8.0, help="of decoding, about, per round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    settings = ExecutorSettings(workers=args.workers, items_per_worker=1)
    lines = []
    with tempfile.TemporaryDirectory() as home:
        if args.root is not None:
            kinds = {str(args.root): sorted(args.root.rglob("*.jp*g"))}
            if not kinds[str(args.root)]:
                parser.error(f"no JPEG photos below {args.root}")
        else:
            kinds = {"rendered": rendered(Path(home, "rendered"), args.photos)}
        for name, size in SIZES.items():
            kinds[name] = generated(Path(home, name), size, 48)
        for name, paths in kinds.items():
            lines.append(measure(name, paths, settings, args.seconds, args.rounds))
    worst = min(lines, key=lambda line: float(str(line["ratio"])))
    summary = {key: worst[key] for key in ("name", "value", "limit", "ratio")}
    print(json.dumps({**summary, "target": TARGET, "holds": float(str(worst["ratio"])) >= TARGET}))


if __name__ == "__main__":
    main()
