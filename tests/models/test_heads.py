"""Fusion and heads: bounds, normalisation, starts, temperature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geopak.models.fusion import GatedFusion, Projection
from geopak.models.heads import AuxiliaryHead, CellHeads, ProvinceHead, bounded_offset_km

components = st.floats(-(2.0**60), 2.0**60, width=32) | st.floats(-20, 20, width=32)


def bounded(north: float, east: float, bound_km: float = 50.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The bounded vector, and the Jacobian of the bound there."""
    free = torch.tensor([north, east])

    def function(v: torch.Tensor) -> torch.Tensor:
        return bounded_offset_km(v, torch.tensor(bound_km))

    return function(free), torch.autograd.functional.jacobian(function, free)


@given(components, components, st.floats(0.125, 500, width=32))
def test_an_offset_stays_inside_its_bound_and_its_gradient_finite(
    north: float, east: float, bound_km: float
) -> None:
    offset, jacobian = bounded(north, east, bound_km)
    assert float(offset.norm()) < bound_km
    assert jacobian.isfinite().all()


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_an_offset_keeps_its_direction_and_grows_with_the_free_vector(
    north: float, east: float
) -> None:
    free = torch.tensor([north, east]).double()
    bound = torch.tensor(7.0).double()
    offset, longer = bounded_offset_km(free, bound), bounded_offset_km(1.1 * free, bound)
    assert float(offset[0] * free[1]) == pytest.approx(float(offset[1] * free[0]), abs=1e-9)
    assert float(offset @ free) >= 0
    assert float(longer.norm()) >= float(offset.norm())


@pytest.mark.parametrize("length", [0.0, 1.0, 10.0, 100.0])
def test_an_offset_learns_in_every_direction_however_far_outside(length: float) -> None:
    _, jacobian = bounded(length, 0.0)
    assert float(jacobian[0, 0]) > 0  # along the vector: a tanh is flat here from 10 on
    assert float(jacobian[1, 1]) > 0  # across


def test_a_small_free_vector_is_taken_in_units_of_the_bound() -> None:
    offset, jacobian = bounded(0.0, 0.0)
    assert offset.tolist() == [0, 0]
    torch.testing.assert_close(jacobian, 50 * torch.eye(2))


@pytest.mark.parametrize("value", [0.0, 1e-6, 300.0, 60_000.0])
def test_half_precision_neither_overflows_nor_divides_by_zero(value: float) -> None:
    free = torch.full((3, 2), value, dtype=torch.float16, requires_grad=True)
    offset = bounded_offset_km(free, torch.full((3,), 20.0))
    offset.sum().backward()
    assert offset.dtype == torch.float32
    assert free.grad is not None
    assert free.grad.isfinite().all()
    assert (offset.norm(dim=-1) < 20).all()
    if value > 1:
        assert (offset.norm(dim=-1) > 19.9).all()


def test_a_bound_of_zero_leaves_no_offset() -> None:
    offset, jacobian = bounded(3.0, -4.0, 0.0)
    assert (offset == 0).all()
    assert (jacobian == 0).all()


def test_each_bound_is_that_of_its_own_row() -> None:
    free = 1e3 * torch.randn(4, 5, 2)
    bound = torch.linspace(1, 20, 20).view(4, 5)
    torch.testing.assert_close(
        bounded_offset_km(free, bound).norm(dim=-1), bound, rtol=1e-3, atol=0
    )


def test_cells_are_normalised_within_every_province() -> None:
    numbers = (1, 3, 40)
    heads = CellHeads(16, numbers, 8, 12, large_from=30)
    for parameter in heads.parameters():
        nn.init.normal_(parameter, std=2)
    log_prob = heads(torch.randn(5, 16))
    assert log_prob.shape == (5, 44)
    for part in log_prob.split(numbers, dim=1):
        torch.testing.assert_close(part.exp().sum(1), torch.ones(5))


def test_cell_heads_widen_from_the_configured_number_of_cells() -> None:
    heads = CellHeads(16, (29, 30), 8, 12, large_from=30)
    assert [head[0].out_features for head in heads.heads] == [8, 12]  # type: ignore[index]


@torch.no_grad()
def test_cells_start_near_uniform_within_their_province() -> None:
    torch.manual_seed(0)
    log_prob = CellHeads(64, (10, 50), 32, 64, large_from=30)(torch.randn(200, 64))
    for part, n in zip(log_prob.split((10, 50), dim=1), (10, 50), strict=True):
        assert (part.exp() * n - 1).abs().max() < 0.5
    for name, parameter in CellHeads(64, (100,), 256, 256, 30).heads[0][-1].named_parameters():
        if name == "bias":
            assert (parameter == 0).all()
        else:
            assert float(parameter.std()) == pytest.approx(0.01, rel=0.05)


def test_temperature_divides_the_province_logits() -> None:
    head = ProvinceHead(16, 8, num_provinces=3, dropout=0.1, temperature=1.0).eval()
    fused = torch.randn(4, 16)
    at_one = head(fused)
    head.temperature = 1.2
    torch.testing.assert_close(head(fused), at_one / 1.2)


def test_the_auxiliary_coordinate_starts_in_the_middle_of_the_region() -> None:
    torch.manual_seed(0)
    center, scale = torch.tensor([30.0, 70.0]), torch.tensor([3.0, 4.0])
    head = AuxiliaryHead(512, 256, center, scale)
    position = head(torch.randn(100, 512))
    assert ((position - center).abs() < scale).all()


@torch.no_grad()
def test_fusion_is_the_mean_of_both_embeddings_weighted_by_the_gate() -> None:
    fusion = GatedFusion(8, gate_bias=-0.4)
    nn.init.normal_(fusion.gate.weight, std=1)
    semantic, scene = torch.randn(2, 5, 8)
    fused, alpha = fusion(semantic, scene)
    weight, bias = fusion.gate.weight[0], fusion.gate.bias[0]
    for i in range(5):
        logit = float(weight[:8] @ semantic[i] + weight[8:] @ scene[i] + bias)
        expected = 1 / (1 + math.exp(-logit))
        assert float(alpha[i]) == pytest.approx(expected, abs=1e-6)
        torch.testing.assert_close(fused[i], expected * scene[i] + (1 - expected) * semantic[i])


@torch.no_grad()
def test_the_gate_starts_by_trusting_the_semantic_encoder() -> None:
    torch.manual_seed(0)
    fusion = GatedFusion(512, gate_bias=-0.4)
    _, alpha = fusion(torch.randn(200, 512), torch.randn(200, 512))
    assert float(alpha.mean()) == pytest.approx(1 / (1 + math.exp(0.4)), abs=0.02)
    assert float(fusion.gate.weight.std()) == pytest.approx(0.01, rel=0.1)


def test_a_projection_is_linear_norm_gelu() -> None:
    projection = Projection(6, 4)
    assert [type(layer) for layer in projection] == [nn.Linear, nn.LayerNorm, nn.GELU]
    assert projection(torch.randn(3, 6)).shape == (3, 4)
