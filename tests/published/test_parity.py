"""An imported checkpoint predicts what the original would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from geopak.checkpoint import read_checkpoint
from geopak.cli import compose
from geopak.import_geopak import import_geopak
from geopak.models.decode import decode
from geopak.predictor import GeopakPredictor
from geopak.trained import Trained, load_trained
from tests.published.restatement import (
    PROVINCES,
    SMALL,
    Published,
    Size,
    cell_metadata,
    overrides,
    photo_as_published,
    random_weights,
    write,
)

# One province with fewer cells than hypotheses, one with the wider head.
FEW_CELLS = (31, 6, 5, 1, 3, 8, 7)


@dataclass
class Pair:
    """The original, and what was made of it."""

    original: Published
    trained: Trained
    path: Path
    # Their number of each of our cells.
    cell_id: Tensor


def make_pair(folder: Path, size: Size, cells: tuple[int, ...], *arguments: str) -> Pair:
    torch.manual_seed(0)
    metadata = cell_metadata(cells)
    stored = "-without-ids" not in arguments
    temperature = 2.5 if "-tempered" in arguments else 1.0
    original = random_weights(Published(size, metadata, stored, temperature))
    files = write(original, metadata, folder)
    given = [a for a in arguments if not a.startswith("-")]
    out = folder / "imported.ckpt"
    cfg = compose("import_geopak", [*files, f"out={out}", *overrides(size), *given])
    path = import_geopak(cfg)
    assert path == out
    cell_id = read_checkpoint(path)["geopak"]["imported"]["cell_id"]
    return Pair(original, load_trained(path), path, cell_id)


def pictures(num: int, size: int) -> Tensor:
    """(B, 3, size, size) uint8: patches of colour, which the encoders tell apart."""
    generator = torch.Generator().manual_seed(7)
    coarse = torch.rand(num, 3, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    noise = 0.2 * torch.rand(num, 3, size, size, generator=generator)
    return ((0.8 * fine + noise) * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.set_num_threads(1)
    return make_pair(tmp_path_factory.mktemp("published"), SMALL, FEW_CELLS)


@pytest.fixture(scope="module")
def clamped(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("clamped")
    return make_pair(folder, SMALL, FEW_CELLS, "model.offset.bounded=always")


def check_everything(pair: Pair, num: int, clamp: bool) -> None:
    """Encoders, fusion, every head, all offsets and the decoded place of some photos."""
    original, model = pair.original, pair.trained.model
    image = pictures(num, original.size.image)
    inside = image.float() / 255
    features = torch.cat(original.encoder.features(inside), 1)
    torch.testing.assert_close(model.embed(inside), features, atol=2e-4, rtol=1e-4)
    output = model(inside)
    decoded = decode(model, output, pair.trained.decoding)
    fused, gate = original.encoder(inside)
    torch.testing.assert_close(output.fused, fused, atol=1e-4, rtol=0)
    torch.testing.assert_close(output.gate, gate, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        output.province_logits,
        original.province_head(fused) / original.temperature,
        atol=1e-4,
        rtol=0,
    )
    torch.testing.assert_close(output.aux_latlon_deg, original.aux_head(fused), atol=1e-4, rtol=0)
    starts = pair.trained.cells.province_start(len(PROVINCES))
    for index, name in enumerate(PROVINCES):
        own = slice(starts[index], starts[index + 1])
        assert pair.cell_id[own].tolist() == original.ids[index]
        theirs = original.geocell_heads[name](fused).log_softmax(-1)
        torch.testing.assert_close(output.cell_log_prob[:, own], theirs, atol=1e-4, rtol=0)
    every = torch.arange(len(pair.cell_id)).expand(num, -1)
    places = model.locate(output.fused, every)
    for photo in range(num):
        for ours, theirs in enumerate(pair.cell_id.tolist()):
            expected = torch.tensor(original.place(fused[photo], theirs, clamp))
            torch.testing.assert_close(places[photo, ours], expected, atol=1e-4, rtol=0)
    main = decoded["mean_of_degrees"]
    for photo, expected in enumerate(original.predict(inside, clamp)):
        lat, lon = main.latlon_deg[photo].tolist()
        assert lat == pytest.approx(expected["lat"], abs=1e-4)
        assert lon == pytest.approx(expected["lon"], abs=1e-4)


@torch.no_grad()
def test_without_the_clamp_all_is_as_in_the_original(pair: Pair) -> None:
    check_everything(pair, 6, clamp=False)


@torch.no_grad()
def test_with_the_clamp_all_is_as_in_the_original(clamped: Pair) -> None:
    check_everything(clamped, 6, clamp=True)


@torch.no_grad()
def test_training_clamps_where_inference_does_not(pair: Pair) -> None:
    model = pair.trained.model
    fused, _ = pair.original.encoder(pictures(3, SMALL.image).float() / 255)
    cells = torch.arange(len(pair.cell_id)).expand(3, -1)
    free = model.locate(fused, cells)
    # Of the model alone: dropout stays off.
    model.training = True
    try:
        bounded = model.locate(fused, cells)
    finally:
        model.training = False
    for photo in range(3):
        for ours, theirs in enumerate(pair.cell_id.tolist()):
            expected = torch.tensor(pair.original.place(fused[photo], theirs, clamp=True))
            torch.testing.assert_close(bounded[photo, ours], expected, atol=1e-4, rtol=0)
    cut = (free != bounded).any(-1)
    assert 0.1 < float(cut.float().mean()) < 0.95


@torch.no_grad()
def test_without_stored_ids_cells_come_by_their_id(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, SMALL, (3, 2, 2, 1, 2, 2, 2), "-without-ids")
    check_everything(pair, 2, clamp=False)


@torch.no_grad()
def test_the_checkpoint_says_its_temperature(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, SMALL, (3, 2, 2, 1, 2, 2, 2), "-tempered")
    assert pair.trained.identity["province_temperature"] == 2.5
    check_everything(pair, 3, clamp=False)


# Not square, odd, large beside the model's square, and a JPEG that could be decoded smaller.
@pytest.mark.parametrize("name", ["wide.png", "tall.png", "even.jpg", "camera.jpg"])
def test_a_photo_file_is_predicted_by_the_usual_predictor(
    pair: Pair, tmp_path: Path, name: str
) -> None:
    shape = {"wide": (41, 90), "tall": (75, 32), "even": (64, 128), "camera": (1200, 1600)}
    height, width = shape[Path(name).stem]
    picture = pictures(1, max(height, width))[0, :, :height, :width]
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / name)
    predictor = GeopakPredictor(pair.path, "cpu")
    result: Any = predictor.predict(tmp_path / name)
    (expected,) = pair.original.predict(photo_as_published(tmp_path / name, SMALL.image)[None])
    assert result["lat"] == pytest.approx(expected["lat"], abs=1e-4)
    assert result["lon"] == pytest.approx(expected["lon"], abs=1e-4)
    assert result["gate"] == pytest.approx(expected["gate"], abs=1e-4)
    assert result["province"] == PROVINCES[int(np.argmax(expected["province"]))]
    # A list goes another way, and so does an open image.
    with Image.open(tmp_path / name) as image:
        for other in (*predictor.predict([tmp_path / name]), predictor.predict(image)):
            assert other["lat"] == pytest.approx(expected["lat"], abs=1e-4)
            assert other["lon"] == pytest.approx(expected["lon"], abs=1e-4)


def test_a_heat_map_is_of_the_picture_that_the_model_saw(pair: Pair, tmp_path: Path) -> None:
    pytest.importorskip("captum")
    from geopak.why import explain

    Image.fromarray(pictures(1, 90)[0, :, :41].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    seen = explain(pair.trained, tmp_path / "a.png", steps=2).image.float() / 255
    assert torch.equal(seen, photo_as_published(tmp_path / "a.png", seen.shape[-1]))


def test_the_middle_of_a_photo_is_another_place(pair: Pair, tmp_path: Path) -> None:
    """That the framing matters, and can be chosen at import."""
    Image.fromarray(pictures(1, 90)[0, :, :41].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    whole: Any = GeopakPredictor(pair.path, "cpu").predict(tmp_path / "a.png")
    cropping = make_pair(tmp_path, SMALL, FEW_CELLS, "model.framing=crop")
    middle: Any = GeopakPredictor(cropping.path, "cpu").predict(tmp_path / "a.png")
    assert abs(whole["lat"] - middle["lat"]) > 1e-3


def test_the_mean_on_the_sphere_is_another_place(pair: Pair) -> None:
    model = pair.trained.model
    output = model(pictures(6, SMALL.image).float() / 255)
    decoded = decode(model, output, pair.trained.decoding, ["mean", "mean_of_degrees"])
    apart = (decoded["mean"].latlon_deg - decoded["mean_of_degrees"].latlon_deg).abs()
    assert 1e-3 < float(apart.max()) < 1


def test_cells_are_those_of_the_table(pair: Pair) -> None:
    metadata = cell_metadata(FEW_CELLS).set_index("cell_id").loc[pair.cell_id.tolist()]
    cells = pair.trained.cells
    np.testing.assert_array_equal(cells.province_id, metadata["province_id"])
    np.testing.assert_array_equal(cells.center_latlon_deg, metadata[["center_lat", "center_lon"]])
    np.testing.assert_array_equal(cells.radius_km, metadata["radius_km"])
    np.testing.assert_array_equal(cells.count, metadata["num_images"])
    for k, neighbours in enumerate(cells.neighbours):
        inside = neighbours[neighbours >= 0]
        assert k not in inside
        assert (cells.province_id[inside] == cells.province_id[k]).all()
        assert len(inside) == min(8, FEW_CELLS[cells.province_id[k]] - 1)


@pytest.mark.slow
@pytest.mark.parametrize("bounded", ["training", "always"])
@torch.no_grad()
def test_at_full_size(tmp_path: Path, bounded: str) -> None:
    cells = (430, 390, 210, 29, 30, 50, 80)
    pair = make_pair(tmp_path, Size(), cells, f"model.offset.bounded={bounded}")
    assert pair.trained.model.semantic.dim == 768
    assert pair.trained.model.scene.dim == 2048
    check_everything(pair, 2, clamp=bounded == "always")
