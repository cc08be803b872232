"""What torch.compile and activation checkpointing gain: ``python -m benchmarks.compile``.

The encoders' forward pass without gradients, and a step of phase 2 (forward, loss, backward and
AdamW), with and without. On a CPU small by default; ``--model clip_places365`` is the full size. On
a GPU in bfloat16, as ``trainer=a100`` computes.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.measure import conclusion, interleaved_seconds, print_conclusions
from benchmarks.subjects import random_cells, random_model, train_config
from geopak import build
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.models.compiling import check_compiler
from geopak.models.geolocator import Geolocator
from geopak.task import GeolocationTask
from geopak.types import Batch

TARGET = 1.0


def make_batch(cells: CellTable, size: int, image_size: int, device: torch.device) -> Batch:
    """A batch of noise."""
    generator = torch.Generator().manual_seed(0)
    cell_id = torch.randint(cells.num_cells, (size,), generator=generator)
    return Batch(
        image=torch.rand(size, 3, image_size, image_size, generator=generator).to(device),
        latlon_deg=torch.tensor(cells.center_latlon_deg, dtype=torch.float32)[cell_id].to(device),
        province_id=torch.tensor(cells.province_id)[cell_id].to(device),
        cell_id=cell_id.to(device),
        row=torch.arange(size).to(device),
    )


class Steps:
    """A training of one kind, step by step.

    Args:
        model: random weights, of which the training has a copy.
        overrides: of the configuration.
    """

    def __init__(
        self, model: Geolocator, region: Region, cells: CellTable, *overrides: str
    ) -> None:
        cfg = train_config(*overrides)
        phase = build.build_phase(cfg)
        outlines = Outlines.of_region(region)
        self.device = next(model.parameters()).device
        self.task: GeolocationTask = build.build_task(
            cfg, copy.deepcopy(model), phase, region, cells, outlines, True, 1
        ).to(self.device)
        self.task.train()
        self.optimizer = self.task.configure_optimizers()["optimizer"]
        self.precision: Callable[[], Any] = nullcontext
        if self.device.type == "cuda":
            self.precision = lambda: torch.autocast("cuda", torch.bfloat16)

    def step(self, batch: Batch) -> None:
        task = self.task
        with self.precision():
            output = task.answer(batch)
            value = task.loss(output, batch, task.locate_true_cell(output, batch), 1.0)
        value.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.wait()

    @torch.no_grad()
    def embed(self, batch: Batch) -> None:
        self.task.eval()
        with self.precision():
            self.task.model.embed(batch["image"])
        self.task.train()
        self.wait()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def stored_bytes(self, batch: Batch) -> int:
        """Kept from forward to backward beside weights and the batch."""
        known = [*self.task.parameters(), *self.task.buffers(), *batch.values()]
        addresses = {t.untyped_storage().data_ptr() for t in known if isinstance(t, torch.Tensor)}
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, self.precision():
            self.task.answer(batch)
        return sum(
            t.untyped_storage().nbytes() for address, t in kept.items() if address not in addresses
        )


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="clip_places365" if on_gpu else "tiny")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if on_gpu else "cpu")
    if on_gpu:
        torch.set_float32_matmul_precision("high")
    check_compiler(device)
    overrides = ("phase=2", f"model={args.model}", "trainer=a100" if on_gpu else "trainer=cpu")
    cfg = train_config(*overrides)
    region = build.build_region(cfg)
    cells = random_cells(region)
    model = random_model(cfg, region, cells).to(device)
    batch = make_batch(cells, args.batch, cfg.model.image_size, device)
    kinds = {
        "eager": Steps(model, region, cells, *overrides),
        "compiled": Steps(model, region, cells, *overrides, "trainer.compile=true"),
        "checkpointed": Steps(
            model, region, cells, *overrides, "trainer.activation_checkpointing=true"
        ),
    }
    began = time.perf_counter()
    kinds["compiled"].embed(batch)
    kinds["compiled"].step(batch)
    compile_s = time.perf_counter() - began

    common = {
        "model": args.model, "batch": args.batch, "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }  # fmt: skip
    pair = ("eager", "compiled")
    forward = interleaved_seconds(
        {kind: lambda kind=kind: kinds[kind].embed(batch) for kind in pair}, args.rounds
    )
    steps = interleaved_seconds(
        {kind: lambda kind=kind: kinds[kind].step(batch) for kind in kinds}, args.rounds
    )
    print({**common, "compile_s": round(compile_s, 1), "step_s": steps})
    stored = {kind: kinds[kind].stored_bytes(batch) for kind in ("eager", "checkpointed")}
    print_conclusions(
        [
            conclusion(
                "compile", forward["compiled"], forward["eager"], TARGET, less_is_better=True,
                case="encoders' forward: eager s / compiled s", unit="s", **common,
            ),
            conclusion(
                "compile", steps["compiled"], steps["eager"], TARGET, less_is_better=True,
                case="step of phase 2: eager s / compiled s", unit="s", **common,
            ),
            conclusion(
                "compile", stored["checkpointed"], stored["eager"], TARGET, less_is_better=True,
                case="stored for the gradient: plain bytes / checkpointed bytes", unit="bytes",
                seconds_ratio=round(steps["eager"] / steps["checkpointed"], 3), **common,
            ),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
