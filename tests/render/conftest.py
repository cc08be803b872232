from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from geopak.cli import compose
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.render.photoset import write_photo_set
from geopak.render.towns import Towns
from geopak.render.world import World

DEFECTS = {
    "wrong_label": 3,
    "outside": 4,
    "swapped": 2,
    "truncated": 5,
    "duplicate": 3,
    "near_duplicate": 2,
}


def shrunk_settings(out: Path, *overrides: str) -> dict[str, Any]:
    """The shipped configuration, shrunk; later overrides win."""
    defects = [f"defects.{kind}={count}" for kind, count in DEFECTS.items()]
    small = ["num_photos=120", "workers=1", "contact_sheet=0", "image.short_side_px=[48,64]"]
    config = compose("synthetic", [f"out={out}", *small, *defects, *overrides])
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return shrunk_settings(tmp_path_factory.mktemp("set") / "set")


@pytest.fixture(scope="session")
def region(settings: dict[str, Any]) -> Region:
    return Region.from_config(settings["region"])


@pytest.fixture(scope="session")
def outlines(region: Region) -> Outlines:
    return Outlines.of_region(region)


@pytest.fixture(scope="session")
def towns(settings: dict[str, Any], region: Region) -> Towns:
    return Towns.read(settings["region"]["towns"], region)


@pytest.fixture(scope="session")
def world(settings: dict[str, Any], region: Region, towns: Towns) -> World:
    return World(region, towns, settings["landscape"])


@pytest.fixture(scope="session")
def photo_set(settings: dict[str, Any]) -> Path:
    """A small set; tests that change files copy it first."""
    return write_photo_set(settings)


@pytest.fixture(scope="session")
def small_settings() -> Callable[..., dict[str, Any]]:
    return shrunk_settings


@pytest.fixture(scope="session")
def defect_counts() -> dict[str, int]:
    return DEFECTS


@pytest.fixture(scope="session")
def read_table() -> Callable[..., pd.DataFrame]:
    def read(out: Path, name: str = "photos.csv") -> pd.DataFrame:
        return pd.read_csv(out / name, dtype={"id": str, "original_id": str}, keep_default_na=False)

    return read
