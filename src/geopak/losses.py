"""The named loss terms and their weighted total."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from geopak.geo.cells import CellTable
from geopak.geo.distance import haversine_km, haversine_km_array
from geopak.geo.region import Region
from geopak.schema.training import LOSS_TERMS, LossOptions
from geopak.types import Batch, ModelOutput


def effective_number_weights(count: Tensor, beta: float) -> Tensor:
    """(P,) class weights (1 − β)/(1 − β^n), normalised to mean 1 (Cui et al., CVPR 2019).

    Args:
        count: (P,) train photos per class, each at least 1.
        beta: in [0, 1); 0 weighs all classes alike.
    """
    weights = (1 - beta) / (1 - beta ** count.double())
    return (weights / weights.mean()).float()


def soft_cell_labels(cells: CellTable, tau_km: Tensor) -> tuple[Tensor, Tensor]:
    """The constant matrix of soft labels q(k) ∝ exp(−d(k*, k)/τ) in sparse rows.

    Args:
        cells: gives k* its neighbours in the province and their distances between centers.
        tau_km: (P,) length scale per province.

    Returns:
        ``cell_id`` (N, 9): the cell itself and its neighbours (padded with itself), and ``q``
        (N, 9) summing to 1, 0 at padding.
    """
    own = torch.arange(cells.num_cells).unsqueeze(1)
    neighbours = torch.tensor(cells.neighbours)
    valid = torch.cat((torch.ones_like(own, dtype=torch.bool), neighbours >= 0), dim=1)
    cell_id = torch.where(valid, torch.cat((own, neighbours), dim=1), own)
    centers = cells.center_latlon_deg
    distance_km = torch.from_numpy(haversine_km_array(centers[:, None], centers[cell_id.numpy()]))
    tau = tau_km.double()[torch.tensor(cells.province_id)].unsqueeze(1)
    logits = (-distance_km / tau).masked_fill(~valid, -torch.inf)
    return cell_id, logits.softmax(-1).float()


@dataclass
class LossValue:
    """The total and the parts that it is the sum of.

    Attributes:
        total: scalar.
        terms: unweighted values by name (nats, or kilometres for offset and auxiliary).
        shares: each weighted part's share of the total, detached.
    """

    total: Tensor
    terms: dict[str, Tensor]
    shares: dict[str, Tensor]


class GeolocationLoss(nn.Module):
    """Province cross-entropy, soft cell KL, offset and auxiliary distance.

    Args:
        region: gives τ per province.
        cells: gives centers, neighbours and train counts.
        options: weights and scales.
        terms: of a phase; one that trains no cell head leaves ``cell`` out. A weight of 0 takes
            a term out as well.

    Raises:
        ConfigError: see :meth:`LossOptions.used`.
    """

    class_weight: Tensor
    soft_cell_id: Tensor
    soft_q: Tensor
    soft_entropy: Tensor

    def __init__(
        self,
        region: Region,
        cells: CellTable,
        options: LossOptions,
        terms: tuple[str, ...] = LOSS_TERMS,
    ) -> None:
        super().__init__()
        self.options = options
        self.terms = options.used(terms)
        count = torch.zeros(region.num_provinces, dtype=torch.long)
        count.index_add_(0, torch.tensor(cells.province_id), torch.tensor(cells.count))
        tau = torch.tensor([p.tau_km for p in region.provinces])
        cell_id, q = soft_cell_labels(cells, tau)
        if not options.soft_labels:
            q = torch.zeros_like(q)
            q[:, 0] = 1
        weight = effective_number_weights(count, options.class_weight_beta)
        # Made from the cell table, which the checkpoint has already: not stored twice.
        for name, value in (
            ("class_weight", weight),
            ("soft_cell_id", cell_id),
            ("soft_q", q),
            ("soft_entropy", torch.special.entr(q).sum(-1)),
        ):
            self.register_buffer(name, value, persistent=False)

    def province(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Class-weighted cross-entropy."""
        return functional.cross_entropy(
            output.province_logits, batch["province_id"], weight=self.class_weight
        )

    def cell(self, output: ModelOutput, batch: Batch) -> Tensor:
        """Mean KL(q ‖ p) over the cells of the true province, or of the region."""
        target = batch["cell_id"]
        log_p = output.cell_log_prob.gather(1, self.soft_cell_id[target])
        if self.options.cell_target == "region":
            # Labels lie in the true province alone.
            log_province = output.province_logits.log_softmax(-1)
            log_p = log_p + log_province.gather(1, batch["province_id"].unsqueeze(1))
        cross_entropy = -(self.soft_q[target] * log_p).sum(-1)
        return (cross_entropy - self.soft_entropy[target]).mean()

    def forward(
        self, output: ModelOutput, batch: Batch, located_deg: Tensor | None, ramp: float
    ) -> LossValue:
        """Sums the terms in use.

        Args:
            output: the model's.
            batch: the truth.
            located_deg: (B, 2) true cell's center + offset; needed by the offset term.
            ramp: in [0, 1], weight of the offset term at this epoch.
        """
        o = self.options
        terms: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        if "province" in self.terms:
            terms["province"] = self.province(output, batch)
            parts["province"] = o.province * terms["province"]
        if "cell" in self.terms:
            terms["cell"] = self.cell(output, batch)
            parts["cell"] = o.cell * terms["cell"]
        if "offset" in self.terms:
            truth = batch["latlon_deg"]
            terms["offset"] = haversine_km(cast(Tensor, located_deg), truth).mean()
            parts["offset"] = ramp * o.offset * terms["offset"] / o.offset_scale_km
        if "auxiliary" in self.terms:
            terms["auxiliary"] = haversine_km(output.aux_latlon_deg, batch["latlon_deg"]).mean()
            parts["auxiliary"] = o.auxiliary * terms["auxiliary"] / o.auxiliary_scale_km
        total = torch.stack(list(parts.values())).sum()
        whole = total.detach().clamp_min(1e-12)
        shares = {name: part.detach() / whole for name, part in parts.items()}
        return LossValue(total, terms, shares)
