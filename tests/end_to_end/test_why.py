"""Heat maps: they add up, come from the weights, and name pixels that the answer rests on."""

from __future__ import annotations

import copy
import io
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from geopak import GeopakPredictor
from geopak.data.dataset import PreparedSet
from geopak.data.images import load_image
from geopak.errors import ConfigError, PhotoError
from geopak.geo.distance import haversine_km_array
from geopak.models.decode import joint_log_prob
from geopak.models.fusion import ConcatFusion, SingleFusion
from geopak.retrieval import PhotoIndex
from geopak.trained import Trained
from geopak.why import (
    GRID,
    PICTURE_SUFFIXES,
    Explanation,
    _by_field,
    blurred,
    check_picture,
    draw_explanation,
    explain,
)


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


def test_the_first_hypothesis_is_explained_where_another_cell_is_more_probable(
    predictor: GeopakPredictor, photos: list[Path]
) -> None:
    one_province = replace(predictor.trained.decoding, top_provinces=1)
    trained = replace(predictor.trained, decoding=one_province)
    own = copy.copy(predictor)
    own.trained, own.decoding = trained, one_province
    others = 0
    for photo in photos:
        image = load_image(photo, trained.model.image_size)[None].float() / 255
        with torch.no_grad():
            joint = joint_log_prob(trained.model(image), trained.model.cell_province_id)
        first = own.predict(photo).hypotheses[0].cell_id
        others += int(joint.argmax()) != first
        assert explain(trained, photo, steps=1).cell_id == first
    assert others, "none of the photos tells both apart"


def test_weights_are_told_of_models_that_have_them(
    predictor: GeopakPredictor, photos: list[Path], tmp_path: Path
) -> None:
    model = copy.deepcopy(predictor.trained.model)
    merged = replace(predictor.trained, model=model)
    model.fusion = ConcatFusion(model.semantic_projection[0].out_features)
    found = explain(merged, photos[0], steps=1)
    assert found.encoders == {}
    draw_explanation(tmp_path / "merged.png", found, "here")
    # A model of one encoder compares photos by both all the same.
    both = explain(predictor.trained, photos[0], steps=1).features
    model.fusion, model.fused_encoders = SingleFusion(1.0), ("scene",)
    model.semantic_projection = None
    found = explain(merged, photos[0], steps=1)
    assert found.encoders == {"scene": 1.0}
    torch.testing.assert_close(found.features, both)


@pytest.mark.parametrize("side", [64, 50, 17, 16, 7])
def test_every_pixel_counts_for_one_field(side: int) -> None:
    relevance = torch.randn(side, side, dtype=torch.float64)
    expected = np.zeros((GRID, GRID))
    for row in range(side):
        for column in range(side):
            expected[row * GRID // side, column * GRID // side] += float(relevance[row, column])
    assert _by_field(relevance) == pytest.approx(expected)


def test_any_kind_of_photo_is_explained_alike_and_shown_in_full(
    predictor: GeopakPredictor, photos: list[Path], tmp_path: Path
) -> None:
    large = tmp_path / "large.png"
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (600, 900, 3), dtype=np.uint8)).save(large)
    by_path = explain(predictor.trained, large, steps=2)
    content = large.read_bytes()
    opened = io.BytesIO(content), Image.open(large), np.asarray(Image.open(large))
    for photo in (content, bytearray(content), *opened):
        found = explain(predictor.trained, photo, steps=2)
        assert np.allclose(found.relevance, by_path.relevance)
        assert torch.equal(found.image, by_path.image)
    assert torch.equal(by_path.image, load_image(large, by_path.image.shape[-1]))
    assert by_path.image.shape[-1] > 4 * predictor.trained.model.image_size
    with pytest.raises(PhotoError, match="A int is no photo"):
        explain(predictor.trained, 3)


def test_it_stops_when_told_to(predictor: GeopakPredictor, photos: list[Path]) -> None:
    asked = 0

    def proceed() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        explain(predictor.trained, photos[0], steps=200, proceed=proceed)
    assert asked == 3


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


def test_the_command_shows_the_nearest_train_photos(
    command: Callable, home: Path, phases: dict[int, Path], predictor: GeopakPredictor,
    photos: list[Path], tmp_path: Path,
) -> None:  # fmt: skip
    plain, near = tmp_path / "plain.png", tmp_path / "near.png"
    root = home / "data/synthetic"
    # By this rule the answer is not the place in the cell that is explained.
    asked = ("predict", f"images={photos[2]}", f"ckpt={phases[2]}", "rule=mean")
    assert command(*asked, f"why={plain}").status == 0
    outcome = command(
        *asked, f"why={near}", f"prepared={root}/prepared", f"feature_folder={tmp_path}"
    )
    assert outcome.status == 0, outcome.text
    told = re.findall(r"([\d.]+) alike, ([\d,]+) km away: (.+)", outcome.text)
    prepared = PreparedSet.read(root / "prepared", root, predictor.trained.region)
    index = PhotoIndex.of_train(predictor.trained.model, prepared, tmp_path)
    answer = GeopakPredictor(phases[2], device="cpu", rule="mean").predict(photos[2])
    found = explain(predictor.trained, photos[2], steps=1)
    expected = index.nearest(found.features, 6, (answer.lat, answer.lon))
    assert haversine_km_array((answer.lat, answer.lon), (found.lat, found.lon)) > 5
    assert [(float(a), int(k.replace(",", "")), Path(path)) for a, k, path in told] == [
        (round(p.similarity, 2), round(p.away_km), p.path) for p in expected
    ]
    for photo in expected:
        away_km = haversine_km_array(np.array(photo.latlon_deg), (answer.lat, answer.lon))
        assert photo.away_km == pytest.approx(float(away_km))
    with Image.open(plain) as without_photos, Image.open(near) as with_photos:
        assert with_photos.height > without_photos.height + 100
    refused = command(*asked, f"prepared={root}/prepared")
    assert (refused.status, "which is not asked for" in refused.text) == (2, True)


def test_a_picture_that_cannot_be_written_is_refused_before_any_work(
    command: Callable, phases: dict[int, Path], photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for name, message in (
        ("why.xyz", "Known: .png"), ("why", "Known: .png"), ("folder.png", "is a folder"),
        ("file/why.png", "cannot be written"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            check_picture("why", tmp_path / name)
    for key in ("why", "map"):
        outcome = command(
            "predict", f"images={photos[0]}", f"ckpt={phases[2]}", f"{key}={tmp_path}/w.xyz"
        )
        assert outcome.status == 2
        assert f"{key}={tmp_path}/w.xyz does not end as a picture's name does" in outcome.text
        assert "hypotheses" not in outcome.text
        assert "%" not in outcome.text


def test_every_kind_of_picture_is_written_by_its_name(
    predictor: GeopakPredictor, photos: list[Path], tmp_path: Path
) -> None:
    found = explain(predictor.trained, photos[0], steps=1)
    for suffix in set(PICTURE_SUFFIXES) - {".png", ".jpeg"}:
        path = tmp_path / f"why{suffix}"
        draw_explanation(path, found, "here")
        assert path.stat().st_size > 1000


def test_the_nearest_train_photos_are_those_of_most_alike_features(
    home: Path, predictor: GeopakPredictor, photos: list[Path], tmp_path: Path
) -> None:
    trained = predictor.trained
    root = home / "data/synthetic"
    prepared = PreparedSet.read(root / "prepared", root, trained.region)
    index = PhotoIndex.of_train(trained.model, prepared, tmp_path)
    rows = prepared.rows("train")
    some = prepared.photos.iloc[rows[4]]
    found = index.nearest(explain(trained, root / some["path"]).features, 5, (30.0, 70.0))
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
    nearest = index.nearest(torch.from_numpy(query), 5, (30.0, 70.0))
    assert [p.similarity for p in nearest] == pytest.approx(
        sorted(similarities, reverse=True)[:5], abs=1e-4
    )
