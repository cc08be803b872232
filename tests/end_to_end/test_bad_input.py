"""What a user can mistype or misplace ends in one message, and file names of everyday work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch

from .conftest import TINY, Outcome, run_command

Command = Callable[..., Outcome]
FILE_NAMES = [
    "IMG (1).jpg",
    "photos(1)",
    "é.jpg",
    "کراچی.jpg",
    "it's.jpg",
    'say "x".jpg',
    "x[1].jpg",
    "b#1.jpg",
    "b=c.jpg",
    "a, b.jpg",
    "a;b&c.jpg",
    "{x}.jpg",
    "[x].jpg",
    "back\\slash's.jpg",
    "1234",
    "1_000",
    "1e3",
    "true",
    "-x.jpg",
]


def assert_refused(outcome: Outcome, *parts: str) -> None:
    """Exit status 2, and a message that holds all parts and no traceback."""
    assert outcome.status == 2, outcome.text
    message = outcome.text.rpartition("error: ")[2]
    for part in parts:
        assert part in message
    assert "Traceback" not in outcome.text
    assert "full_key" not in outcome.text


def a_photo(home: Path) -> Path:
    return next((home / "data/synthetic/photos").rglob("*.jpg"))


@contextmanager
def moved_away(photo: Path, instead: bytes | None) -> Iterator[None]:
    """The photo is missing, or holds other bytes, for a while."""
    kept = photo.read_bytes()
    try:
        photo.unlink()
        if instead is not None:
            photo.write_bytes(instead)
        yield
    finally:
        photo.write_bytes(kept)


@pytest.mark.parametrize("name", FILE_NAMES)
def test_predict_takes_photos_of_every_name(
    home: Path,
    phases: dict[int, Path],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(a_photo(home), name)
    outcome = command("predict", f"images={name}", "name=three", "out=result.json")
    assert outcome.status == 0, outcome.text
    (row,) = json.loads(Path("result.json").read_text(encoding="utf-8"))
    assert row["photo"] == name


@pytest.mark.parametrize("name", ["map (1)", "a, b=é's", "2024"])
def test_predict_reads_and_writes_files_of_every_name(
    home: Path,
    phases: dict[int, Path],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir()
    for photo in ("1.jpg", "2 (é).jpg"):
        shutil.copy(a_photo(home), folder / photo)
    shutil.copy(phases[1], f"{name}.ckpt")
    photo = f"images=[{name}/1.jpg]" if "," not in name else f"images={name}/1.jpg"
    outcome = command("predict", photo, f"ckpt={name}.ckpt", f"map={name}.png")
    assert outcome.status == 0, outcome.text
    assert Path(f"{name}.png").stat().st_size > 500
    shutil.rmtree("out", ignore_errors=True)
    outcome = command("predict", f"images={name}", f"ckpt={name}.ckpt", f"out=out/{name}")
    assert outcome.status == 0, outcome.text
    assert len(json.loads(Path("out", name).read_text())) == 2


def test_predict_takes_a_list_and_a_pattern_of_odd_names(
    home: Path,
    phases: dict[int, Path],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("IMG (1).jpg", "é.jpg", "a, b.jpg"):
        shutil.copy(a_photo(home), name)
    for images, num in (("[IMG (1).jpg, é.jpg]", 2), ("a, *.jpg", 1), ("*.jpg", 3)):
        outcome = command("predict", f"images={images}", "name=three", "out=result.json")
        assert outcome.status == 0, outcome.text
        assert len(json.loads(Path("result.json").read_text())) == num


def test_a_key_without_a_default_is_asked_for(home: Path, command: Command) -> None:
    assert_refused(command("predict"), "images has no default", "images=…")
    outcome = command("train", "experiment=pakistan", "phase=0")
    assert_refused(outcome, "data.root has no default", "data.root=…")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_trainer_that_the_machine_cannot_have_is_refused(home: Path, command: Command) -> None:
    arguments = [a for a in TINY if not a.startswith("trainer=")]
    assert_refused(command("train", *arguments, "trainer=gpu", "name=no"), "gpu", "trainer=cpu")


@pytest.mark.parametrize("content", [None, b"no photo", b"\xff\xd8\xff\xe0 truncated"])
def test_evaluate_names_the_photo_that_a_loader_process_cannot_read(
    home: Path, phases: dict[int, Path], command: Command, content: bytes | None
) -> None:
    photos = pd.read_parquet(home / "data/synthetic/prepared/photos.parquet")
    path = home / "data/synthetic" / photos.loc[photos["split"] == "test", "path"].iloc[0]
    with moved_away(path, content):
        outcome = command("evaluate", f"ckpt={phases[1]}", "num_workers=1")
    assert_refused(outcome, str(path))
    assert "Caught" not in outcome.text


def test_train_names_the_photo_that_a_loader_process_cannot_read(
    home: Path, command: Command
) -> None:
    photos = pd.read_parquet(home / "data/synthetic/prepared/photos.parquet")
    path = home / "data/synthetic" / photos.loc[photos["split"] == "val", "path"].iloc[0]
    loading = ["data.memory_cache=false", "data.num_workers=1"]
    with moved_away(path, b"no photo"):
        outcome = command("train", *TINY, *loading, "name=no")
    assert_refused(outcome, f"Cannot read the photo {path}: not an image.")
    assert "Caught" not in outcome.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phase.epochs=abc", "phase.epochs='abc' must be an integer (conf/phase/0.yaml)."),
        ("phase.unfreeze=1", "phase.unfreeze=1 must be a section"),
        ("phase.lr=null", "phase.lr=null must be a section"),
        ("phase.lr.heads=-1", "phase.lr.heads=-1 must be 0 or more (conf/phase/0.yaml)."),
        ("data.batch_size=x", "data.batch_size='x' must be an integer (conf/data/photos.yaml)."),
        (
            "data.batch_size=64.5",
            "data.batch_size=64.5 must be an integer (conf/data/photos.yaml).",
        ),
        ("data.num_workers=-1", "data.num_workers=-1 must be 0 or more (conf/data/rendered.yaml)."),
        ("decoding.top_cells=x", "decoding.top_cells='x' must be an integer (conf/decoding/"),
        ("loss.cell=true", "loss.cell=true must be a number (conf/loss/default.yaml)."),
        ("model.sizes.dim=big", "model.sizes.dim='big' must be an integer at least 1 (conf/model"),
        ("~data.prepared", "The configuration lacks data.prepared (conf/data/photos.yaml)."),
        ("data.prepared=${nowhere}", "cannot be resolved: Interpolation key 'nowhere'"),
        ("data.augmentation.horizontal_flip=0.5", "horizontal_flip is not geography-safe"),
        ("data.augmentation.rotation=20", "rotation is not geography-safe"),
        ("data.augmentation.perspective=0.2", "perspective is not geography-safe"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_its_key(
    home: Path, command: Command, override: str, message: str
) -> None:
    assert_refused(command("train", *TINY, override, "name=no"), message)


def test_unsafe_augmentation_is_taken_when_it_is_meant(home: Path, command: Command) -> None:
    outcome = command(
        "train",
        *TINY,
        "phase.epochs=1",
        "data.augmentation.horizontal_flip=0.5",
        "data.allow_unsafe=true",
        "name=unsafe",
    )
    assert outcome.status == 0, outcome.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phase.losses=null", "phase.losses"),
        ("phase.train=gate", "phase.train"),
        ("trainer.precision=17", "trainer.precision=17 must be one of"),
        ("trainer.check_val_every_n_epoch=9", "more than phase.epochs=2"),
        ("loss=null", "loss=null: a config group takes the name of a file"),
        ("lose=default", "Unknown configuration key 'lose'. Did you mean 'loss' (conf/loss/)?"),
        ("logger=wand", "logger=wand: there is no file conf/logger/wand.yaml."),
        ("trainer.limit_val_batches=2.5", "trainer.limit_val_batches=2.5 must be above 0"),
        ("phase=", "phase=: there is no file"),
        ("phase", "missing EQUAL"),
    ],
)
def test_options_that_cannot_work_are_refused_in_words(
    home: Path, override: str, message: str
) -> None:
    outcome = run_command("train", "phase=0", "name=options", *TINY, override)
    assert_refused(outcome, message)
    assert not (home / "outputs/options").exists()


def test_no_job_of_a_multirun_starts_where_one_is_refused(home: Path) -> None:
    outcome = run_command("train", "-m", "phase=0,1,3", "loss.cell=1,x", "name=unstarted", *TINY)
    assert_refused(outcome, "phase=3: there is no file", "loss.cell='x' must be a number (conf/")
    assert not (home / "outputs/unstarted").exists()
