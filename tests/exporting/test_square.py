"""The square in operations of ONNX is that of the loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.data.images import load_image
from geopak.exporting.square import square_of

SIDES = st.integers(1, 90)


def both(height: int, width: int, size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    photo = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = square_of(torch.from_numpy(photo)[None], size)
    assert found.shape == (1, 3, size, size)
    return found[0], load_image(photo, size).float()


@given(SIDES, SIDES, st.sampled_from([8, 32, 64]), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_square_is_the_loaders(height: int, width: int, size: int, seed: int) -> None:
    found, expected = both(height, width, size, seed)
    if (height + width) % 2 == 0:
        assert torch.equal(found, expected)
    else:
        # Pillow's sums have more bits: ties may fall to either side.
        assert (found - expected).abs().max() <= 1
        assert (found != expected).float().mean() < 0.5


@pytest.mark.parametrize(("height", "width"), [(600, 800), (801, 600), (224, 224)])
def test_large_photos_too(height: int, width: int) -> None:
    found, expected = both(height, width, 224, 1)
    assert (found - expected).abs().max() <= (height + width) % 2
    assert (found != expected).float().mean() < 0.01


def test_photos_of_a_batch_do_not_touch_each_other() -> None:
    photos = torch.randint(0, 256, (3, 40, 56, 3), dtype=torch.uint8)
    together = square_of(photos, 32)
    for k in range(3):
        assert torch.equal(together[k], square_of(photos[k : k + 1], 32)[0])
