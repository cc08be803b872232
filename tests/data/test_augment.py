"""Augmentation: what each transform does, that it can be turned off, and what is refused."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from geopak.data.augment import Augmenter
from geopak.errors import ConfigError
from geopak.schema.loading import UNSAFE, Augmentation

SIZE = 32
SAFE = {f.name: f.default for f in fields(Augmentation) if f.name not in UNSAFE}
OFF: dict[str, Any] = {name: None if name.startswith("crop") else 0 for name in SAFE}
STRONG: dict[str, Any] = {
    "crop_scale": [0.3, 0.5],
    "crop_ratio": [1.2, 1.5],
    "brightness": 0.5,
    "contrast": 0.5,
    "saturation": 0.9,
    "gamma": 0.5,
    "fog": 1.0,
    "rain": 1.0,
    "overcast": 1.0,
    "blur": 1.0,
    "noise": 0.2,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(num: int = 8, size: int = SIZE, seed: int = 0) -> Tensor:
    """Smooth coloured uint8 pictures."""
    coarse = torch.rand((num, 3, 5, 5), generator=generator(seed))
    smooth = functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)
    return (255 * smooth).round().to(torch.uint8)


def only(**settings: Any) -> Augmenter:
    return Augmenter(SIZE, OFF | settings)


@pytest.mark.parametrize("size", [SIZE, 37, 64])
@pytest.mark.parametrize("seed", range(5))
def test_a_batch_comes_out_at_the_models_size_and_range(size: int, seed: int) -> None:
    image = torch.randint(0, 256, (6, 3, size, size), dtype=torch.uint8, generator=generator(seed))
    out = Augmenter(SIZE, STRONG)(image, generator(seed))
    assert out.shape == (6, 3, SIZE, SIZE)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1


def test_bytes_and_floats_are_augmented_alike() -> None:
    image, augmenter = photos(), Augmenter(SIZE)
    as_float = image.float() / 255
    both = augmenter(image, generator()), augmenter(as_float, generator())
    torch.testing.assert_close(*both, rtol=0, atol=1e-5)
    assert torch.equal(image, photos())
    assert torch.equal(as_float, photos().float() / 255)


@pytest.mark.parametrize("size", [SIZE, 37])
def test_with_everything_off_it_is_a_plain_resize(size: int) -> None:
    image = photos(size=size)
    plain = functional.interpolate(image.float() / 255, (SIZE, SIZE), mode="bilinear")
    torch.testing.assert_close(Augmenter(SIZE, OFF)(image, generator()), plain, rtol=0, atol=2e-4)
    whole = Augmenter(SIZE, OFF | {"crop_scale": [1, 1], "crop_ratio": [1, 1]})
    torch.testing.assert_close(whole(image, generator()), plain, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", SAFE)
def test_each_setting_alone_changes_every_picture_in_its_own_way(name: str) -> None:
    image = photos(16)
    changed = (only(**{name: STRONG[name]})(image, generator()) - image.float() / 255).abs()
    strength = changed.mean((1, 2, 3))
    assert (strength > 1e-3).all()
    assert len({round(float(s), 7) for s in strength}) == 16


def test_the_generator_is_the_only_source_of_randomness() -> None:
    image, augmenter = photos(), Augmenter(SIZE, STRONG)
    state = torch.get_rng_state()
    first = augmenter(image, generator(3))
    torch.manual_seed(99)
    assert torch.equal(augmenter(image, generator(3)), first)
    assert not torch.equal(augmenter(image, generator(4)), first)
    torch.set_rng_state(state)
    augmenter(image, generator(3))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_safe_setting_mirrors_or_turns_a_picture() -> None:
    ramp = torch.linspace(0.2, 0.8, SIZE)
    left_to_right = ramp.expand(64, 3, SIZE, SIZE)
    top_to_bottom = left_to_right.transpose(2, 3)
    settings = SAFE | {"fog": 0, "noise": 0, "rain": 0}
    for image, axis in ((left_to_right, 3), (top_to_bottom, 2)):
        out = Augmenter(SIZE, settings)(image, generator())
        first, second = out.chunk(2, dim=axis)
        assert (second.mean((1, 2, 3)) > first.mean((1, 2, 3)) + 0.02).all()
        # And the other axis stays level: no tilt of the horizon.
        level = out.transpose(2, 3) if axis == 3 else out
        assert float(level.std(3).max()) < 0.02


def test_a_crop_shows_the_share_of_the_picture_that_it_says() -> None:
    rows = torch.linspace(0, 1, 128)
    picture = torch.stack((rows.expand(128, 128), rows.expand(128, 128).T, torch.ones(128, 128)))
    out = only(crop_scale=[0.25, 0.25])(picture.expand(200, -1, -1, -1), generator())
    # The half-side crop spans half the ramp of either axis, wherever it lies.
    across = out[:, 0].mean(1)
    down = out[:, 1].mean(2)
    for span in (across, down):
        width = (span[:, -1] - span[:, 0]) * SIZE / (SIZE - 1)
        torch.testing.assert_close(width, torch.full((200,), 0.5), rtol=0, atol=0.01)
        assert float(span[:, 0].min()) < 0.05
        assert float(span[:, -1].max()) > 0.95
        assert float(span.mean()) == pytest.approx(0.5, abs=0.04)


def test_fog_whitens_the_far_top_more_than_the_near_bottom() -> None:
    out = only(fog=1.0)(torch.full((32, 3, SIZE, SIZE), 0.3), generator())
    rows = out.mean((1, 3))
    assert (rows[:, 0] > rows[:, -1] + 0.05).all()
    assert (rows.diff(dim=1) < 0).all()
    assert (rows > 0.3).all()


def test_overcast_dims_and_greys() -> None:
    image = photos(16).float() / 255
    out = only(overcast=1.0)(image, generator())
    bright = torch.full((16, 3, SIZE, SIZE), 0.7)
    assert (only(overcast=1.0)(bright, generator()).mean((1, 2, 3)) < 0.7).all()
    assert (out.std(1).mean((1, 2)) < image.std(1).mean((1, 2))).all()


def test_rain_streaks_run_downwards_and_are_lighter_than_what_they_cross() -> None:
    dark = torch.full((16, 3, SIZE, SIZE), 0.2)
    out = only(rain=1.0)(dark, generator())
    assert (out.amax((1, 2, 3)) > 0.25).all()
    along = out.diff(dim=2).abs().mean()
    across = out.diff(dim=3).abs().mean()
    assert float(along) < 0.7 * float(across)


def test_blur_softens_and_keeps_the_brightness() -> None:
    sharp = torch.rand((8, 3, SIZE, SIZE), generator=generator(1))
    out = only(blur=1.0)(sharp, generator())
    assert (out.std((2, 3)) < 0.95 * sharp.std((2, 3))).all()
    torch.testing.assert_close(out.mean((2, 3)), sharp.mean((2, 3)), rtol=0, atol=0.01)


def test_noise_is_of_the_configured_strength_at_the_most() -> None:
    grey = torch.full((64, 3, SIZE, SIZE), 0.5)
    spread = only(noise=0.1)(grey, generator()).std((1, 2, 3))
    assert float(spread.max()) < 0.11
    assert float(spread.max()) > 0.08
    assert float(spread.min()) < 0.02


def test_colour_jitter_moves_both_ways_within_its_strength() -> None:
    grey = torch.full((500, 3, 4, 4), 0.5)
    level = Augmenter(4, OFF | {"brightness": 0.2})(grey, generator()).mean((1, 2, 3)) / 0.5
    assert 0.8 <= float(level.min()) < 0.82
    assert 1.18 < float(level.max()) <= 1.2
    colour = photos(200)
    spread = only(saturation=0.5)(colour, generator()).std(1).mean((1, 2))
    ratio = spread / (colour.float() / 255).std(1).mean((1, 2))
    assert 0.45 < float(ratio.min()) < 0.6
    assert 1.3 < float(ratio.max()) < 1.55
    torch.testing.assert_close(
        only(saturation=0.5)(grey[:, :, :1, :1].expand(-1, -1, SIZE, SIZE), generator()),
        torch.full((500, 3, SIZE, SIZE), 0.5),
    )


def test_a_probability_is_the_share_of_photos_that_it_happens_to() -> None:
    image = torch.full((1000, 3, 4, 4), 0.3)
    out = Augmenter(4, OFF | {"fog": 0.3})(image, generator())
    share = ((out - image).abs().amax((1, 2, 3)) > 1e-4).float().mean()
    assert float(share) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(("name", "reason"), UNSAFE.items())
def test_an_unsafe_transform_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not geography-safe: {reason}.*allow_unsafe"):
        Augmenter(SIZE, {name: 0.5})
    Augmenter(SIZE, {name: 0})
    Augmenter(SIZE, {name: None})


def test_a_permitted_flip_mirrors() -> None:
    image = photos()
    flip = Augmenter(SIZE, OFF | {"horizontal_flip": 1.0}, allow_unsafe=True)
    expected = image.flip(3).float() / 255
    torch.testing.assert_close(flip(image, generator()), expected, rtol=0, atol=2e-4)
    half = Augmenter(SIZE, OFF | {"horizontal_flip": 0.5}, allow_unsafe=True)(
        photos(1).expand(200, -1, -1, -1), generator()
    )
    mirrored = (half - expected[:1]).abs().amax((1, 2, 3)) < 1e-3
    assert float(mirrored.float().mean()) == pytest.approx(0.5, abs=0.12)


def test_a_permitted_rotation_turns_the_horizon() -> None:
    image = torch.linspace(0, 1, SIZE).view(-1, 1).expand(200, 3, SIZE, SIZE)
    turn = Augmenter(SIZE, OFF | {"rotation": 30}, allow_unsafe=True)
    middle = turn(image, generator())[:, 0, 12:20, 12:20]
    down = (middle[:, -1] - middle[:, 0]).mean(1)
    across = (middle[:, :, -1] - middle[:, :, 0]).mean(1)
    angle = torch.rad2deg(torch.atan2(across, down))
    assert 27 < float(angle.abs().max()) <= 30.5
    assert float(angle.min()) < -25
    assert float(angle.max()) > 25
    # A rotation keeps lengths.
    slope = torch.hypot(across, down)
    torch.testing.assert_close(slope, torch.full_like(slope, 7 / 31), rtol=0.02, atol=0)


def test_a_permitted_perspective_bends() -> None:
    image = photos()
    warp = Augmenter(SIZE, OFF | {"perspective": 1.0}, allow_unsafe=True)
    out = warp(image, generator())
    assert out.isfinite().all()
    assert ((out - image.float() / 255).abs().mean((1, 2, 3)) > 0.005).all()


def test_an_unknown_transform_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"data\.augmentation\.brightnes .*'brightness'"):
        Augmenter(SIZE, {"brightnes": 0.2})
    with pytest.raises(ConfigError, match=r"horizontal_flips .*'horizontal_flip'"):
        Augmenter(SIZE, {"horizontal_flips": 0.2})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop_scale", [0.0, 1.0]),
        ("crop_scale", [0.9, 0.5]),
        ("crop_scale", [0.5, 1.1]),
        ("crop_scale", 0.5),
        ("crop_scale", [0.5]),
        ("crop_ratio", [-1.0, 1.0]),
        ("brightness", -0.1),
        ("fog", 1.5),
        ("fog", "often"),
        ("noise", float("nan")),
        ("gamma", [0.1, 0.2]),
    ],
)
def test_a_strength_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.augmentation\.{name}="):
        Augmenter(SIZE, {name: value})
