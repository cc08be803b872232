"""Choices of fusion, cell heads and offset bound against plain restatements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from geopak.build import build_model
from geopak.errors import ConfigError
from geopak.geo.cells import CellTable
from geopak.geo.distance import haversine_km
from geopak.geo.region import Region
from geopak.models.decode import cell_rank, compared_rules, decode, joint_log_prob
from geopak.models.fusion import FUSED_ENCODERS, ConcatFusion, MeanFusion
from geopak.models.geolocator import Geolocator
from geopak.models.heads import FlatHead, clamped_offset_km
from geopak.schema.training import DecodingOptions
from geopak.types import Batch, ModelOutput

MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., Geolocator]


@pytest.fixture
def make_model(model_config: dict[str, Any], region: Region, cells: CellTable) -> MakeModel:
    def make(
        kind: str = "gated", cell_heads: str = "per_province", bound: str = "smooth"
    ) -> Geolocator:
        torch.manual_seed(4)
        config = {**model_config, "cell_heads": cell_heads, "offset": {"bound": bound}}
        config["fusion"] = {"kind": kind, "gate_bias": -0.4}
        return build_model(config, region, cells).eval()

    return make


@torch.no_grad()
def test_mean_fusion_is_half_of_each() -> None:
    semantic, scene = torch.randn(2, 5, 8)
    fused, gate = MeanFusion()(semantic, scene)
    for i in range(5):
        for j in range(8):
            expected = (float(semantic[i, j]) + float(scene[i, j])) / 2
            assert float(fused[i, j]) == pytest.approx(expected, abs=1e-6)
    assert gate.tolist() == [0.5] * 5


@torch.no_grad()
def test_concat_fusion_is_linear_norm_gelu_of_both_in_order() -> None:
    fusion = ConcatFusion(8)
    linear, norm, gelu = fusion.projection
    assert isinstance(linear, nn.Linear)
    assert (linear.in_features, linear.out_features) == (16, 8)
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(gelu, nn.GELU)
    semantic, scene = torch.randn(2, 5, 8)
    fused, gate = fusion(semantic, scene)
    mixed = semantic @ linear.weight[:, :8].T + scene @ linear.weight[:, 8:].T + linear.bias
    centred = mixed - mixed.mean(-1, keepdim=True)
    normal = centred / torch.sqrt(mixed.var(-1, unbiased=False, keepdim=True) + 1e-5)
    expected = normal * 0.5 * (1 + torch.erf(normal / math.sqrt(2)))
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-4)
    assert gate.tolist() == [0.5] * 5


@pytest.mark.parametrize("kind", FUSED_ENCODERS)
@torch.no_grad()
def test_only_the_encoders_that_are_fused_run_and_cached_features_say_the_same(
    make_model: MakeModel, make_batch: MakeBatch, kind: str
) -> None:
    model = make_model(kind)
    ran = []
    for name in ("semantic", "scene"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    image = make_batch(4)["image"]
    output = model(image)
    assert tuple(ran) == FUSED_ENCODERS[kind]
    # A cache holds the features of both, so that every kind shares it.
    cached = model.embed(image)
    assert ran[len(FUSED_ENCODERS[kind]) :] == ["semantic", "scene"]
    again = model.heads(cached)
    for name, value in vars(output).items():
        assert torch.equal(value, vars(again)[name]), name
    expected = {"mean": 0.5, "concat": 0.5, "semantic": 0.0, "scene": 1.0}
    if kind in expected:
        assert output.gate.tolist() == [expected[kind]] * 4


@torch.no_grad()
def test_a_single_encoders_embedding_passes_unchanged(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    image = make_batch(4)["image"]
    for kind in ("semantic", "scene"):
        model = make_model(kind)
        projection = model.get_submodule(f"{kind}_projection")
        expected = projection(model.get_submodule(kind)(image))
        torch.testing.assert_close(model(image).fused, expected)
        left_out = "scene" if kind == "semantic" else "semantic"
        assert getattr(model, f"{left_out}_projection") is None


@pytest.mark.parametrize("temperature", [1.0, 1.2])
@torch.no_grad()
def test_the_flat_head_is_one_softmax_over_all_cells(temperature: float) -> None:
    numbers = (1, 3, 40)
    head = FlatHead(16, numbers, 8, temperature)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=2)
    fused = torch.randn(5, 16)
    province, within = head(fused)
    logits = head.layers(fused).double()
    for i in range(5):
        exponentials = [math.exp(float(x) / temperature) for x in logits[i]]
        first = 0
        for p, n in enumerate(numbers):
            mass = sum(exponentials[first : first + n])
            log_province = math.log(mass / sum(exponentials))
            assert float(province[i, p]) == pytest.approx(log_province, abs=1e-3)
            for k in range(first, first + n):
                log_cell = math.log(exponentials[k] / mass)
                assert float(within[i, k]) == pytest.approx(log_cell, abs=1e-3)
            first += n
    torch.testing.assert_close(province.exp().sum(1), torch.ones(5))


@torch.no_grad()
def test_the_joint_of_a_flat_model_is_its_softmax(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model(cell_heads="flat")
    assert model.cell_heads is None
    assert model.groups()["cell_heads"] == []
    output = model(make_batch(4)["image"])
    joint = joint_log_prob(output, model.cell_province_id)
    expected = model.province_head.layers(output.fused).log_softmax(-1)
    torch.testing.assert_close(joint, expected, atol=1e-5, rtol=1e-5)
    rank = cell_rank(output, model.cell_province_id, joint.argmax(-1))
    assert rank.tolist() == [0] * 4
    decoded = decode(model, output, DecodingOptions(rule="argmax"))["argmax"]
    assert decoded.probability.sum(1).tolist() == pytest.approx([1] * 4)


@pytest.mark.parametrize(("north", "east"), [(0.0, 0.0), (0.3, -0.4), (3.0, 4.0), (-500.0, 0.1)])
def test_the_clamp_cuts_the_length_at_the_bound(north: float, east: float) -> None:
    length = math.hypot(north, east)
    shrink = 1 if length <= 1 else 1 / length
    free = torch.tensor([north, east])
    offset = clamped_offset_km(free, torch.tensor(20.0))
    assert offset.tolist() == pytest.approx([20 * shrink * north, 20 * shrink * east], rel=1e-4)
    assert float(offset.norm()) <= 20


def test_the_clamp_gives_no_gradient_along_the_length_outside_and_none_that_is_not_finite() -> None:
    def jacobian(north: float) -> torch.Tensor:
        point = torch.tensor([north, 0.0])
        bound = torch.tensor(20.0)
        return torch.autograd.functional.jacobian(lambda v: clamped_offset_km(v, bound), point)

    torch.testing.assert_close(jacobian(0.0), 20 * torch.eye(2), atol=1e-3, rtol=1e-3)
    outside = jacobian(4.0)
    assert float(outside[0, 0]) == pytest.approx(0, abs=1e-5)
    assert float(outside[1, 1]) == pytest.approx(5, rel=1e-4)


@torch.no_grad()
def test_without_offset_every_position_is_its_cells_center(make_model: MakeModel) -> None:
    model = make_model(bound="none")
    cell_id = torch.tensor([[0, 5], [43, 7]])
    centers = model.cell_center_deg
    assert torch.equal(model.locate(torch.randn(2, 24), cell_id), centers[cell_id])
    assert torch.equal(model.locate(torch.randn(2, 24), cell_id[:, 0]), centers[cell_id[:, 0]])


@pytest.mark.parametrize("bound", ["smooth", "clamp"])
@torch.no_grad()
def test_a_refined_position_stays_within_its_bound(make_model: MakeModel, bound: str) -> None:
    model = make_model(bound=bound)
    nn.init.normal_(model.offset_head.output.weight, std=30)
    cell_id = torch.arange(44)
    place = model.locate(torch.randn(44, 24), cell_id)
    moved_km = haversine_km(place, model.cell_center_deg[cell_id])
    assert (moved_km <= model.offset_bound_km * 1.001 + 0.01).all()
    assert (moved_km > 0.9 * model.offset_bound_km).any()


def test_regression_answers_with_the_auxiliary_coordinate_and_only_where_asked(
    make_model: MakeModel, make_output: Callable[..., ModelOutput]
) -> None:
    output = make_output(6)
    options = DecodingOptions(rule="regression")
    decoded = decode(make_model(), output, options, compared_rules("regression"))
    assert torch.equal(decoded["regression"].latlon_deg, output.aux_latlon_deg)
    assert not torch.equal(decoded["argmax"].latlon_deg, output.aux_latlon_deg)
    assert list(decoded) == [*compared_rules("mean"), "regression"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "meen"}, r"model\.fusion\.kind='meen'.*'mean'"),
        ({"cell_heads": "flatt"}, r"model\.cell_heads='flatt'.*'flat'"),
        ({"bound": "clam"}, r"model\.offset\.bound='clam'.*'clamp'"),
    ],
)
def test_unknown_choices_are_refused_with_the_nearest(
    make_model: MakeModel, setting: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(**setting)
