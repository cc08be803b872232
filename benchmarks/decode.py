"""What decoding costs beside the encoders: ``python -m benchmarks.decode``.

The top 2 provinces × top 5 cells of a batch, by all rules, over 699 cells, against 5% of the
forward pass of ViT-B/16 and ResNet-50 over the same batch.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.measure import conclusion, interleaved_seconds, print_conclusions, synchronise
from benchmarks.subjects import random_cells, random_model, train_config
from geopak import build
from geopak.models.decode import RULES, DecodingOptions, decode

SHARE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    cfg = train_config("phase=1", "model=clip_places365")
    region = build.build_region(cfg)
    model = random_model(cfg, region, random_cells(region)).eval().to(args.device)
    image = torch.rand(args.batch, 3, model.image_size, model.image_size, device=args.device)
    settings = DecodingOptions()

    def encode() -> None:
        model.embed(image)
        synchronise(args.device)

    with torch.inference_mode():
        output = model(image)

        def decode_all() -> None:
            decode(model, output, settings, list(RULES))
            synchronise(args.device)

        seconds = interleaved_seconds({"encoders": encode, "decoding": decode_all}, args.rounds)
    print_conclusions(
        [
            conclusion(
                "decode", seconds["decoding"], SHARE * seconds["encoders"], 1.0,
                less_is_better=True, unit="s", batch=args.batch, device=args.device,
                share_of_encoders=round(seconds["decoding"] / seconds["encoders"], 5),
            )
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
