"""Does the answer score tell photos of no place or of elsewhere: ``python -m benchmarks.abstain``.

Stand-ins are made for photos that carry no place and compared with the val photos of the set that a
calibrated model was trained on: close-ups (an eighth of a photo, enlarged), drawn rooms, colour
gradients, pictures of one colour, noise; and photos rendered in another country. Beside the answer
score stand what it is made of and what else could have been taken for it: nearness to train photos,
and what two signs tell together (Fisher's product of their shares of val photos).

Two figures each: how often a val photo has the higher score (area under the ROC curve), and how
many stand-ins get no answer where nine in ten val photos do. The last column is what a score is
worth among the val photos themselves: how much it gains, of what the error leaves to gain, in
answers more than 25 km off and in the mean error.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torch.nn.functional import normalize

from geopak.calibration import (
    UNFAMILIAR_SHARE,
    answer_score,
    calibrated,
    calibrated_confidence,
    seen,
)
from geopak.cli import compose
from geopak.data.dataset import PreparedSet
from geopak.data.images import load_image
from geopak.errors import CheckpointError, PhotoError
from geopak.geo.distance import haversine_km_array
from geopak.models.decode import decode, joint_log_prob
from geopak.options import plain
from geopak.render.photoset import write_photo_set
from geopak.selective import risk_curve
from geopak.trained import Trained, load_trained
from geopak.types import ModelOutput

ANSWERED = 0.9
Maker = Callable[[np.random.Generator, Path], Image.Image]
Scores = dict[str, NDArray[np.float64]]


def close_up(rng: np.random.Generator, photo: Path) -> Image.Image:
    """An eighth of a photo's shorter side, from its lower part, enlarged."""
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    side = min(image.size) // 8
    x = int(rng.integers(0, image.width - side))
    y = int(rng.integers(image.height // 3, image.height - side))
    return image.crop((x, y, x + side, y + side)).resize((224, 224), Image.Resampling.BICUBIC)


def room(rng: np.random.Generator, photo: Path) -> Image.Image:
    """A wall, a floor, boxes for furniture and a lamp."""
    side = 224
    image = Image.new("RGB", (side, side), tuple(rng.integers(120, 240, 3).tolist()))
    draw = ImageDraw.Draw(image)
    floor = int(side * rng.uniform(0.55, 0.75))
    draw.rectangle((0, floor, side, side), fill=tuple(rng.integers(60, 200, 3).tolist()))
    for _ in range(int(rng.integers(2, 6))):
        left, foot = int(rng.integers(0, side)), int(rng.integers(floor, side))
        width, height = (int(v) for v in rng.integers(side // 8, side // 2, 2))
        color = tuple(rng.integers(0, 256, 3).tolist())
        draw.rectangle((left, foot - height, left + width, foot), fill=color, outline=(40, 40, 40))
    lamp = int(rng.integers(0, side))
    draw.ellipse((lamp - 15, 10, lamp + 15, 40), fill=(255, 250, 220))
    return image.filter(ImageFilter.GaussianBlur(1))


def _pixels(pixels: NDArray[np.uint8], smooth: bool = False) -> Image.Image:
    kind = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return Image.fromarray(pixels).resize((224, 224), kind)


STAND_INS: dict[str, Maker] = {
    "close-up": close_up,
    "room": room,
    "gradient": lambda rng, _: _pixels(rng.integers(0, 256, (6, 6, 3), np.uint8), smooth=True),
    "one colour": lambda rng, _: _pixels(rng.integers(0, 256, (1, 1, 3), np.uint8)),
    "noise": lambda rng, _: _pixels(rng.integers(0, 256, (224, 224, 3), np.uint8)),
}


def infer(trained: Trained, images: list[Tensor]) -> ModelOutput:
    """The model's output for loaded photos."""
    parts = []
    with torch.inference_mode():
        for batch in torch.stack(images).split(64):
            parts.append(trained.model(batch.float() / 255))
    names = vars(parts[0])
    return ModelOutput(**{name: torch.cat([vars(p)[name] for p in parts]) for name in names})


def nearest(output: ModelOutput, train: ModelOutput, name: str) -> Tensor:
    """(B,) cosine similarity to the tenth nearest train photo, by what the model sees in them."""
    vectors, known = (normalize(getattr(o, name).float(), dim=-1) for o in (output, train))
    return (vectors @ known.T).topk(10, dim=-1).values[:, -1]


def scores(
    trained: Trained, output: ModelOutput, train: ModelOutput
) -> dict[str, NDArray[np.float64]]:
    """Every score that might decide whether to answer, by name; high: answer."""
    calibration, options = trained.calibration, trained.decoding
    assert calibration is not None
    honest = calibrated(output, calibration)
    joint = joint_log_prob(honest, trained.model.cell_province_id).double()
    with torch.inference_mode():
        decoded = decode(trained.model, honest, options)[options.rule]
    confidence = calibrated_confidence(
        decoded.confidence, calibration, options.rule, options.confidence_km
    )
    found = {
        "answer score": answer_score(honest, confidence, calibration),
        "confidence": confidence,
        "familiarity": -calibration.familiarity.distance_of(seen(output)),
        "top cell": joint.amax(-1),
        "top province": honest.province_logits.log_softmax(-1).amax(-1),
        "entropy of cells": (joint.exp() * joint).sum(-1),
        "energy": output.province_logits.logsumexp(-1),
        "nearest train photos, features": nearest(output, train, "features"),
        "nearest train photos, embedding": nearest(output, train, "fused"),
    }
    return {name: value.double().numpy() for name, value in found.items()}


def add_combined(ours: Scores, theirs: Mapping[str, Scores]) -> None:
    """Adds what familiarity and energy tell together, alone and in place of familiarity."""
    reference = {name: np.sort(ours[name]) for name in ("familiarity", "energy")}

    def share(known: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        return (np.searchsorted(known, values, "right") + 1) / (len(known) + 1)

    def both(found: Scores) -> NDArray[np.float64]:
        return sum(np.log(share(known, found[name])) for name, known in reference.items())

    known = np.sort(both(ours))
    for found in (*theirs.values(), ours):
        found["familiarity and energy"] = both(found)
        unfamiliar = np.minimum(1, share(known, both(found)) / UNFAMILIAR_SHARE)
        found["answer score of both"] = found["confidence"] * unfamiliar


def higher(known: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """How often a known photo has the higher score; half of the ties."""
    ordered = np.sort(other)
    below = np.searchsorted(ordered, known, "left") + np.searchsorted(ordered, known, "right")
    return float(below.mean() / 2 / len(other))


def elsewhere(region: str, num: int, folder: Path) -> list[Path]:
    """Photos rendered in another country."""
    write_photo_set(
        plain(compose("synthetic", [f"region={region}", f"num_photos={num}", f"out={folder}"]))
    )
    return sorted(folder.rglob("*.jpg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", help="calibrated")
    parser.add_argument("--root", type=Path, required=True, help="photos, with prepared/ in it")
    parser.add_argument("--elsewhere", default="bangladesh", help="region to render")
    parser.add_argument("--photos", type=int, default=300, help="of each kind")
    parser.add_argument("--train-photos", type=int, default=3000, help="to be near to")
    args = parser.parse_args()
    trained = load_trained(args.checkpoint)
    if trained.calibration is None:
        raise CheckpointError(f"{args.checkpoint} is not calibrated: python -m geopak.calibrate")
    model, rng = trained.model, np.random.default_rng(0)
    load = partial(load_image, size=model.image_size, framing=model.framing)
    prepared = PreparedSet.read(args.root / "prepared", args.root, trained.region)
    val = [args.root / prepared.photos["path"][row] for row in prepared.rows("val")]
    drawn = [val[k] for k in rng.integers(0, len(val), args.photos)]
    images = {name: [load(make(rng, photo)) for photo in drawn] for name, make in STAND_INS.items()}
    with tempfile.TemporaryDirectory() as folder:
        there: list[Tensor] = []
        for path in elsewhere(args.elsewhere, args.photos, Path(folder)):
            try:
                there.append(load(path))
            except PhotoError:
                continue  # broken on purpose, as in every rendered set
        images[args.elsewhere] = there
    train_rows = rng.permutation(prepared.rows("train"))[: args.train_photos]
    train = infer(trained, [load(args.root / prepared.photos["path"][row]) for row in train_rows])
    output = infer(trained, [load(path) for path in val])
    known = scores(trained, output, train)
    others = {
        name: scores(trained, infer(trained, loaded), train) for name, loaded in images.items()
    }
    add_combined(known, others)
    options = trained.decoding
    honest = calibrated(output, trained.calibration)
    found = decode(trained.model, honest, options)[options.rule].latlon_deg
    truth = prepared.photos.iloc[prepared.rows("val")][["latitude", "longitude"]].to_numpy(float)
    error_km = haversine_km_array(found.double().numpy(), truth)
    print(f"{len(val)} val photos, {args.photos} of each stand-in")
    print("|  | " + " | ".join(others) + " | gains |")
    print("| --- |" + " ---: |" * (len(others) + 1))
    for score, ours in known.items():
        limit = np.quantile(ours, 1 - ANSWERED)
        cells = [
            f"{higher(ours, theirs[score]):.2f}, {(theirs[score] < limit).mean():.0%}"
            for theirs in others.values()
        ]
        gains = [risk_curve(ours, loss).areas["gained"] for loss in (error_km > 25, error_km)]
        cells.append(", ".join(f"{gain:.0%}" for gain in gains))
        print(f"| {score} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
