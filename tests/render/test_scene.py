from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
import pytest

from geopak.render import scene as module
from geopak.render import scene_drawing, scene_prior, scene_targets
from geopak.render.scene import Camera
from geopak.render.scene_drawing import draw, skyline_heights
from geopak.render.scene_prior import random_camera, random_scene
from geopak.render.scene_targets import CATEGORIES, KINDS, content_targets, scene_kind


def scenes(count: int, difficulty: float = 0.75) -> list[module.Scene]:
    return [random_scene(np.random.default_rng([5, k]), difficulty) for k in range(count)]


def test_same_seed_same_picture_and_sizes_are_free() -> None:
    for width, height in ((64, 64), (90, 60), (61, 97)):
        for scene in scenes(5):
            first = draw(scene, width, height, np.random.default_rng(1))
            again = draw(scene, width, height, np.random.default_rng(1))
            assert first.shape == (height, width, 3)
            assert first.dtype == np.uint8
            np.testing.assert_array_equal(first, again)


def test_pictures_are_neither_uniform_nor_alike() -> None:
    pictures = [draw(s, 64, 48, np.random.default_rng(k)) for k, s in enumerate(scenes(40))]
    assert min(p.std() for p in pictures) > 10
    small = np.array([p[::8, ::8].astype(float).ravel() for p in pictures])
    distance = np.abs(small[:, None] - small[None]).mean(-1)
    assert distance[~np.eye(len(small), dtype=bool)].min() > 5


def test_scenes_are_drawn_without_coordinates() -> None:
    assert list(inspect.signature(random_scene).parameters) == ["rng", "difficulty"]
    names = {f.name for f in dataclasses.fields(module.Scene)}
    assert not {n for n in names if "lat" in n.split("_") or "lon" in n.split("_")}
    for part in (module, scene_drawing, scene_prior, scene_targets):
        source = inspect.getsource(part)
        assert "geopak.geo" not in source
        assert "pakistan" not in source.lower()


def test_targets_have_the_same_keys_and_stay_in_range() -> None:
    drawn = scenes(200)
    keys = [tuple(part) for part in content_targets(drawn[0])]
    for scene in drawn:
        numbers, classes = content_targets(scene)
        assert [tuple(numbers), tuple(classes)] == keys
        for name, value in numbers.items():
            assert math.isnan(value) or name.startswith("skyline") or 0 <= value <= 1, name
        for name, index in classes.items():
            assert -1 <= index < len(CATEGORIES[name]), name
        assert CATEGORIES["kind"][classes["kind"]] == scene_kind(scene)


def test_absent_things_have_no_colour() -> None:
    scene = dataclasses.replace(scenes(1)[0], vehicle="none", landmark="none", density=0.0)
    numbers, classes = content_targets(scene)
    for name in ("vehicle_r", "landmark_g", "wall_b", "awning_r", "windows", "landmark_height"):
        assert math.isnan(numbers[name]), name
    assert classes["landmark_bands"] == classes["roof"] == -1
    assert classes["vehicle"] == 0


def test_every_kind_of_scene_occurs() -> None:
    kinds = [scene_kind(s) for s in scenes(600)]
    counts = {kind: kinds.count(kind) for kind in KINDS}
    assert min(counts.values()) >= 6, counts


@pytest.mark.parametrize(
    "thing", ["wall_rgb", "soil_rgb", "kerb_rgb", "landmark_rgb", "vehicle_rgb"]
)
def test_colours_show_at_model_size(thing: str) -> None:
    plain = dataclasses.replace(
        scenes(1)[0],
        density=0.6,
        ground="soil",
        vegetation=0.1,
        vehicle="bus",
        landmark="fort",
        camera=Camera(noise=0.0),
    )
    red, blue = (
        draw(dataclasses.replace(plain, **{thing: rgb}), 64, 64, np.random.default_rng(3))
        for rgb in ((0.9, 0.1, 0.1), (0.1, 0.1, 0.9))
    )
    assert (red != blue).any(-1).mean() > 0.01


def test_no_difficulty_is_a_plain_clear_day() -> None:
    assert random_camera(np.random.default_rng(0), 0.0) == Camera(noise=0.0)


def test_nuisance_grows_with_difficulty() -> None:
    def spread(difficulty: float) -> float:
        return float(
            np.std([random_camera(np.random.default_rng(k), difficulty).roll for k in range(50)])
        )

    assert spread(1.0) == pytest.approx(2 * spread(0.5))


def test_skyline_is_bounded_and_follows_its_coefficients() -> None:
    u = np.linspace(0, 1, 50)
    flat = skyline_heights((0.0,) * 6, 0.0, u, 0)
    assert np.ptp(flat) < 1e-9
    wild = skyline_heights((2.0, -2.0, 1.5, 1.0, -1.0, 1.0), 1.0, u, 1)
    assert wild.min() >= 0.05
    assert wild.max() <= 1.0
    assert np.ptp(wild) > 0.3
