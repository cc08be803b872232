"""Geolocation metrics in kilometres: the arithmetic, shared by validation and the report.

Every statistic here takes ``counts`` (R, N): how often each of the N photos occurs in each of R
resamples. Without it every photo occurs once and the statistic is a scalar; with it there is one
value per resample. A bootstrap is therefore the same code as the point estimate, and needs no loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics import Metric

from geopak.errors import PreparedSetError
from geopak.geo.cells import CellTable
from geopak.geo.distance import haversine_km, spherical_mean
from geopak.schema.training import THRESHOLDS_KM

Array = NDArray[np.float64]


def _as_counts(counts: ArrayLike | None, num_photos: int) -> Array:
    return np.ones((1, num_photos)) if counts is None else np.asarray(counts, float)


def _like(counts: ArrayLike | None, values: NDArray[Any]) -> Array:
    """Drops the resample axis again where there was none."""
    out: Array = values[0] if counts is None else values
    return out


def mean_of(values: ArrayLike, counts: ArrayLike | None = None) -> Array:
    """Mean of (N,) values -> scalar, or (R,) with ``counts``; NaN for a resample without photos."""
    v = np.asarray(values, float)
    c = _as_counts(counts, len(v))
    with np.errstate(invalid="ignore"):
        return _like(counts, (c @ v) / c.sum(1))


def quantiles_of(
    values: ArrayLike, quantiles: Sequence[float], counts: ArrayLike | None = None
) -> list[Array]:
    """Quantiles with linear interpolation, as ``numpy.quantile`` has them.

    Args:
        values: (N,); a NaN makes every result NaN.
        quantiles: each in [0, 1].
        counts: (R, N) non-negative whole numbers.

    Returns:
        One scalar per quantile, or one (R,) with ``counts``; NaN for a resample without photos.
    """
    v = np.asarray(values, float)
    c = _as_counts(counts, len(v))
    total = c.sum(1)
    if not len(v) or np.isnan(v).any():
        return [_like(counts, np.full(len(c), np.nan)) for _ in quantiles]
    order = np.argsort(v, kind="stable")
    v, reached = v[order], np.cumsum(c[:, order], axis=1)

    def order_statistic(k: Array) -> Array:
        # The k-th smallest (from 0) of the resample is the first photo that takes the count past k.
        taken: Array = v[(reached > k[:, None]).argmax(1)]
        return taken

    results = []
    for q in quantiles:
        position = np.maximum(total - 1, 0) * q
        below = np.floor(position)
        low, high = order_statistic(below), order_statistic(np.ceil(position))
        value = np.where(total > 0, low + (position - below) * (high - low), np.nan)
        results.append(_like(counts, value))
    return results


def median_of(values: ArrayLike, counts: ArrayLike | None = None) -> Array:
    """Median of (N,) values -> scalar, or (R,) with ``counts``."""
    return quantiles_of(values, (0.5,), counts)[0]


def macro(
    statistic: Callable[[ArrayLike, ArrayLike | None], Array],
    values: ArrayLike,
    province_id: ArrayLike,
    counts: ArrayLike | None = None,
) -> Array:
    """Mean over provinces of a statistic of each province's photos.

    A province without photos (in the set, or in a resample) is left out of the mean; a resample
    without any photo is NaN.

    Args:
        statistic: :func:`mean_of` (of correctness: macro accuracy), :func:`median_of`, ...
        values: (N,).
        province_id: (N,) true province of each photo.
        counts: (R, N).

    Returns:
        Scalar, or (R,) with ``counts``.
    """
    v, province = np.asarray(values, float), np.asarray(province_id)
    c = _as_counts(counts, len(v))
    each = np.stack([statistic(v[province == p], c[:, province == p]) for p in np.unique(province)])
    seen = np.stack([c[:, province == p].any(1) for p in np.unique(province)])
    with np.errstate(invalid="ignore"):
        return _like(counts, np.where(seen, each, 0.0).sum(0) / seen.sum(0))


def error_summary(
    error_km: ArrayLike,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
    counts: ArrayLike | None = None,
) -> dict[str, Array]:
    """``median_km, mean_km, p90_km`` and ``within_<t>km`` for every threshold.

    Args:
        error_km: (N,) great-circle kilometres; N at least 1.
        thresholds_km: a photo exactly at the threshold counts as within.
        counts: (R, N).

    Returns:
        Scalars, or (R,) arrays with ``counts``.
    """
    error = np.asarray(error_km, float)
    median, p90 = quantiles_of(error, (0.5, 0.9), counts)
    out = {"median_km": median, "mean_km": mean_of(error, counts), "p90_km": p90}
    for threshold in thresholds_km:
        out[f"within_{threshold:g}km"] = mean_of(error <= threshold, counts)
    return out


def geolocation_summary(
    error_km: ArrayLike,
    province_correct: ArrayLike,
    province_id: ArrayLike,
    cell_rank: ArrayLike,
    thresholds_km: Sequence[float] = THRESHOLDS_KM,
    counts: ArrayLike | None = None,
) -> dict[str, Array]:
    """All end-to-end metrics of a set of photos.

    Args:
        error_km: (N,) great-circle kilometres from truth to prediction.
        province_correct: (N,) bool, most probable province is the true one.
        province_id: (N,) true province.
        cell_rank: (N,) rank of the true cell among all cells, 0 = most probable.
        thresholds_km: see :func:`error_summary`.
        counts: (R, N).

    Returns:
        :func:`error_summary` and ``province_acc, province_macro_acc, cell_top1, cell_top5``.
    """
    rank = np.asarray(cell_rank)
    return {
        **error_summary(error_km, thresholds_km, counts),
        "province_acc": mean_of(province_correct, counts),
        "province_macro_acc": macro(mean_of, province_correct, province_id, counts),
        "cell_top1": mean_of(rank < 1, counts),
        "cell_top5": mean_of(rank < 5, counts),
    }


def bootstrap_intervals(
    statistic: Callable[[Array], Mapping[str, Array]],
    num_photos: int,
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    group: ArrayLike | None = None,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of several statistics at once (Efron, 1979).

    Args:
        statistic: takes counts (R, N) and returns (R,) per name, like the functions above.
        num_photos: N.
        num_resamples: R in all; drawn in blocks to bound the memory.
        confidence: probability mass between the two ends.
        seed: the same seed draws the same resamples.
        group: (N,) labels of photos that are drawn together (a cluster bootstrap), for photos that
            resemble each other, such as those of one place; ``None`` draws photos one by one.

    Returns:
        Lower and upper end per name; NaN resamples are left out, and without any other the ends
        are NaN.

    Raises:
        ValueError: no photos, or ``confidence`` outside (0, 1).
    """
    if num_photos < 1:
        raise ValueError("A bootstrap needs at least one photo.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}.")
    labels = np.arange(num_photos) if group is None else np.unique(group, return_inverse=True)[1]
    num_groups = int(labels.max()) + 1
    rng = np.random.default_rng(seed)
    block = max(1, 4_000_000 // num_photos)
    drawn: dict[str, list[Array]] = {}
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        picks = rng.integers(num_groups, size=(size, num_groups))
        picks += np.arange(size)[:, None] * num_groups
        counts = np.bincount(picks.ravel(), minlength=size * num_groups).astype(float)
        for name, values in statistic(counts.reshape(size, num_groups)[:, labels]).items():
            drawn.setdefault(name, []).append(values)
    ends = (0.5 - confidence / 2, 0.5 + confidence / 2)
    intervals = {}
    for name, blocks in drawn.items():
        values = np.concatenate(blocks)
        # A subset of few photos is empty in some resamples; those say nothing about it.
        values = values[~np.isnan(values)]
        low, high = np.quantile(values, ends) if len(values) else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals


@dataclass(frozen=True)
class Reliability:
    """Claimed against observed correctness in equal-width bins of the claim, empty bins left out.

    Attributes:
        confidence: (K,) mean claim in the bin.
        accuracy: (K,) share that was correct.
        count: (K,) photos.
        low, high: (K,) 95% Wilson interval of ``accuracy``.
    """

    confidence: Array
    accuracy: Array
    count: NDArray[np.int64]
    low: Array
    high: Array

    @property
    def expected_calibration_error(self) -> float:
        """Mean over photos of |claim - observed| of their bin (Naeini et al., 2015)."""
        gap = np.abs(self.confidence - self.accuracy)
        return float((self.count * gap).sum() / self.count.sum())


def reliability(confidence: ArrayLike, correct: ArrayLike, num_bins: int = 10) -> Reliability:
    """Bins of a reliability diagram.

    Args:
        confidence: (N,) claimed probability in [0, 1] of being correct.
        correct: (N,) bool.
        num_bins: equal-width bins of [0, 1]; a claim of exactly 1 is in the last.

    Raises:
        ValueError: no photos, or a claim that is not a probability.
    """
    claim, hit = np.asarray(confidence, float), np.asarray(correct, float)
    # Softmax sums come out a rounding error above 1.
    if not len(claim) or not ((claim >= 0) & (claim <= 1 + 1e-4)).all():
        raise ValueError("reliability needs at least one photo, and probabilities in [0, 1].")
    bins = np.minimum((claim * num_bins).astype(int), num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    used = count > 0
    count = count[used]
    mean_claim = np.bincount(bins, claim, num_bins)[used] / count
    accuracy = np.bincount(bins, hit, num_bins)[used] / count
    return Reliability(mean_claim, accuracy, count, *wilson_interval(accuracy, count))


def wilson_interval(share: ArrayLike, count: ArrayLike) -> tuple[Array, Array]:
    """95% interval of a share of independent photos (Wilson, 1927).

    Args:
        share: (...) that hit.
        count: (...) photos, at least 1.

    Returns:
        Lower and upper end, (...) each.
    """
    p, n = np.asarray(share, float), np.asarray(count, float)
    z2 = 1.959964**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return middle - half, middle + half


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, num_bins: int = 10
) -> float:
    """Expected calibration error of (N,) claims; see :func:`reliability`."""
    return reliability(confidence, correct, num_bins).expected_calibration_error


def densest_cell_latlon(cells: CellTable) -> Array:
    """Baseline that always answers the center (2,) of the cell with the most train photos."""
    latlon_deg: Array = cells.center_latlon_deg[int(cells.count.argmax())]
    return latlon_deg


def province_centroid_latlon(cells: CellTable, province_id: ArrayLike) -> Array:
    """Baseline that is told the true province and answers the centroid of its train photos.

    The centroid is the mean on the sphere of the province's cell centers, weighted by their counts.

    Args:
        cells: made from the train split alone.
        province_id: (N,) true provinces.

    Returns:
        (N, 2) degrees.

    Raises:
        PreparedSetError: a province without cells.
    """
    wanted = np.asarray(province_id, np.int64)
    out = np.empty((len(wanted), 2))
    for province in np.unique(wanted):
        inside = cells.province_id == province
        if not inside.any():
            raise PreparedSetError(f"Province index {province} has no geocell.")
        centers = torch.from_numpy(cells.center_latlon_deg[inside])
        weights = torch.from_numpy(cells.count[inside])
        out[wanted == province] = spherical_mean(centers, weights).numpy()
    return out


class GeolocationMetrics(Metric):
    """End-to-end metrics of a validation pass, per province and urban/rural, over all processes.

    ``row`` says which photo a prediction is of: each counts once, however often a loader repeats
    it and in whichever process. The project's own loaders give every photo to one process, once.

    Args:
        province_keys: short names in class-index order, used in metric names.
        thresholds_km: for ``within_<t>km``.
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better = None

    _NUM_COLUMNS = 8
    # float32 holds whole numbers up to 2^24 only, so row numbers are kept in two parts.
    _ROW_BASE = 1 << 20

    records: list[Tensor]

    def __init__(
        self, province_keys: Sequence[str], thresholds_km: Sequence[float] = THRESHOLDS_KM
    ) -> None:
        super().__init__()
        self.province_keys = tuple(province_keys)
        self.thresholds_km = tuple(thresholds_km)
        # One flat float32 state: a process without photos takes part in the gathering with an
        # empty float32 vector, which matches no other shape or type.
        self.add_state("records", default=[], dist_reduce_fx="cat")

    def update(
        self,
        predicted_latlon_deg: Tensor,
        latlon_deg: Tensor,
        province_logits: Tensor,
        province_id: Tensor,
        cell_rank: Tensor,
        teacher_forced_latlon_deg: Tensor,
        urban: Tensor,
        row: Tensor,
    ) -> None:
        """Adds a batch.

        Args:
            predicted_latlon_deg: (B, 2) degrees, from the image alone.
            latlon_deg: (B, 2) true degrees.
            province_logits: (B, P).
            province_id: (B,) true province.
            cell_rank: (B,) rank of the true cell among all cells, 0 = most probable.
            teacher_forced_latlon_deg: (B, 2) degrees, refined within the true cell.
            urban: (B,) bool, the true cell is urban.
            row: (B,) row number in the data set.
        """
        truth = latlon_deg.detach().float()
        columns = (
            row // self._ROW_BASE,
            row % self._ROW_BASE,
            haversine_km(predicted_latlon_deg.detach().float(), truth),
            haversine_km(teacher_forced_latlon_deg.detach().float(), truth),
            province_id,
            province_logits.argmax(-1) == province_id,
            cell_rank,
            urban,
        )
        self.records.append(torch.stack([c.detach().float() for c in columns], dim=1).flatten())

    def compute(self) -> dict[str, Tensor]:
        """Metrics over every photo seen, once each; provinces without photos have no entry.

        Returns:
            ``median_km, mean_km, p90_km, within_<t>km, province_acc, province_macro_acc,
            cell_top1, cell_top5, teacher_forced/median_km, province/<key>/median_km,
            province/<key>/acc, urban/median_km, rural/median_km``, float32 scalars.

        Raises:
            ValueError: no photo was seen.
        """
        flat = torch.cat(self.records) if isinstance(self.records, list) else self.records
        table = flat.double().cpu().numpy().reshape(-1, self._NUM_COLUMNS)
        if not len(table):
            raise ValueError("GeolocationMetrics.compute() was called before any photo was seen.")
        row = table[:, 0] * self._ROW_BASE + table[:, 1]
        _, first = np.unique(row, return_index=True)
        error_km, teacher_forced_km, province, correct, rank, urban = table[first, 2:].T
        values = geolocation_summary(error_km, correct, province, rank, self.thresholds_km)
        values["teacher_forced/median_km"] = median_of(teacher_forced_km)
        for index, key in enumerate(self.province_keys):
            if (inside := province == index).any():
                values[f"province/{key}/median_km"] = median_of(error_km[inside])
                values[f"province/{key}/acc"] = mean_of(correct[inside])
        for name, inside in (("urban", urban == 1), ("rural", urban == 0)):
            if inside.any():
                values[f"{name}/median_km"] = median_of(error_km[inside])
        return {
            name: torch.tensor(float(value), dtype=torch.float32, device=self.device)
            for name, value in values.items()
        }
