"""Which photos a report shows."""

from __future__ import annotations

import numpy as np
import pytest

from geopak.report.photo_figures import choose_rows


@pytest.mark.parametrize("num", [1, 2, 3, 7, 40])
def test_no_photo_is_shown_twice(num: int) -> None:
    error_km = np.random.default_rng(num).random(num)
    chosen = choose_rows(error_km, per_row=5, seed=0)
    rows = np.concatenate(list(chosen.values()))
    assert len(set(rows)) == len(rows) == min(num, 15) // 3 * 3 or len(rows) <= num < 3
    assert (
        error_km[chosen["Smallest errors"]].max()
        == np.sort(error_km)[len(chosen["Smallest errors"]) - 1]
    )
