"""What a cache of phase 2's frozen layers could save at most: ``python -m benchmarks.prefix``.

In phase 2 the top of both encoders trains and everything below is frozen. The seconds of that
frozen part are set against those of a whole step, and the bytes that its output would take on disk
are counted. A cache would be worth its disk if a step became at least twice as fast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import conclusion, interleaved_seconds, print_conclusions, synchronise
from benchmarks.subjects import random_cells, random_model, train_config
from geopak import build
from geopak.models.encoders import Encoder
from geopak.phases import set_up_training

WORTH = 2.0


class _ReachedError(Exception):
    """The frozen part has been left."""


def frozen_part(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """From images to what enters the first block that trains."""
    first = next(
        block
        for stage in encoder.stages()
        for block in stage
        if any(p.requires_grad for p in block.parameters())
    )

    def run(image: Tensor) -> Tensor:
        reached: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
            reached.append(args[0])
            raise _ReachedError

        handle = first.register_forward_pre_hook(stop)
        try:
            with torch.no_grad():
                encoder(image)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        return reached[0]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    cfg = train_config("phase=2", "model=clip_places365")
    region = build.build_region(cfg)
    model = random_model(cfg, region, random_cells(region))
    set_up_training(model, build.build_phase(cfg), True)
    model.to(args.device).train()
    image = torch.rand(args.batch, 3, model.image_size, model.image_size, device=args.device)
    parts = [frozen_part(model.semantic), frozen_part(model.scene)]

    def prefix() -> list[Tensor]:
        found = [part(image) for part in parts]
        synchronise(args.device)
        return found

    def step() -> None:
        output = model(image)
        (output.cell_log_prob.mean() + output.province_logits.mean()).backward()
        synchronise(args.device)

    seconds = interleaved_seconds({"step": step, "prefix": prefix}, args.rounds)
    half_bytes = sum(2 * out[0].numel() for out in prefix())
    rest = seconds["step"] - seconds["prefix"]
    print_conclusions(
        [
            conclusion(
                "prefix", seconds["step"], rest, WORTH,
                case="phase-2 step / step without its frozen layers, reading not counted", unit="s",
                batch=args.batch, device=args.device,
                share_of_step=round(seconds["prefix"] / seconds["step"], 3),
                mb_per_picture_float16=round(half_bytes / 1e6, 3),
            )
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
