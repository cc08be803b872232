"""How fast the predictor is beside the bare encoders and the bare decoding of the same files.

    python -m benchmarks.predict
    python -m benchmarks.predict --model tiny --photos 64

Weights and calibration are random, so that answers come with regions and scores; photos are JPEGs
of a rendered texture with 640 x 480 pixels. The limits are for
the method's own encoders: beside the small stand-ins, decoding a photo takes as long as the model.
It prints one line of JSON per case, measured by turns in one process:

``predict/batch``: photos per second of ``GeopakPredictor.predict``, from files to answers.
``limit`` is what the encoders alone reach on ready tensors, and the decoding of the files by as
many threads, put together: one after the other on a processor, where both need the same cores, and
the slower of the two on a GPU, which leaves the cores to the decoding. Heads, decoding rules and
the making of the answers are on top of that.
``predict/one``: milliseconds from the path of one file to its answer. ``limit`` is the encoders
alone on a ready tensor, so that decoding, heads, rule and answer are on top.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import conclusion, interleaved_seconds, print_conclusions
from benchmarks.startup import make_checkpoint
from geopak import GeopakPredictor
from geopak.calibration import NUM_DIRECTIONS, Calibration, seen, store, weights_fingerprint
from geopak.conformal import ConformalScores
from geopak.data.images import load_image, stack_images
from geopak.schema.training import DECODING_RULES
from geopak.selective import Familiarity
from geopak.trained import load_trained

# Issue 7, section 1: at least 0.95 of the encoders plus decoding; at most 1.15 of the encoders.
LEAST_BATCH_RATIO, LEAST_ONE_RATIO = 0.95, 1 / 1.15


def calibrate_at_random(checkpoint: Path) -> None:
    """Gives a checkpoint all that a calibration does, with numbers that mean nothing."""
    trained = load_trained(checkpoint)
    rng, model = np.random.default_rng(0), trained.model
    provinces = trained.cells.province_id
    with torch.inference_mode():
        size = model.image_size
        output = model(torch.from_numpy(rng.random((2, 3, size, size), np.float32)))
    vectors = torch.from_numpy(rng.normal(size=(1500, seen(output).shape[-1])))
    calibration = Calibration(
        province_temperature=1.5,
        cell_temperature=0.8,
        confidence_maps=dict.fromkeys(DECODING_RULES, (1.0, 0.0)),
        confidence_km=trained.decoding.confidence_km,
        cells_per_province=tuple(np.bincount(provinces).tolist()),
        cell_area_km2=rng.uniform(1, 1000, len(provinces)),
        scores=ConformalScores(rng.random(1000), rng.choice(provinces, 1000), np.arange(1000)),
        familiarity=Familiarity.fit(vectors[:1000], vectors[1000:], NUM_DIRECTIONS),
        fitted_on={"split": "val", "weights": weights_fingerprint(model.state_dict())},
    )
    store(calibration, checkpoint, checkpoint)


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

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))

    def decode(batch: list[Path]) -> torch.Tensor:
        images = pool.map(lambda p: load_image(p, size, model.framing), batch)
        return stack_images(images, len(batch), size)

    ready = [decode(batch) for batch in batches]

    @torch.inference_mode()
    def encode(image: torch.Tensor) -> None:
        with torch.autocast(predictor.device.type, torch.bfloat16, enabled=predictor.bfloat16):
            features = model.embed(image.to(predictor.device).float() / 255, model.fused_encoders)
        # The answer is there when it can be read.
        features[0, 0].item()

    seconds = interleaved_seconds(
        {
            "predictor": lambda: predictor.predict(paths),
            "encoders": lambda: [encode(image) for image in ready],
            "decode": lambda: [decode(batch) for batch in batches],
        },
        rounds=rounds,
    )
    both = (seconds["encoders"], seconds["decode"])
    least = sum(both) if predictor.device.type == "cpu" else max(both)
    one_ready = ready[0][:1]
    single = interleaved_seconds(
        {"predictor": lambda: predictor.predict(paths[0]), "encoders": lambda: encode(one_ready)},
        rounds=8 * rounds,
        warmup=3,
    )
    ms = {name: 1000 * taken for name, taken in single.items()}
    return [
        conclusion(
            "predict/batch",
            len(paths) / seconds["predictor"],
            len(paths) / least,
            LEAST_BATCH_RATIO,
            encoders_per_s=round(len(paths) / seconds["encoders"], 1),
            decode_per_s=round(len(paths) / seconds["decode"], 1),
            batch_size=batch_size,
            **more,
        ),
        conclusion(
            "predict/one",
            ms["predictor"],
            ms["encoders"],
            round(LEAST_ONE_RATIO, 4),
            less_is_better=True,
            **more,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="clip_places365", help="of conf/model")
    parser.add_argument("--photos", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", help="cpu, cuda; default: a GPU if there is one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, _ = make_checkpoint(Path(folder), args.model)
        calibrate_at_random(checkpoint)
        paths = write_photos(Path(folder), args.photos)
        predictor = GeopakPredictor(checkpoint, args.device, batch_size=args.batch_size)
        device = str(predictor.device)
        print_conclusions(measure(predictor, paths, args.rounds, model=args.model, device=device))


if __name__ == "__main__":
    main()
