"""Scenes and circumstances drawn from broad priors, independent of any place."""

from __future__ import annotations

import math

import numpy as np

from geopak.render.scene import (
    LANDMARKS,
    MAX_BANDS,
    RGB,
    ROOFS,
    SKYLINE_TERMS,
    TREES,
    VEHICLES,
    WATERS,
    WEATHERS,
    Camera,
    Scene,
    hsv,
    mix,
)

WEATHER_SHARES = (0.45, 0.2, 0.15, 0.12, 0.08)


def random_camera(rng: np.random.Generator, difficulty: float) -> Camera:
    """Circumstances of a photo, all their spreads in proportion to ``difficulty`` (0: none)."""
    d = difficulty
    n = rng.standard_normal(8)
    weather = WEATHERS[int(rng.choice(len(WEATHERS), p=WEATHER_SHARES))]
    return Camera(
        horizon=0.46 + float(np.clip(0.06 * d * n[0], -0.16, 0.16)),
        roll=0.04 * d * float(n[1]),
        zoom=math.exp(float(np.clip(0.16 * d * n[2], -0.35, 0.45))),
        gain=math.exp(0.12 * d * float(n[3])),
        white_balance=(
            math.exp(0.035 * d * float(n[4])),
            math.exp(0.035 * d * float(n[5])),
            math.exp(0.035 * d * float(n[6])),
        ),
        gamma=math.exp(0.12 * d * float(n[7])),
        clutter=int(rng.poisson(2.0 * d)),
        daylight=1.0 - min(1.0, d) * float(rng.beta(1.0, 2.2)),
        weather=weather if rng.random() < min(1.0, d / 0.75) else "clear",
        noise=4.0 * d,
    )


def random_scene(rng: np.random.Generator, difficulty: float) -> Scene:
    """A scene whose parameters are drawn from broad priors, independent of any place.

    Args:
        rng: source of all randomness.
        difficulty: scale of the camera's nuisance, as for :func:`random_camera`.
    """

    def uniform(low: float = 0.0, high: float = 1.0) -> float:
        return float(rng.uniform(low, high))

    def one_of(names: tuple[str, ...], shares: tuple[float, ...] | None = None) -> str:
        return names[int(rng.choice(len(names), p=shares))]

    def paint() -> RGB:
        return hsv(uniform(), uniform(0.1, 0.95), uniform(0.3, 0.98))

    density = uniform() if rng.random() < 0.65 else 0.0
    relief = uniform() if rng.random() < 0.6 else uniform(0.0, 0.15)
    vegetation = uniform()
    soil = hsv(uniform(0.03, 0.16), uniform(0.1, 0.6), uniform(0.4, 0.92))
    green = hsv(uniform(0.17, 0.42), uniform(0.25, 0.85), uniform(0.25, 0.75))
    if density > 0.4 and rng.random() < 0.7:
        ground = "paving"
    else:
        ground = one_of(("grass", "crops", "soil") if vegetation > 0.45 else ("soil", "sand"))
    return Scene(
        relief=relief,
        skyline=tuple(float(c) for c in rng.standard_normal(SKYLINE_TERMS)),
        jagged=uniform(),
        snow=uniform(0.15, 0.8) if relief > 0.3 and rng.random() < 0.45 else 0.0,
        ridge_rgb=mix(mix(soil, hsv(0.6, 0.1, 0.5), uniform(0.0, 0.6)), green, vegetation * 0.7),
        soil_rgb=soil,
        vegetation_rgb=green,
        vegetation=vegetation,
        ground=ground,
        row_slant=uniform(),
        row_spacing=uniform(),
        water=one_of(WATERS, (0.76, 0.12, 0.12)),
        density=density,
        wall_rgb=hsv(uniform(), uniform(0.02, 0.65), uniform(0.4, 0.97)),
        roof_rgb=paint(),
        stripe_rgb=paint(),
        plinth_rgb=paint(),
        roof=one_of(ROOFS),
        glazing=uniform(),
        stripes=uniform(),
        windows=uniform(),
        plinth=uniform(),
        awning=bool(rng.random() < 0.7),
        awning_rgb=paint(),
        awning_trim_rgb=paint(),
        tree=one_of(TREES),
        tree_rgb=mix(green, hsv(uniform(0.15, 0.45), uniform(0.2, 0.8), uniform(0.2, 0.7)), 0.6),
        tree_size=uniform(),
        trees=uniform(),
        kerb_rgb=paint(),
        kerb_trim_rgb=paint(),
        flags=uniform(),
        flag_rgb=paint(),
        vehicle=one_of(VEHICLES),
        vehicle_rgb=paint(),
        vehicle_trim_rgb=paint(),
        landmark=one_of(LANDMARKS),
        landmark_rgb=paint(),
        landmark_trim_rgb=paint(),
        landmark_height=uniform(),
        landmark_width=uniform(),
        landmark_bands=int(rng.integers(MAX_BANDS + 1)),
        landmark_flanks=int(rng.integers(3)),
        camera=random_camera(rng, difficulty),
    )
