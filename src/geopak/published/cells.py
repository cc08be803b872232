"""The table of cells that lies beside a published checkpoint, ``cell_metadata.csv``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geopak.errors import CheckpointError, RegionError
from geopak.geo.cells import CellTable, nearest_neighbours
from geopak.geo.region import Region

if TYPE_CHECKING:
    import pandas as pd

# Names that a column may have, the most likely first; compared without case and punctuation.
COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "cell_id": ("cell_id", "global_cell_id", "global_id", "geocell_id", "cell", "geocell", "id"),
    "province": ("province", "province_name", "prov"),
    "province_id": ("province_id", "province_idx", "province_index", "prov_id"),
    "latitude": (
        "center_lat", "center_latitude", "latitude", "lat", "centroid_lat", "lat_center",
        "cell_center_lat", "centre_lat", "centroid_latitude",
    ),
    "longitude": (
        "center_lon", "center_longitude", "longitude", "lon", "lng", "center_lng", "centroid_lon",
        "lon_center", "cell_center_lon", "centre_lon", "centroid_lng", "centroid_longitude",
    ),
    "radius_km": ("radius_km", "cell_radius_km", "max_radius_km", "radius"),
    "count": (
        "count", "num_photos", "num_images", "num_samples", "num_points", "image_count",
        "photo_count", "sample_count", "point_count", "n_images", "n_samples", "n_points",
        "images", "samples", "cluster_size", "size", "n",
    ),
}  # fmt: skip
# A table may lack these; of the two columns of provinces it needs one.
_OPTIONAL = ("count", "province", "province_id")


@dataclass(frozen=True, eq=False)
class CellMetadata:
    """The rows of the table, by ascending cell id.

    Attributes:
        source: name of the file, for messages.
        cell_id: (N,) int64 ids of the file, each once.
        province_id: (N,) int64 class index in the region.
        center_latlon_deg: (N, 2) float64 degrees, latitude first.
        radius_km: (N,) float64.
        count: (N,) int64 photos of each cell; ``None``: the file does not say.
    """

    source: str
    cell_id: NDArray[np.int64]
    province_id: NDArray[np.int64]
    center_latlon_deg: NDArray[np.float64]
    radius_km: NDArray[np.float64]
    count: NDArray[np.int64] | None = field(default=None)

    @property
    def num_cells(self) -> int:
        return len(self.cell_id)

    def table(self, order: NDArray[np.int64], region: Region) -> CellTable:
        """The cells as ours, in another order.

        What the file does not tell is derived or marked: neighbours are the nearest cells of the
        province, a cell without a count has one photo, and none is urban.

        Args:
            order: (N,) row of this table per cell, grouped by province in index order.
            region: gives every province's minimum, below which a cell is sparse.
        """
        province_id, center = self.province_id[order], self.center_latlon_deg[order]
        num = len(order)
        count = np.ones(num, np.int64) if self.count is None else self.count[order]
        minimum = np.array([p.min_cluster_size for p in region.provinces])[province_id]
        return CellTable(
            province_id=province_id,
            center_latlon_deg=center,
            radius_km=self.radius_km[order],
            count=count,
            urban=np.zeros(num, bool),
            sparse=np.zeros(num, bool) if self.count is None else count < minimum,
            neighbours=nearest_neighbours(center, province_id),
        )


def read_cell_metadata(
    path: str | Path, region: Region, columns: Mapping[str, str | None]
) -> CellMetadata:
    """Reads the table.

    Args:
        path: CSV with a header; other columns than those of :data:`COLUMN_NAMES` are not looked at.
        region: its names, keys and aliases say which province a cell is in.
        columns: name of the column for some of the keys of :data:`COLUMN_NAMES`; ``None``: found.

    Raises:
        CheckpointError: no such file, a column that is missing, or a value that cannot be; names
            file, column and line.
    """
    import pandas as pd

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No table of cells at {path}.")
    try:
        frame = pd.read_csv(path, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' errors are of the latter
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be read as CSV: {reason}") from error
    if frame.empty:
        raise CheckpointError(f"{path} has no cells.")
    found = _find_columns(path, [str(name) for name in frame.columns], columns)
    cell_id = _whole_numbers(path, frame, found["cell_id"])
    if len(twice := cell_id[pd.Series(cell_id).duplicated()]):
        raise CheckpointError(f"{path}: {found['cell_id']} {twice[0]} is there twice.")
    center = np.stack(
        [
            _numbers(path, frame, found["latitude"], -90, 90),
            _numbers(path, frame, found["longitude"], -180, 180),
        ],
        axis=1,
    )
    radius_km = _numbers(path, frame, found["radius_km"], 0, 1e5)
    counts = _whole_numbers(path, frame, found["count"]) if "count" in found else None
    order = np.argsort(cell_id)
    return CellMetadata(
        source=path.name,
        cell_id=cell_id[order],
        province_id=_provinces(path, frame, found, region)[order],
        center_latlon_deg=center[order],
        radius_km=radius_km[order],
        count=None if counts is None else counts[order],
    )


def with_photos(cells: CellTable, photos: pd.DataFrame, region: Region) -> CellTable:
    """The cells with what the train photos of a prepared set say of them.

    Args:
        cells: gives the cells their places.
        photos: ``latitude, longitude, cell_id, split``, cells by their number in ``cells``.
        region: gives the urban rule and the minima.

    Returns:
        Counts of train photos, which may be 0; ``urban`` where at least half of them are in town.
    """
    from geopak.geo.urban import urban_points

    train = photos[photos["split"] == "train"]
    in_cell = train["cell_id"].to_numpy(np.int64)
    count = np.bincount(in_cell, minlength=cells.num_cells)
    in_town = urban_points(train[["latitude", "longitude"]].to_numpy(float), region.urban)
    towns = np.bincount(in_cell[in_town], minlength=cells.num_cells)
    minimum = np.array([p.min_cluster_size for p in region.provinces])[cells.province_id]
    urban = (count > 0) & (2 * towns >= count)
    return replace(cells, count=count.astype(np.int64), urban=urban, sparse=count < minimum)


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _find_columns(path: Path, names: list[str], wanted: Mapping[str, str | None]) -> dict[str, str]:
    """The file's column of each key of :data:`COLUMN_NAMES`, where it has one."""
    by_folded = {_folded(name): name for name in reversed(names)}
    found: dict[str, str] = {}
    problems: list[str] = []
    for key, usual in COLUMN_NAMES.items():
        if (named := wanted.get(key)) is not None:
            if named in names:
                found[key] = named
            else:
                problems.append(f"columns.{key}={named} is none of them")
            continue
        candidates = [by_folded[_folded(name)] for name in usual if _folded(name) in by_folded]
        if candidates:
            found[key] = candidates[0]
        elif key not in _OPTIONAL:
            problems.append(f"none is called {', '.join(usual[:4])} or the like: columns.{key}=…")
    if not problems and not {"province", "province_id"} & found.keys():
        problems.append("none is called province or province_id: columns.province=…")
    if problems:
        raise CheckpointError(
            f"{path} has the columns {', '.join(names)}; {'; '.join(problems)}. Say which column "
            "is which."
        )
    return found


def _line(row: Any) -> int:
    """The line of the file that a row is in, where no field has line breaks."""
    return int(row) + 2


def _numbers(
    path: Path, frame: pd.DataFrame, column: str, least: float, most: float
) -> NDArray[np.float64]:
    import pandas as pd

    values: NDArray[np.float64] = pd.to_numeric(frame[column], errors="coerce").to_numpy(float)
    wrong = np.flatnonzero(~((values >= least) & (values <= most)))
    if len(wrong):
        raise CheckpointError(
            f"{path} line {_line(wrong[0])}: {column}={frame[column].iloc[wrong[0]]} is not a "
            f"number between {least:g} and {most:g}."
        )
    return values


def _whole_numbers(path: Path, frame: pd.DataFrame, column: str) -> NDArray[np.int64]:
    values = _numbers(path, frame, column, 0, 2**53)
    broken = np.flatnonzero(values != np.floor(values))
    if len(broken):
        raise CheckpointError(
            f"{path} line {_line(broken[0])}: {column}={values[broken[0]]:g} is not a whole number."
        )
    return values.astype(np.int64)


def _provinces(
    path: Path, frame: pd.DataFrame, found: Mapping[str, str], region: Region
) -> NDArray[np.int64]:
    """(N,) class index by the name, and by the number where there is no name."""
    number = None
    if "province_id" in found:
        number = _whole_numbers(path, frame, found["province_id"])
        if (over := np.flatnonzero(number >= region.num_provinces)).size:
            raise CheckpointError(
                f"{path} line {_line(over[0])}: {found['province_id']}={number[over[0]]}, but "
                f"{region.title} has {region.num_provinces} provinces."
            )
    if "province" not in found:
        assert number is not None
        return number
    names = frame[found["province"]]
    index_of = {}
    for row, name in names.drop_duplicates().items():
        try:
            index_of[name] = region.index_of(name)
        except RegionError as error:
            raise CheckpointError(f"{path} line {_line(row)}: {error}") from error
    by_name = names.map(index_of).to_numpy(np.int64)
    if number is not None and (other := np.flatnonzero(number != by_name)).size:
        row = other[0]
        raise CheckpointError(
            f"{path} line {_line(row)}: {names.iloc[row]} has {found['province_id']} "
            f"{number[row]}, but is province {by_name[row]} of {region.title}. Choose the region= "
            "whose provinces are in the order of the file."
        )
    return by_name
