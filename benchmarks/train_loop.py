"""Images a second of phase 2 in geopak's trainer: ``python -m benchmarks.train_loop``.

Against a bare PyTorch loop on tensors that are there: the same model, precision, batch and fused
AdamW, a few steps of each by turns. The trainer loads, augments, clips and logs as it always does.

On a GPU also: images a second by batch size, memory, and the share of the GPU's peak arithmetic
that the model's own takes (model-FLOP utilisation) in phases 1 and 2. Without one the full-size
model runs on the CPU in small batches.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.feature_cache import serve_photos
from benchmarks.measure import conclusion, print_conclusions
from benchmarks.subjects import random_cells, random_model, random_set, train_config
from benchmarks.training import measure_steps
from geopak import build
from geopak.phases import set_up_training

TARGET = 0.95
BATCHES = (64, 128, 256, 512)
# Dense bf16 arithmetic, from the makers' data sheets, floating-point operations a second.
_PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


def step_flops(overrides: tuple[str, ...], region: Any, cells: Any) -> float:
    """Floating-point operations of a forward and a backward pass over one photo."""
    cfg = train_config(*overrides)
    model = random_model(cfg, region, cells)
    set_up_training(model, build.build_phase(cfg), True)
    image = torch.rand(2, 3, model.image_size, model.image_size)
    with FlopCounterMode(display=False) as counter:
        output = model(image)
        (output.cell_log_prob.sum() + output.province_logits.sum()).backward()
    return counter.get_total_flops() / len(image)


def measure(
    model: str, phase: int, batch: int, steps: int, turns: int, *more: str
) -> dict[str, Any]:
    """One case: seconds a step of both, and what they say."""
    on_gpu = torch.cuda.is_available()
    overrides = (
        f"phase={phase}", f"model={model}", f"data.batch_size={batch}", "data.sampling=random",
        "callbacks.progress_bar=false", "trainer=a100" if on_gpu else "trainer=cpu", *more,
    )  # fmt: skip
    cfg = train_config(*overrides)
    region = build.build_region(cfg)
    cells = random_cells(region)
    prepared = random_set(region, cells, 4000)
    seconds = measure_steps(cfg, region, prepared, serve_photos, steps, turns)
    case: dict[str, Any] = {
        "case": f"phase {phase}", "model": model, "batch": batch, "unit": "images/s",
        "precision": str(cfg.trainer.precision), "options": list(more),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }  # fmt: skip
    if on_gpu:
        flops = step_flops(overrides, region, cells) * batch / seconds.trainer
        peak = next((p for name, p in _PEAK_FLOPS.items() if name in case["device"]), None)
        case["peak_memory_gb"] = round(seconds.peak_memory_gb, 2)
        case["model_flop_utilisation"] = round(flops / peak, 3) if peak else None
    return conclusion("train_loop", batch / seconds.trainer, batch / seconds.bare, TARGET, **case)


def saturation(lines: list[dict[str, Any]]) -> int:
    """The smallest batch that reaches 95% of the best rate: more only costs memory."""
    best = max(line["value"] for line in lines)
    return min(line["batch"] for line in lines if line["value"] >= 0.95 * best)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    if torch.cuda.is_available():
        by_batch = {
            phase: [measure("clip_places365", phase, b, 10, args.turns) for b in BATCHES]
            for phase in (1, 2)
        }
        for found in by_batch.values():
            for line in found:
                line["saturates_at_batch"] = saturation(found)
        base = "clip_places365", 2, 128, 10, args.turns
        # What each option gains shows beside the line of phase 2 and batch 128.
        lines = [line for found in by_batch.values() for line in found] + [
            measure(*base, *options)
            for options in (
                ("trainer.precision=32-true", "trainer.tf32=false"),
                ("trainer.precision=32-true",),
                ("optimizer.fused=false",),
                ("trainer.compile=true",),
                ("trainer.activation_checkpointing=true",),
            )
        ]
    else:
        lines = [
            measure("clip_places365", 2, 8, 1, args.turns),
            measure("tiny", 2, 64, 4, 2 * args.turns),
        ]
    print_conclusions(lines)


if __name__ == "__main__":
    main()
