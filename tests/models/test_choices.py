"""Choices of fusion, cell heads and offset bound against plain restatements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geopak.build import build_model
from geopak.errors import ConfigError
from geopak.geo.cells import CellTable
from geopak.geo.distance import haversine_km
from geopak.geo.region import Region
from geopak.models.decode import cell_rank, compared_rules, decode, joint_log_prob
from geopak.models.fusion import FUSED_ENCODERS, ConcatFusion, MeanFusion
from geopak.models.geolocator import Geolocator
from geopak.models.heads import FlatHead, clamped_offset_deg, clamped_offset_km
from geopak.schema.training import DecodingOptions
from geopak.types import Batch, ModelOutput

MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., Geolocator]


@pytest.fixture
def make_model(model_config: dict[str, Any], region: Region, cells: CellTable) -> MakeModel:
    def make(
        kind: str = "gated",
        cell_heads: str = "per_province",
        bound: str = "smooth",
        bounded: str = "always",
        token: str = "after_norm",
        auxiliary: str = "region",
    ) -> Geolocator:
        torch.manual_seed(4)
        config = {**model_config, "cell_heads": cell_heads}
        config["offset"] = {"bound": bound, "bounded": bounded}
        config["fusion"] = {"kind": kind, "gate_bias": -0.4}
        config["semantic"]["shape"]["class_token"] = token
        config["auxiliary"] = {"output": auxiliary}
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


degrees = st.floats(-3, 3, width=32)


@given(degrees, degrees, st.floats(0, 400, width=32), st.floats(-89, 89, width=32))
def test_degrees_are_cut_one_by_one(
    north: float, east: float, bound_km: float, latitude: float
) -> None:
    free = torch.tensor([north, east], requires_grad=True)
    center = torch.tensor([latitude, 70.0])
    offset = clamped_offset_deg(free, torch.tensor(bound_km), center)
    most = bound_km / 111
    most_east = most / math.cos(math.radians(latitude))
    for axis, (value, limit) in enumerate(((north, most), (east, most_east))):
        expected = max(-limit, min(limit, value))
        assert float(offset[axis].detach()) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    offset.sum().backward()
    assert free.grad is not None
    for axis, (value, limit) in enumerate(((north, most), (east, most_east))):
        if abs(abs(value) - limit) > 1e-3:
            assert float(free.grad[axis]) == (abs(value) < limit)


def test_degrees_are_cut_at_a_pole_too() -> None:
    offset = clamped_offset_deg(
        torch.tensor([2.0, -3.0]), torch.tensor(111.0), torch.tensor([90.0, 0.0])
    )
    assert offset.tolist() == [1, -3]


@pytest.mark.parametrize("bound", ["clamp", "degrees"])
@torch.no_grad()
def test_bounded_in_training_alone_is_free_when_predicting(
    make_model: MakeModel, bound: str
) -> None:
    always, model = make_model(bound=bound), make_model(bound=bound, bounded="training")
    for each in (always, model):
        each.offset_head.output.bias.copy_(torch.tensor([3.0, -2.0]))
    fused, cell_id = torch.randn(44, 24), torch.arange(44)
    within = always.locate(fused, cell_id)
    assert not torch.allclose(model.locate(fused, cell_id), within)
    # Of the model alone: dropout stays off.
    always.training = model.training = True
    assert torch.equal(model.locate(fused, cell_id), always.locate(fused, cell_id))
    assert torch.equal(model.locate(fused, cell_id), within)
    model.training = False
    free = model.offset_head(
        fused, model.cell_embedding(cell_id), model.province_embedding(model.cell_province_id)
    )
    place = model.locate(fused, cell_id)
    if bound == "degrees":
        assert torch.equal(place, model.cell_center_deg + free)
    else:
        moved_km = haversine_km(place, model.cell_center_deg)
        expected = free.norm(dim=-1) * model.offset_bound_km
        torch.testing.assert_close(moved_km, expected, atol=0.05, rtol=1e-3)


@torch.no_grad()
def test_the_class_token_before_the_norm_becomes_the_one_after_it(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    after, before = make_model().semantic, make_model(token="before_norm").semantic
    norm = after.body().ln_post
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    state = after.body().state_dict()
    before.load_pretrained(state, "a file")
    image = make_batch(3)["image"]
    torch.testing.assert_close(norm(before(image)), after(image), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before(image), after(image))
    assert "ln_post.weight" not in before.body().state_dict()
    assert before.fingerprint() != after.fingerprint()


@torch.no_grad()
def test_an_auxiliary_output_in_degrees_is_the_layers_own(make_model: MakeModel) -> None:
    fused = torch.randn(4, 24)
    plain = make_model(auxiliary="degrees").auxiliary_head
    assert torch.equal(plain(fused), plain.layers(fused))
    usual = make_model().auxiliary_head
    assert not torch.allclose(usual(fused), usual.layers(fused))


def test_every_parameter_of_the_published_choices_learns(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model(bound="degrees", bounded="training", token="before_norm").train()
    batch = make_batch(8)
    output = model(batch["image"])
    place = model.locate(output.fused, batch["cell_id"])
    total = haversine_km(place, batch["latlon_deg"]).mean() + output.cell_log_prob.square().mean()
    total = total + output.province_logits.square().mean() + output.aux_latlon_deg.square().mean()
    total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_the_mean_of_degrees_is_that(
    make_model: MakeModel, make_output: Callable[..., ModelOutput]
) -> None:
    model, options = make_model().eval(), DecodingOptions(rule="mean_of_degrees")
    decoded = decode(model, make_output(6), options, compared_rules("mean_of_degrees"))
    assert list(decoded) == [*compared_rules("mean"), "mean_of_degrees"]
    main = decoded["mean_of_degrees"]
    for i in range(6):
        for axis in range(2):
            expected = sum(
                float(p) * float(place[axis])
                for p, place in zip(main.probability[i], main.hypothesis_latlon_deg[i], strict=True)
            )
            assert float(main.latlon_deg[i, axis]) == pytest.approx(expected, abs=1e-4)


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
        ({"bounded": "trainin"}, r"model\.offset\.bounded='trainin'.*'training'"),
        ({"bounded": "training"}, r"for model\.offset\.bound=clamp and degrees, not for smooth"),
        ({"bound": "none", "bounded": "training"}, "not for none"),
        ({"token": "before"}, r"model\.semantic\.shape\.class_token='before'.*'before_norm'"),
        ({"auxiliary": "degree"}, r"model\.auxiliary\.output='degree'.*'degrees'"),
    ],
)
def test_unknown_choices_are_refused_with_the_nearest(
    make_model: MakeModel, setting: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(**setting)
