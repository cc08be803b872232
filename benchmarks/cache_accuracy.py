"""Whether training from cached features ends as well: ``python -m benchmarks.cache_accuracy``.

Phases 0 and 1 of the small model on rendered photos, from cached features and from photos that are
augmented anew for every batch, with three seeds each. Measured on val: no test photo is touched.
The difference of the means is set against what three seeds leave uncertain, two standard errors of
the difference.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measure import conclusion, print_conclusions
from geopak.cli import compose
from geopak.options import plain
from geopak.preparation import prepare
from geopak.render.photoset import write_photo_set
from geopak.train import train

METRICS = {"val/median_km": 1.0, "val/mean_km": 1.0, "val/province_macro_acc": 100.0}


def photo_root(root: Path | None, home: Path, num_photos: int) -> Path:
    """A prepared folder of photos, rendered if none is given."""
    if root is not None:
        return root
    write_photo_set(plain(compose("synthetic", [f"num_photos={num_photos}", f"out={home}"])))
    prepare(compose("prepare", [f"root={home}"]))
    return home


def train_both_phases(
    root: Path, home: Path, seed: int, cache: bool, epochs: tuple[int, int]
) -> dict[str, float]:
    """Seconds of both phases, and phase 1's metrics at its best epoch."""
    init: list[str] = []
    began = time.perf_counter()
    for phase in (0, 1):
        overrides = [
            f"phase={phase}", f"phase.epochs={epochs[phase]}", f"seed={seed}", f"data.root={root}",
            f"data.feature_cache={str(cache).lower()}", f"data.feature_folder={home / 'features'}",
            "callbacks.progress_bar=false", *init,
        ]  # fmt: skip
        folder = home / f"{cache}-{seed}-{phase}"
        result = train(compose("train", overrides), folder, overrides)
        init = [f"init_from={result.checkpoint}"]
    log = pd.read_csv(folder / "csv" / "metrics.csv")
    log = log.dropna(subset=["val/median_km"])
    best = log.loc[log["val/median_km"].idxmin()]
    found = {metric: factor * float(best[metric]) for metric, factor in METRICS.items()}
    return found | {"seconds": time.perf_counter() - began}


def conclude(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Sets the difference of the means against what the seeds leave uncertain.

    Args:
        table: a row per training, with ``cache`` and the metrics.
    """
    lines = []
    for metric in METRICS:
        cached, fresh = (table.loc[table["cache"] == c, metric].to_numpy() for c in (True, False))
        error = np.sqrt(cached.var(ddof=1) / len(cached) + fresh.var(ddof=1) / len(fresh))
        lines.append(
            conclusion(
                "cache_accuracy", abs(cached.mean() - fresh.mean()), 2 * error, 1.0,
                less_is_better=True, case=f"{metric}: difference of means", seeds=len(cached),
                cached=[round(float(v), 2) for v in cached],
                photos=[round(float(v), 2) for v in fresh],
            )
        )  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, help="folder with a prepared set; default: rendered")
    parser.add_argument("--photos", type=int, default=10_000, help="to render")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs=2, default=(2, 5), help="of phases 0 and 1")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        root = photo_root(args.root, Path(home, "photos"), args.photos)
        for seed in range(args.seeds):
            for cache in (True, False):
                found = train_both_phases(root, Path(home), seed, cache, tuple(args.epochs))
                rows.append({"cache": cache, "seed": seed, **found})
                print({key: value if key == "cache" else round(value, 2)
                       for key, value in rows[-1].items()}, flush=True)  # fmt: skip
    print_conclusions(conclude(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
