"""How long the split and its leak report take, how much memory, and whether they keep their word.

    python -m benchmarks.split
    python -m benchmarks.split --points 1000000

Places are those of ``benchmarks.geocells``; photos side by side make albums of an author's day, and
some are a traveller's who is elsewhere the same day. Every size is measured in a process of its
own, so that peaks of memory are its own. It prints one line of JSON per size:

``seconds``, ``cpu_seconds`` and ``peak_mb`` (libraries and photos included) of the split,
``leak_seconds`` of the leak reports on it, ``buffer_share``, ``worst_size_off`` (the largest
difference of a province's share of val or test from the asked) and ``moved_share`` (photos that
change between train, val and test when a tenth of the rows is added).

``violations`` counts what must not be, and none is wanted: held-out photos with a train photo
within the distance, of the same author and day or album, and likewise val photos and test; rows
whose split depends on their order; provinces whose shares are off by more than a hundredth.
``value`` is the peak of memory and ``limit`` what it may be.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.geocells import SIZES, draw_points

LIMIT_MB = 8192
_MEAN_ALBUM = 2.5
_TRAVELLERS = 0.1
# Shuffling and adding rows takes the time and memory of another split each.
_MOST_REPEATED = 2_000_000


def draw_photos(num_points: int) -> pd.DataFrame:
    """A table as the split gets it, in mixed order."""
    from geopak.data.ties import block_codes

    latlon_deg, province_id = draw_points(num_points)
    rng = np.random.default_rng([1, num_points])
    ground = block_codes(latlon_deg, 1.0)
    order = np.argsort(ground, kind="stable")
    first = rng.random(num_points) < 1 / _MEAN_ALBUM
    first[1:] |= np.diff(ground[order]) > 0
    album = np.empty(num_points, np.int64)
    album[order] = np.cumsum(first)
    travels = rng.random(num_points) < _TRAVELLERS
    album[travels] = rng.permutation(album[travels])
    day = np.datetime64("2014-01-01") + (album * 7919 % 4000).astype("timedelta64[D]")
    return pd.DataFrame(
        {
            "id": np.arange(num_points).astype(str),
            "latitude": latlon_deg[:, 0],
            "longitude": latlon_deg[:, 1],
            "province_id": province_id,
            "author": pd.Series(album // 4).astype("string"),
            "captured_at": pd.Series(np.datetime_as_string(day), dtype="string"),
            "album": pd.Series(album).astype("string"),
        }
    )


def measure(file: Path) -> dict[str, Any]:
    """Splits the photos of a table once, and looks at the result."""
    from geopak.data.leaks import leak_report
    from geopak.data.split import SplitSettings, split_photos, split_with_report

    photos = pd.read_parquet(file)
    num_points = len(photos)
    settings = SplitSettings()
    before_mb = _peak_mb()
    clock, cpu = time.perf_counter(), time.process_time()
    result = split_with_report(photos, settings, seed=17)
    seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
    peak_mb = _peak_mb()
    clock = time.perf_counter()
    labelled = photos.assign(split=result.split)
    reports = [
        leak_report(labelled, distances_km=(settings.min_distance_km,)),
        leak_report(labelled, "val", "test", distances_km=(settings.min_distance_km,)),
    ]
    leak_seconds = time.perf_counter() - clock
    violations = sum(
        leaks.within(settings.min_distance_km)
        + (leaks.same_author_day or 0)
        + (leaks.same_album or 0)
        for report in reports
        for leaks in report.held_out.values()
    )
    off = [
        abs(province.shares[name] - asked)
        for province in result.provinces
        for name, asked in (("val", settings.val_fraction), ("test", settings.test_fraction))
    ]
    violations += sum(gap > 0.01 for gap in off)
    moved = None
    if num_points <= _MOST_REPEATED:
        rng = np.random.default_rng(2)
        shuffled = split_photos(photos.iloc[rng.permutation(num_points)], settings, seed=17)
        violations += int((shuffled.sort_index() != result.split).sum())
        earlier = rng.random(num_points) < 10 / 11
        fewer = split_photos(photos[earlier], settings, seed=17)
        now = result.split[earlier]
        moved = float(((fewer != now) & (fewer != "buffer") & (now != "buffer")).mean())
    counts = result.split.value_counts(normalize=True)
    return {
        "name": "split",
        "points": num_points,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "leak_seconds": round(leak_seconds, 2),
        "before_mb": round(before_mb),
        "peak_mb": round(peak_mb),
        "shares": {name: round(float(share), 4) for name, share in counts.items()},
        "buffer_share": round(float(counts.get("buffer", 0)), 4),
        "worst_size_off": round(max(off), 4),
        "moved_share": None if moved is None else round(moved, 4),
        "violations": violations,
        "value": round(peak_mb),
        "limit": LIMIT_MB,
        "ratio": round(peak_mb / LIMIT_MB, 3),
        "target": 1.0,
        "holds": not violations and peak_mb <= LIMIT_MB,
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", type=int, help="one size; default: all of them")
    parser.add_argument("--draw", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.draw:
        draw_photos(args.points).to_parquet(args.draw)
        return
    if args.measure:
        print(json.dumps(measure(args.measure)), flush=True)
        return
    for num_points in [args.points] if args.points else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / "photos.parquet")
            command = [sys.executable, "-m", "benchmarks.split"]
            subprocess.run([*command, "--points", str(num_points), "--draw", file], check=True)
            subprocess.run([*command, "--measure", file], check=True)


if __name__ == "__main__":
    main()
