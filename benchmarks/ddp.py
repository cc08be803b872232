"""How much of two ranks' work arrives: images/s of 2 ranks against twice those of 1.

Steps of phase 2 (encoders partly unfrozen) with the small shipped model on random pictures: the
model as ``geopak.train`` builds it, wrapped as ``trainer.strategy=ddp`` wraps it, with one thread a
rank. The loader is left out: each rank has its own, and none waits for another's.

The ideal is not twice the speed of one rank alone but of two that do not talk: on a shared machine
two processes slow each other down, whatever they do. Both are shown. On a machine with two or more
GPUs the ranks are theirs, connected by nccl; else they are processes on the CPU, by gloo.

    python -m benchmarks.ddp
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measure import conclusion, print_conclusions
from benchmarks.subjects import random_cells, random_model, train_config
from geopak.build import build_phase
from geopak.geo.region import Region
from geopak.losses import GeolocationLoss, LossOptions
from geopak.models.geolocator import Geolocator
from geopak.options import plain
from geopak.phases import set_up_training
from geopak.types import Batch

TARGET = 0.85


class Step(nn.Module):
    """Forward pass and loss of phase 2, as one module, so that DDP sees all of it."""

    def __init__(self, model: Geolocator, loss: GeolocationLoss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> torch.Tensor:
        output = self.model(batch["image"])
        located = self.model.locate(output.fused, batch["cell_id"])
        return self.loss(output, batch, located, 1.0).total


def build_step(batch_size: int, device: torch.device) -> tuple[Step, Batch]:
    """Phase 2 of the shipped small model, and a batch of noise."""
    cfg = train_config("phase=2")
    region = Region.from_config(plain(cfg.region))
    cells = random_cells(region)
    model = random_model(cfg, region, cells)
    set_up_training(model, build_phase(cfg), encoders_pretrained=True)
    cell_id = torch.randint(cells.num_cells, (batch_size,))
    size = model.image_size
    batch: Batch = {
        "image": torch.rand(batch_size, 3, size, size, device=device),
        "latlon_deg": torch.from_numpy(cells.center_latlon_deg).float()[cell_id].to(device),
        "province_id": torch.from_numpy(cells.province_id)[cell_id].to(device),
        "cell_id": cell_id.to(device),
        "row": torch.arange(batch_size, device=device),
    }
    return Step(model, GeolocationLoss(region, cells, LossOptions())).to(device).train(), batch


def work(
    rank: int, batch_size: int, steps: int, rounds: int, port: int, results: multiprocessing.Queue
) -> None:
    """One rank: by turns alone, beside the other without a word, and with it."""
    torch.set_num_threads(1)
    cuda = torch.cuda.device_count() > 1
    device = torch.device(f"cuda:{rank}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    step, batch = build_step(batch_size, device)
    parameters = [p for p in step.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    together = DistributedDataParallel(
        step,
        device_ids=[rank] if cuda else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )

    def seconds(module: nn.Module, count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            optimizer.zero_grad()
            module(batch).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / count

    taken: dict[str, list[float]] = {"alone": [], "apart": [], "together": []}
    for number in range(rounds + 1):
        for name in taken:
            dist.barrier()
            if name == "alone" and rank:
                continue
            value = seconds(together if name == "together" else step, steps if number else 1)
            if number:
                taken[name].append(value)
    results.put((rank, {name: statistics.median(v) if v else 0.0 for name, v in taken.items()}))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32, help="photos a rank")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each kind")
    arguments = parser.parse_args()
    # Two ranks with a thread each: what more threads would do is another question.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = (arguments.batch_size, arguments.steps, arguments.rounds, port, results)
    ranks = [context.Process(target=work, args=(rank, *more)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    seconds = dict(results.get(timeout=110) for _ in ranks)
    for process in ranks:
        process.join()
    rate = {
        "alone": arguments.batch_size / seconds[0]["alone"],
        **{
            name: sum(arguments.batch_size / seconds[rank][name] for rank in (0, 1))
            for name in ("apart", "together")
        },
    }
    said = {
        "backend": "nccl" if torch.cuda.device_count() > 1 else "gloo",
        "cores": os.cpu_count(),
        "unit": "images/s",
    }
    print_conclusions(
        [
            conclusion("ddp_of_twice_one", rate["together"], 2 * rate["alone"], TARGET, **said),
            conclusion("ddp_of_two_apart", rate["together"], rate["apart"], TARGET, **said),
        ]
    )


if __name__ == "__main__":
    main()
