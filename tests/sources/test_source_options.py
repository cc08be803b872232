"""Options of sources: what is shipped in ``conf/source`` is what the dataclasses say."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from omegaconf import OmegaConf

from geopak.options import options
from geopak.schema.sources import SOURCES, options_of


def shipped(name: str) -> dict[str, Any]:
    section = OmegaConf.to_container(OmegaConf.load(f"conf/source/{name}.yaml"))
    assert isinstance(section, dict)
    return section  # type: ignore[return-value]


@pytest.mark.parametrize("name", SOURCES)
def test_conf_has_the_options_of_the_dataclass(name: str) -> None:
    assert set(shipped(name)) == {field.name for field in dataclasses.fields(options_of(name))}


@pytest.mark.parametrize("name", ["flickr", "google_places"])
def test_conf_has_the_defaults_of_the_dataclass(name: str) -> None:
    # Others need the address of their data.
    assert options(options_of(name), shipped(name), "source") == options_of(name)()
