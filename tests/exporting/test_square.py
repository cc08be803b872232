"""The square in operations of ONNX is that of the loader, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.data.images import load_image
from geopak.exporting.square import square_of
from geopak.schema.model import CROP, FRAMINGS, SQUEEZE

SIDES = st.integers(1, 90)


def check(height: int, width: int, size: int, framing: str, seed: int = 0) -> None:
    photo = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = square_of(torch.from_numpy(photo)[None], size, framing)
    assert found.shape == (1, 3, size, size)
    assert torch.equal(found[0], load_image(photo, size, framing).float())


@given(SIDES, SIDES, st.sampled_from([8, 32, 64]), st.sampled_from(FRAMINGS), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_a_square_is_the_loaders(
    height: int, width: int, size: int, framing: str, seed: int
) -> None:
    check(height, width, size, framing, seed)


# Sums of large photos have more bits than float32: in float32 each of these has pixels beside.
@pytest.mark.parametrize("framing", [CROP, SQUEEZE])
@pytest.mark.parametrize("shape", [(2000, 3000), (1501, 2000), (1, 4001), (30, 2500)])
def test_photos_of_cameras_too(shape: tuple[int, int], framing: str) -> None:
    check(*shape, 64, framing)
    check(*shape[::-1], 64, framing)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize(("height", "width"), [(301, 3), (300, 3), (101, 1), (2500, 5), (90, 1)])
def test_strips_too(height: int, width: int, framing: str) -> None:
    for size in (64, 100, 101, 102):
        check(height, width, size, framing)
        check(width, height, size, framing)


def test_photos_of_a_batch_do_not_touch_each_other() -> None:
    photos = torch.randint(0, 256, (3, 40, 56, 3), dtype=torch.uint8)
    for framing in FRAMINGS:
        together = square_of(photos, 32, framing)
        for k in range(3):
            assert torch.equal(together[k], square_of(photos[k : k + 1], 32, framing)[0])
