"""Cached features are those of the encoders, and never those of anything else."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from geopak.data.augment import Augmenter
from geopak.data.content_hashes import content_hashes
from geopak.data.dataset import PhotoDataset, PreparedSet
from geopak.data.feature_store import FeatureStore
from geopak.data.features import (
    CHUNK_PHOTOS,
    CachedFeatures,
    Encoding,
    FeatureDataset,
    Pictures,
    cached_features,
)
from geopak.errors import FeatureCacheError, PhotoError
from geopak.geo.region import Region
from geopak.models.geolocator import Geolocator
from geopak.schema.model import CROP, SQUEEZE

LOAD, SIZE = 36, 32


@pytest.fixture
def root(tmp_path: Path, prepared_folder: Path) -> Path:
    """A copy of the photos that a test may change."""
    copy = tmp_path / "root"
    shutil.copytree(prepared_folder, copy)
    return copy


@pytest.fixture
def frozen(model: Geolocator) -> Geolocator:
    return model.requires_grad_(False).eval()


@pytest.fixture
def encode(root: Path, region: Region, frozen: Geolocator, tmp_path: Path) -> Callable[..., Any]:
    """Encodes photos into a folder; counts how many pictures the encoders saw."""

    def run(
        rows: np.ndarray | None = None,
        pictures: Pictures | None = None,
        dtype: str = "float32",
        precision: str = "32-true",
        num_workers: int = 0,
        framing: str = CROP,
    ) -> tuple[CachedFeatures, int]:
        prepared = PreparedSet.read(root / "prepared", root, region)
        rows = prepared.rows("train") if rows is None else rows
        pictures = pictures or views()
        dataset = PhotoDataset(prepared, pictures.load_size, framing=framing)
        contents = content_hashes([dataset.paths[r] for r in rows], tmp_path / "hashes")
        seen = 0

        def count(module: nn.Module, args: tuple[torch.Tensor]) -> None:
            nonlocal seen
            seen += len(args[0])

        handle = frozen.semantic.register_forward_pre_hook(count)
        encoding = Encoding(frozen, torch.device("cpu"), precision, num_workers=num_workers)
        found = cached_features(
            encoding, dataset, rows, contents, pictures, tmp_path / "features", dtype
        )
        handle.remove()
        return found, seen

    return run


def views(num: int = 3, draw: int = 0, **settings: Any) -> Pictures:
    return Pictures(LOAD, Augmenter(SIZE, settings), num, draw)


def test_a_plain_picture_has_the_features_that_the_model_gives_it(
    encode: Callable[..., Any], prepared: PreparedSet, frozen: Geolocator
) -> None:
    rows = prepared.rows("val")
    found, seen = encode(rows, Pictures(SIZE))
    assert seen == len(rows)
    assert found.values.shape == (len(rows), 1, frozen.feature_dim)
    for row in rows:
        image = PhotoDataset(prepared, SIZE)[[int(row)]]["image"].float() / 255
        expected = torch.cat((frozen.semantic(image), frozen.scene(image)), -1)
        got = found.values[found.position[row], 0]
        torch.testing.assert_close(got, expected[0], rtol=1e-4, atol=1e-5)


def test_views_are_augmented_differently_and_repeat_with_the_same_draw(
    encode: Callable[..., Any],
) -> None:
    found, seen = encode()
    assert seen == 3 * 30
    spread = found.values.std(1).norm(dim=-1)
    assert (spread > 0.01 * found.values.norm(dim=-1).mean()).all()
    other, again = encode(pictures=views(draw=1)), encode()
    assert other[1] == 3 * 30
    assert (other[0].values - found.values).norm(dim=-1).min() > 0
    assert again[1] == 0
    torch.testing.assert_close(again[0].values, found.values, rtol=0, atol=0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_processes_change_nothing(
    encode: Callable[..., Any], tmp_path: Path, num_workers: int
) -> None:
    found, _ = encode(num_workers=num_workers)
    kept = found.values.clone()
    shutil.rmtree(tmp_path / "features")
    torch.testing.assert_close(encode()[0].values, kept, rtol=0, atol=0)


def _other_weights(root: Path, model: Geolocator) -> dict[str, Any]:
    with torch.no_grad():
        model.semantic.visual.ln_post.bias[0] += 1e-3  # type: ignore[operator]
    return {}


def _other_statistics(root: Path, model: Geolocator) -> dict[str, Any]:
    norm = next(m for m in model.scene.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_mean += 1e-3  # type: ignore[operator]
    return {}


def _other_heads(root: Path, model: Geolocator) -> dict[str, Any]:
    model.semantic.shape["heads"] = 4
    return {}


def _other_mean(root: Path, model: Geolocator) -> dict[str, Any]:
    model.scene.mean += 0.01
    return {}


def _other_photo(root: Path, model: Geolocator) -> dict[str, Any]:
    # Of the same name, size in bytes and time of change.
    path = root / "0/0.jpg"
    before = path.stat()
    pixels = path.read_bytes()
    path.write_bytes(pixels[:-20] + bytes(b ^ 1 for b in pixels[-20:-2]) + pixels[-2:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    return {}


def _other_arithmetic(root: Path, model: Geolocator) -> dict[str, Any]:
    torch.set_float32_matmul_precision("high")
    return {}


@pytest.fixture(autouse=True)
def usual_arithmetic() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


CHANGES: dict[str, Callable[[Path, Geolocator], dict[str, Any]]] = {
    "weights": _other_weights,
    "statistics of BatchNorm": _other_statistics,
    "heads of attention": _other_heads,
    "channel means": _other_mean,
    "a photo": _other_photo,
    "size": lambda root, model: {"pictures": Pictures(LOAD + 4, Augmenter(SIZE), 3)},
    "framing": lambda root, model: {"framing": SQUEEZE},
    "augmentation": lambda root, model: {"pictures": views(brightness=0.3)},
    "views": lambda root, model: {"pictures": views(num=4)},
    "type on disk": lambda root, model: {"dtype": "float16"},
    "arithmetic": _other_arithmetic,
    "precision": lambda root, model: {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_the_features_depend_on_makes_another_cache(
    encode: Callable[..., Any], root: Path, frozen: Geolocator, change: str
) -> None:
    encode()
    assert encode()[1] == 0
    arguments = CHANGES[change](root, frozen)
    assert encode(**arguments)[1] >= 3 * 30


def test_what_they_do_not_depend_on_makes_none(
    encode: Callable[..., Any], root: Path, frozen: Geolocator
) -> None:
    encode()
    with torch.no_grad():
        for parameter in frozen.province_head.parameters():
            parameter += 1
    frozen.province_head.temperature = 3.0
    shutil.copytree(root, root.with_name("copy"))
    shutil.rmtree(root)
    root.with_name("copy").rename(root)
    assert encode()[1] == 0


def test_equal_photos_are_encoded_once(encode: Callable[..., Any], root: Path) -> None:
    shutil.copy(root / "0/0.jpg", root / "0/3.jpg")
    found, seen = encode()
    assert seen == 3 * 29
    assert found.position[0] == found.position[3]


def test_a_cache_that_was_interrupted_goes_on_and_gives_the_same(
    encode: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geopak.data.features.CHUNK_PHOTOS", 8)
    whole, seen = encode()
    kept = whole.values.clone()
    assert seen == 3 * 30
    shutil.rmtree(tmp_path / "features")
    done = next_chunks = 0

    def interrupt(*args: Any) -> Any:
        nonlocal next_chunks
        next_chunks += 1
        if next_chunks == 3:
            raise KeyboardInterrupt
        return original(*args)

    from geopak.data import features

    original = features._encode
    monkeypatch.setattr(features, "_encode", interrupt)
    with pytest.raises(KeyboardInterrupt):
        encode()
    monkeypatch.setattr(features, "_encode", original)
    found, seen = encode()
    done = 2 * 8
    assert seen == 3 * (30 - done)
    torch.testing.assert_close(found.values, kept, rtol=0, atol=0)
    assert CHUNK_PHOTOS == 128


@pytest.mark.parametrize("name", ["geopak.models.encoders", "geopak.models.geolocator"])
def test_the_code_of_the_encoders_is_part_of_their_fingerprint(
    frozen: Geolocator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module = importlib.import_module(name)
    before = frozen.encoder_fingerprint()
    copy = tmp_path / "changed.py"
    copy.write_text(Path(str(module.__file__)).read_text() + "# changed\n")
    monkeypatch.setattr(module, "__file__", str(copy))
    assert frozen.encoder_fingerprint() != before


@pytest.mark.parametrize("name", ["images", "dataset", "augment", "features"])
def test_the_code_that_makes_pictures_is_part_of_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from geopak.data import features

    module = importlib.import_module(f"geopak.data.{name}")
    before = features._code_sha256()
    copy = tmp_path / "changed.py"
    copy.write_text(Path(str(module.__file__)).read_text() + "# changed\n")
    monkeypatch.setattr(module, "__file__", str(copy))
    assert features._code_sha256() != before


def test_a_photo_that_changes_while_it_is_encoded_is_not_kept(
    encode: Callable[..., Any], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geopak.data import features

    original, path = features._encode, root / "0/3.jpg"

    def swap(*args: Any) -> Any:
        found = original(*args)
        Image.new("RGB", (50, 50)).save(path)
        return found

    monkeypatch.setattr(features, "_encode", swap)
    with pytest.raises(PhotoError, match=r"0/3\.jpg changed while"):
        encode()
    (done,) = (tmp_path / "features").glob("*/done.bin")
    assert done.read_bytes() == b"\0"


def test_who_waits_for_others_starts_no_loader(
    encode: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from geopak.data import features

    waits = 0
    original_claims = FeatureStore.claim_missing

    def claims(store: FeatureStore) -> Iterator[Any]:
        return iter(()) if waits < 5 else original_claims(store)

    def wait(store: FeatureStore) -> None:
        nonlocal waits
        waits += 1

    started = []
    loader = features.DataLoader
    monkeypatch.setattr(FeatureStore, "claim_missing", claims)
    monkeypatch.setattr(FeatureStore, "wait", wait)
    monkeypatch.setattr(
        features, "DataLoader", lambda *a, **k: started.append(waits) or loader(*a, **k)
    )
    encode()
    assert started == [5]


def test_a_loader_that_reads_ahead_leaves_chunks_to_others(
    encode: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two processes that load 4 pieces ahead, one chunk and a part of the next are claimed."""
    from geopak.data import features

    monkeypatch.setattr(features, "CHUNK_PHOTOS", 4)
    monkeypatch.setattr(features, "_PIECE_PHOTOS", 1)
    claimed: list[int] = []
    original = FeatureStore.claim_missing

    def note(store: FeatureStore) -> Iterator[Any]:
        for claim in original(store):
            claimed.append(claim.chunk)
            yield claim

    monkeypatch.setattr(FeatureStore, "claim_missing", note)
    ahead: list[int] = []
    encoder = features._encode

    def look(encoding: Any, pictures: Any, image: Any, chunk: int) -> Any:
        ahead.append(len(claimed) - chunk)
        return encoder(encoding, pictures, image, chunk)

    monkeypatch.setattr(features, "_encode", look)
    encode(num_workers=2)
    assert len(ahead) == 8
    assert max(ahead) <= 3


def test_a_photo_that_vanished_is_named(encode: Callable[..., Any], root: Path) -> None:
    (root / "0/3.jpg").unlink()
    with pytest.raises(PhotoError, match=r"0/3\.jpg"):
        encode()


def test_a_batch_holds_the_features_of_its_photos_in_one_view_each(
    encode: Callable[..., Any], prepared: PreparedSet
) -> None:
    found, _ = encode()
    truth = PhotoDataset(prepared, SIZE).truth
    dataset = FeatureDataset(
        truth, found, lambda row: torch.Generator().manual_seed(int(row.sum()))
    )
    rows = [4, 0, 7, 7, 7, 7, 7, 7, 7, 7]
    batch, again = dataset[rows], dataset[rows]
    assert batch["row"].tolist() == rows
    assert torch.equal(batch["cell_id"], truth.cell_id[rows])
    assert torch.equal(batch["features"], again["features"])
    drawn = set()
    for row, got in zip(rows, batch["features"], strict=True):
        equal = (found.values[found.position[row]] == got).all(-1)
        assert equal.sum() == 1
        if row == 7:
            drawn.add(int(equal.nonzero()))
    assert len(drawn) > 1
    with pytest.raises(IndexError, match=r"\[40\]"):
        dataset[[40]]


def test_the_same_photos_in_half_precision_are_nearly_the_same(encode: Callable[..., Any]) -> None:
    exact, half = encode()[0].values, encode(dtype="float16")[0].values
    assert half.dtype == torch.float16
    error = (half.float() - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert 0 < error.max() < 2**-10


def test_features_beyond_half_precision_are_refused(
    encode: Callable[..., Any], frozen: Geolocator
) -> None:
    frozen.semantic.visual.ln_post.weight.mul_(1e6)  # type: ignore[operator]
    with pytest.raises(FeatureCacheError, match="float16"):
        encode(dtype="float16")


def test_hashes_are_remembered_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    from geopak.data import content_hashes as module

    paths = [str(tmp_path / f"{i}.jpg") for i in range(3)]
    for i, path in enumerate(paths):
        Image.new("RGB", (8, 8), (i, i, i)).save(path)
    expected = [hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in paths]
    read: list[str] = []
    original = module.file_sha256
    monkeypatch.setattr(module, "file_sha256", lambda p: read.append(p) or original(p))
    # Files as young as these may change again within the same tick of the clock.
    assert content_hashes(paths, tmp_path / "store").sha256 == expected
    assert content_hashes(paths, tmp_path / "store").sha256 == expected
    assert sorted(read) == sorted(2 * paths)
    later = time.time() + 60
    monkeypatch.setattr(module.time, "time", lambda: later)
    content_hashes(paths, tmp_path / "store")
    read.clear()
    assert content_hashes(paths, tmp_path / "store").sha256 == expected
    assert read == []
    Image.new("RGB", (8, 8), (9, 9, 9)).save(paths[1])
    changed = hashlib.sha256(Path(paths[1]).read_bytes()).hexdigest()
    assert content_hashes(paths, tmp_path / "store").sha256 == [expected[0], changed, expected[2]]
    assert read == [paths[1]]


def test_loggers_say_where_the_features_lie(
    encode: Callable[..., Any], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.INFO, "geopak"):
        encode()
    assert f"encoding 30 photos in 3 views (17.3 kB, {tmp_path / 'features'}" in caplog.text
