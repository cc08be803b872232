"""How many photos a second come out of shards, beside the same photos read from their files.

    python -m benchmarks.shards
    python -m benchmarks.shards --photos 4000 --batches 100 --workers 4

Both sides decode with geopak's own decoder, in as many loader processes, to one size. Files are
drawn by ``BalancedBatchSampler`` as in training, shards by their stream. Photos are generated
pictures of a size that is usual on the web; they and the shards lie in a temporary folder, in the
page cache. So this measures what shards cost the processor: a disk or a network whose files take
long to open makes files slower, not shards.

``value`` is photos a second from shards, ``limit`` from files in the same run, by turns, each in a
fresh loader that has given its first batch. ``resume`` is the seconds until the first batch of an
epoch (``limit``) and of one that goes on from its middle (``value``).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.measure import conclusion, print_conclusions

QUOTAS = np.array([16, 8, 8, 8, 8, 8, 8])
# Shares of the photos of the published set.
_SHARES = np.array([0.72, 0.093, 0.059, 0.049, 0.026, 0.04, 0.013])
_SIDES_PX = (400, 300)
SIZE = 258
TARGET = 0.9


def make_photos(num_photos: int, root: Path) -> tuple[pd.DataFrame, list[str]]:
    """Pictures with the detail of a photo, about 30 KB each, and their table."""
    rng = np.random.default_rng(0)
    province_id = rng.permutation(
        np.repeat(np.arange(7), np.maximum(1, np.round(_SHARES * num_photos).astype(int)))
    )
    height, width = _SIDES_PX[1], _SIDES_PX[0]
    paths = []
    for row in range(len(province_id)):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        path = f"{row % 100}/{row}.jpg"
        (root / path).parent.mkdir(exist_ok=True)
        picture.save(root / path, quality=88)
        paths.append(path)
    split = np.where(np.arange(len(province_id)) % 20 == 0, "val", "train")
    photos = pd.DataFrame(
        {
            "id": np.arange(len(province_id)).astype(str),
            "path": paths,
            "latitude": 30.0,
            "longitude": 70.0,
            "province_id": province_id,
            "cell_id": province_id,
            "split": split,
        }
    )
    return photos, [f"p{i}" for i in range(7)]


def seconds(
    make_loader: Callable[[], DataLoader[Any]], num_batches: int
) -> tuple[float, float, int]:
    """Seconds until the first batch, seconds of all others, and their photos."""
    began = time.perf_counter()
    batches = iter(make_loader())
    next(batches)
    first = time.perf_counter()
    photos = sum(len(next(batches)["row"]) for _ in range(num_batches))
    return first - began, time.perf_counter() - first, photos


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=int, default=1500)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    from geopak.data.dataset import PhotoDataset, PreparedSet
    from geopak.data.partitions import ExecutorSettings
    from geopak.data.sampler import BalancedBatchSampler
    from geopak.data.shard_writing import ShardSettings, write_shards
    from geopak.data.shards import ShardBatches, ShardBatchSampler, ShardIndex
    from geopak.geo.region import Region

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root, shards = Path(folder) / "photos", Path(folder) / "shards"
        root.mkdir()
        shards.mkdir()
        photos, keys = make_photos(args.photos, root)
        region = Region.from_config(
            {"name": "seven", "title": "Seven", "provinces": {key: {} for key in keys}}
        )
        prepared = PreparedSet(photos, None, root)  # type: ignore[arg-type]
        began = time.perf_counter()
        write_shards(
            prepared, region, shards, ShardSettings(photos_per_shard=250), 0,
            ExecutorSettings(workers=1),
        )  # fmt: skip
        written_s = time.perf_counter() - began
        index = ShardIndex.read(str(shards))
        train = prepared.rows("train")
        province_id = photos["province_id"].to_numpy()[train]

        def loader(dataset: Any, sampler: Any) -> DataLoader[Any]:
            return DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=args.workers)

        def from_files() -> DataLoader[Any]:
            sampler = BalancedBatchSampler(train, province_id, QUOTAS, 10_000, seed=0)
            return loader(PhotoDataset(prepared, SIZE), sampler)

        def from_shards(done: int = 0) -> DataLoader[Any]:
            sampler = ShardBatchSampler(10_000)
            sampler.resume(done)
            return loader(ShardBatches(prepared, index, QUOTAS, SIZE, seed=0), sampler)

        rates: dict[str, list[float]] = {"files": [], "shards": []}
        waits: dict[str, list[float]] = {"files": [], "shards": []}
        for number in range(1 + args.rounds):
            for name, make in (("files", from_files), ("shards", from_shards)):
                first, rest, count = seconds(make, args.batches)
                if number:
                    rates[name].append(count / rest)
                    waits[name].append(first)
        resumed = [seconds(lambda: from_shards(5000), 0)[0] for _ in range(args.rounds)]
        rate = {name: statistics.median(values) for name, values in rates.items()}
        wait = {name: statistics.median(values) for name, values in waits.items()}
        print_conclusions(
            [
                conclusion(
                    "shards",
                    rate["shards"],
                    rate["files"],
                    TARGET,
                    unit="photos/s",
                    workers=args.workers,
                    kb_per_photo=round(
                        sum(p.stat().st_size for p in shards.rglob("*.tar")) / len(photos) / 1e3, 1
                    ),
                    first_batch_s={name: round(value, 3) for name, value in wait.items()},
                    written_per_s=round(len(photos) / written_s),
                ),
                conclusion(
                    "shards: resume",
                    statistics.median(resumed),
                    wait["shards"],
                    0.5,
                    less_is_better=True,
                    unit="s",
                ),
            ]
        )


if __name__ == "__main__":
    main()
