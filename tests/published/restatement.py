"""The published architecture, restated plainly from its description, with the libraries it is of.

Written to be compared with, not to be fast: decoding loops over photos, provinces and cells.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models.resnet import Bottleneck, ResNet

PROVINCES = (
    "Sindh", "Punjab", "Khyber Pakhtunkhwa", "ICT", "Gilgit-Baltistan", "Balochistan",
    "Azad Kashmir",
)  # fmt: skip
SCALES = (1.0, 0.6, 1.0, 0.6, 1.4, 1.4, 1.0)
HEARTS_DEG = (
    (25.5, 68.5), (31.0, 72.5), (34.3, 72.0), (33.7, 73.1), (35.9, 74.4), (28.5, 65.5),
    (33.9, 73.8),
)  # fmt: skip
CLIP_MEAN, CLIP_STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Size:
    """Widths of everything; the published ones by default."""

    image: int = 224
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    resnet: tuple[int, ...] = (3, 4, 6, 3)
    dim: int = 512
    province_hidden: int = 256
    cell_hidden: tuple[int, int] = (256, 512)
    cell_hidden_from: int = 30
    cell_embedding: int = 96
    province_embedding: int = 32
    hidden: int = 256


SMALL = Size(32, 16, 32, 3, 2, (1, 1, 1, 1), 24, 16, (12, 20), 30, 8, 4, 16)


def cell_metadata(
    cells_per_province: Sequence[int], seed: int = 0, counts: bool = True
) -> pd.DataFrame:
    """A ``cell_metadata.csv`` whose ids go across the provinces, its rows in no order."""
    rng = np.random.default_rng(seed)
    province = rng.permutation(np.repeat(np.arange(len(PROVINCES)), cells_per_province))
    num = len(province)
    center = np.array(HEARTS_DEG)[province] + rng.normal(0, 0.6, (num, 2))
    table = pd.DataFrame(
        {
            "cell_id": np.arange(num),
            "province": np.array(PROVINCES, object)[province],
            "province_id": province,
            "center_lat": center[:, 0],
            "center_lon": center[:, 1],
            "radius_km": rng.uniform(1, 60, num),
            "num_images": rng.integers(3, 500, num),
            "neighbor_cell_ids": "",
        }
    )
    if not counts:
        table = table.drop(columns="num_images")
    return table.sample(frac=1, random_state=seed).reset_index(drop=True)


class Projection(nn.Module):
    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(self.norm(self.linear(x)))


class GatedFusion(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * dim, 1)

    def forward(self, clip: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.sigmoid(self.gate(torch.cat([clip, scene], 1)))
        return alpha * scene + (1 - alpha) * clip, alpha[:, 0]


class DualEncoder(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(
            hidden_size=size.width,
            intermediate_size=4 * size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            image_size=size.image,
            patch_size=size.patch,
            hidden_act="quick_gelu",
        )
        tower = CLIPVisionModel(config)
        # The published keys are of transformers 4, whose model has its tower in vision_model.
        self.clip_model = nn.Module()
        self.clip_model.vision_model = getattr(tower, "vision_model", tower)
        resnet = ResNet(Bottleneck, list(size.resnet))
        self.scene_encoder = nn.Sequential(*list(resnet.children())[:-1])
        self.clip_projection = Projection(size.width, size.dim)
        self.scene_projection = Projection(2048, size.dim)
        self.fusion = GatedFusion(size.dim)

    def features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        clip = self.clip_model.vision_model(pixel_values=_normal(image, CLIP_MEAN, CLIP_STD))
        scene = self.scene_encoder(_normal(image, IMAGENET_MEAN, IMAGENET_STD))
        # The last hidden state is taken before post_layernorm.
        return clip.last_hidden_state[:, 0], scene.flatten(1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        clip, scene = self.features(image)
        return self.fusion(self.clip_projection(clip), self.scene_projection(scene))


def _normal(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


class ProvinceHead(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.linear = nn.Linear(size.dim, size.province_hidden)
        self.norm = nn.LayerNorm(size.province_hidden)
        self.linear_out = nn.Linear(size.province_hidden, len(PROVINCES))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_out(nn.functional.gelu(self.norm(self.linear(x))))


class CellHead(nn.Module):
    def __init__(self, size: Size, num_cells: int) -> None:
        super().__init__()
        hidden = size.cell_hidden[num_cells >= size.cell_hidden_from]
        self.linear1 = nn.Linear(size.dim, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.linear_out = nn.Linear(hidden, num_cells)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_out(nn.functional.gelu(self.norm(self.linear1(x))))


class OffsetHead(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm_img = nn.LayerNorm(size.dim)
        self.norm_cell = nn.LayerNorm(size.cell_embedding)
        self.norm_prov = nn.LayerNorm(size.province_embedding)
        self.linear1 = nn.Linear(
            size.dim + size.cell_embedding + size.province_embedding, size.hidden
        )
        self.norm1 = nn.LayerNorm(size.hidden)
        self.linear2 = nn.Linear(size.hidden, size.hidden)
        self.norm2 = nn.LayerNorm(size.hidden)
        self.linear3 = nn.Linear(size.hidden, size.hidden // 2)
        self.linear_out = nn.Linear(size.hidden // 2, 2)

    def forward(self, image: Tensor, cell: Tensor, province: Tensor) -> Tensor:
        x = torch.cat([self.norm_img(image), self.norm_cell(cell), self.norm_prov(province)], -1)
        x = nn.functional.gelu(self.norm1(self.linear1(x)))
        x = x + self.norm2(self.linear2(x))
        return self.linear_out(nn.functional.gelu(self.linear3(x)))


class AuxHead(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.linear1 = nn.Linear(size.dim, size.hidden)
        self.linear_out = nn.Linear(size.hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_out(nn.functional.gelu(self.linear1(x)))


class Published(nn.Module):
    """The whole model over a table of cells.

    Args:
        size: widths.
        metadata: see :func:`cell_metadata`.
        local_to_global: whether the ids of each head's outputs are stored.
        temperature: what the province logits are divided by.
    """

    def __init__(
        self,
        size: Size,
        metadata: pd.DataFrame,
        local_to_global: bool = True,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        cells = metadata.sort_values("cell_id").reset_index(drop=True)
        self.size = size
        self.temperature = temperature
        self.encoder = DualEncoder(size)
        self.province_head = ProvinceHead(size)
        self.geocell_heads = nn.ModuleDict()
        self.ids: dict[int, list[int]] = {}
        for index, name in enumerate(PROVINCES):
            self.ids[index] = cells.index[cells["province_id"] == index].to_list()
            self.geocell_heads[name] = CellHead(size, len(self.ids[index]))
            if local_to_global:
                # In an order that nobody would guess.
                self.ids[index] = self.ids[index][::-1]
                self.register_buffer(f"local_to_global_map_{index}", torch.tensor(self.ids[index]))
        self.cell_embedding = nn.Embedding(len(cells), size.cell_embedding)
        self.province_embedding = nn.Embedding(len(PROVINCES), size.province_embedding)
        self.offset_head = OffsetHead(size)
        self.aux_head = AuxHead(size)
        for name, column in (("centers_lat", "center_lat"), ("centers_lon", "center_lon")):
            self.register_buffer(f"cell_{name}", torch.tensor(cells[column].to_numpy(np.float32)))
        self.register_buffer("cell_radii_km", torch.tensor(cells["radius_km"].to_numpy(np.float32)))
        self.register_buffer("cell_province_ids", torch.tensor(cells["province_id"].to_numpy()))

    def offset_deg(self, fused: Tensor, cell: int, clamp: bool) -> tuple[float, float]:
        """Degrees of latitude and longitude from a cell's center, for one photo."""
        province = int(self.cell_province_ids[cell])
        free = self.offset_head(
            fused, self.cell_embedding.weight[cell], self.province_embedding.weight[province]
        )
        north, east = free.tolist()
        if clamp:
            most = float(self.cell_radii_km[cell]) * SCALES[province] / 111
            most_east = most / math.cos(math.radians(float(self.cell_centers_lat[cell])))
            north = max(-most, min(most, north))
            east = max(-most_east, min(most_east, east))
        return north, east

    def place(self, fused: Tensor, cell: int, clamp: bool) -> tuple[float, float]:
        north, east = self.offset_deg(fused, cell, clamp)
        return float(self.cell_centers_lat[cell]) + north, float(self.cell_centers_lon[cell]) + east

    @torch.no_grad()
    def predict(self, image: Tensor, clamp: bool = False) -> list[dict[str, Any]]:
        """Places of photos (B, 3, H, W) in [0, 1], by the published rule."""
        fused_all, alpha = self.encoder(image)
        results = []
        for fused, gate in zip(fused_all, alpha, strict=True):
            province_prob = (self.province_head(fused) / self.temperature).softmax(-1)
            hypotheses = []
            for province in province_prob.topk(2).indices.tolist():
                head = self.geocell_heads[PROVINCES[province]]
                cell_prob = head(fused).softmax(-1)
                best = cell_prob.topk(min(5, len(cell_prob)))
                for prob, local in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                    cell = self.ids[province][local]
                    weight = float(province_prob[province]) * prob
                    hypotheses.append((weight, *self.place(fused, cell, clamp)))
            total = sum(weight for weight, _, _ in hypotheses)
            results.append(
                {
                    "lat": sum(w * lat for w, lat, _ in hypotheses) / total,
                    "lon": sum(w * lon for w, _, lon in hypotheses) / total,
                    "province": province_prob.tolist(),
                    "gate": float(gate),
                    "aux": self.aux_head(fused).tolist(),
                }
            )
        return results


def random_weights(model: Published, seed: int = 0, offset_deg: float = 0.3) -> Published:
    """Weights at random, none of them 0 or 1, so that a swapped one shows."""
    generator = torch.Generator().manual_seed(seed)

    def noise(shape: torch.Size, spread: float) -> Tensor:
        return spread * torch.randn(shape, generator=generator)

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(noise(parameter.shape, 0.1))
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(noise(parameter.shape, fan_in**-0.5))
        for module in model.modules():
            if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
                module.weight.copy_(1 + noise(module.weight.shape, 0.2))
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(noise(module.running_mean.shape, 0.2))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape,
                                                          generator=generator))  # fmt: skip
        for head in (model.province_head, *model.geocell_heads.values()):
            head.linear_out.weight.mul_(3)
        # Some offsets beyond their bound, some within.
        model.offset_head.linear_out.weight.mul_(offset_deg)
        model.offset_head.linear_out.bias.mul_(offset_deg)
        model.aux_head.linear_out.bias.copy_(torch.tensor([30.0, 70.0]))
    return model.eval()


def training_checkpoint(model: Published) -> dict[str, Any]:
    """The weights beside all that the published trainings keep with them."""
    state = dict(model.state_dict())
    # The other tower of CLIP is there too.
    clip = "encoder.clip_model"
    state[f"{clip}.logit_scale"] = torch.tensor(4.6)
    state[f"{clip}.text_projection.weight"] = torch.zeros(4, 4)
    state[f"{clip}.visual_projection.weight"] = torch.zeros(4, model.size.width)
    state[f"{clip}.text_model.embeddings.token_embedding.weight"] = torch.zeros(7, 4)
    return {
        "epoch": 12,
        "model_state_dict": state,
        "optimizer_state_dict": torch.optim.AdamW(model.aux_head.parameters()).state_dict(),
        "losses": {"total": 1.5, "province": 0.25},
        "province_accuracy": {"Sindh": 91.5},
        # Of np.median: a number of numpy's.
        "median_error_km": np.median([2.5, 3.5]),
        "best_val_error": np.float32(3.0),
        "temperature": model.temperature,
        "phase1_checkpoint": "phase1_best.pt",
    }


def photo_as_published(path: Path, size: int) -> Tensor:
    """(3, size, size) in [0, 1]: a photo file as the published model is given it."""
    with Image.open(path) as image:
        squeezed = transforms.Resize((size, size))(image.convert("RGB"))
    return transforms.ToTensor()(squeezed)


def write(model: Published, metadata: pd.DataFrame, folder: Path) -> list[str]:
    """Writes both published files as the trainings do, and returns the arguments that name them."""
    torch.save(training_checkpoint(model), folder / "best_model.pth")
    metadata.to_csv(folder / "cell_metadata.csv", index=False)
    return [f"checkpoint={folder / 'best_model.pth'}", f"cells={folder / 'cell_metadata.csv'}"]


def overrides(size: Size) -> list[str]:
    """What a size other than the published one is called in our configuration."""
    if size == Size():
        return []
    layers = ",".join(str(n) for n in size.resnet)
    return [
        f"model.image_size={size.image}",
        f"model.semantic.shape.patch_size={size.patch}",
        f"model.semantic.shape.width={size.width}",
        f"model.semantic.shape.layers={size.layers}",
        f"model.semantic.shape.heads={size.heads}",
        f"model.scene.shape.options={{layers: [{layers}]}}",
        f"model.sizes.dim={size.dim}",
        f"model.sizes.province_hidden={size.province_hidden}",
        f"model.sizes.cell_hidden_small={size.cell_hidden[0]}",
        f"model.sizes.cell_hidden_large={size.cell_hidden[1]}",
        f"model.sizes.cell_embedding={size.cell_embedding}",
        f"model.sizes.province_embedding={size.province_embedding}",
        f"model.sizes.offset_hidden={size.hidden}",
        f"model.sizes.auxiliary_hidden={size.hidden}",
    ]
