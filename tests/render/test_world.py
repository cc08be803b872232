from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from geopak.cli import compose
from geopak.errors import ConfigError
from geopak.geo.region import Province, Region
from geopak.render.scene_drawing import draw
from geopak.render.towns import Towns
from geopak.render.world import ProvinceStyle, World, WorldConfig


def scene_at(world: World, lat: float, lon: float, seed: int = 0, difficulty: float = 0.0) -> Any:
    return world.scene(lat, lon, 0, np.random.default_rng(seed), difficulty)


def other_country() -> tuple[Region, Towns]:
    region = Region(
        "elsewhere", "Elsewhere", (Province("north", "North"), Province("south", "South"))
    )
    towns = Towns(
        name=("a", "b", "c"),
        latlon_deg=np.array([[-10.0, -60.0], [-12.0, -61.0], [-14.0, -60.5]]),
        population=np.array([1e6, 1e5, 1e4]),
        province_id=np.array([0, 1, 1]),
    )
    return region, towns


@pytest.mark.parametrize("field", ["elevation_m", "aridity", "density", "skyline"])
def test_fields_are_smooth(world: World, field: str) -> None:
    rng = np.random.default_rng(0)
    here = np.stack((rng.uniform(25, 36, 200), rng.uniform(63, 75, 200)), 1)
    values = getattr(world, field)(here)
    near = getattr(world, field)(here + 0.002)
    far = getattr(world, field)(here + 1.5)
    scale = np.ptp(values)
    assert scale > 0
    assert np.abs(near - values).max() < 0.12 * scale
    assert np.abs(near - values).mean() < 0.1 * np.abs(far - values).mean()


def test_style_waves_have_their_wavelengths(world: World) -> None:
    line = np.stack((np.full(400, 28.0), np.linspace(66.0, 72.0, 400)), 1)
    regional, local = world.style_waves(line)
    assert regional.shape == (400, 14)
    assert local.shape == (400, 10)
    assert min(regional.min(), local.min()) >= 0
    assert max(regional.max(), local.max()) <= 1
    change = [np.abs(np.diff(waves, axis=0)).mean() for waves in (regional, local)]
    assert change[1] > 4 * change[0]


def test_landmarks_are_shared_by_a_tile_and_told_apart_within(world: World) -> None:
    rng = np.random.default_rng(1)
    kinds, details = [], []
    for _ in range(60):
        lat, lon = rng.uniform(26, 34), rng.uniform(66, 73)
        a = scene_at(world, lat, lon)
        near, beyond = scene_at(world, lat + 0.005, lon), scene_at(world, lat + 0.1, lon)
        kinds.append((a.landmark_rgb == near.landmark_rgb, a.landmark_rgb == beyond.landmark_rgb))
        details.append(a.landmark_trim_rgb == beyond.landmark_trim_rgb)
    same_near, same_beyond = np.mean(kinds, axis=0)
    assert same_near > 0.9
    assert 0.3 < same_beyond < 0.9
    assert np.mean(details) == 0


def test_geography_shows(world: World) -> None:
    peaks, plain, coast = (35.9, 75.4), (28.5, 69.0), (24.8, 66.99)
    assert scene_at(world, *peaks).snow > 0
    assert scene_at(world, *peaks).relief > 0.8
    assert scene_at(world, *plain).relief < 0.3
    seas = [scene_at(world, *coast, seed=k).water == "sea" for k in range(40)]
    assert np.mean(seas) > 0.3
    assert scene_at(world, 24.86, 67.01).density > 0.8
    assert scene_at(world, 28.0, 63.0).density < 0.1


def test_scenes_repeat_and_vary(world: World) -> None:
    assert scene_at(world, 31.5, 74.3, 4, 1.0) == scene_at(world, 31.5, 74.3, 4, 1.0)
    assert scene_at(world, 31.5, 74.3, 4, 1.0) != scene_at(world, 31.5, 74.3, 5, 1.0)


def test_any_other_country_works(settings: dict[str, Any]) -> None:
    region, towns = other_country()
    landscape = OmegaConf.to_container(compose("synthetic", ["landscape=derived"]).landscape)
    assert isinstance(landscape, dict)
    world = World(region, towns, landscape)  # type: ignore[arg-type]
    assert world.styles[0] != world.styles[1]
    assert np.isinf(world.coast_km([[-10.0, -60.0]])).all()
    for province in (0, 1):
        scene = world.scene(-10.5, -60.2, province, np.random.default_rng(0), 0.75)
        assert draw(scene, 64, 64, np.random.default_rng(0)).std() > 10
    with pytest.raises(ConfigError, match="landscape=derived"):
        World(region, towns, settings["landscape"])


def test_derived_styles_depend_on_seed_and_key_alone() -> None:
    assert ProvinceStyle.derive(0, "a") == ProvinceStyle.derive(0, "a")
    assert ProvinceStyle.derive(0, "a") != ProvinceStyle.derive(0, "b")
    assert ProvinceStyle.derive(0, "a") != ProvinceStyle.derive(1, "a")


@pytest.mark.parametrize(
    ("styles", "says"),
    [
        ({"norht": {}}, "Did you mean 'north'"),
        ({"north": {"rooof": "flat"}}, "Did you mean 'roof'"),
        ({"north": {"roof": "flatt"}}, "Did you mean 'flat'"),
        ({"north": {"vehicles": ["bus", "jep"]}}, "Did you mean 'jeep'"),
        ({"north": {"roof_rgb": "red"}}, "#rrggbb"),
    ],
)
def test_bad_styles(styles: dict[str, Any], says: str) -> None:
    region, towns = other_country()
    with pytest.raises(ConfigError, match=says):
        World(region, towns, {"styles": styles})


def test_bad_settings() -> None:
    for change in (
        {"local_km": ()},
        {"num_regional": 3},
        {"skyline_tile_km": 0},
        {"awning_share": 1.5},
    ):
        with pytest.raises(ConfigError, match=r"world\."):
            dataclasses.replace(WorldConfig(), **change)
    region, towns = other_country()
    with pytest.raises(ConfigError, match=r"landscape\.relief"):
        World(region, towns, {"relief": [{"at": [1, 2], "hight": 3}]})
