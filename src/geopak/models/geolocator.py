"""The network that all phases share: image -> province, cells, embedding; offset per cell."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from geopak.geo.cells import CellTable
from geopak.geo.distance import move_km
from geopak.geo.region import Region
from geopak.models.compiling import is_compiled
from geopak.models.encoders import Encoder
from geopak.models.freezing import keep_frozen_in_eval
from geopak.models.fusion import GatedFusion, Projection
from geopak.models.heads import (
    AuxiliaryHead,
    CellHeads,
    OffsetHead,
    ProvinceHead,
    bounded_offset_km,
)
from geopak.schema.model import HeadSizes
from geopak.types import ModelOutput

EMBEDDING_STD = 0.01


class Geolocator(nn.Module):
    """Two encoders, gated fusion, and the hierarchy of heads over a fixed cell table.

    Args:
        semantic, scene: the encoders.
        region: its provinces give the number of classes and the offset scales.
        cells: geometry of the cells; kept in buffers.
        sizes: widths of the heads.
        gate_bias: start of the fusion gate's bias.
        image_size: side of the square input, pixels.
    """

    cell_center_deg: Tensor
    cell_province_id: Tensor
    offset_bound_km: Tensor

    def __init__(
        self,
        semantic: Encoder,
        scene: Encoder,
        region: Region,
        cells: CellTable,
        sizes: HeadSizes,
        gate_bias: float,
        image_size: int,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.semantic = semantic
        self.scene = scene
        self.semantic_projection = Projection(semantic.dim, sizes.dim)
        self.scene_projection = Projection(scene.dim, sizes.dim)
        self.fusion = GatedFusion(sizes.dim, gate_bias)
        self.province_head = ProvinceHead(
            sizes.dim, sizes.province_hidden, region.num_provinces, sizes.dropout, temperature=1.0
        )
        starts = cells.province_start(region.num_provinces)
        self.cell_heads = CellHeads(
            sizes.dim,
            [int(n) for n in starts[1:] - starts[:-1]],
            sizes.cell_hidden_small,
            sizes.cell_hidden_large,
            sizes.cell_hidden_large_from,
        )
        self.cell_embedding = nn.Embedding(cells.num_cells, sizes.cell_embedding)
        self.province_embedding = nn.Embedding(region.num_provinces, sizes.province_embedding)
        for embedding in (self.cell_embedding, self.province_embedding):
            nn.init.normal_(embedding.weight, std=EMBEDDING_STD)
        self.offset_head = OffsetHead(
            sizes.dim,
            sizes.cell_embedding,
            sizes.province_embedding,
            sizes.offset_hidden,
            sizes.dropout,
        )
        center = torch.tensor(cells.center_latlon_deg, dtype=torch.float32)
        province = torch.tensor(cells.province_id)
        scale = torch.tensor([p.offset_scale for p in region.provinces])
        self.auxiliary_head = AuxiliaryHead(
            sizes.dim,
            sizes.auxiliary_hidden,
            center.mean(0),
            # One degree at the least: a region of a single cell has no spread.
            center.std(0, correction=0).clamp_min(1.0),
        )
        self.register_buffer("cell_center_deg", center)
        self.register_buffer("cell_province_id", province)
        self.register_buffer(
            "offset_bound_km", torch.tensor(cells.radius_km, dtype=torch.float32) * scale[province]
        )

    def train(self, mode: bool = True) -> Geolocator:
        super().train(mode)
        keep_frozen_in_eval(self)
        return self

    def groups(self) -> dict[str, Sequence[nn.Module]]:
        """The partition of all parameters by which phases say what trains."""
        return {
            "semantic": [self.semantic],
            "scene": [self.scene],
            "projections": [self.semantic_projection, self.scene_projection],
            "gate": [self.fusion],
            "province_head": [self.province_head],
            "cell_heads": [self.cell_heads],
            "embeddings": [self.cell_embedding, self.province_embedding],
            "offset_head": [self.offset_head],
            "auxiliary_head": [self.auxiliary_head],
        }

    @property
    def feature_dim(self) -> int:
        """Length of both encoders' features together."""
        return self.semantic.dim + self.scene.dim

    @property
    def encoders_frozen(self) -> bool:
        """Whether nothing of either encoder trains: a picture then always has the same features."""
        return not (self.semantic.trains or self.scene.trains)

    def encoder_fingerprint(self) -> str:
        """Names weights, shapes and code of both encoders, and whether they are compiled."""
        # Compiled arithmetic rounds differently.
        kind = " compiled" if is_compiled(self.semantic) or is_compiled(self.scene) else ""
        own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
        return f"{self.semantic.fingerprint()} {self.scene.fingerprint()} {own}{kind}"

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, semantic + scene) features of both encoders.

        A frozen encoder runs without gradients and stores no activations.
        """
        features = []
        for encoder in (self.semantic, self.scene):
            with torch.set_grad_enabled(torch.is_grad_enabled() and encoder.trains):
                features.append(encoder(image))
        return torch.cat(features, dim=-1)

    def heads(self, features: Tensor) -> ModelOutput:
        """Everything above the encoders, from their features.

        Args:
            features: (B, semantic + scene), of :meth:`embed`.
        """
        semantic, scene = features.split([self.semantic.dim, self.scene.dim], dim=-1)
        fused, gate = self.fusion(self.semantic_projection(semantic), self.scene_projection(scene))
        return ModelOutput(
            province_logits=self.province_head(fused),
            cell_log_prob=self.cell_heads(fused),
            fused=fused,
            gate=gate,
            aux_latlon_deg=self.auxiliary_head(fused),
        )

    def forward(self, image: Tensor) -> ModelOutput:
        """(B, 3, H, W) in [0, 1] -> all heads but the offset, which needs a cell."""
        return self.heads(self.embed(image))

    def locate(self, fused: Tensor, cell_id: Tensor) -> Tensor:
        """Coordinate within given cells: center + bounded offset.

        Args:
            fused: (B, dim).
            cell_id: (B,) or (B, K) global ids.

        Returns:
            (B, 2) or (B, K, 2) degrees.
        """
        if cell_id.dim() == 2:
            fused = fused.unsqueeze(1).expand(-1, cell_id.shape[1], -1)
        free = self.offset_head(
            fused,
            self.cell_embedding(cell_id),
            self.province_embedding(self.cell_province_id[cell_id]),
        )
        offset_km = bounded_offset_km(free, self.offset_bound_km[cell_id])
        return move_km(self.cell_center_deg[cell_id], offset_km)
