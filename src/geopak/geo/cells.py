"""The geocell table: centres, radii and neighbours of all cells, grouped by province."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from geopak.errors import PreparedSetError
from geopak.geo.circles import circle_geojson
from geopak.geo.distance import haversine_km_array, unit_vectors_array
from geopak.geo.region import Region

if TYPE_CHECKING:
    # A predictor takes its cells from a checkpoint and needs neither.
    import pandas as pd
    from scipy.spatial import cKDTree

NUM_NEIGHBOURS = 8

# Photos, or pairs of a photo and a cell, that are worked on at once.
_CHUNK = 1_000_000
# Chords closer than this (some micrometres on the ground) are told apart by exact distance.
_CHORD_TIE = 1e-12
_LEAST_DRAWN_KM = 0.05


@dataclass(frozen=True, eq=False)
class CellTable:
    """All geocells of a region. Row number = global cell id; rows are grouped by province index.

    Attributes:
        province_id: (N,) int64, non-decreasing; every province has at least one cell.
        center_latlon_deg: (N, 2) float64 degrees, latitude first.
        radius_km: (N,) float64, distance from the center to the farthest train photo of the cell.
        count: (N,) int64, train photos.
        urban: (N,) bool.
        sparse: (N,) bool, fewer train photos than the province's minimum.
        neighbours: (N, 8) int64, nearest cells of the same province, nearest first; -1 pads.
    """

    province_id: NDArray[np.int64]
    center_latlon_deg: NDArray[np.float64]
    radius_km: NDArray[np.float64]
    count: NDArray[np.int64]
    urban: NDArray[np.bool_]
    sparse: NDArray[np.bool_]
    neighbours: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.province_id)
        shapes = {"center_latlon_deg": (n, 2), "neighbours": (n, NUM_NEIGHBOURS)}
        for field in fields(self):
            if getattr(self, field.name).shape != shapes.get(field.name, (n,)):
                raise PreparedSetError(
                    f"Cell table: {field.name} has shape {getattr(self, field.name).shape}, "
                    f"expected {shapes.get(field.name, (n,))}."
                )
        if n == 0 or (np.diff(self.province_id) < 0).any():
            raise PreparedSetError("Cell table: rows must be grouped by province in index order.")

    @property
    def num_cells(self) -> int:
        return len(self.province_id)

    def province_start(self, num_provinces: int) -> NDArray[np.int64]:
        """(P + 1,) first global cell id of every province; the last entry is ``num_cells``."""
        return np.searchsorted(self.province_id, np.arange(num_provinces + 1)).astype(np.int64)

    def nearest(self, latlon_deg: ArrayLike, province_id: ArrayLike) -> NDArray[np.int64]:
        """(B,) global id of the cell of the given province whose center is nearest.

        Of equally near cells the one with the lowest id.

        Raises:
            PreparedSetError: a province without cells.
        """
        from scipy.spatial import cKDTree

        points = np.asarray(latlon_deg, float).reshape(-1, 2)
        wanted = np.asarray(province_id, np.int64)
        out = np.full(len(points), -1, np.int64)
        for province in np.unique(wanted):
            cells = np.flatnonzero(self.province_id == province)
            if not len(cells):
                raise PreparedSetError(f"Province index {province} has no geocell.")
            rows = np.flatnonzero(wanted == province)
            centers_deg = self.center_latlon_deg[cells]
            tree = cKDTree(unit_vectors_array(centers_deg))
            for chunk in np.array_split(rows, len(rows) // _CHUNK + 1):
                out[chunk] = cells[_nearest_center(points[chunk], centers_deg, tree)]
        return out

    def fingerprint(self) -> str:
        """Short content hash; equal for equal tables."""
        digest = hashlib.sha256()
        for field in fields(self):
            digest.update(np.ascontiguousarray(getattr(self, field.name)).tobytes())
        return digest.hexdigest()[:16]

    def to_frame(self, region: Region) -> pd.DataFrame:
        """One row per cell with the columns of ``cells.parquet``."""
        import pandas as pd

        return pd.DataFrame(
            {
                "cell_id": np.arange(self.num_cells),
                "province_id": self.province_id,
                "province": np.asarray(region.names, object)[self.province_id],
                "latitude": self.center_latlon_deg[:, 0],
                "longitude": self.center_latlon_deg[:, 1],
                "radius_km": self.radius_km,
                "count": self.count,
                "urban": self.urban,
                "sparse": self.sparse,
                "neighbours": list(self.neighbours),
            }
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> CellTable:
        """Inverse of :meth:`to_frame`."""
        return cls(
            province_id=frame["province_id"].to_numpy(np.int64),
            center_latlon_deg=frame[["latitude", "longitude"]].to_numpy(np.float64),
            radius_km=frame["radius_km"].to_numpy(np.float64),
            count=frame["count"].to_numpy(np.int64),
            urban=frame["urban"].to_numpy(bool),
            sparse=frame["sparse"].to_numpy(bool),
            neighbours=np.stack(frame["neighbours"].to_list()).astype(np.int64),
        )

    @classmethod
    def read(cls, path: str | Path) -> CellTable:
        """Reads ``cells.parquet``.

        Raises:
            PreparedSetError: the file is missing or not a cell table.
        """
        import pandas as pd

        if not Path(path).is_file():
            raise PreparedSetError(f"No cell table at {path}. Make it: python -m geopak.prepare")
        try:
            return cls.from_frame(pd.read_parquet(path))
        except (KeyError, OSError, ValueError) as error:
            raise PreparedSetError(f"{path} is not a cell table: {error}") from error

    def to_dict(self) -> dict[str, torch.Tensor]:
        """Tensors only, so that a checkpoint with it loads with ``weights_only=True``."""
        return {f.name: torch.from_numpy(np.array(getattr(self, f.name))) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, torch.Tensor]) -> CellTable:
        """Inverse of :meth:`to_dict`."""
        return cls(**{f.name: data[f.name].cpu().numpy() for f in fields(cls)})

    def to_geojson(self, region: Region) -> dict[str, Any]:
        """A GeoJSON FeatureCollection (RFC 7946) of the cells' areas with all their attributes.

        An area is a circle around the center that holds every train photo of the cell, of at
        least 50 m so that cells of one spot can be seen. The center is in the attributes
        ``latitude`` and ``longitude``.
        """
        features = [
            {
                "type": "Feature",
                "id": k,
                "geometry": circle_geojson(
                    self.center_latlon_deg[k], max(float(self.radius_km[k]), _LEAST_DRAWN_KM)
                ),
                "properties": {
                    "cell_id": k,
                    "province_id": int(self.province_id[k]),
                    "province": region.names[self.province_id[k]],
                    "latitude": float(self.center_latlon_deg[k, 0]),
                    "longitude": float(self.center_latlon_deg[k, 1]),
                    "radius_km": float(self.radius_km[k]),
                    "count": int(self.count[k]),
                    "urban": bool(self.urban[k]),
                    "sparse": bool(self.sparse[k]),
                    "neighbours": [int(n) for n in self.neighbours[k] if n >= 0],
                },
            }
            for k in range(self.num_cells)
        ]
        return {"type": "FeatureCollection", "features": features}

    def write(self, folder: str | Path, region: Region) -> None:
        """Writes ``cells.parquet`` and ``cells.geojson`` into ``folder``."""
        self.to_frame(region).to_parquet(Path(folder) / "cells.parquet", index=False)
        text = json.dumps(self.to_geojson(region))
        (Path(folder) / "cells.geojson").write_text(text, encoding="utf-8")


def nearest_neighbours(
    center_latlon_deg: NDArray[np.float64], province_id: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The nearest cells of the same province, by great-circle distance between centers.

    Args:
        center_latlon_deg: (N, 2) degrees, latitude first.
        province_id: (N,) province of each cell.

    Returns:
        (N, 8) cell ids, nearest first and, equally near, lowest id first; -1 pads.
    """
    out = np.full((len(province_id), NUM_NEIGHBOURS), -1, np.int64)
    for province in np.unique(province_id):
        own = np.flatnonzero(province_id == province)
        num = min(NUM_NEIGHBOURS, len(own) - 1)
        centers = center_latlon_deg[own]
        for chunk in np.array_split(np.arange(len(own)), len(own) ** 2 // _CHUNK + 1):
            away = haversine_km_array(centers[chunk, None], centers[None])
            away[np.arange(len(chunk)), chunk] = np.inf
            out[own[chunk], :num] = own[np.argsort(away, axis=1, kind="stable")[:, :num]]
    return out


def _nearest_center(
    points: NDArray[np.float64], centers_deg: NDArray[np.float64], tree: cKDTree
) -> NDArray[np.int64]:
    """(B,) row of the nearest center, the lowest of equally near ones."""
    if len(centers_deg) == 1 or not len(points):
        return np.zeros(len(points), np.int64)
    chord, found = tree.query(unit_vectors_array(points), k=2, workers=-1)
    nearest = found[:, 0].astype(np.int64)
    # Nearly equal chords say nothing about which center is nearer: ask all centers.
    close = np.flatnonzero(chord[:, 1] - chord[:, 0] <= _CHORD_TIE)
    for chunk in np.array_split(close, len(close) * len(centers_deg) // _CHUNK + 1):
        away = haversine_km_array(points[chunk, None], centers_deg[None])
        nearest[chunk] = away.argmin(1)
    return nearest
