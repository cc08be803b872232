"""The heads: province, geocell in the province, offset in the cell, auxiliary coordinate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

OUTPUT_STD = 0.01
# Keeps an offset within its bound whatever the rounding.
_INSIDE = 1 - 1e-6
# The published model's kilometres of a degree of latitude, 0.2% fewer than there are.
PUBLISHED_KM_PER_DEGREE = 111.0


def _small_output(in_dim: int, out_dim: int) -> nn.Linear:
    """An output layer that starts near zero, so that first predictions are near uniform."""
    layer = nn.Linear(in_dim, out_dim)
    nn.init.normal_(layer.weight, std=OUTPUT_STD)
    nn.init.zeros_(layer.bias)
    return layer


class ProvinceHead(nn.Module):
    """(B, dim) -> (B, P) logits, divided by ``temperature``."""

    def __init__(
        self, dim: int, hidden_dim: int, num_provinces: int, dropout: float, temperature: float
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, num_provinces),
        )
        self.temperature = temperature

    def forward(self, fused: Tensor) -> Tensor:
        logits: Tensor = self.layers(fused)
        return logits / self.temperature


class CellHeads(nn.Module):
    """One geocell head per province, all run for every image.

    Args:
        dim: width of the fused embedding.
        cells_per_province: number of cells of each province, in index order.
        small_hidden_dim, large_hidden_dim: hidden width below and from ``large_from`` cells.
    """

    def __init__(
        self,
        dim: int,
        cells_per_province: Sequence[int],
        small_hidden_dim: int,
        large_hidden_dim: int,
        large_from: int,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList()
        for num_cells in cells_per_province:
            hidden = small_hidden_dim if num_cells < large_from else large_hidden_dim
            self.heads.append(
                nn.Sequential(
                    nn.Linear(dim, hidden),
                    nn.LayerNorm(hidden),
                    nn.GELU(),
                    _small_output(hidden, num_cells),
                )
            )

    def forward(self, fused: Tensor) -> Tensor:
        """(B, dim) -> (B, N) log P(cell | province), normalised within every province."""
        return torch.cat([head(fused).log_softmax(-1) for head in self.heads], dim=-1)


class FlatHead(nn.Module):
    """One softmax over all cells of the region, in place of the hierarchy.

    A province is as probable as its cells together. The hidden width is that of the widest
    :class:`CellHeads`.

    Args:
        dim: width of the fused embedding.
        cells_per_province: number of cells of each province, in index order.
        hidden_dim: width of the hidden layer.
        temperature: divides the cells' logits, as it does the province logits of
            :class:`ProvinceHead`.
    """

    def __init__(
        self, dim: int, cells_per_province: Sequence[int], hidden_dim: int, temperature: float
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            _small_output(hidden_dim, sum(cells_per_province)),
        )
        self.cells_per_province = list(cells_per_province)
        self.temperature = temperature

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """(B, dim) -> (B, P) log P(province) and (B, N) log P(cell | province)."""
        joint = (self.layers(fused) / self.temperature).log_softmax(-1)
        parts = joint.split(self.cells_per_province, dim=-1)
        province = [part.logsumexp(-1, keepdim=True) for part in parts]
        within = [part - mass for part, mass in zip(parts, province, strict=True)]
        return torch.cat(province, dim=-1), torch.cat(within, dim=-1)


class OffsetHead(nn.Module):
    """Position within a cell, from the image, the cell's and the province's embedding.

    Returns a free vector; a function of :data:`OFFSET_BOUNDS` makes kilometres of it, and
    :func:`clamped_offset_deg` takes it for degrees.
    """

    def __init__(
        self, dim: int, cell_dim: int, province_dim: int, hidden_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm_fused = nn.LayerNorm(dim)
        self.norm_cell = nn.LayerNorm(cell_dim)
        self.norm_province = nn.LayerNorm(province_dim)
        self.enter = nn.Sequential(
            nn.Linear(dim + cell_dim + province_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.residual = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim))
        self.leave = nn.Sequential(nn.Linear(hidden_dim, hidden_dim // 2), nn.GELU())
        self.output = _small_output(hidden_dim // 2, 2)

    def forward(self, fused: Tensor, cell: Tensor, province: Tensor) -> Tensor:
        """(..., dim), (..., cell_dim), (..., province_dim) -> (..., 2)."""
        x = self.enter(
            torch.cat(
                (self.norm_fused(fused), self.norm_cell(cell), self.norm_province(province)), dim=-1
            )
        )
        offset: Tensor = self.output(self.leave(x + self.residual(x)))
        return offset


def bounded_offset_km(free: Tensor, bound_km: Tensor) -> Tensor:
    """Maps a free vector smoothly into a disc: bound · v / √(1 + |v|²).

    The same in training and at inference. Its gradient is finite everywhere and decays
    like a power of |v|: unlike behind a clamp or a tanh, an offset far outside still learns to
    come back.

    Args:
        free: (..., 2).
        bound_km: (...) largest length, kilometres.

    Returns:
        (..., 2) kilometres north and east, of length below ``bound_km``.
    """
    # Half precision would overflow; hypot does not, and is nowhere zero here.
    free = free.to(torch.promote_types(free.dtype, bound_km.dtype))
    north, east = free.unbind(-1)
    stretched = torch.hypot(torch.hypot(north, torch.ones_like(north)), east)
    return (_INSIDE * bound_km / stretched).unsqueeze(-1) * free


def clamped_offset_km(free: Tensor, bound_km: Tensor) -> Tensor:
    """Clamps the length of a free vector at the bound: bound · v / max(1, |v|).

    An offset beyond it gets no gradient along its length, so that it does not
    learn to come back.

    Args:
        free, bound_km: see :func:`bounded_offset_km`, which is the same at small lengths.

    Returns:
        (..., 2) kilometres north and east, of length at most ``bound_km``.
    """
    free = free.to(torch.promote_types(free.dtype, bound_km.dtype))
    # Of the square: the gradient of a length is NaN at zero.
    shrink = free.square().sum(-1).clamp_min(1).rsqrt()
    return (_INSIDE * bound_km * shrink).unsqueeze(-1) * free


OFFSET_BOUNDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth": bounded_offset_km,
    "clamp": clamped_offset_km,
}


def clamped_offset_deg(free: Tensor, bound_km: Tensor, center_deg: Tensor) -> Tensor:
    """Clamps latitude and longitude of an offset in degrees, each by itself: the published bound.

    The bound is ±bound/111 of latitude, and of longitude so much more as the meridians are closer
    together at the cell's center: a box, whose corners are √2 times as far as the bound. The
    gradient of what lies outside is zero.

    Args:
        free: (..., 2) degrees.
        bound_km: (...) kilometres.
        center_deg: (..., 2) degrees, latitude first.

    Returns:
        (..., 2) degrees.
    """
    free = free.to(torch.promote_types(free.dtype, bound_km.dtype))
    north = bound_km / PUBLISHED_KM_PER_DEGREE
    # At a pole every longitude is near.
    east = north / torch.cos(torch.deg2rad(center_deg[..., 0])).clamp_min(1e-6)
    bound = torch.stack((north, east), dim=-1)
    return torch.maximum(torch.minimum(free, bound), -bound)


class AuxiliaryHead(nn.Module):
    """(B, dim) -> (B, 2) degrees, centred and scaled so that it starts in the region.

    Args:
        dim, hidden_dim: widths.
        center_deg, scale_deg: (2,) mean and spread of the region's cells, latitude first; 0 and 1
            for an output in plain degrees.
    """

    center_deg: Tensor
    scale_deg: Tensor

    def __init__(self, dim: int, hidden_dim: int, center_deg: Tensor, scale_deg: Tensor) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.GELU(), _small_output(hidden_dim, 2)
        )
        self.register_buffer("center_deg", center_deg.float())
        self.register_buffer("scale_deg", scale_deg.float())

    def forward(self, fused: Tensor) -> Tensor:
        position: Tensor = self.layers(fused)
        return self.center_deg + self.scale_deg * position
