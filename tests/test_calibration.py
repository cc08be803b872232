"""Temperatures, halves of val, honest confidences, and calibrations in checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st

from geopak import calibration as module
from geopak.calibration import (
    KEY,
    Calibration,
    answer_score,
    calibrated,
    calibrated_confidence,
    cell_nll,
    conformal_region,
    fit_confidence,
    fit_temperature,
    halves,
    ids_fingerprint,
    province_nll,
    region_mask,
    seen,
    store,
    tempered_cells,
    weights_fingerprint,
)
from geopak.checkpoint import read_checkpoint, read_matching
from geopak.conformal import ConformalScores, mass_before
from geopak.errors import CheckpointError
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.identity import model_identity
from geopak.models.decode import joint_log_prob
from geopak.models.geolocator import Geolocator
from geopak.schema.training import DecodingOptions
from geopak.selective import Familiarity
from geopak.trained import load_trained
from geopak.types import ModelOutput
from tests.conftest import CELLS_PER_PROVINCE
from tests.test_checkpoint import make_phase

NUM_CELLS = sum(CELLS_PER_PROVINCE)


def make_calibration(
    model: Geolocator | None = None,
    province_temperature: float = 2.0,
    cell_temperature: float = 0.5,
) -> Calibration:
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    dim = 24 + 48 if model is None else 24 + model.feature_dim
    known = torch.randn(60, dim, generator=generator)
    return Calibration(
        province_temperature=province_temperature,
        cell_temperature=cell_temperature,
        confidence_maps={"mean": (0.5, 0.25)},
        confidence_km=25.0,
        cells_per_province=CELLS_PER_PROVINCE,
        cell_area_km2=rng.uniform(1, 1000, NUM_CELLS),
        scores=ConformalScores(rng.random(120), rng.integers(0, 3, 120), rng.integers(0, 30, 120)),
        familiarity=Familiarity.fit(known[:40], known[40:], 8),
        fitted_on={
            "split": "val",
            "ids": ids_fingerprint(["a", "b"]),
            "weights": "" if model is None else weights_fingerprint(model.state_dict()),
        },
    )


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_temperatures_equal_a_naive_grid_search_and_what_was_drawn(
    true: float, make_output: Callable[..., ModelOutput]
) -> None:
    output = make_output(6000, spread=2.0)
    generator = torch.Generator().manual_seed(1)
    honest = dataclasses.replace(
        output,
        province_logits=output.province_logits / true,
        cell_log_prob=tempered_cells(output.cell_log_prob, CELLS_PER_PROVINCE, true),
    )
    province = torch.multinomial(
        honest.province_logits.softmax(-1), 1, generator=generator
    ).squeeze(1)
    start = torch.tensor([0, *np.cumsum(CELLS_PER_PROVINCE)])
    inside = torch.arange(NUM_CELLS)
    mine = (inside >= start[province].unsqueeze(1)) & (inside < start[province + 1].unsqueeze(1))
    cell = torch.multinomial(honest.cell_log_prob.exp() * mine, 1, generator=generator).squeeze(1)
    losses: dict[str, Callable[[float], float]] = {
        "province": lambda t: province_nll(output.province_logits, province, t),
        "cell": lambda t: cell_nll(output.cell_log_prob, cell, CELLS_PER_PROVINCE, t),
    }
    for name, nll in losses.items():
        found = fit_temperature(nll)
        grid = np.geomspace(0.1, 10, 60)
        best = grid[np.argmin([nll(t) for t in grid])]
        assert nll(found) <= nll(best) + 1e-9, name
        assert found == pytest.approx(best, rel=grid[1] / grid[0] - 1), name
        assert found == pytest.approx(true, rel=0.06), name
    # The likelihood of the cell among all is the sum of the two: fitted apart is fitted together.
    joint = joint_log_prob(
        honest, torch.repeat_interleave(torch.arange(3), torch.tensor(CELLS_PER_PROVINCE))
    )
    whole = -float(joint.double().gather(1, cell.unsqueeze(1)).mean())
    assert whole == pytest.approx(losses["province"](true) + losses["cell"](true), abs=1e-5)


def test_a_temperature_without_a_minimum_stays_within_its_bounds() -> None:
    logits = torch.tensor([[3.0, 0.0]] * 20)
    right = fit_temperature(lambda t: province_nll(logits, torch.zeros(20, dtype=torch.long), t))
    wrong = fit_temperature(lambda t: province_nll(logits, torch.ones(20, dtype=torch.long), t))
    # Below, the likelihood is that of certainty to the last digit.
    assert module.LOWEST_TEMPERATURE <= right < 2 * module.LOWEST_TEMPERATURE
    assert wrong == pytest.approx(module.HIGHEST_TEMPERATURE, rel=0.01)


def test_a_calibrated_output_is_normalised_and_changes_nothing_else(
    make_output: Callable[..., ModelOutput],
) -> None:
    output = make_output(5)
    found = calibrated(output, make_calibration())
    assert torch.allclose(found.province_logits, output.province_logits / 2)
    for before, after in zip(
        output.cell_log_prob.split(CELLS_PER_PROVINCE, -1),
        found.cell_log_prob.split(CELLS_PER_PROVINCE, -1),
        strict=True,
    ):
        assert torch.allclose(after.exp(), before.exp() ** 2 / (before.exp() ** 2).sum(-1, True))
    assert found.fused is output.fused
    same = calibrated(output, make_calibration(None, 1.0, 1.0))
    assert torch.allclose(same.cell_log_prob, output.cell_log_prob, atol=1e-6)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=60),
    st.integers(0, 5),
)
def test_halves_keep_groups_together(photo: list[tuple[int, int]], seed: int) -> None:
    group, province = np.array(photo, np.int64).T
    first = halves(group, province, seed)
    for label in np.unique(group):
        assert len(np.unique(first[group == label])) == 1
    assert (halves(group, province, seed) == first).all()
    if len(np.unique(group)) > 1:
        assert 0 < first.sum() < len(first)


def test_halves_are_halves_in_every_province_and_differ_by_seed() -> None:
    rng = np.random.default_rng(0)
    province_of = rng.integers(0, 4, 150)
    group = np.repeat(np.arange(150), rng.integers(1, 8, 150))
    province = province_of[group]
    first = halves(group, province, 0)
    for p in range(4):
        mine = first[province == p]
        assert abs(mine.mean() - 0.5) < 0.03
    assert (halves(group, province, 1) != first).any()
    # Either half may be that of a group: which scores it has decides nothing.
    often = np.mean([halves(group, province, s) for s in range(200)], axis=0)
    assert abs(often - 0.5).max() < 0.2


def test_confidences_become_honest_and_keep_their_order() -> None:
    rng = np.random.default_rng(0)
    claimed = torch.from_numpy(rng.random(20_000))
    true = torch.sigmoid(0.6 * torch.logit(claimed.clamp(0.03, 0.97)) + 0.8)
    within = torch.rand(20_000, generator=torch.Generator().manual_seed(0)).double() < true
    slope, offset = fit_confidence(claimed, within)
    assert (slope, offset) == pytest.approx((0.6, 0.8), abs=0.06)
    maps = dataclasses.replace(make_calibration(), confidence_maps={"mean": (slope, offset)})
    found = calibrated_confidence(claimed, maps, "mean", 25.0)
    for low in (0.2, 0.4, 0.6, 0.8):
        bin_ = (found >= low) & (found < low + 0.1)
        assert within[bin_].double().mean() == pytest.approx(found[bin_].mean().item(), abs=0.03)
    assert (found[claimed.argsort()].diff() >= 0).all()
    assert calibrated_confidence(claimed, maps, "mean", 50.0) is claimed
    assert calibrated_confidence(claimed, maps, "argmax", 25.0) is claimed
    # A naive search finds nothing better.
    odds = torch.logit(claimed, eps=module.SUREST)
    hit = within.double()

    def nll(a: float, b: float) -> float:
        z = a * odds + b
        return float((torch.nn.functional.softplus(z) - hit * z).mean())

    best = min(nll(a, b) for a in np.linspace(0.3, 1, 15) for b in np.linspace(0, 1.5, 16))
    assert nll(slope, offset) <= best + 1e-6


@pytest.mark.parametrize("held", [True, False])
def test_confidences_that_all_held_or_none_are_fitted_all_the_same(held: bool) -> None:
    slope, offset = fit_confidence(torch.linspace(0, 1, 9), torch.full((9,), held))
    found = calibrated_confidence(
        torch.tensor([0.5]),
        dataclasses.replace(make_calibration(), confidence_maps={"mean": (slope, offset)}),
        "mean",
        25.0,
    )
    assert 0.75 < found < 1 if held else 0 < found < 0.25


@pytest.mark.parametrize("per_province", [False, True])
@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_regions_are_sets_of_cells_with_their_ground(
    make_output: Callable[..., ModelOutput], per_province: bool, coverage: float
) -> None:
    calibration = make_calibration()
    province = np.repeat(np.arange(3), CELLS_PER_PROVINCE)
    joint = joint_log_prob(make_output(7), torch.from_numpy(province)).exp()
    found = conformal_region(joint, calibration, coverage, per_province)
    scores = calibration.scores
    for prob, cells, area in zip(
        joint.double().tolist(), found.cell_ids, found.area_km2, strict=True
    ):
        naive, before = [], 0.0
        for cell in sorted(range(NUM_CELLS), key=lambda k: (-prob[k], k)):
            mine = scores.province_id == province[cell] if per_province else slice(None)
            known = np.sort(scores.score[mine])
            rank = int(np.ceil(round((len(known) + 1) * coverage, 9)))
            if before <= known[rank - 1]:
                naive.append(cell)
            before += prob[cell]
        assert cells == naive
        assert float(area) == pytest.approx(calibration.cell_area_km2[naive].sum())
    mask = region_mask(mass_before(joint), calibration, coverage, per_province)
    assert mask.sum(-1).tolist() == [len(cells) for cells in found.cell_ids]


def test_the_answer_score_is_the_confidence_of_familiar_photos_only(
    make_output: Callable[..., ModelOutput],
) -> None:
    calibration, output = make_calibration(), make_output(40)
    confidence = torch.linspace(0.1, 1, 40)
    assert answer_score(output, confidence, None) is confidence
    score = answer_score(output, confidence, calibration)
    share = calibration.familiarity(seen(output))
    assert torch.allclose(score, confidence * (share / 0.2).clamp(max=1))
    strange = dataclasses.replace(output, features=output.features * 50)
    assert (answer_score(strange, confidence, calibration) <= confidence * 5 / 21 + 1e-6).all()


def test_fingerprints_tell_one_changed_weight_and_one_changed_photo(model: Geolocator) -> None:
    state = model.state_dict()
    before = weights_fingerprint(state)
    assert weights_fingerprint(dict(reversed(state.items()))) == before
    name = next(k for k, v in state.items() if v.dim() == 2)
    for value in (torch.nextafter(state[name][0, 0], torch.tensor(9.0)), -state[name][0, 0]):
        changed = copy.deepcopy(state)
        changed[name][0, 0] = value
        assert weights_fingerprint(changed) != before
    assert ids_fingerprint(["a", "b", "c"]) == ids_fingerprint(["c", "a", "b"])
    assert ids_fingerprint(["a", "b"]) != ids_fingerprint(["a", "c"])


@pytest.fixture
def path(
    model: Geolocator,
    region: Region,
    cells: CellTable,
    model_config: dict[str, Any],
    tmp_path: Path,
) -> Path:
    """A checkpoint of phase 1, without calibration."""
    outlines = Outlines(tuple(shapely.box(60 + i, 25, 61 + i, 26) for i in range(3)))
    content = {
        "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()},
        "geopak": model_identity(
            model_config, region, cells, outlines, make_phase(1), DecodingOptions(), {"seed": 0}
        ),
        "epoch": 3,
        "optimizer_states": [{"state": {0: torch.ones(3)}}],
    }
    torch.save(content, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def test_a_checkpoint_keeps_everything_and_gains_a_calibration(
    path: Path, model: Geolocator, region: Region, cells: CellTable, model_config: dict[str, Any]
) -> None:
    before = read_checkpoint(path)
    assert load_trained(path).calibration is None
    calibration = make_calibration(model)
    store(calibration, path, path)
    after = read_checkpoint(path)
    assert after["geopak"].pop(KEY)["province_temperature"] == 2.0
    assert list(path.parent.iterdir()) == [path]
    torch.testing.assert_close(after["state_dict"], before["state_dict"])
    torch.testing.assert_close(after["optimizer_states"], before["optimizer_states"])
    assert after["geopak"].keys() == before["geopak"].keys()
    found = load_trained(path).calibration
    assert found is not None
    ours, theirs = calibration.to_dict(), found.to_dict()
    assert ours.pop("fitted_on") == theirs.pop("fitted_on")
    torch.testing.assert_close(theirs, ours)
    assert load_trained(path, calibration=False).calibration is None
    # A phase can start from it, and a run go on with it.
    read_matching(path, region, cells, model_config, 1)
    again = make_calibration(model, province_temperature=3.0)
    store(again, path, path)
    assert load_trained(path).calibration is not None
    assert read_checkpoint(path)["geopak"][KEY]["province_temperature"] == 3.0


def test_a_calibration_of_other_weights_or_another_format_is_refused(
    path: Path, model: Geolocator
) -> None:
    store(make_calibration(model), path, path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["model.province_head.layers.0.bias"] += 0.01
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"other weights.*geopak\.calibrate ckpt="):
        load_trained(path)
    content["geopak"][KEY]["format"] = 99
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="format 99"):
        load_trained(path)
    # It can be calibrated all the same.
    assert load_trained(path, calibration=False).calibration is None


def test_a_checkpoint_that_changed_or_cannot_be_written_stays_as_it_is(
    path: Path, model: Geolocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))
    bytes_before = path.read_bytes()
    with pytest.raises(CheckpointError, match="written anew"):
        store(make_calibration(model), path, path, state)
    monkeypatch.setattr(module.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(CheckpointError, match=r"Cannot write.*full.*as it was"):
        store(make_calibration(model), path, path)
    assert path.read_bytes() == bytes_before
    assert list(path.parent.iterdir()) == [path]
