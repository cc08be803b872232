"""What a validation pass computed about each photo, kept for figures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopak.geo.distance import haversine_km_array
from geopak.types import Batch, Decoded, ModelOutput


@dataclass(frozen=True, eq=False)
class ValidationRecord:
    """Truth and answers of N photos, each once, in the order of the photo table.

    Attributes:
        row: (N,) row number in the photo table.
        latlon_deg: (N, 2) true degrees, latitude first.
        predicted_latlon_deg: (N, 2) degrees, from the image alone.
        province_id: (N,) true province.
        predicted_province_id: (N,) most probable province.
        cell_id: (N,) true cell.
        hypothesis_cell_id: (N, K) cells of the hypotheses, most probable first.
        hypothesis_latlon_deg: (N, K, 2) degrees.
        hypothesis_probability: (N, K), sums to 1 over K.
        gate: (N,) weight of the scene encoder.
    """

    row: NDArray[np.int64]
    latlon_deg: NDArray[np.float64]
    predicted_latlon_deg: NDArray[np.float64]
    province_id: NDArray[np.int64]
    predicted_province_id: NDArray[np.int64]
    cell_id: NDArray[np.int64]
    hypothesis_cell_id: NDArray[np.int64]
    hypothesis_latlon_deg: NDArray[np.float64]
    hypothesis_probability: NDArray[np.float64]
    gate: NDArray[np.float64]

    @property
    def error_km(self) -> NDArray[np.float64]:
        """(N,) great-circle distance from truth to prediction."""
        return haversine_km_array(self.predicted_latlon_deg, self.latlon_deg)


def columns_of_batch(batch: Batch, output: ModelOutput, decoded: Decoded) -> dict[str, Tensor]:
    """The columns of :class:`ValidationRecord` for a batch, where they were computed.

    Nothing is copied to the CPU here, which would wait for the device with every batch.
    """
    columns = {
        "row": batch["row"],
        "latlon_deg": batch["latlon_deg"],
        "predicted_latlon_deg": decoded.latlon_deg,
        "province_id": batch["province_id"],
        "predicted_province_id": output.province_logits.argmax(-1),
        "cell_id": batch["cell_id"],
        "hypothesis_cell_id": decoded.cell_id,
        "hypothesis_latlon_deg": decoded.hypothesis_latlon_deg,
        "hypothesis_probability": decoded.probability,
        "gate": output.gate,
    }
    return {name: column.detach() for name, column in columns.items()}


def record_of(batches: Sequence[Mapping[str, Tensor]]) -> ValidationRecord:
    """Puts the batches of a pass together; with several processes, those of all of them.

    Every process has to call it, and at least one batch is needed in all.
    """
    parts: list[Any] = [
        {name: _to_numpy([batch[name] for batch in batches]) for name in _COLUMNS}
        if batches
        else {}
    ]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        mine = parts[0]
        parts = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, mine)
    parts = [part for part in parts if part]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in _COLUMNS}
    _, first = np.unique(columns["row"], return_index=True)
    return ValidationRecord(**{name: column[first] for name, column in columns.items()})


_COLUMNS = tuple(f.name for f in fields(ValidationRecord))


def _to_numpy(parts: Sequence[Tensor]) -> NDArray[Any]:
    column = torch.cat(list(parts)).cpu()
    return (column.double() if column.is_floating_point() else column.long()).numpy()


@dataclass(frozen=True, eq=False)
class CellUsage:
    """Which cells a model ever puts first.

    Attributes:
        predictions: (C,) photos whose most probable hypothesis is each cell.
        true_photos: (C,) photos that lie in each cell.
    """

    predictions: NDArray[np.int64]
    true_photos: NDArray[np.int64]

    @classmethod
    def of(cls, record: ValidationRecord, num_cells: int) -> CellUsage:
        return cls(
            np.bincount(record.hypothesis_cell_id[:, 0], minlength=num_cells),
            np.bincount(record.cell_id, minlength=num_cells),
        )

    @property
    def num_predicted(self) -> int:
        """Cells that are predicted at least once."""
        return int((self.predictions > 0).sum())

    @property
    def share_predicted(self) -> float:
        """Of all cells."""
        return self.num_predicted / len(self.predictions)

    @property
    def share_never_predicted(self) -> float:
        """Of the cells that photos lie in: those that are predicted for no photo at all."""
        lived_in = self.true_photos > 0
        return float((self.predictions[lived_in] == 0).mean())
