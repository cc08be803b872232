"""Decoding against plain Python: hypotheses, each rule, confidence and rank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geopak.errors import ConfigError
from geopak.geo.cells import CellTable
from geopak.geo.distance import haversine_km, haversine_km_array, spherical_mean
from geopak.models.decode import (
    RULES,
    DecodingOptions,
    cell_rank,
    decode,
    decode_argmax,
    decode_geometric_median,
    decode_max_within_km,
    decode_mean,
    joint_log_prob,
    select_hypotheses,
)
from geopak.models.geolocator import Geolocator
from geopak.types import Batch, ModelOutput

MakeOutput = Callable[..., ModelOutput]
# Metres by which float32 coordinates may stray, in km.
ROUNDING_KM = 0.005

latlons = st.tuples(st.floats(24, 37, width=32), st.floats(61, 77, width=32))
mixtures = st.lists(st.tuples(latlons, st.floats(0, 1, width=32)), min_size=1, max_size=10).filter(
    lambda m: sum(weight for _, weight in m) > 0.01
)


def tensors(mixture: list[tuple[tuple[float, float], float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, K, 2) points and (1, K) probabilities, most probable first."""
    mixture = sorted(mixture, key=lambda hypothesis: -hypothesis[1])
    weight = torch.tensor([[w for _, w in mixture]])
    return torch.tensor([[p for p, _ in mixture]]), weight / weight.sum()


def naive_hypotheses(
    output: ModelOutput, province_id: NDArray[np.int64], num_provinces: int, num_cells: int
) -> list[list[tuple[int, float]]]:
    """Per image (cell, probability), most probable first, by sorting lists."""
    results = []
    for logits, log_prob in zip(output.province_logits, output.cell_log_prob, strict=True):
        p_province = logits.double().softmax(-1).tolist()
        p_cell = log_prob.double().exp().tolist()
        provinces = sorted(range(len(p_province)), key=lambda p: -p_province[p])[:num_provinces]
        chosen: list[tuple[int, float]] = []
        for p in provinces:
            own = [(k, p_province[p] * p_cell[k]) for k in np.flatnonzero(province_id == p)]
            chosen += sorted(own, key=lambda pair: -pair[1])[:num_cells]
        total = sum(probability for _, probability in chosen)
        chosen.sort(key=lambda pair: -pair[1])
        results.append([(int(k), probability / total) for k, probability in chosen])
    return results


@pytest.mark.parametrize("num_provinces", [1, 2, 3, 5])
@pytest.mark.parametrize("num_cells", [1, 2, 5, 100])
def test_hypotheses_are_those_of_sorted_lists(
    cells: CellTable, make_output: MakeOutput, num_provinces: int, num_cells: int
) -> None:
    output = make_output(30)
    cell_id, probability = select_hypotheses(
        output, torch.from_numpy(cells.province_id), num_provinces, num_cells
    )
    assert cell_id.shape == probability.shape
    expected = naive_hypotheses(output, cells.province_id, num_provinces, num_cells)
    for ids, values, pairs in zip(cell_id.tolist(), probability.tolist(), expected, strict=True):
        n = len(pairs)
        assert ids[:n] == [k for k, _ in pairs]
        assert values[:n] == pytest.approx([p for _, p in pairs], abs=1e-5)
        # Places left over weigh nothing and stay within the provinces considered.
        assert values[n:] == [0.0] * (len(values) - n)
        wanted = {cells.province_id[k] for k, _ in pairs}
        assert {cells.province_id[k] for k in ids[n:]} <= wanted
    torch.testing.assert_close(probability.sum(-1), torch.ones(30))


def test_a_certain_model_has_one_hypothesis(cells: CellTable, make_output: MakeOutput) -> None:
    output = make_output(2)
    output.province_logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 1e4]])
    cell_id, probability = select_hypotheses(output, torch.from_numpy(cells.province_id), 2, 5)
    assert probability.isfinite().all()
    assert cell_id[0, 0] == 0
    assert probability[0].tolist() == [1.0] + [0.0] * 9
    assert all(cells.province_id[k] == 2 for k in cell_id[1, :5])


@given(mixtures)
def test_the_mean_is_the_direction_of_the_mean_vector(mixture: list) -> None:
    points, probability = tensors(mixture)
    lat, lon = np.radians(points[0].double().numpy()).T
    vectors = np.stack((np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)), -1)
    x, y, z = probability[0].double().numpy() @ vectors
    expected = np.degrees([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)])
    mean = decode_mean(points, probability, 25.0)[0].double().numpy()
    assert haversine_km_array(mean, expected) < ROUNDING_KM


@given(mixtures)
def test_argmax_is_the_most_probable_hypothesis(mixture: list) -> None:
    points, probability = tensors(mixture)
    assert torch.equal(decode_argmax(points, probability, 25.0)[0], points[0, 0])


def expected_km(place: NDArray, points: torch.Tensor, probability: torch.Tensor) -> NDArray:
    """(...) expected distance from (..., 2) places to the mixture, in float64."""
    distance = haversine_km_array(np.asarray(place)[..., None, :], points[0].double().numpy())
    return distance @ probability[0].double().numpy()


def least_on_grid(points: torch.Tensor, probability: torch.Tensor) -> float:
    """Least expected distance on a grid that is refined around its best node."""
    corners = points[0].double().numpy()
    low, high = corners.min(0), corners.max(0)
    best = np.inf
    for _ in range(8):
        axes = [np.linspace(low[i], high[i], 21) for i in range(2)]
        nodes = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
        values = expected_km(nodes, points, probability)
        best = min(best, float(values.min()))
        center, reach = nodes[values.argmin()], (high - low) / 5
        low, high = center - reach, center + reach
    return best


@settings(max_examples=60)
@given(mixtures)
def test_no_point_has_a_smaller_expected_distance_than_the_geometric_median(mixture: list) -> None:
    points, probability = tensors(mixture)
    median = decode_geometric_median(points, probability, 25.0)[0].double().numpy()
    reached = float(expected_km(median, points, probability))
    at_hypotheses = expected_km(points[0].double().numpy(), points, probability)
    assert reached <= at_hypotheses.min() + ROUNDING_KM
    assert reached <= 1.002 * least_on_grid(points, probability) + ROUNDING_KM


def test_a_majority_holds_the_geometric_median_where_the_mean_wanders_off() -> None:
    points = torch.tensor([[[24.9, 67.0], [33.7, 73.1], [31.5, 74.3]]])
    probability = torch.tensor([[0.55, 0.25, 0.2]])
    median = decode_geometric_median(points, probability, 25.0)
    assert float(haversine_km(median[0], points[0, 0])) < ROUNDING_KM
    assert float(haversine_km(decode_mean(points, probability, 25.0)[0], points[0, 0])) > 300


def mass_within(
    place: torch.Tensor, points: torch.Tensor, probability: torch.Tensor, km: float
) -> float:
    distance = haversine_km_array(place.double().numpy(), points[0].double().numpy())
    return float(probability[0].double().numpy()[distance <= km].sum())


@given(mixtures, st.sampled_from([1.0, 25.0, 100.0, 400.0, 5000.0]))
def test_no_hypothesis_has_more_probability_within_reach_than_max_within_km(
    mixture: list, within_km: float
) -> None:
    points, probability = tensors(mixture)
    place = decode_max_within_km(points, probability, within_km)[0]
    reached = mass_within(place, points, probability, within_km + ROUNDING_KM)
    for hypothesis in points[0]:
        mass = mass_within(hypothesis, points, probability, within_km - ROUNDING_KM)
        assert reached >= mass - 2e-6


def test_max_within_km_takes_the_middle_of_the_largest_cluster() -> None:
    cluster = [[30.0, 70.0], [30.0, 70.1], [30.05, 70.05]]
    points = torch.tensor([[[25.0, 67.0], *cluster]])
    probability = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    place = decode_max_within_km(points, probability, 25.0)[0]
    middle = spherical_mean(torch.tensor(cluster))
    assert float(haversine_km(place, middle)) < ROUNDING_KM


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "probability", [[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], ids=["one-hot", "even"]
)
def test_every_rule_returns_the_place_that_all_hypotheses_share(
    rule: str, probability: list[float]
) -> None:
    points = torch.tensor([31.5, 74.3]).expand(1, 4, 2)
    place = RULES[rule](points, torch.tensor([probability]), 25.0)
    assert float(haversine_km(place[0], points[0, 0])) < ROUNDING_KM


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_goes_to_the_only_hypothesis_with_probability(rule: str) -> None:
    points = torch.tensor([[[31.5, 74.3], [25.0, 67.0], [34.0, 71.5]]])
    place = RULES[rule](points, torch.tensor([[1.0, 0.0, 0.0]]), 25.0)
    assert float(haversine_km(place[0], points[0, 0])) < ROUNDING_KM


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_judges_each_image_alone(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.tensor([30.0, 70.0]) + torch.randn(20, 10, 2, generator=generator)
    probability = torch.randn(20, 10, generator=generator).softmax(-1)
    together = RULES[rule](points, probability, 60.0)
    for i in range(20):
        alone = RULES[rule](points[i : i + 1], probability[i : i + 1], 60.0)
        torch.testing.assert_close(together[i : i + 1], alone)


@pytest.mark.parametrize("most_refined", [1, 20, 64])
def test_decoding_places_hypotheses_in_their_cells_and_names_the_mass_around(
    model: Geolocator,
    cells: CellTable,
    make_batch: Callable[..., Batch],
    monkeypatch: pytest.MonkeyPatch,
    most_refined: int,
) -> None:
    monkeypatch.setattr("geopak.models.decode.MOST_REFINED", most_refined)
    # Positions in the outskirts of their cells.
    for parameter in model.offset_head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.eval()
    for parameter in model.province_head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    options = DecodingOptions(confidence_km=150.0)
    with torch.no_grad():
        output = model(make_batch(12)["image"])
    decoded = decode(model, output, options, list(RULES))
    assert list(decoded) == list(RULES)
    joint = [
        [
            float(output.province_logits[i].double().softmax(-1)[cells.province_id[k]])
            * float(output.cell_log_prob[i, k].double().exp())
            for k in range(cells.num_cells)
        ]
        for i in range(12)
    ]
    # The most probable cells count where the photo would lie in them, the others by their centers.
    position = np.tile(cells.center_latlon_deg, (12, 1, 1))
    for i in range(12):
        likely = sorted(range(cells.num_cells), key=lambda k: -joint[i][k])[:most_refined]
        for k in {*likely, *next(iter(decoded.values())).cell_id[i].tolist()}:
            place = model.locate(output.fused[i : i + 1], torch.tensor([k]))
            position[i, k] = place[0].detach().numpy()
    for d in decoded.values():
        expected = model.locate(output.fused, d.cell_id)
        torch.testing.assert_close(d.hypothesis_latlon_deg, expected)
        for i in range(12):
            distance = haversine_km_array(d.latlon_deg[i].double(), position[i])
            mass = sum(p for p, km in zip(joint[i], distance, strict=True) if km <= 150)
            assert float(d.confidence[i]) == pytest.approx(mass, abs=1e-4)
            assert 0 <= float(d.confidence[i]) <= 1
    only = decode(model, output, options)
    assert list(only) == ["geometric_median"]
    assert torch.equal(only["geometric_median"].latlon_deg, decoded["geometric_median"].latlon_deg)


def test_joint_probabilities_of_all_cells_sum_to_one(
    cells: CellTable, make_output: MakeOutput
) -> None:
    joint = joint_log_prob(make_output(9), torch.from_numpy(cells.province_id))
    torch.testing.assert_close(joint.exp().sum(-1), torch.ones(9))


def test_the_rank_of_a_cell_is_its_position_in_the_sorted_list(
    cells: CellTable, make_output: MakeOutput
) -> None:
    output = make_output(25)
    true_cell = torch.arange(25) + 7
    rank = cell_rank(output, torch.from_numpy(cells.province_id), true_cell)
    for i in range(25):
        log_province = output.province_logits[i].log_softmax(-1)
        joint = [
            float(log_province[cells.province_id[k]] + output.cell_log_prob[i, k])
            for k in range(cells.num_cells)
        ]
        order = sorted(range(cells.num_cells), key=lambda k: -joint[k])
        assert int(rank[i]) == order.index(int(true_cell[i]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rule": "geometric_mean"}, r"is not a rule.*Did you mean 'geometric_median'"),
        ({"top_provinces": 0}, "at least 1"),
        ({"top_cells": 0}, "at least 1"),
        ({"within_km": 0.0}, "positive"),
        ({"confidence_km": -1.0}, "positive"),
    ],
)
def test_options_out_of_range_are_refused(setting: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecodingOptions(**setting)
