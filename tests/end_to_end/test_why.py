"""Heat maps: they add up, come from the weights, and name pixels that the answer rests on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from geopak import GeopakPredictor
from geopak.data.dataset import PreparedSet
from geopak.data.images import load_image
from geopak.models.decode import joint_log_prob
from geopak.retrieval import PhotoIndex
from geopak.trained import Trained
from geopak.why import GRID, Explanation, blurred, explain


@pytest.fixture(scope="module")
def predictor(phases: dict[int, Path]) -> GeopakPredictor:
    return GeopakPredictor(phases[2], device="cpu")


@pytest.fixture(scope="module")
def photos(home: Path) -> list[Path]:
    return sorted((home / "data/synthetic/photos").rglob("*.jpg"))[:8]


def log_prob(trained: Trained, image: torch.Tensor, cell_id: int) -> float:
    with torch.no_grad():
        output = trained.model(image)
        return float(joint_log_prob(output, trained.model.cell_province_id)[0, cell_id])


def test_it_explains_what_the_predictor_answers(
    predictor: GeopakPredictor, photos: list[Path]
) -> None:
    answer, found = predictor.predict(photos[0]), explain(predictor.trained, photos[0])
    likeliest = answer.hypotheses[0]
    assert found.cell_id == likeliest.cell_id
    assert (found.lat, found.lon) == pytest.approx((likeliest.lat, likeliest.lon), abs=1e-3)
    assert found.encoders == pytest.approx({"semantic": 1 - answer.gate, "scene": answer.gate})
    assert found.relevance.shape == (GRID, GRID)
    assert found.heat().min() >= 0
    assert found.heat().max() == pytest.approx(1)
    # From within the predictor's own mode too.
    with torch.inference_mode():
        again = explain(predictor.trained, photos[0])
    assert np.allclose(again.relevance, found.relevance)


def test_relevance_adds_up_to_what_the_photo_adds_to_the_log_probability(
    predictor: GeopakPredictor, photos: list[Path]
) -> None:
    trained = predictor.trained
    for photo in photos[:3]:
        found = explain(trained, photo, steps=96)
        image = load_image(photo, trained.model.image_size)[None].float() / 255
        gained = log_prob(trained, image, found.cell_id) - log_prob(
            trained, blurred(image), found.cell_id
        )
        assert found.relevance.sum() == pytest.approx(gained, abs=0.02 + 0.05 * abs(gained))


def test_other_weights_give_another_map(
    phases: dict[int, Path], predictor: GeopakPredictor, photos: list[Path]
) -> None:
    other = GeopakPredictor(phases[2], device="cpu").trained
    torch.manual_seed(1)
    for encoder in (other.model.semantic, other.model.scene):
        for parameter in encoder.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=float(parameter.detach().std()))
    likeness = [
        spearmanr(
            explain(predictor.trained, photo).relevance.ravel(),
            explain(other, photo).relevance.ravel(),
        ).statistic
        for photo in photos
    ]
    assert np.mean(np.abs(likeness)) < 0.35


def without(
    image: torch.Tensor, found: Explanation, share: float, order: np.ndarray
) -> torch.Tensor:
    """The photo with a share of its fields, the first by an order, blurred."""
    keep = np.ones(GRID * GRID, np.float32)
    keep[order[: math.ceil(share * GRID * GRID)]] = 0
    side = image.shape[-1] // GRID
    mask = torch.from_numpy(np.kron(keep.reshape(GRID, GRID), np.ones((side, side), np.float32)))
    return image * mask + blurred(image) * (1 - mask)


def test_losing_what_is_hot_costs_more_than_losing_anything_else(
    predictor: GeopakPredictor, photos: list[Path]
) -> None:
    trained, generator = predictor.trained, np.random.default_rng(0)
    hot, cold, random = [], [], []
    for photo in photos:
        found = explain(trained, photo)
        image = load_image(photo, trained.model.image_size)[None].float() / 255
        before = log_prob(trained, image, found.cell_id)

        def cost(order: np.ndarray, found: Explanation = found, image: torch.Tensor = image,
                 before: float = before) -> float:  # fmt: skip
            return before - log_prob(trained, without(image, found, 0.2, order), found.cell_id)

        by_relevance = np.argsort(-found.relevance.ravel())
        hot.append(cost(by_relevance))
        cold.append(cost(by_relevance[::-1]))
        random.append(np.mean([cost(generator.permutation(GRID * GRID)) for _ in range(5)]))
    assert np.mean(hot) > np.mean(random) > np.mean(cold)
    assert np.mean(np.array(hot) > np.array(random)) >= 0.85


def test_the_command_saves_a_picture(
    command: Callable, phases: dict[int, Path], photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "why.png"
    outcome = command("predict", f"images={photos[0]}", f"ckpt={phases[2]}", f"why={out}")
    assert outcome.status == 0, outcome.text
    with Image.open(out) as picture:
        assert min(picture.size) > 500
    refused = command(
        "predict", f"images=[{photos[0]},{photos[1]}]", f"ckpt={phases[2]}", f"why={out}"
    )
    assert refused.status == 2
    assert "why= draws one photo, images= names 2" in refused.text


def test_the_nearest_train_photos_are_those_of_most_alike_features(
    home: Path, predictor: GeopakPredictor, photos: list[Path], tmp_path: Path
) -> None:
    trained = predictor.trained
    root = home / "data/synthetic"
    prepared = PreparedSet.read(root / "prepared", root, trained.region)
    index = PhotoIndex.of_train(trained.model, prepared, tmp_path)
    rows = prepared.rows("train")
    some = prepared.photos.iloc[rows[4]]
    found = index.nearest(explain(trained, root / some["path"]).features, 5)
    assert found[0].path == root / some["path"]
    assert found[0].similarity == pytest.approx(1, abs=1e-4)
    assert found[0].latlon_deg == pytest.approx((some["latitude"], some["longitude"]))
    # Each encoder alone at length 1: naive, of all train photos.
    dim = trained.model.semantic.dim
    query = explain(trained, photos[0]).features.numpy().astype(float)

    def alike(features: np.ndarray) -> float:
        parts = [(features[:dim], query[:dim]), (features[dim:], query[dim:])]
        return float(np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in parts]))

    similarities = []
    for path in prepared.photos.iloc[rows]["path"]:
        image = load_image(root / path, trained.model.image_size)[None].float() / 255
        with torch.no_grad():
            similarities.append(alike(trained.model.embed(image)[0].double().numpy()))
    nearest = index.nearest(torch.from_numpy(query), 5)
    assert [p.similarity for p in nearest] == pytest.approx(
        sorted(similarities, reverse=True)[:5], abs=1e-4
    )
