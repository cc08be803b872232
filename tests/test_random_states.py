"""Random states come back from a checkpoint's plain containers."""

from __future__ import annotations

import io
import random

import numpy as np
import torch

from geopak.random_states import random_state, set_random_state

CPU = torch.device("cpu")


def draw() -> tuple[list[float], list[float], list[float]]:
    numpy_draws = np.random.normal(size=3)  # noqa: NPY002
    return torch.rand(3).tolist(), numpy_draws.tolist(), [random.gauss(0, 1) for _ in range(3)]


def test_a_state_that_was_saved_draws_the_same_again() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        # An odd number of normal draws leaves one in store.
        draw()
        file = io.BytesIO()
        torch.save(random_state(CPU), file)
        expected = draw()
        draw()
        file.seek(0)
        set_random_state(torch.load(file, weights_only=True), CPU)
        assert draw() == expected
