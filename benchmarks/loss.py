"""How long the loss takes: ``python -m benchmarks.loss``.

All terms, forward and backward down to the model's outputs, of a batch of 64 over 699 cells, on one
core, against 2 ms.
"""

from __future__ import annotations

import torch

from benchmarks.measure import conclusion, interleaved_seconds, print_conclusions
from benchmarks.subjects import random_cells, random_set, train_config
from geopak import build
from geopak.losses import GeolocationLoss, LossOptions
from geopak.types import Batch, ModelOutput

BATCH = 64
LIMIT_MS = 2.0
CALLS = 50


def main() -> None:
    torch.set_num_threads(1)
    region = build.build_region(train_config("phase=1"))
    cells = random_cells(region)
    loss = GeolocationLoss(region, cells, LossOptions())
    photos = random_set(region, cells, 1000).photos.iloc[:BATCH]
    latlon = torch.tensor(photos[["latitude", "longitude"]].to_numpy("float32"))
    batch = Batch(
        latlon_deg=latlon,
        province_id=torch.tensor(photos["province_id"].to_numpy("int64")),
        cell_id=torch.tensor(photos["cell_id"].to_numpy("int64")),
        row=torch.arange(BATCH),
    )
    province = torch.randn(BATCH, region.num_provinces, requires_grad=True)
    cell = torch.randn(BATCH, cells.num_cells).log_softmax(-1).requires_grad_()
    located = (latlon + 0.01 * torch.randn(BATCH, 2)).requires_grad_()
    auxiliary = (latlon + torch.randn(BATCH, 2)).requires_grad_()
    unused = torch.zeros(BATCH, 1)
    output = ModelOutput(province, cell, unused, torch.zeros(BATCH), auxiliary, unused)

    def forward() -> None:
        with torch.no_grad():
            for _ in range(CALLS):
                loss(output, batch, located, 1.0)

    def both_ways() -> None:
        for _ in range(CALLS):
            loss(output, batch, located, 1.0).total.backward()

    seconds = interleaved_seconds({"forward": forward, "forward and backward": both_ways}, 9)
    print_conclusions(
        [
            conclusion(
                "loss", 1000 * seconds[name] / CALLS, LIMIT_MS, 1.0,
                less_is_better=True, case=name, unit="ms", batch=BATCH, cells=cells.num_cells,
            )
            for name in seconds
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
