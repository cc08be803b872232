"""Ablation tables: intervals and verdicts from first principles, and what a reader sees."""

from __future__ import annotations

import json
import math

import pytest

from geopak.errors import GeopakError
from geopak.report.ablations import (
    BEGIN,
    END,
    Variant,
    markdown,
    seed_interval,
    summarize,
    with_block,
)

CONTEXT = {
    "num_train": 7000, "num_val": 800, "num_test": 1172, "num_cells": 173, "num_provinces": 7,
    "model": "tiny", "phases": [0, 1], "epochs": [8, 20], "seeds": [0, 1, 2], "version": "1.0",
    "photos_sha256": "ab" * 32, "split": "test",
}  # fmt: skip
# Student's t at 97.5% with two degrees of freedom, from a printed table.
T_OF_TWO = 4.303


def values(*medians: float) -> dict[int, dict[str, float]]:
    return {
        seed: {
            "median_km": median,
            "mean_km": 3 * median,
            "within_25km": 1 / median,
            "province_macro_acc": 0.8,
        }
        for seed, median in enumerate(medians)
    }


def test_the_interval_over_seeds_is_students() -> None:
    low, high = seed_interval([20.0, 23.0, 26.0])
    reach = T_OF_TWO * 3 / math.sqrt(3)
    assert (low, high) == pytest.approx((23 - reach, 23 + reach), rel=1e-3)
    assert seed_interval([20.0]) is None
    assert seed_interval([5.0, 5.0]) == (5, 5)


def test_differences_are_taken_seed_by_seed() -> None:
    # Seeds differ much, the variant little and always the same way.
    full, worse = values(20, 30, 40), values(22, 32.2, 41.8)
    summary = summarize([Variant("full", "", full), Variant("worse", "", worse)], CONTEXT)
    found = summary["variants"]["worse"]["differences"]["median_km"]
    assert list(found["seeds"].values()) == pytest.approx([2, 2.2, 1.8])
    assert found["mean"] == pytest.approx(2)
    reach = T_OF_TWO * 0.2 / math.sqrt(3)
    assert found["interval"] == pytest.approx([2 - reach, 2 + reach], rel=1e-3)
    assert found["verdict"] == "worse"
    assert summary["variants"]["worse"]["metrics"]["median_km"]["mean"] == pytest.approx(32)
    assert "differences" not in summary["variants"]["full"]


@pytest.mark.parametrize(
    ("medians", "verdict"),
    [
        ((22, 32.2, 41.8), "worse"),
        ((18, 28.2, 37.8), "better"),
        ((18, 32, 40), "within noise"),
        ((20, 30, 40), "the same"),
        ((22,), "one seed"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(medians: tuple[float, ...], verdict: str) -> None:
    rows = [Variant("full", "", values(20, 30, 40)), Variant("other", "", values(*medians))]
    found = summarize(rows, CONTEXT)["variants"]["other"]["differences"]
    assert found["median_km"]["verdict"] == verdict
    # Of a share more is better.
    assert found["within_25km"]["verdict"] in (verdict, "within noise")


def test_what_is_the_same_for_every_seed_has_its_interval_over_photos() -> None:
    nearest = Variant("retrieval", "", values(80, 80, 80), {"median_km": (60.0, 110.0)})
    summary = summarize([Variant("full", "", values(20, 30, 40)), nearest], CONTEXT)
    found = summary["variants"]["retrieval"]["metrics"]["median_km"]
    assert (found["interval"], found["interval_over"]) == ([60, 110], "photos")
    assert "80.0 (60.0 to 110.0)†" in markdown(summary)
    # Encoders that each seed trained give each seed its own neighbours.
    other = Variant("retrieval", "", values(80, 81, 82), {"median_km": (60.0, 110.0)})
    summary = summarize([Variant("full", "", values(20, 30, 40)), other], CONTEXT)
    assert summary["variants"]["retrieval"]["metrics"]["median_km"]["interval_over"] == "seeds"


def test_the_table_shows_every_variant_and_leaves_out_what_it_has_no_answer_to() -> None:
    rows = [Variant("full", "The reference.", values(20, 30, 40))]
    without = {s: {k: v for k, v in m.items() if k != "province_macro_acc"}
               for s, m in values(60, 61, 62).items()}  # fmt: skip
    rows += [Variant("regression_only", "A coordinate alone.", without)]
    # A seed that failed is missing in both.
    rows += [Variant("flat_cells", "One softmax.", {0: values(21)[0]})]
    summary = summarize(rows, CONTEXT)
    json.dumps(summary, allow_nan=False)
    text = markdown(summary)
    first, second = text.split("taken seed by seed")
    assert "| full | 30.0 ± 24.8 | 3.6% ± 3.2% | 80.0% ± 0.0% | 90.0 ± 74.5 | The ref" in first
    assert "| regression only | 61.0 ± 2.5 | 1.6% ± 0.1% | – |" in first
    assert "| flat cells | +1.0 one seed | +3.0 one seed | -0.2 pp one seed | +1.0 |" in second
    assert "+40.0, +31.0, +22.0" in second
    assert "1,172 test photos, 7,000 train and 800 val; 173 cells in 7 provinces" in first


def test_a_reference_without_results_is_refused() -> None:
    with pytest.raises(GeopakError, match="reference"):
        summarize([Variant("full", "", {}), Variant("other", "", values(1, 2))], CONTEXT)


def test_only_the_block_of_a_page_is_replaced() -> None:
    page = f"# Title\n\n{BEGIN}\nold \\1\n{END}\n\nReading.\n"
    once = with_block(page, "new \\2\n")
    assert once == f"# Title\n\n{BEGIN}\nnew \\2\n{END}\n\nReading.\n"
    assert with_block(once, "new \\2\n") == once
    for broken in ("no marks", page + page):
        with pytest.raises(GeopakError, match="marks"):
            with_block(broken, "")
