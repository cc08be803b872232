"""How soon the commands, the package and a predictor answer, as whole processes.

    python -m benchmarks.startup
    python -m benchmarks.startup --model tiny

It prints one line of JSON per claim. Every process is started by turns with its peer, so that a
slow spell of the machine hits both.

``startup/<command>``: seconds of ``python -m geopak.<command> --help``; ``limit`` is 2.5 times a
bare ``import hydra`` of the same run.
``startup/import``: seconds of ``import geopak`` beyond an interpreter that imports nothing;
``limit`` is 0.3.
``startup/predictor``: seconds until a new process has the first answer of a predictor. ``limit`` is
what a new process needs that imports torch, timm and open_clip, reads the same checkpoint with
``torch.load`` and stops there: no model, no photo, no answer. Weights are random, the photo is
noise, and both processes run on the CPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import conclusion, interleaved_seconds, print_conclusions

PEER = """
import open_clip, timm, torch
torch.load({checkpoint!r}, map_location="cpu", weights_only=True)
"""
ANSWER = """
from geopak import GeopakPredictor
GeopakPredictor({checkpoint!r}, device="cpu").predict({photo!r})
"""
COMMANDS = ("train", "evaluate", "predict", "prepare")
# Issue 4, section 6: --help against a bare import hydra, and import geopak in seconds.
MOST_HELP_RATIO = 2.5
MOST_IMPORT_SECONDS = 0.3


def process(*arguments: str) -> Callable[[], None]:
    """A function that runs this interpreter with some arguments, to its end."""

    def run() -> None:
        # As on a user's machine: byte code of the first start serves every later one.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        subprocess.run(
            [sys.executable, *arguments],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    return run


def make_checkpoint(folder: Path, model_name: str) -> tuple[Path, Path]:
    """A checkpoint with random weights, as long as a trained one, and a photo of noise."""
    import numpy as np
    import torch
    from PIL import Image

    from geopak import build
    from geopak.cli import compose
    from geopak.geo.boundaries import Outlines
    from geopak.geo.cells import CellTable, nearest_neighbours
    from geopak.identity import model_identity, portable_config
    from geopak.models.decode import DecodingOptions
    from geopak.options import options, plain

    cfg = compose("train", [f"model={model_name}", "model.scene.checkpoint=none"])
    region = build.build_region(cfg)
    rng = np.random.default_rng(0)
    num_cells = 40 * region.num_provinces
    province_id = np.repeat(np.arange(region.num_provinces), 40)
    center_latlon_deg = rng.uniform((25, 62), (36, 75), (num_cells, 2))
    cells = CellTable(
        province_id=province_id,
        center_latlon_deg=center_latlon_deg,
        radius_km=np.full(num_cells, 5.0),
        count=np.full(num_cells, 40),
        urban=np.zeros(num_cells, bool),
        sparse=np.zeros(num_cells, bool),
        neighbours=nearest_neighbours(center_latlon_deg, province_id),
    )
    model = build.build_model(plain(cfg.model), region, cells)
    identity = model_identity(
        plain(cfg.model),
        region,
        cells,
        Outlines.of_region(region),
        build.build_phase(cfg),
        options(DecodingOptions, plain(cfg.decoding), "decoding"),
        portable_config(cfg),
    )
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    checkpoint, photo = folder / "best.ckpt", folder / "photo.jpg"
    torch.save({"state_dict": state, "geopak": identity}, checkpoint)
    Image.fromarray(rng.integers(0, 256, (480, 640, 3), np.uint8)).save(photo)
    return checkpoint, photo


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="clip_places365", help="of conf/model")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    starts = {
        "hydra": process("-c", "import hydra"),
        "nothing": process("-c", "pass"),
        "geopak": process("-c", "import geopak"),
        **{name: process("-m", f"geopak.{name}", "--help") for name in COMMANDS},
    }
    seconds = interleaved_seconds(starts, rounds=args.rounds)
    lines = [
        conclusion(
            f"startup/{name}",
            seconds[name],
            MOST_HELP_RATIO * seconds["hydra"],
            1.0,
            less_is_better=True,
            hydra_seconds=round(seconds["hydra"], 3),
        )
        for name in COMMANDS
    ]
    lines.append(
        conclusion(
            "startup/import",
            seconds["geopak"] - seconds["nothing"],
            MOST_IMPORT_SECONDS,
            1.0,
            less_is_better=True,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, photo = make_checkpoint(Path(folder), args.model)
        answers = {
            "peer": process("-c", PEER.format(checkpoint=str(checkpoint))),
            "predictor": process("-c", ANSWER.format(checkpoint=str(checkpoint), photo=str(photo))),
        }
        seconds = interleaved_seconds(answers, rounds=args.rounds)
        lines.append(
            conclusion(
                "startup/predictor",
                seconds["predictor"],
                seconds["peer"],
                1.0,
                less_is_better=True,
                model=args.model,
                checkpoint_mb=round(checkpoint.stat().st_size / 1e6),
            )
        )
    print_conclusions(lines)


if __name__ == "__main__":
    main()
