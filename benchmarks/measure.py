"""What every benchmark shares: interleaved timing, and the closing line that says what holds."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def conclusion(
    name: str,
    value: float,
    limit: float,
    target: float,
    *,
    less_is_better: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """One line of a benchmark.

    Args:
        name: of the benchmark, or of one of its cases.
        value: what was measured.
        limit: a bound, or what a peer reached in the same run, in the same unit.
        target: the least ratio at which the claim holds.
        less_is_better: the ratio is limit / value (seconds, bytes) instead of value / limit.
        more: whatever else the line should say.
    """
    value, limit = float(value), float(limit)
    pair = (limit, value) if less_is_better else (value, limit)
    ratio = pair[0] / max(pair[1], math.ulp(1.0))
    return {
        "name": name,
        **more,
        "value": _rounded(value),
        "limit": _rounded(limit),
        "ratio": _rounded(ratio),
        "target": target,
        "holds": ratio >= target,
    }


def print_conclusions(lines: Sequence[dict[str, Any]]) -> None:
    """Prints every line; the last one printed is the one that comes closest to failing.

    ``make bench`` takes the lines of the whole run; a reader of the last line alone sees the worst.
    """
    for line in sorted(lines, key=lambda line: -line["ratio"] / line["target"]):
        print(json.dumps(line), flush=True)


def interleaved_seconds(
    functions: Mapping[str, Callable[[], Any]], rounds: int = 5, warmup: int = 1
) -> dict[str, float]:
    """Median seconds of each function, measured by turns, so that a slow spell hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warmup + rounds):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if number >= warmup:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def synchronise(device: str) -> None:
    """Waits until a GPU has done what it was given."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
