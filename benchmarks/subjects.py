"""What benchmarks measure: cells of a region, a model and a photo table, all made from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig

from geopak import build
from geopak.cli import compose
from geopak.data.dataset import PreparedSet
from geopak.geo.cells import NUM_NEIGHBOURS, CellTable
from geopak.geo.distance import haversine_km_array
from geopak.geo.region import Region
from geopak.models.geolocator import Geolocator
from geopak.options import plain

# The published model has so many cells.
NUM_CELLS = 699


def train_config(*overrides: str) -> DictConfig:
    """The configuration that ``geopak.train`` would compose."""
    return compose("train", list(overrides))


def random_cells(region: Region, num_cells: int = NUM_CELLS, seed: int = 0) -> CellTable:
    """Cells scattered over provinces in proportion to their targets."""
    rng = np.random.default_rng(seed)
    targets = np.array([p.target_cells for p in region.provinces], float)
    count = np.maximum(1, np.floor(targets / targets.sum() * num_cells).astype(int))
    count[0] += num_cells - count.sum()
    province_id = np.repeat(np.arange(len(count)), count)
    heart = rng.uniform((24, 61), (37, 77), (len(count), 2))
    center = heart[province_id] + rng.normal(0, 0.8, (num_cells, 2))
    neighbours = np.full((num_cells, NUM_NEIGHBOURS), -1)
    for province in range(len(count)):
        own = np.flatnonzero(province_id == province)
        km = haversine_km_array(center[own][:, None], center[own][None])
        np.fill_diagonal(km, np.inf)
        nearest = own[np.argsort(km, axis=1)[:, : min(NUM_NEIGHBOURS, len(own) - 1)]]
        neighbours[own, : nearest.shape[1]] = nearest
    return CellTable(
        province_id=province_id,
        center_latlon_deg=center,
        radius_km=rng.uniform(2, 50, num_cells),
        count=rng.integers(20, 400, num_cells),
        urban=rng.random(num_cells) < 0.5,
        sparse=np.zeros(num_cells, bool),
        neighbours=neighbours,
    )


def random_model(cfg: DictConfig, region: Region, cells: CellTable, seed: int = 0) -> Geolocator:
    """The model of ``cfg.model`` with random weights."""
    torch.manual_seed(seed)
    return build.build_model(plain(cfg.model), region, cells)


def random_set(region: Region, cells: CellTable, num_photos: int, seed: int = 0) -> PreparedSet:
    """A prepared set without photo files: nine tenths train, one tenth val."""
    rng = np.random.default_rng(seed)
    # Every province first, so that each has train photos.
    first = cells.province_start(region.num_provinces)[:-1]
    cell_id = np.concatenate((first, rng.integers(0, cells.num_cells, num_photos - len(first))))
    latlon = cells.center_latlon_deg[cell_id] + rng.normal(0, 0.05, (num_photos, 2))
    province_id = cells.province_id[cell_id]
    table: dict[str, Sequence[Any] | np.ndarray] = {
        "id": [f"p{i}" for i in range(num_photos)],
        "path": [f"{i}.jpg" for i in range(num_photos)],
        "latitude": latlon[:, 0],
        "longitude": latlon[:, 1],
        "province": np.array(region.names)[province_id],
        "province_id": province_id,
        "cell_id": cell_id,
        "split": ["train" if i < 0.9 * num_photos else "val" for i in range(num_photos)],
    }
    return PreparedSet(pd.DataFrame(table), cells, Path("no-photos"))
