"""From the record of a validation pass to the numbers, figures and table of the dashboard."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import wandb
from numpy.typing import NDArray
from PIL import Image

from geopak.data.datamodule import GeopakDataModule
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.report.evaluation_figures import draw_confusion, draw_error_map
from geopak.report.photo_figures import choose_rows, thumbnail
from geopak.tracking.record import CellUsage, ValidationRecord

GATE = "val/gate/all"
GATE_OF_PROVINCE = "val/gate/province/{key}"
CELLS_PREDICTED = "val/cells/predicted"
CELLS_PREDICTED_SHARE = "val/cells/predicted_share"
CELLS_NEVER_PREDICTED = "val/cells/true_never_predicted_share"
CELLS_HISTOGRAM = "val/cells/predictions_per_cell"
CONFUSION = "val/figures/confusion"
ERROR_MAP = "val/figures/error_map"
PHOTOS = "val/photos"

_GATE_BINS = 40
_CELL_BINS = 32
_THUMBNAIL = (224, 168)
_KINDS = {"Smallest errors": "best", "Drawn at random": "random", "Largest errors": "worst"}


def distributions(record: ValidationRecord, region: Region, num_cells: int) -> dict[str, Any]:
    """The gate's weights, overall and per true province, and how the cells are used.

    A province without photos has no entry.
    """
    edges = np.linspace(0, 1, _GATE_BINS + 1)

    def histogram(values: NDArray[np.float64]) -> wandb.Histogram:
        return wandb.Histogram(np_histogram=np.histogram(values, edges))

    panels: dict[str, Any] = {GATE: histogram(record.gate)}
    for index, province in enumerate(region.provinces):
        of_province = record.gate[record.province_id == index]
        if len(of_province):
            panels[GATE_OF_PROVINCE.format(key=province.key)] = histogram(of_province)
    usage = CellUsage.of(record, num_cells)
    panels[CELLS_PREDICTED] = usage.num_predicted
    panels[CELLS_PREDICTED_SHARE] = usage.share_predicted
    panels[CELLS_NEVER_PREDICTED] = usage.share_never_predicted
    panels[CELLS_HISTOGRAM] = wandb.Histogram(
        np_histogram=np.histogram(usage.predictions, _CELL_BINS)
    )
    return panels


def figures(record: ValidationRecord, region: Region, outlines: Outlines) -> dict[str, Any]:
    """The confusion matrix of the provinces and the map of errors, as pictures."""
    with tempfile.TemporaryDirectory() as folder:
        confusion, error_map = Path(folder, "confusion.png"), Path(folder, "error_map.png")
        draw_confusion(confusion, record.province_id, record.predicted_province_id, region.names)
        draw_error_map(
            error_map,
            record.latlon_deg,
            record.predicted_latlon_deg,
            record.error_km,
            region,
            outlines,
        )
        # Opened, since the folder is gone when W&B takes them.
        return {
            CONFUSION: wandb.Image(_opened(confusion)),
            ERROR_MAP: wandb.Image(_opened(error_map)),
        }


def photo_table(
    record: ValidationRecord, datamodule: GeopakDataModule, region: Region, per_kind: int, seed: int
) -> wandb.Table:
    """Best, worst and random photos with what the model says of them.

    Args:
        record: of the pass.
        datamodule: has the photos.
        region: names the provinces.
        per_kind: photos of each kind.
        seed: of the random ones.
    """
    table = wandb.Table(
        columns=[
            "kind", "photo", "id", "true province", "predicted province", "error km", "true lat",
            "true lon", "predicted lat", "predicted lon", "gate", "hypotheses",
        ]
    )  # fmt: skip
    chosen = choose_rows(record.error_km, per_kind, seed)
    shown = np.concatenate(list(chosen.values()))
    pictures = dict(zip(shown, _pictures(datamodule, record.row[shown]), strict=True))
    cell_province = datamodule.prepared.cells.province_id
    ids = datamodule.prepared.photos["id"]
    for title, photos in chosen.items():
        for i in photos:
            picture = pictures[i]
            (lat, lon), (predicted_lat, predicted_lon) = (
                record.latlon_deg[i].tolist(), record.predicted_latlon_deg[i].tolist(),
            )  # fmt: skip
            hypotheses = "\n".join(
                f"{probability:.1%}  {region.names[cell_province[cell]]}  {at[0]:.3f}, {at[1]:.3f}"
                for probability, cell, at in zip(
                    record.hypothesis_probability[i],
                    record.hypothesis_cell_id[i],
                    record.hypothesis_latlon_deg[i],
                    strict=True,
                )
            )
            table.add_data(
                _KINDS[title],
                None if picture is None else wandb.Image(picture),
                str(ids.iloc[record.row[i]]),
                region.names[record.province_id[i]],
                region.names[record.predicted_province_id[i]],
                float(record.error_km[i]),
                lat,
                lon,
                predicted_lat,
                predicted_lon,
                float(record.gate[i]),
                hypotheses,
            )
    return table


def _pictures(datamodule: GeopakDataModule, rows: NDArray[np.int64]) -> list[Image.Image | None]:
    """Small pictures of photos; ``None`` for one that cannot be read."""
    if datamodule.index is not None:
        # There are shards and perhaps no photo files. They are read in the order of the table.
        order = np.argsort(rows)
        images = datamodule.datasets["val"][rows[order].tolist()]["image"]
        small: list[Image.Image | None] = [None] * len(rows)
        for place, image in zip(order, images, strict=True):
            small[place] = Image.fromarray(image.permute(1, 2, 0).numpy())
        return small
    prepared = datamodule.prepared
    paths = prepared.photos["path"]
    return [thumbnail(prepared.root / paths.iloc[row], _THUMBNAIL) for row in rows]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
