"""The loss terms against loops in plain Python, and how they make the total."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from geopak.errors import ConfigError
from geopak.geo.cells import CellTable
from geopak.geo.distance import haversine_km_array
from geopak.geo.region import Region
from geopak.losses import (
    GeolocationLoss,
    LossOptions,
    effective_number_weights,
    soft_cell_labels,
)
from geopak.schema.training import LOSS_TERMS
from geopak.types import Batch, ModelOutput

MakeBatch = Callable[..., Batch]
MakeOutput = Callable[..., ModelOutput]


def naive_soft_labels(cells: CellTable, region: Region) -> np.ndarray:
    """(N, N) q(k | k*) by a double loop."""
    q = np.zeros((cells.num_cells, cells.num_cells))
    for true in range(cells.num_cells):
        tau_km = region.provinces[cells.province_id[true]].tau_km
        for k in range(cells.num_cells):
            if k == true or k in cells.neighbours[true]:
                a, b = cells.center_latlon_deg[[true, k]]
                q[true, k] = math.exp(-float(haversine_km_array(a, b)) / tau_km)
        q[true] /= q[true].sum()
    return q


@pytest.fixture
def loss(region: Region, cells: CellTable) -> GeolocationLoss:
    return GeolocationLoss(region, cells, LossOptions())


def test_soft_labels_are_those_of_a_double_loop(cells: CellTable, region: Region) -> None:
    cell_id, q = soft_cell_labels(cells, torch.tensor([p.tau_km for p in region.provinces]))
    assert cell_id.shape == q.shape == (44, 9)
    dense = torch.zeros(44, 44).scatter_add_(1, cell_id, q)
    np.testing.assert_allclose(dense, naive_soft_labels(cells, region), atol=1e-6)
    torch.testing.assert_close(q.sum(1), torch.ones(44))
    assert (q[:, 0] == q.max(1).values).all()
    # Never a cell of another province.
    province = torch.from_numpy(cells.province_id)
    assert (province[cell_id] == province[:, None]).all()


def test_a_tiny_tau_makes_hard_labels_and_a_huge_one_even_ones(cells: CellTable) -> None:
    _, hard = soft_cell_labels(cells, torch.full((3,), 1e-3))
    torch.testing.assert_close(hard[:, 0], torch.ones(44))
    _, even = soft_cell_labels(cells, torch.full((3,), 1e9))
    number = 1 + (torch.from_numpy(cells.neighbours) >= 0).sum(1)
    torch.testing.assert_close(even[:, 0], 1 / number)


def test_cell_term_is_the_mean_kl_divergence_of_a_loop(
    loss: GeolocationLoss,
    cells: CellTable,
    region: Region,
    make_batch: MakeBatch,
    make_output: MakeOutput,
) -> None:
    batch, output = make_batch(24), make_output(24)
    q = naive_soft_labels(cells, region)
    expected = []
    for i, true in enumerate(batch["cell_id"].tolist()):
        kl = 0.0
        for k in range(cells.num_cells):
            if q[true, k] > 0:
                kl += q[true, k] * (math.log(q[true, k]) - float(output.cell_log_prob[i, k]))
        expected.append(kl)
    assert float(loss.cell(output, batch)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_cell_term_is_zero_where_the_model_says_the_soft_label(
    loss: GeolocationLoss,
    cells: CellTable,
    region: Region,
    make_batch: MakeBatch,
    make_output: MakeOutput,
) -> None:
    batch, output = make_batch(24), make_output(24)
    q = torch.from_numpy(naive_soft_labels(cells, region)).float()
    output.cell_log_prob = (q[batch["cell_id"]] + 1e-12).log()
    assert float(loss.cell(output, batch)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999])
def test_class_weights_are_the_inverse_effective_numbers_of_mean_one(beta: float) -> None:
    counts = [65221, 8459, 5344, 4410, 2379, 3627, 1075, 1]
    weights = effective_number_weights(torch.tensor(counts), beta)
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    expected = [w / (sum(raw) / len(raw)) for w in raw]
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)
    assert float(weights.mean()) == pytest.approx(1)


def test_province_term_weighs_by_the_train_counts_of_the_cells(
    loss: GeolocationLoss, cells: CellTable, make_batch: MakeBatch, make_output: MakeOutput
) -> None:
    count = [int(cells.count[cells.province_id == p].sum()) for p in range(3)]
    raw = [0.001 / (1 - 0.999**n) for n in count]
    weight = [3 * w / sum(raw) for w in raw]
    assert loss.class_weight.tolist() == pytest.approx(weight, rel=1e-5)
    batch, output = make_batch(10), make_output(10)
    total = norm = 0.0
    for logits, p in zip(output.province_logits, batch["province_id"].tolist(), strict=True):
        total += weight[p] * -float(logits.double().log_softmax(-1)[p])
        norm += weight[p]
    assert float(loss.province(output, batch)) == pytest.approx(total / norm, rel=1e-5)


@pytest.mark.parametrize("ramp", [0.0, 0.2, 1.0])
def test_the_total_is_the_weighted_sum_and_the_shares_sum_to_one(
    region: Region, cells: CellTable, make_batch: MakeBatch, make_output: MakeOutput, ramp: float
) -> None:
    options = LossOptions(
        province=0.7, cell=1.3, offset=0.9, auxiliary=0.2, offset_scale_km=20, auxiliary_scale_km=50
    )
    batch, output = make_batch(10), make_output(10)
    located = batch["latlon_deg"] + 0.1
    value = GeolocationLoss(region, cells, options)(output, batch, located, ramp)
    truth = batch["latlon_deg"].double()
    offset_km = haversine_km_array(located.double(), truth).mean()
    auxiliary_km = haversine_km_array(output.aux_latlon_deg.double(), truth).mean()
    assert float(value.terms["offset"]) == pytest.approx(offset_km, rel=1e-4)
    assert float(value.terms["auxiliary"]) == pytest.approx(auxiliary_km, rel=1e-4)
    parts = {
        "province": 0.7 * float(value.terms["province"]),
        "cell": 1.3 * float(value.terms["cell"]),
        "offset": ramp * 0.9 * offset_km / 20,
        "auxiliary": 0.2 * auxiliary_km / 50,
    }
    assert float(value.total) == pytest.approx(sum(parts.values()), rel=1e-4)
    assert sum(float(s) for s in value.shares.values()) == pytest.approx(1)
    for name, part in parts.items():
        assert float(value.shares[name]) == pytest.approx(part / sum(parts.values()), abs=1e-4)
    assert not any(s.requires_grad for s in value.shares.values())


def test_a_phase_without_a_term_does_not_compute_it(
    region: Region, cells: CellTable, make_batch: MakeBatch, make_output: MakeOutput
) -> None:
    loss = GeolocationLoss(region, cells, LossOptions(), ("province",))
    value = loss(make_output(6), make_batch(6), None, 1.0)
    assert value.terms.keys() == value.shares.keys() == {"province"}
    assert float(value.total) == pytest.approx(0.5 * float(value.terms["province"]))


def test_gradients_are_finite_when_the_offset_is_exact(
    loss: GeolocationLoss, make_batch: MakeBatch, make_output: MakeOutput
) -> None:
    batch, output = make_batch(6), make_output(6)
    leaves = [output.province_logits, output.cell_log_prob, output.aux_latlon_deg]
    output.aux_latlon_deg.copy_(batch["latlon_deg"])
    located = batch["latlon_deg"].clone()
    for leaf in (*leaves, located):
        leaf.requires_grad_()
    loss(output, batch, located, 1.0).total.backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in (*leaves, located))


def test_constants_of_the_loss_are_not_stored_in_checkpoints(loss: GeolocationLoss) -> None:
    assert not loss.state_dict()
    assert {name for name, _ in loss.named_buffers()} >= {"class_weight", "soft_q"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        *(({term: -0.1}, rf"loss\.{term} must not be negative") for term in LOSS_TERMS),
        ({"offset_scale_km": 0.0}, r"loss\.offset_scale_km must be positive"),
        ({"auxiliary_scale_km": -1.0}, r"loss\.auxiliary_scale_km must be positive"),
        ({"class_weight_beta": 1.0}, r"loss\.class_weight_beta must be in"),
        ({"class_weight_beta": -0.1}, r"loss\.class_weight_beta must be in"),
    ],
)
def test_options_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LossOptions(**setting)


def test_a_province_with_one_cell_has_a_certain_label(region: Region, cells: CellTable) -> None:
    alone = dataclasses.replace(cells, neighbours=np.full_like(cells.neighbours, -1))
    _, q = soft_cell_labels(alone, torch.ones(3))
    assert q.tolist() == [[1.0] + [0.0] * 8] * 44


def test_hard_labels_make_the_cell_term_the_cross_entropy(
    region: Region, cells: CellTable, make_batch: MakeBatch, make_output: MakeOutput
) -> None:
    loss = GeolocationLoss(region, cells, LossOptions(soft_labels=False))
    batch, output = make_batch(24), make_output(24)
    expected = [
        -float(output.cell_log_prob[i, true]) for i, true in enumerate(batch["cell_id"].tolist())
    ]
    assert float(loss.cell(output, batch)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_cell_term_of_the_region_is_the_kl_divergence_over_all_cells(
    region: Region, cells: CellTable, make_batch: MakeBatch, make_output: MakeOutput
) -> None:
    loss = GeolocationLoss(region, cells, LossOptions(cell_target="region"))
    batch, output = make_batch(24), make_output(24)
    q = naive_soft_labels(cells, region)
    provinces = output.province_logits.double().softmax(-1)
    expected = []
    for i, true in enumerate(batch["cell_id"].tolist()):
        kl = 0.0
        for k in range(cells.num_cells):
            if q[true, k] > 0:
                province = float(provinces[i, cells.province_id[k]])
                log_p = math.log(province) + float(output.cell_log_prob[i, k])
                kl += q[true, k] * (math.log(q[true, k]) - log_p)
        expected.append(kl)
    assert float(loss.cell(output, batch)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_a_weight_of_zero_takes_a_term_out(
    region: Region, cells: CellTable, make_batch: MakeBatch, make_output: MakeOutput
) -> None:
    loss = GeolocationLoss(region, cells, LossOptions(offset=0, auxiliary=0))
    value = loss(make_output(6), make_batch(6), None, 1.0)
    assert value.terms.keys() == value.shares.keys() == {"province", "cell"}
    with pytest.raises(ConfigError, match=r"nothing to learn from: loss\.province=0"):
        GeolocationLoss(region, cells, LossOptions(province=0), ("province",))
