"""A trained model, read from its checkpoint, with its calibration."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from geopak.build import build_model
from geopak.calibration import FORMAT as CALIBRATION_FORMAT
from geopak.calibration import KEY as CALIBRATION
from geopak.calibration import Calibration, weights_fingerprint
from geopak.checkpoint import (
    WithoutInitialisation,
    load_state,
    model_state,
    read_checkpoint,
    with_choices,
)
from geopak.errors import CheckpointError
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.models.geolocator import Geolocator
from geopak.options import options
from geopak.schema.training import DecodingOptions


@dataclass
class Trained:
    """A model from a checkpoint, ready to predict.

    Attributes:
        model: in eval mode.
        region, cells, outlines: what its classes mean.
        decoding: the options that it was validated with.
        phase: index and title of the phase that made it.
        path: the checkpoint.
        config: of its training.
        calibration: of ``geopak.calibrate``, where the checkpoint has one.
        identity: all that the checkpoint carries beside weights, as it was read.
    """

    model: Geolocator
    region: Region
    cells: CellTable
    outlines: Outlines
    decoding: DecodingOptions
    phase: dict[str, Any]
    path: Path
    config: dict[str, Any]
    calibration: Calibration | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


def load_trained(
    path: str | Path, device: str | torch.device = "cpu", calibration: bool = True
) -> Trained:
    """Rebuilds a model from its checkpoint alone.

    Args:
        path: the checkpoint.
        device: for the model.
        calibration: load what ``geopak.calibrate`` has found, too.

    Raises:
        CheckpointError: not a checkpoint of geopak, a broken one, or one whose calibration is of
            other weights.
    """
    checkpoint = read_checkpoint(path)
    identity = checkpoint["geopak"]
    region = Region.from_dict(identity["region"])
    cells = CellTable.from_dict(identity["cells"])
    with WithoutInitialisation():
        model = build_model(identity["model"], region, cells)
    load_state(model, checkpoint, path)
    model.province_head.temperature = identity["province_temperature"]
    return Trained(
        model=model.to(device).eval(),
        region=region,
        cells=cells,
        outlines=Outlines.from_dict(identity["outlines"]),
        decoding=options(DecodingOptions, identity["decoding"], "decoding"),
        phase=identity["phase"],
        path=Path(path),
        config=identity["config"],
        calibration=_calibration(checkpoint, path, device) if calibration else None,
        identity=identity,
    )


def answers_fingerprint(trained: Trained) -> str:
    """Tells a model from one that answers otherwise: weights, choices, decoding, calibration."""
    calibration = trained.calibration
    parts = (
        weights_fingerprint(trained.model.state_dict()),
        with_choices(trained.identity["model"]),
        vars(trained.decoding),
        calibration and [calibration.province_temperature, calibration.cell_temperature],
    )
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _calibration(
    checkpoint: Mapping[str, Any], path: str | Path, device: str | torch.device
) -> Calibration | None:
    """What ``geopak.calibrate`` has left in a checkpoint.

    Raises:
        CheckpointError: it was made of other weights, or by a later version.
    """
    stored = checkpoint["geopak"].get(CALIBRATION)
    if stored is None:
        return None
    again = f"Make it anew: python -m geopak.calibrate ckpt={path}"
    if stored.get("format") != CALIBRATION_FORMAT:
        raise CheckpointError(
            f"{path} has a calibration of format {stored.get('format')}, this version of geopak "
            f"reads {CALIBRATION_FORMAT}. {again}"
        )
    calibration = Calibration.from_dict(stored)
    if calibration.fitted_on["weights"] != weights_fingerprint(model_state(checkpoint)):
        raise CheckpointError(
            f"{path} has a calibration of other weights than it holds: it says nothing of this "
            f"model. {again}"
        )
    return dataclasses.replace(calibration, familiarity=calibration.familiarity.to(device))
