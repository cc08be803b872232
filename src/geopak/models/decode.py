"""From log-probabilities to a coordinate: hypotheses and the rules that make one place of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from geopak.geo.distance import (
    EARTH_RADIUS_KM,
    haversine_km,
    latlon_of_vectors,
    spherical_mean,
    unit_vectors,
)
from geopak.models.geolocator import Geolocator
from geopak.schema.training import DecodingOptions
from geopak.types import Decoded, ModelOutput


def joint_log_prob(output: ModelOutput, cell_province_id: Tensor) -> Tensor:
    """(B, N) log P(province | image) + log P(cell | image, province)."""
    return output.province_logits.log_softmax(-1)[:, cell_province_id] + output.cell_log_prob


def select_hypotheses(
    output: ModelOutput, cell_province_id: Tensor, top_provinces: int, top_cells: int
) -> tuple[Tensor, Tensor]:
    """The most probable cells of the most probable provinces.

    Args:
        output: the model's.
        cell_province_id: (N,) province of each cell, non-decreasing.
        top_provinces, top_cells: how many of each; fewer where there are not as many.

    Returns:
        ``cell_id`` (B, K) with K = top_provinces × top_cells, most probable first, and
        ``probability`` (B, K) renormalised to sum to 1. A province with fewer cells than
        ``top_cells`` fills up with its best cell at probability 0.
    """
    num_provinces = output.province_logits.shape[-1]
    province = output.province_logits.topk(min(top_provinces, num_provinces), dim=-1).indices
    joint = joint_log_prob(output, cell_province_id)
    in_province = cell_province_id.unsqueeze(0) == torch.arange(
        num_provinces, device=joint.device
    ).unsqueeze(1)
    per_province = joint.unsqueeze(1).masked_fill(~in_province[province], -torch.inf)
    log_prob, cell_id = per_province.topk(min(top_cells, joint.shape[-1]), dim=-1)
    # Places left over point to some cell of another province: send them to the province's best.
    cell_id = torch.where(log_prob.isfinite(), cell_id, cell_id[..., :1])
    log_prob, order = log_prob.flatten(1).sort(dim=-1, descending=True, stable=True)
    return cell_id.flatten(1).gather(1, order), log_prob.softmax(-1)


def _pairwise_km(points_deg: Tensor) -> Tensor:
    return haversine_km(points_deg.unsqueeze(-2), points_deg.unsqueeze(-3))


def _take(points_deg: Tensor, index: Tensor) -> Tensor:
    return points_deg.gather(1, index.view(-1, 1, 1).expand(-1, 1, 2)).squeeze(1)


def decode_mean(points_deg: Tensor, probability: Tensor, within_km: float) -> Tensor:
    """The probability-weighted mean, taken on the sphere."""
    return spherical_mean(points_deg, probability)


def decode_mean_of_degrees(points_deg: Tensor, probability: Tensor, within_km: float) -> Tensor:
    """The published rule as it was: the weighted mean of latitudes and of longitudes.

    Some kilometres beside :func:`decode_mean` where hypotheses are hundreds apart, and wrong across
    the antimeridian.
    """
    mean = (points_deg.double() * probability.double().unsqueeze(-1)).sum(-2)
    return mean.to(points_deg.dtype)


def decode_argmax(points_deg: Tensor, probability: Tensor, within_km: float) -> Tensor:
    """The most probable hypothesis."""
    return _take(points_deg, probability.argmax(-1))


def decode_geometric_median(
    points_deg: Tensor, probability: Tensor, within_km: float, num_steps: int = 30
) -> Tensor:
    """The point of least expected great-circle distance.

    Weiszfeld steps on the sphere's unit vectors, from the mean. They slow down where the median is
    a hypothesis itself, so the best hypothesis is returned unless they found something better.
    """
    pairwise = _pairwise_km(points_deg)
    expected = (pairwise * probability.unsqueeze(-2)).sum(-1)
    start = _take(points_deg, expected.argmin(-1))
    # The steps stay among unit vectors, in few operations: a photo alone would spend more on them
    # than on the model. In float64 an arc cosine is good to a decimetre.
    vectors = unit_vectors(points_deg.double())
    columns = vectors.transpose(1, 2).contiguous()
    weights = probability.double().unsqueeze(1)
    here = unit_vectors(spherical_mean(points_deg, probability).double()).unsqueeze(1)
    least = 1e-3 / EARTH_RADIUS_KM
    for _ in range(num_steps):
        arc = here.bmm(columns).clamp_(-1.0, 1.0).acos_().clamp_min_(least)
        here = normalize((weights / arc).bmm(vectors), dim=-1)
    here = here.squeeze(1)
    point = latlon_of_vectors(here).to(points_deg.dtype)
    refined = (haversine_km(point.unsqueeze(1), points_deg) * probability).sum(-1)
    return torch.where((refined < expected.amin(-1)).unsqueeze(-1), point, start)


def decode_max_within_km(points_deg: Tensor, probability: Tensor, within_km: float) -> Tensor:
    """The point with most probability within ``within_km``.

    The hypothesis whose disc holds most is found first (ties: the more probable one); the mean of
    the hypotheses in its disc replaces it where all of them stay within reach.
    """
    near = _pairwise_km(points_deg) <= within_km
    mass = (near * probability.unsqueeze(-2)).sum(-1)
    # Discs of the same hypotheses hold the same, but for what rounding makes of it.
    ties = mass >= mass.amax(-1, keepdim=True) - 1e-6
    best = torch.where(ties, probability, -1.0).argmax(-1)
    center = _take(points_deg, best)
    # Not by numbering the photos: a traced graph would keep how many they were.
    members = near.gather(1, best.view(-1, 1, 1).expand(-1, 1, near.shape[-1])).squeeze(1)
    weights = probability * members
    mean = spherical_mean(points_deg, weights.clamp_min(1e-30))
    reaches = haversine_km(mean.unsqueeze(1), points_deg) <= within_km
    keeps_all = (reaches | ~members).all(-1)
    return torch.where(keeps_all.unsqueeze(-1), mean, center)


# Of the cells whose positions the confidence adds up, the most probable so many are refined. The
# rest count by their centers: they hold next to nothing, and large regions have thousands.
MOST_REFINED = 16

Rule = Callable[[Tensor, Tensor, float], Tensor]
RULES: dict[str, Rule] = {
    "mean": decode_mean,
    "argmax": decode_argmax,
    "geometric_median": decode_geometric_median,
    "max_within_km": decode_max_within_km,
}
# Shown only where it is a model's own: it is there to predict what an imported one did.
MEAN_OF_DEGREES = "mean_of_degrees"
REGRESSION = "regression"


def compared_rules(own: str) -> list[str]:
    """The rules that an evaluation shows side by side, the model's own among them.

    Regression is shown only where it is the model's own: trained at a tenth of the total, the
    auxiliary head is no answer of the others. So is the mean of degrees.
    """
    return [*RULES, *({own} - RULES.keys())]


@torch.no_grad()
def decode(
    model: Geolocator,
    output: ModelOutput,
    options: DecodingOptions,
    rules: Sequence[str] | None = None,
) -> dict[str, Decoded]:
    """Decodes a batch by one or several rules over the same hypotheses.

    The confidence is the probability of all cells whose refined position lies within
    ``confidence_km`` of the answer. Centers in place of refined positions would say 0% of an answer
    in the outskirts of its own cell, and of nine definitions tried on val (shares of discs of
    several sizes, hypotheses alone) none told right answers from wrong ones better, nor claimed
    more closely what held, before and after temperatures.

    Args:
        model: places the hypotheses within their cells.
        output: its output for the batch.
        options: numbers of hypotheses, radii and the default rule.
        rules: names of rules; ``None``: ``options.rule`` alone.

    Returns:
        :class:`geopak.types.Decoded` per rule.
    """
    cell_id, probability = select_hypotheses(
        output, model.cell_province_id, options.top_provinces, options.top_cells
    )
    mass = joint_log_prob(output, model.cell_province_id).exp()
    likely = mass.topk(min(MOST_REFINED, mass.shape[-1]), dim=-1).indices
    refined = torch.cat((cell_id, likely), dim=-1)
    places = model.locate(output.fused, refined).float()
    points = places[:, : cell_id.shape[-1]]
    decoded = {}
    for rule in rules or (options.rule,):
        if rule == REGRESSION:
            place = output.aux_latlon_deg.float()
        elif rule == MEAN_OF_DEGREES:
            place = decode_mean_of_degrees(points, probability, options.within_km)
        else:
            place = RULES[rule](points, probability, options.within_km)
        here = place.unsqueeze(1)
        near = haversine_km(here, model.cell_center_deg) <= options.confidence_km
        near.scatter_(1, refined, haversine_km(here, places) <= options.confidence_km)
        confidence = (mass * near).sum(-1).clamp(max=1.0)
        decoded[rule] = Decoded(place, cell_id, points, probability, confidence)
    return decoded


def cell_rank(output: ModelOutput, cell_province_id: Tensor, cell_id: Tensor) -> Tensor:
    """(B,) how many cells of the region have a higher joint probability than the given one."""
    joint = joint_log_prob(output, cell_province_id)
    return (joint > joint.gather(1, cell_id.unsqueeze(1))).sum(-1)
