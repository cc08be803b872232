"""A published checkpoint as ours: ``python -m geopak.import_geopak checkpoint=… cells=….csv``."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.errors import CheckpointError

if TYPE_CHECKING:
    from geopak.geo.cells import CellTable
    from geopak.geo.region import Region

log = logging.getLogger(__name__)


def import_geopak(cfg: DictConfig) -> Path:
    """Imports, checks and writes the checkpoint.

    Returns:
        Its path.

    Raises:
        GeopakError: a file that is missing or unsafe, a checkpoint of other classes, sizes or
            provinces, or a table of other cells.
    """
    from geopak.build import build_model, build_region
    from geopak.checkpoint import WithoutInitialisation
    from geopak.checkpoint_io import AtomicCheckpointIO
    from geopak.data.manifest import file_sha256
    from geopak.geo.boundaries import Outlines
    from geopak.identity import model_identity
    from geopak.models.weight_files import read_weight_file
    from geopak.options import options, plain
    from geopak.published.cells import read_cell_metadata
    from geopak.published.weights import (
        arrange,
        imported_cells,
        load_published,
        original_cell_ids,
        province_temperature,
    )
    from geopak.schema.training import DecodingOptions, Phase

    out = Path(cfg.out).expanduser()
    if out.exists() and not cfg.overwrite:
        raise CheckpointError(f"out={out} is there already. Name another, or pass overwrite=true.")
    region = build_region(cfg)
    metadata = read_cell_metadata(cfg.cells, region, plain(cfg.columns))
    state, beside = read_weight_file(cfg.checkpoint)
    source = Path(cfg.checkpoint).name
    layout = arrange(state, metadata, region, source)
    cells = imported_cells(metadata, layout, region)
    model_config = plain(cfg.model)
    with WithoutInitialisation():
        model = build_model(model_config, region, cells)
    unused = load_published(model, state, layout, source)
    counted = metadata.count is not None
    if cfg.prepared is not None:
        cells = _prepare(Path(cfg.prepared), Path(cfg.prepared_out), cells, region, cfg.overwrite)
        counted = True
    if not counted:
        log.warning(
            "warning: %s has no column of photos per cell: each counts as having one, so that the "
            "baselines of a report mean little. Name the column with columns.count=, or let a "
            "prepared set tell, prepared=FOLDER prepared_out=FOLDER.",
            cfg.cells,
        )
    facts = {
        "checkpoint": source,
        "checkpoint_sha256": file_sha256(cfg.checkpoint),
        "cells": metadata.source,
        "cells_sha256": file_sha256(cfg.cells),
        "counts": counted,
    }
    phase = options(Phase, plain(cfg.phase), "phase")
    temperature = province_temperature(beside, phase.province_temperature, source)
    phase = dataclasses.replace(phase, province_temperature=temperature)
    config = {key: plain(cfg[key]) for key in ("region", "model", "decoding", "phase")}
    config["phase"]["province_temperature"] = temperature
    for encoder in ("semantic", "scene"):
        config["model"][encoder].pop("checkpoint")
    for key in ("boundaries", "towns"):
        config["region"].pop(key, None)
    identity = model_identity(
        model_config,
        region,
        cells,
        Outlines.of_region(region),
        phase,
        options(DecodingOptions, plain(cfg.decoding), "decoding"),
        config | {"imported": facts},
    )
    identity["phase"]["title"] = "imported"
    # Their number of each of our cells, to look one up.
    identity["imported"] = facts | {"cell_id": original_cell_ids(metadata, layout)}
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    AtomicCheckpointIO().save_checkpoint({"state_dict": weights, "geopak": identity}, out)
    if unused:
        log.info("left out, no prediction needs it: %s", ", ".join(_summary(unused)))
    log.info("%d cells of %d provinces: %s", cells.num_cells, region.num_provinces, out)
    return out


def _summary(keys: list[str]) -> list[str]:
    """The modules that weights and biases belong to, each once, and all other keys."""
    parts = [key.rpartition(".") for key in keys]
    is_of_module = [bool(module) and leaf in ("weight", "bias") for module, _, leaf in parts]
    named = zip(keys, parts, is_of_module, strict=True)
    return list(dict.fromkeys(module if whole else key for key, (module, _, _), whole in named))


def _prepare(
    prepared: Path, out: Path, cells: CellTable, region: Region, overwrite: bool
) -> CellTable:
    """Writes a prepared set with other cells, and returns the cells with its counts."""
    import json
    import shutil

    import numpy as np

    from geopak.data.atomic import replaced_folder
    from geopak.data.dataset import PreparedSet
    from geopak.errors import PreparedSetError
    from geopak.published.cells import with_photos

    if out.resolve() == prepared.resolve():
        raise PreparedSetError("prepared_out= must be another folder than prepared=.")
    if out.exists() and not overwrite:
        raise PreparedSetError(
            f"prepared_out={out} is there already. Name another, or pass overwrite=true."
        )
    photos = PreparedSet.read(prepared, prepared.parent, region).photos.copy()
    photos["cell_id"] = cells.nearest(
        photos[["latitude", "longitude"]].to_numpy(float), photos["province_id"].to_numpy(np.int64)
    )
    cells = with_photos(cells, photos, region)
    photos["urban"] = cells.urban[photos["cell_id"].to_numpy()]
    train = photos["split"] == "train"
    lacking = set(range(region.num_provinces)) - set(photos["province_id"][train])
    if lacking:
        names = ", ".join(region.names[index] for index in sorted(lacking))
        raise PreparedSetError(f"{prepared} has no train photos in {names}.")
    with replaced_folder(out) as folder:
        photos.to_parquet(folder / "photos.parquet", index=False)
        rejected = prepared / "rejected.parquet"
        if rejected.is_file():
            shutil.copyfile(rejected, folder / rejected.name)
        cells.write(folder, region)
        origin = {"prepared": prepared.name, "cells": "imported", "num_cells": cells.num_cells}
        (folder / "imported.json").write_text(json.dumps(origin) + "\n", encoding="utf-8")
    log.info("%s with the imported cells: %s", prepared, out)
    return cells


@entry_point("import_geopak")
def main(cfg: DictConfig) -> Path:
    return import_geopak(cfg)


if __name__ == "__main__":
    main()
