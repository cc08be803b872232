"""The network that all phases share: image -> province, cells, embedding; offset per cell."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from geopak.errors import ConfigError, nearest_name
from geopak.geo.cells import CellTable
from geopak.geo.distance import move_km
from geopak.geo.region import Region
from geopak.models.compiling import is_compiled
from geopak.models.encoders import Encoder
from geopak.models.freezing import keep_frozen_in_eval
from geopak.models.fusion import FUSED_ENCODERS, Projection, make_fusion
from geopak.models.heads import (
    OFFSET_BOUNDS,
    AuxiliaryHead,
    CellHeads,
    FlatHead,
    OffsetHead,
    ProvinceHead,
    clamped_offset_deg,
)
from geopak.schema.model import CROP, FRAMINGS, HeadSizes, check_bounded
from geopak.types import ModelOutput

EMBEDDING_STD = 0.01
CELL_HEADS = ("per_province", "flat")
NO_OFFSET = "none"
DEGREES = "degrees"
BOUNDED = ("always", "training")
AUXILIARY_OUTPUTS = ("region", DEGREES)


class Geolocator(nn.Module):
    """Two encoders, their fusion, and the hierarchy of heads over a fixed cell table.

    Args:
        semantic, scene: the encoders.
        region: its provinces give the number of classes and the offset scales.
        cells: geometry of the cells; kept in buffers.
        sizes: widths of the heads.
        gate_bias: start of the fusion gate's bias.
        image_size: side of the square input, pixels.
        fusion: a kind of :data:`geopak.models.fusion.FUSED_ENCODERS`.
        cell_heads: ``per_province``: a province head, and a head for the cells of each province;
            ``flat``: one softmax over all cells, see :class:`geopak.models.heads.FlatHead`.
        offset_bound: of :data:`geopak.models.heads.OFFSET_BOUNDS`; ``degrees``: the offset is one
            of latitude and longitude, see :func:`geopak.models.heads.clamped_offset_deg`; or
            ``none``: every position is its cell's center.
        offset_bounded: ``always``, or in ``training`` alone.
        auxiliary_output: relative to the ``region``, or plain ``degrees``.
        framing: how photos become the square, one of :data:`geopak.schema.model.FRAMINGS`; the
            model itself sees none but squares.

    Raises:
        ConfigError: a choice that there is not.
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
        fusion: str = "gated",
        cell_heads: str = "per_province",
        offset_bound: str = "smooth",
        offset_bounded: str = "always",
        auxiliary_output: str = "region",
        framing: str = CROP,
    ) -> None:
        super().__init__()
        for key, choice, known in (
            ("model.framing", framing, FRAMINGS),
            ("model.fusion.kind", fusion, tuple(FUSED_ENCODERS)),
            ("model.cell_heads", cell_heads, CELL_HEADS),
            ("model.offset.bound", offset_bound, (*OFFSET_BOUNDS, DEGREES, NO_OFFSET)),
            ("model.offset.bounded", offset_bounded, BOUNDED),
            ("model.auxiliary.output", auxiliary_output, AUXILIARY_OUTPUTS),
        ):
            if choice not in known:
                raise ConfigError(
                    f"{key}={choice!r} is unknown.{nearest_name(str(choice), known)} "
                    f"Known: {', '.join(known)}."
                )
        check_bounded(offset_bound, offset_bounded)
        self.image_size = image_size
        self.framing = framing
        self.semantic = semantic
        self.scene = scene
        self.fused_encoders = FUSED_ENCODERS[fusion]
        self.offset_bound = offset_bound
        self.offset_bounded = offset_bounded
        projections = {
            name: Projection(encoder.dim, sizes.dim) if name in self.fused_encoders else None
            for name, encoder in (("semantic", semantic), ("scene", scene))
        }
        self.semantic_projection = projections["semantic"]
        self.scene_projection = projections["scene"]
        self.fusion = make_fusion(fusion, sizes.dim, gate_bias)
        starts = cells.province_start(region.num_provinces)
        cells_per_province = [int(n) for n in starts[1:] - starts[:-1]]
        self.province_head: ProvinceHead | FlatHead
        self.cell_heads: CellHeads | None = None
        if cell_heads == "flat":
            self.province_head = FlatHead(
                sizes.dim, cells_per_province, sizes.cell_hidden_large, temperature=1.0
            )
        else:
            self.province_head = ProvinceHead(
                sizes.dim,
                sizes.province_hidden,
                region.num_provinces,
                sizes.dropout,
                temperature=1.0,
            )
            self.cell_heads = CellHeads(
                sizes.dim,
                cells_per_province,
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
        plain = auxiliary_output == DEGREES
        self.auxiliary_head = AuxiliaryHead(
            sizes.dim,
            sizes.auxiliary_hidden,
            torch.zeros(2) if plain else center.mean(0),
            # One degree at the least: a region of a single cell has no spread.
            torch.ones(2) if plain else center.std(0, correction=0).clamp_min(1.0),
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
        """The partition of all parameters by which phases say what trains.

        A flat head, which tells provinces apart too, is the ``province_head``, and ``cell_heads``
        are none.
        """
        projections = (self.semantic_projection, self.scene_projection)
        return {
            "semantic": [self.semantic],
            "scene": [self.scene],
            "projections": [p for p in projections if p is not None],
            "gate": [self.fusion],
            "province_head": [self.province_head],
            "cell_heads": [] if self.cell_heads is None else [self.cell_heads],
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

    def embed(self, image: Tensor, encoders: Sequence[str] = ("semantic", "scene")) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, semantic + scene) features of both encoders.

        A frozen encoder runs without gradients and stores no activations.

        Args:
            image: the photos.
            encoders: those that run; of another the features are zeros.
        """
        features = []
        for name, encoder in (("semantic", self.semantic), ("scene", self.scene)):
            if name not in encoders:
                features.append(image.new_zeros(len(image), encoder.dim))
                continue
            with torch.set_grad_enabled(torch.is_grad_enabled() and encoder.trains):
                features.append(encoder(image))
        return torch.cat(features, dim=-1)

    def heads(self, features: Tensor) -> ModelOutput:
        """Everything above the encoders, from their features.

        Args:
            features: (B, semantic + scene), of :meth:`embed`.
        """
        parts = features.split([self.semantic.dim, self.scene.dim], dim=-1)
        projections = (self.semantic_projection, self.scene_projection)
        # An encoder that is left out has features in a cache only.
        used = [(project, x) for project, x in zip(projections, parts, strict=True) if project]
        fused, gate = self.fusion(*(project(x) for project, x in used))
        if self.cell_heads is None:
            province_logits, cell_log_prob = self.province_head(fused)
        else:
            province_logits, cell_log_prob = self.province_head(fused), self.cell_heads(fused)
        return ModelOutput(
            province_logits=province_logits,
            cell_log_prob=cell_log_prob,
            fused=fused,
            gate=gate,
            aux_latlon_deg=self.auxiliary_head(fused),
            features=torch.cat([x for _, x in used], dim=-1),
        )

    def forward(self, image: Tensor) -> ModelOutput:
        """(B, 3, H, W) in [0, 1] -> all heads but the offset, which needs a cell."""
        return self.heads(self.embed(image, self.fused_encoders))

    def locate(self, fused: Tensor, cell_id: Tensor) -> Tensor:
        """Coordinate within given cells: center + offset.

        The offset is bounded in training, and at inference unless ``offset_bounded`` says else.

        Args:
            fused: (B, dim).
            cell_id: (B,) or (B, K) global ids.

        Returns:
            (B, 2) or (B, K, 2) degrees.
        """
        center = self.cell_center_deg[cell_id]
        if self.offset_bound == NO_OFFSET:
            return center
        if cell_id.dim() == 2:
            fused = fused.unsqueeze(1).expand(-1, cell_id.shape[1], -1)
        free = self.offset_head(
            fused,
            self.cell_embedding(cell_id),
            self.province_embedding(self.cell_province_id[cell_id]),
        )
        bound_km = self.offset_bound_km[cell_id]
        bounded = self.training or self.offset_bounded != "training"
        if self.offset_bound == DEGREES:
            return center + (clamped_offset_deg(free, bound_km, center) if bounded else free)
        if bounded:
            return move_km(center, OFFSET_BOUNDS[self.offset_bound](free, bound_km))
        return move_km(center, bound_km.unsqueeze(-1) * free)
