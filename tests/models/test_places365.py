"""The indoor classifier, against torchvision's own network with the same weights."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision import transforms

from geopak.data.partitions import ExecutorSettings, map_partitions
from geopak.errors import CheckpointError, ConfigError
from geopak.models.places365 import (
    IndoorClassifier,
    IndoorSettings,
    indoor_scores,
    read_categories,
)

# What the public preprocessing does to a photo.
PUBLIC = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def classes() -> list[str]:
    return [f"/{'abcdefghij'[i // 40]}/scene_{i}" for i in range(365)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights and classes in the formats of the Places365 project, and what is in them."""
    folder = tmp_path_factory.mktemp("places365")
    torch.manual_seed(5)
    network = torchvision.models.resnet50(num_classes=365).eval()
    state = network.state_dict()
    for name, value in state.items():
        if "running_mean" in name:
            value.normal_(0, 0.1)
        elif "running_var" in name:
            value.uniform_(0.5, 1.5)
    network.load_state_dict(state)
    rng = np.random.default_rng(0)
    photos = []
    for i, (width, height) in enumerate([(300, 200), (200, 300), (90, 40), (256, 256), (501, 333)]):
        coarse = rng.integers(0, 256, (6, 9, 3), np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        photos.append(str(folder / f"{i}.png"))
        (image.convert("L") if i == 3 else image).save(photos[-1])
    # Far from even probabilities, and others for every photo.
    with torch.no_grad():
        logits = network(torch.stack([PUBLIC(Image.open(p).convert("RGB")) for p in photos]))
        scale = 3 / (logits - logits.mean(0)).std()
        network.fc.weight *= scale
        network.fc.bias.copy_((network.fc.bias - logits.mean(0)) * scale)
    # The public file is from before BatchNorm counted its batches.
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("batches_tracked")}
    checkpoint = folder / "resnet50_places365.pth.tar"
    public = {f"module.{k}": v for k, v in state.items()}
    torch.save({"epoch": 90, "arch": "resnet50", "state_dict": public, "best": 54.7}, checkpoint)
    outdoor = rng.random(365) < 0.5
    categories = folder / "IO_places365.txt"
    lines = [f"{name} {1 + out}\n" for name, out in zip(classes(), outdoor, strict=True)]
    categories.write_text("".join(lines))
    return {
        "network": network, "indoor": ~outdoor, "photos": photos,
        "settings": IndoorSettings(str(checkpoint), str(categories), device="cpu", batch_size=2),
    }  # fmt: skip


@pytest.fixture(scope="module")
def classifier(files: dict[str, Any]) -> IndoorClassifier:
    return IndoorClassifier.load(files["settings"])


def wanted(files: dict[str, Any], photos: list[str]) -> Tensor:
    images = torch.stack([PUBLIC(Image.open(photo).convert("RGB")) for photo in photos])
    with torch.inference_mode():
        probability = files["network"](images).softmax(-1)
    return torch.stack([sum(p[i] for i in np.flatnonzero(files["indoor"])) for p in probability])


def test_probabilities_are_those_of_torchvision(
    files: dict[str, Any], classifier: IndoorClassifier
) -> None:
    found = indoor_scores(files["photos"], classifier)["indoor_probability"]
    expected = wanted(files, files["photos"])
    assert expected.std() > 0.02
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)


def test_what_does_not_decode_is_missing(
    files: dict[str, Any], classifier: IndoorClassifier, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    first, second = files["photos"][:2]
    found = indoor_scores([first, str(broken), str(tmp_path / "none"), second], classifier)
    alone = indoor_scores([first, second], classifier)
    assert found["indoor_probability"].isna().to_list() == [False, True, True, False]
    pd.testing.assert_frame_equal(found.dropna().reset_index(drop=True), alone)
    assert indoor_scores([], classifier).dtypes.to_list() == [np.float64]


def test_a_photo_is_judged_upright(
    files: dict[str, Any], classifier: IndoorClassifier, tmp_path: Path
) -> None:
    with Image.open(files["photos"][0]) as image:
        upright = image.copy()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    found = indoor_scores([files["photos"][0], str(turned)], classifier)["indoor_probability"]
    assert found[0] == found[1]


def test_scores_come_in_partitions_and_are_kept(
    files: dict[str, Any], classifier: IndoorClassifier, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = partial(
        map_partitions, partial(indoor_scores, classifier=classifier), files["photos"],
        tmp_path / "store", ExecutorSettings(workers=1),
    )  # fmt: skip
    first = run()
    np.testing.assert_allclose(
        first["indoor_probability"], wanted(files, files["photos"]).numpy(), atol=2e-4
    )
    monkeypatch.setattr(IndoorClassifier, "probability", None)
    pd.testing.assert_frame_equal(run(), first)


def test_other_weights_or_classes_have_another_name(
    files: dict[str, Any], classifier: IndoorClassifier, tmp_path: Path
) -> None:
    settings = files["settings"]
    swapped = tmp_path / "IO.txt"
    lines = Path(settings.categories).read_text().splitlines()
    swapped.write_text("\n".join(f"{line[:-1]}{3 - int(line[-1])}" for line in lines))
    other = IndoorClassifier.load(IndoorSettings(settings.checkpoint, str(swapped), device="cpu"))
    assert repr(other) != repr(classifier)
    assert repr(IndoorClassifier.load(settings)) == repr(classifier)
    found = indoor_scores(files["photos"], other)["indoor_probability"]
    here = indoor_scores(files["photos"], classifier)["indoor_probability"]
    np.testing.assert_allclose(found, 1 - here, atol=2e-4)


def test_classes_are_read(files: dict[str, Any]) -> None:
    indoor = read_categories(files["settings"].categories)
    assert indoor.tolist() == files["indoor"].tolist()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([f"{c} {i}" for i, c in enumerate(classes())], r"line 1: 0 is neither.*IO_places365"),
        ([f"{c} 1" for c in classes()[:-1]], "364 classes in 364 lines"),
        ([*(f"{c} 1" for c in classes()[:-1]), "/a/scene_0 2"], "364 classes in 365 lines"),
        ([f"{c} 1" if i != 7 else c for i, c in enumerate(classes())], "line 8: '/a/scene_7' is"),
        (["<html>", "<body>Not found"], "line 1: '<html>' is not a class"),
        ([f"{c} 3" for c in classes()], "line 1: 3 is neither"),
        ([], "0 classes"),
    ],
)
def test_another_list_of_classes_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=message) as caught:
        read_categories(path)
    assert str(path) in str(caught.value)


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"indoor\.categories=.*none\.txt cannot be read"):
        read_categories(tmp_path / "none.txt")


def test_weights_that_do_not_fit_are_named(files: dict[str, Any], tmp_path: Path) -> None:
    categories = files["settings"].categories
    missing = str(tmp_path / "none.pth.tar")
    with pytest.raises(CheckpointError, match=re.escape(f"No weight file at {missing}")):
        IndoorClassifier.load(IndoorSettings(missing, categories))
    other = tmp_path / "resnet50_imagenet.pth"
    state = {k: v for k, v in files["network"].state_dict().items() if not k.startswith("fc.")}
    torch.save({**state, "fc.weight": torch.zeros(1000, 2048)}, other)
    with pytest.raises(CheckpointError, match=r"missing keys: fc\.bias; wrong shapes: fc\.weight"):
        IndoorClassifier.load(IndoorSettings(str(other), categories))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpoint": "w.pth.tar"}, r"add indoor\.categories=IO_places365\.txt"),
        ({"categories": "io.txt"}, r"add indoor\.checkpoint="),
        ({"max_probability": 0.0}, r"indoor\.max_probability is 0\.0"),
        ({"batch_size": 0}, r"indoor\.batch_size is 0"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        IndoorSettings(**values)
    assert not IndoorSettings().enabled


def test_a_device_that_is_not_there_is_named(files: dict[str, Any]) -> None:
    settings = IndoorSettings(
        files["settings"].checkpoint, files["settings"].categories, device="cuda:99"
    )
    with pytest.raises(ConfigError, match=r"indoor\.device=cuda:99 cannot be used"):
        IndoorClassifier.load(settings)
