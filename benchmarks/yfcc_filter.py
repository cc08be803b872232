"""How fast the YFCC100M dump is filtered, and in how much memory.

    python -m benchmarks.yfcc_filter
    python -m benchmarks.yfcc_filter --lines 2000000

Lines are drawn as the dump has them: 450 bytes in the mean, half of them with a coordinate, a few
in the region; packed by bzip2 with its largest blocks. A process of its own reads them as a
collection does, file query and parts, with one thread, and prints two lines of JSON:

``yfcc_filter`` is millions of lines a minute of processor time, parts' overlaps included, over the
limit of one million; ``decode_only`` is what the standard library's decoder alone does in the same
process, by turns, and ``share`` how much of that is left; medians of three rounds. ``yfcc_filter
memory`` is the peak of the process, libraries included, under its limit; ``peak_mb_half`` is that
of a run over half the lines, which is about the same where memory does not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import bz2
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import conclusion, print_conclusions

LIMIT_LINES_PER_MINUTE = 1_000_000
LIMIT_MB = 500
_SHARE_WITH_PLACE = 0.48
_SHARE_OF_VIDEOS = 0.008
# Of those with a place; the box is that of Pakistan: south, west, north, east.
_SHARE_IN_BOX = 0.002
_BOX = (23.6, 60.8, 37.1, 77.9)
_WORLD = (-60.0, -180.0, 70.0, 180.0)


def draw_lines(count: int, seed: int) -> bytes:
    """Lines like the dump's."""
    rng = random.Random(seed)
    # Words as often as in language: a few often, most rarely.
    words = [f"{rng.randrange(16**6):x}" for _ in range(60_000)]
    weights = [1 / (k + 10) for k in range(len(words))]
    stock = rng.choices(words, weights, k=400_000)
    cameras = [f"Camera+{k}+Model+{k * 7}" for k in range(60)]
    kinds = ["by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd"]

    def some(least: int, most: int, joint: str) -> str:
        at, number = rng.randrange(len(stock) - most), rng.randint(least, most)
        return joint.join(stock[at : at + number])

    def line() -> str:
        photo, user = (
            rng.randrange(10**8, 10**10),
            f"{rng.randrange(10**7, 10**8)}@N0{rng.randrange(8)}",
        )
        server, farm, kind = rng.randrange(1, 9000), rng.randrange(1, 10), rng.choice(kinds)
        secret, original = (f"{rng.randrange(16**10):010x}" for _ in range(2))
        longitude = latitude = accuracy = ""
        if rng.random() < _SHARE_WITH_PLACE:
            south, west, north, east = _BOX if rng.random() < _SHARE_IN_BOX else _WORLD
            latitude = f"{rng.uniform(south, north):.6f}"
            longitude = f"{rng.uniform(west, east):.6f}"
            accuracy = str(rng.randrange(6, 17))
        fields = (
            str(photo),
            user,
            some(1, 2, "+"),
            f"20{rng.randrange(10, 15)}-0{rng.randrange(1, 10)}-1{rng.randrange(10)} 12:34:56.0",
            str(rng.randrange(1_100_000_000, 1_400_000_000)),
            rng.choice(cameras),
            some(1, 5, "+"),
            some(5, 50, "+") if rng.random() < 0.35 else "",
            some(0, 14, ","),
            "",
            longitude,
            latitude,
            accuracy,
            f"http://www.flickr.com/photos/{user}/{photo}/",
            f"http://farm{farm}.staticflickr.com/{server}/{photo}_{secret}.jpg",
            f"Attribution-{kind} License",
            f"http://creativecommons.org/licenses/{kind}/2.0/",
            str(server),
            str(farm),
            secret,
            original,
            "jpg",
            "1" if rng.random() < _SHARE_OF_VIDEOS else "0",
        )
        return "\t".join(fields)

    return "".join(f"{line()}\n" for _ in range(count)).encode()


def write_dump(path: Path, count: int) -> int:
    """Writes a dump; its bytes unpacked."""
    packer, total = bz2.BZ2Compressor(), 0
    with path.open("wb") as file:
        for seed, start in enumerate(range(0, count, 20_000)):
            text = draw_lines(min(20_000, count - start), seed)
            total += len(text)
            file.write(packer.compress(text))
        file.write(packer.flush())
    return total


def measure(file: Path, rounds: int) -> dict[str, Any]:
    """Reads a dump as a collection does, with one thread, and by turns only decodes it."""
    from omegaconf import OmegaConf

    from geopak.cli import CONFIG_DIR
    from geopak.geo.boundaries import Outlines
    from geopak.geo.region import Region
    from geopak.schema.sources.yfcc100m import Yfcc100mOptions
    from geopak.sources.http import HttpClient
    from geopak.sources.yfcc100m import Yfcc100m

    config = OmegaConf.load(CONFIG_DIR / "region" / "pakistan.yaml")
    region = Region.from_config(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    outlines = Outlines.of_region(region)
    before_mb = _peak_mb()
    source = Yfcc100m(Yfcc100mOptions("yfcc100m", str(file), threads=1), region, outlines)

    async def collect() -> tuple[int, int, int]:
        seen = photos = parts = 0
        async with HttpClient([]) as client:
            queries = list(source.start())
            while queries:
                answer = await source.ask(queries.pop(), client)
                queries += answer.more
                seen, photos = seen + answer.seen, photos + len(answer.photos)
                parts += 1
        return seen, photos, parts - 1

    taken: dict[str, list[float]] = {"seconds": [], "cpu_seconds": [], "decode_seconds": []}
    # By turns, so that a slow spell of the machine hits both alike.
    for _ in range(rounds):
        clock, cpu = time.perf_counter(), time.process_time()
        seen, photos, parts = asyncio.run(collect())
        taken["cpu_seconds"].append(time.process_time() - cpu)
        taken["seconds"].append(time.perf_counter() - clock)
        peak_mb = _peak_mb()
        cpu = time.process_time()
        with bz2.open(file) as stream:
            while stream.read(1 << 20):
                pass
        taken["decode_seconds"].append(time.process_time() - cpu)
    return {
        "lines": seen,
        "photos": photos,
        "parts": parts,
        **{name: round(statistics.median(values), 3) for name, values in taken.items()},
        "before_mb": round(before_mb),
        "peak_mb": round(peak_mb),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lines", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.rounds)), flush=True)
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for count in (args.lines // 2, args.lines):
            file = Path(folder) / f"yfcc100m_dataset-{count}.bz2"
            text_bytes = write_dump(file, count)
            command = [sys.executable, "-m", "benchmarks.yfcc_filter", "--measure", str(file)]
            command += ["--rounds", str(args.rounds)]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result = json.loads(told.splitlines()[-1])
            if result["lines"] != count:
                raise SystemExit(f"{result['lines']} lines were read of {count}")
            result["bytes_per_line"] = round(text_bytes / count)
            result["packed_mb"] = round(file.stat().st_size / 1e6, 1)
            found.append(result)
    half, whole = found
    speed = whole["lines"] / whole["cpu_seconds"] * 60
    alone = whole["lines"] / whole["decode_seconds"] * 60
    print_conclusions(
        [
            conclusion(
                "yfcc_filter",
                speed / 1e6,
                LIMIT_LINES_PER_MINUTE / 1e6,
                1.0,
                unit="million lines/min/core",
                decode_only=round(alone / 1e6, 2),
                share=round(speed / alone, 3),
                **whole,
            ),
            conclusion(
                "yfcc_filter memory",
                whole["peak_mb"],
                LIMIT_MB,
                1.0,
                less_is_better=True,
                unit="MiB",
                peak_mb_half=half["peak_mb"],
                lines=whole["lines"],
            ),
        ]
    )


if __name__ == "__main__":
    main()
