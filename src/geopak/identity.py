"""What a checkpoint carries beside weights: enough to predict from it alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from geopak import __version__
from geopak.checkpoint import FORMAT, model_description, with_choices
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.schema.training import DecodingOptions, Phase

if TYPE_CHECKING:
    from omegaconf import DictConfig


def model_identity(
    model_config: Mapping[str, Any],
    region: Region,
    cells: CellTable,
    outlines: Outlines,
    phase: Phase,
    decoding: DecodingOptions,
    config: dict[str, Any],
) -> dict[str, Any]:
    """What a checkpoint carries beside weights: enough to predict from it alone."""
    description = model_description(model_config) | {
        "name": model_config["name"],
        "fusion": with_choices(model_config)["fusion"],
    }
    return {
        "format": FORMAT,
        "version": __version__,
        "region": region.to_dict() | {"boundaries": None},
        "cells": cells.to_dict(),
        "outlines": outlines.to_dict(),
        "phase": {"index": phase.index, "title": phase.title},
        "province_temperature": phase.province_temperature,
        "model": description,
        "decoding": dataclasses.asdict(decoding),
        "config": config,
    }


def portable_config(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as composed, without what is true on one machine only."""
    from omegaconf import OmegaConf

    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    for key in ("paths", "init_from", "resume_from", "rerun"):
        config.pop(key, None)
    for section, keys in (
        ("data", ("root", "prepared", "shards")),
        ("region", ("boundaries", "towns")),
    ):
        for key in keys:
            config[section].pop(key, None)
    for encoder in ("semantic", "scene"):
        config["model"][encoder].pop("checkpoint", None)
    return config
