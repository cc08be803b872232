"""From a prepared set on disk to batches of uint8 images with their truth."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from geopak.data.images import load_image, stack_images
from geopak.errors import PreparedSetError
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.schema.model import CROP
from geopak.types import Batch

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_COLUMNS = ("id", "path", "latitude", "longitude", "province", "province_id", "cell_id", "split")


class PreparedSet:
    """The folder that ``python -m geopak.prepare`` wrote: split table and cells.

    Attributes:
        photos: the split table, one row per photo; the row number is ``Batch["row"]``.
        cells: the geocells.
        root: folder that photo paths are relative to.
    """

    def __init__(self, photos: pd.DataFrame, cells: CellTable, root: Path) -> None:
        self.photos = photos
        self.cells = cells
        self.root = root

    @classmethod
    def read(cls, folder: str | Path, root: str | Path, region: Region) -> PreparedSet:
        """Reads and checks a prepared set.

        Args:
            folder: with ``photos.parquet`` and ``cells.parquet``.
            root: the photo folder.
            region: the one that the set was prepared for.

        Raises:
            PreparedSetError: missing, incomplete, or of another region.
        """
        folder = Path(folder)
        table = folder / "photos.parquet"
        if not table.is_file():
            raise PreparedSetError(
                f"No prepared set at {folder}. Make one: python -m geopak.prepare root={root} "
                "(and before it, for the rendered photos: python -m geopak.synthetic)."
            )
        try:
            photos = pd.read_parquet(table).reset_index(drop=True)
        except (OSError, ValueError) as error:
            raise PreparedSetError(f"{table} is not a photo table: {error}") from error
        for column in _COLUMNS:
            if column not in photos:
                raise PreparedSetError(f"{table} has no column {column!r}. Prepare it again.")
        cells = CellTable.read(folder / "cells.parquet")
        named = photos[["province_id", "province"]].drop_duplicates()
        for index, name in named.itertuples(index=False):
            if region.find(name) != index:
                raise PreparedSetError(
                    f"{table} was prepared for another region: it has {name!r} as province "
                    f"{index}, {region.title} has {', '.join(region.names)}. Choose region= to "
                    "match, or prepare again."
                )
        present = np.unique(cells.province_id)
        if present.max() >= region.num_provinces:
            raise PreparedSetError(
                f"{folder}/cells.parquet has cells of province index {present.max()}, "
                f"{region.title} has {region.num_provinces} provinces. Prepare it again."
            )
        astray = ~photos["cell_id"].between(0, cells.num_cells - 1)
        if astray.any():
            raise PreparedSetError(
                f"{table}: photo {photos['id'][astray].iloc[0]} is in cell "
                f"{photos['cell_id'][astray].iloc[0]}, but {folder}/cells.parquet has "
                f"{cells.num_cells} cells. The two files are of different runs: prepare again."
            )
        if len(present) != region.num_provinces:
            lacking = [n for i, n in enumerate(region.names) if i not in present]
            raise PreparedSetError(
                f"{folder} has no geocells for {', '.join(lacking)}: no train photos there. "
                "Add photos, or take the province out of the region."
            )
        return cls(photos, cells, Path(root))

    def rows(self, split: str) -> NDArray[np.int64]:
        """Row numbers of a split.

        Raises:
            PreparedSetError: unknown or empty split.
        """
        if split not in SPLITS:
            raise PreparedSetError(f"split={split!r} is unknown. Known: {', '.join(SPLITS)}.")
        rows = np.flatnonzero(self.photos["split"].to_numpy() == split)
        if not len(rows):
            raise PreparedSetError(f"The prepared set has no {split} photos.")
        return rows.astype(np.int64)


class Truth:
    """Where every photo of a prepared set was taken, as tensors.

    Args:
        photos: the split table.
    """

    def __init__(self, photos: pd.DataFrame) -> None:
        self.latlon_deg = torch.tensor(photos[["latitude", "longitude"]].to_numpy(np.float32))
        self.province_id = torch.tensor(photos["province_id"].to_numpy(np.int64))
        self.cell_id = torch.tensor(photos["cell_id"].to_numpy(np.int64))

    def __len__(self) -> int:
        return len(self.cell_id)

    def batch(self, row: Tensor) -> Batch:
        """A batch without pictures: the truth of the photos of given rows."""
        return Batch(
            latlon_deg=self.latlon_deg[row],
            province_id=self.province_id[row],
            cell_id=self.cell_id[row],
            row=row,
        )


class PhotoDataset(Dataset[Batch]):
    """Photos of a prepared set, read a whole batch at a time.

    ``dataset[rows]`` takes a sequence of row numbers of the photo table, so that one call makes a
    batch (pass it to a ``DataLoader`` with ``batch_size=None`` and a sampler of row lists).

    Args:
        prepared: the set.
        size: side of the square images, pixels.
        cached_rows: rows to decode once and keep in memory as uint8.
        num_threads: threads that fill the cache.
        framing: how photos become squares, see :func:`geopak.data.images.load_image`.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        size: int,
        cached_rows: NDArray[np.int64] | None = None,
        num_threads: int = 1,
        framing: str = CROP,
    ) -> None:
        self.size = size
        self.framing = framing
        self.paths = [str(prepared.root / p) for p in prepared.photos["path"]]
        self.truth = Truth(prepared.photos)
        self.cache: Tensor | None = None
        if cached_rows is not None:
            self.position = torch.full((len(self.truth),), -1, dtype=torch.long)
            self.position[torch.tensor(cached_rows)] = torch.arange(len(cached_rows))
            with ThreadPoolExecutor(max(1, num_threads)) as pool:
                images = pool.map(
                    lambda row: load_image(self.paths[row], size, framing), cached_rows
                )
                self.cache = stack_images(images, len(cached_rows), size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        row = torch.as_tensor(rows, dtype=torch.long)
        if self.cache is not None:
            position = self.position[row]
            if (position < 0).any():
                raise IndexError(f"Rows {row[position < 0].tolist()} are not in the memory cache.")
            image = self.cache.permute(0, 2, 3, 1)[position].permute(0, 3, 1, 2)
        else:
            images = (load_image(self.paths[r], self.size, self.framing) for r in row.tolist())
            image = stack_images(images, len(row), self.size)
        batch = self.truth.batch(row)
        batch["image"] = image
        return batch
