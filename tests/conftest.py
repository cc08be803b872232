"""A small country, its cells, a tiny model and a prepared set, for tests of the method."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from geopak.data.dataset import PreparedSet
from geopak.geo.cells import NUM_NEIGHBOURS, CellTable
from geopak.geo.distance import haversine_km_array
from geopak.geo.region import Region
from geopak.types import Batch, ModelOutput

if TYPE_CHECKING:
    # Imported by the fixtures that need them: tests without a model start in half the time.
    from geopak.models.encoders import SceneEncoder, SemanticEncoder
    from geopak.models.geolocator import Geolocator

# The same examples on every run, however slow the machine.
hypothesis.settings.register_profile(
    "geopak", deadline=None, derandomize=True, database=None, max_examples=100
)
hypothesis.settings.load_profile("geopak")

# A loader whose worker has failed is waited for so many seconds, not PyTorch's five.
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5

IMAGE_SIZE = 32
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
# The sections of conf/model/*.yaml, small: a transformer of four blocks, a ResNet of 1, 1, 2, 2.
MODEL_CONFIG: dict[str, Any] = {
    "name": "small",
    "image_size": IMAGE_SIZE,
    "pretrained": None,
    "semantic": {
        "shape": {
            "patch_size": 16,
            "width": 32,
            "layers": 4,
            "heads": 2,
            "quick_gelu": True,
            **HALF,
        },
        "checkpoint": None,
        "source": None,
    },
    "scene": {
        "shape": {
            "architecture": "resnet18",
            # Multiples of 8: with others oneDNN's weight gradient, computed by a single thread,
            # corrupts the heap on some processors (torch 2.15).
            "options": {"layers": [1, 1, 2, 2], "channels": [8, 8, 8, 16], "stem_width": 8},
            **HALF,
        },
        "checkpoint": None,
    },
    "fusion": {"gate_bias": -0.4},
    "sizes": {
        "dim": 24,
        "province_hidden": 16,
        "cell_hidden_small": 12,
        "cell_hidden_large": 20,
        "cell_hidden_large_from": 30,
        "cell_embedding": 8,
        "province_embedding": 4,
        "offset_hidden": 16,
        "auxiliary_hidden": 16,
    },
}
REGION_CONFIG: dict[str, Any] = {
    "name": "smallland",
    "title": "Smallland",
    "province_defaults": {"batch_quota": 2},
    "provinces": {
        "capital": {"aliases": ["The City"], "tau_km": 10, "offset_scale": 0.6},
        "desert": {"name": "Great Desert", "tau_km": 100, "offset_scale": 1.4},
        "coast_land": {"tau_km": 30, "batch_quota": 4},
    },
}
# Centers of the provinces of the small country, degrees.
HEARTS_DEG = np.array([[33.7, 73.1], [30.0, 66.5], [25.5, 68.5]])
CELLS_PER_PROVINCE = (1, 3, 40)


@pytest.fixture
def region_config() -> dict[str, Any]:
    """A region as ``conf/region/*.yaml`` would describe it."""
    return copy.deepcopy(REGION_CONFIG)


def make_cells(
    seed: int = 0, cells_per_province: tuple[int, ...] = CELLS_PER_PROVINCE
) -> CellTable:
    """Cells scattered around :data:`HEARTS_DEG`, neighbours by distance."""
    rng = np.random.default_rng(seed)
    province_id = np.repeat(np.arange(len(cells_per_province)), cells_per_province)
    n = len(province_id)
    center = HEARTS_DEG[province_id % len(HEARTS_DEG)] + rng.normal(0, 0.8, (n, 2))
    neighbours = np.full((n, NUM_NEIGHBOURS), -1)
    for k in range(n):
        others = [j for j in range(n) if j != k and province_id[j] == province_id[k]]
        others.sort(key=lambda j: haversine_km_array(center[k], center[j]))
        neighbours[k, : len(others)] = others[:NUM_NEIGHBOURS]
    count = rng.integers(3, 400, n)
    return CellTable(
        province_id=province_id,
        center_latlon_deg=center,
        radius_km=rng.uniform(2, 50, n),
        count=count,
        urban=rng.random(n) < 0.5,
        sparse=count < 40,
        neighbours=neighbours,
    )


@pytest.fixture
def region(region_config: dict[str, Any]) -> Region:
    return Region.from_config(region_config)


@pytest.fixture
def cells() -> CellTable:
    """Three provinces of 1, 3 and 40 cells."""
    return make_cells()


@pytest.fixture
def model_config() -> dict[str, Any]:
    """The plain ``model`` section that the fixture ``model`` is made from."""
    return copy.deepcopy(MODEL_CONFIG)


@pytest.fixture
def semantic(model_config: dict[str, Any]) -> SemanticEncoder:
    from geopak.models.encoders import SemanticEncoder

    torch.manual_seed(1)
    return SemanticEncoder(IMAGE_SIZE, **model_config["semantic"]["shape"])


@pytest.fixture
def scene(model_config: dict[str, Any]) -> SceneEncoder:
    from geopak.models.encoders import SceneEncoder

    torch.manual_seed(2)
    encoder = SceneEncoder(**model_config["scene"]["shape"])
    # timm starts each residual branch at zero, so that only its last layer learns in the first
    # step; weights that have been trained are past that.
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    return encoder


@pytest.fixture
def model(
    model_config: dict[str, Any],
    semantic: SemanticEncoder,
    scene: SceneEncoder,
    region: Region,
    cells: CellTable,
) -> Geolocator:
    from geopak.models.geolocator import Geolocator, HeadSizes

    torch.manual_seed(3)
    sizes = HeadSizes(**model_config["sizes"])
    return Geolocator(semantic, scene, region, cells, sizes, gate_bias=-0.4, image_size=IMAGE_SIZE)


@pytest.fixture
def make_batch(cells: CellTable) -> Callable[..., Batch]:
    """Makes a batch of noise; the true cells run over all provinces."""

    def make(size: int = 8, seed: int = 0) -> Batch:
        rng = np.random.default_rng(seed)
        province_id = np.arange(size) % len(CELLS_PER_PROVINCE)
        cell_id = np.array(
            [rng.choice(np.flatnonzero(cells.province_id == p)) for p in province_id]
        )
        latlon = cells.center_latlon_deg[cell_id] + rng.normal(0, 0.1, (size, 2))
        return Batch(
            image=torch.from_numpy(rng.random((size, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32)),
            latlon_deg=torch.from_numpy(latlon).float(),
            province_id=torch.from_numpy(province_id),
            cell_id=torch.from_numpy(cell_id),
            row=torch.arange(size),
        )

    return make


@pytest.fixture
def make_output(cells: CellTable) -> Callable[..., ModelOutput]:
    """Makes a model's output from random logits of a given spread."""

    def make(size: int = 8, seed: int = 0, spread: float = 2.0) -> ModelOutput:
        generator = torch.Generator().manual_seed(seed)
        log_prob = [
            (spread * torch.randn(size, n, generator=generator)).log_softmax(-1)
            for n in CELLS_PER_PROVINCE
        ]
        heart = torch.from_numpy(HEARTS_DEG.mean(0)).float()
        return ModelOutput(
            province_logits=spread * torch.randn(size, len(log_prob), generator=generator),
            cell_log_prob=torch.cat(log_prob, -1),
            fused=torch.randn(size, MODEL_CONFIG["sizes"]["dim"], generator=generator),
            gate=torch.rand(size, generator=generator),
            aux_latlon_deg=heart + torch.randn(size, 2, generator=generator),
            features=torch.randn(size, 48, generator=generator),
        )

    return make


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo root of 48 small noisy JPEG files with its prepared set in ``prepared``."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    cells = make_cells()
    region = Region.from_config(REGION_CONFIG)
    rows = []
    for i in range(48):
        province = i % 3
        cell = int(rng.choice(np.flatnonzero(cells.province_id == province)))
        lat, lon = cells.center_latlon_deg[cell] + rng.normal(0, 0.05, 2)
        height, width = rng.integers(40, 90, 2)
        path = f"{province}/{i}.jpg"
        (root / path).parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / path)
        rows.append(
            {
                "id": f"p{i}",
                "path": path,
                "latitude": lat,
                "longitude": lon,
                "province": region.names[province],
                "province_id": province,
                "cell_id": cell,
                # 30 train, 9 val and 9 test photos, every province in each.
                "split": "train" if i < 30 else "val" if i < 39 else "test",
            }
        )
    (root / "prepared").mkdir()
    pd.DataFrame(rows).to_parquet(root / "prepared" / "photos.parquet", index=False)
    cells.write(root / "prepared", region)
    return root


@pytest.fixture
def prepared(prepared_folder: Path, region: Region) -> PreparedSet:
    return PreparedSet.read(prepared_folder / "prepared", prepared_folder, region)
