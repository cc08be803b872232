"""How fast the predictor is beside the bare model and the bare decoding of the same files.

    python -m benchmarks.predict
    python -m benchmarks.predict --model clip_places365 --photos 512 --batch-size 64

Weights are random, photos are JPEGs of a rendered texture with 640 x 480 pixels. It prints one line
of JSON per case, measured by turns in one process:

``predict/batch``: photos per second of ``GeopakPredictor.predict`` from a list of files. ``limit``
is a plain loop over the same batches: decode every photo, then run the bare model, in turns.
``forward_per_s`` and ``decode_per_s`` are its two halves alone.
``predict/one``: milliseconds from one file to its answer. ``limit`` is the same loop with one
photo, without decoding rules or a result; ``forward_ms`` is the bare model on a ready tensor.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import conclusion, interleaved_seconds, print_conclusions
from benchmarks.startup import make_checkpoint
from geopak import GeopakPredictor
from geopak.data.images import load_image

# Hypotheses, rules and the result of one photo come on top of the bare model.
LEAST_ONE_RATIO = 0.9


def write_photos(folder: Path, num_photos: int) -> list[Path]:
    """JPEGs with edges, gradients and grain, as heavy to decode as photos."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(num_photos):
        coarse = rng.integers(0, 256, (15, 20, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 12, (480, 640, 1))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=88)
    return paths


def measure(
    predictor: GeopakPredictor, paths: list[Path], rounds: int, **more: Any
) -> list[dict[str, Any]]:
    """Both lines."""
    model, size, batch_size = (
        predictor.trained.model,
        predictor.trained.model.image_size,
        predictor.batch_size,
    )
    batches = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]

    def decode(batch: list[Path]) -> torch.Tensor:
        return torch.stack([load_image(path, size) for path in batch])

    ready = [decode(batch) for batch in batches]

    @torch.inference_mode()
    def forward(image: torch.Tensor) -> None:
        output = model(image.to(predictor.device).float() / 255)
        # The answer is there when it can be read.
        output.province_logits.cpu()

    seconds = interleaved_seconds(
        {
            "predictor": lambda: predictor.predict(paths),
            "loop": lambda: [forward(decode(batch)) for batch in batches],
            "forward": lambda: [forward(image) for image in ready],
            "decode": lambda: [decode(batch) for batch in batches],
        },
        rounds=rounds,
    )
    per_s = {name: len(paths) / taken for name, taken in seconds.items()}
    one, one_ready = paths[:1], ready[0][:1]
    single = interleaved_seconds(
        {
            "predictor": lambda: predictor.predict(paths[0]),
            "loop": lambda: forward(decode(one)),
            "forward": lambda: forward(one_ready),
        },
        rounds=5 * rounds,
        warmup=3,
    )
    ms = {name: 1000 * taken for name, taken in single.items()}
    return [
        conclusion(
            "predict/batch",
            per_s["predictor"],
            per_s["loop"],
            1.0,
            forward_per_s=round(per_s["forward"], 1),
            decode_per_s=round(per_s["decode"], 1),
            batch_size=batch_size,
            **more,
        ),
        conclusion(
            "predict/one",
            ms["predictor"],
            ms["loop"],
            LEAST_ONE_RATIO,
            less_is_better=True,
            forward_ms=round(ms["forward"], 2),
            **more,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tiny", help="of conf/model")
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", help="cpu, cuda; default: a GPU if there is one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, _ = make_checkpoint(Path(folder), args.model)
        paths = write_photos(Path(folder), args.photos)
        predictor = GeopakPredictor(checkpoint, args.device, batch_size=args.batch_size)
        device = str(predictor.device)
        print_conclusions(measure(predictor, paths, args.rounds, model=args.model, device=device))


if __name__ == "__main__":
    main()
