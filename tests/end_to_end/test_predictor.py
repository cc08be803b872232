"""The predictor: what it imports, and that many photos at once are what each is alone."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geopak import GeopakPredictor
from geopak.errors import ConfigError, PhotoError
from geopak.results import PhotoFailure

# What trains, prepares, draws or reads tables and maps.
NOT_NEEDED = (
    "lightning", "lightning_fabric", "pytorch_lightning", "torchmetrics", "wandb", "hydra",
    "omegaconf", "pandas", "pyarrow", "pandera", "sklearn", "hdbscan", "scipy", "matplotlib",
    "geopandas", "pyogrio", "pyproj", "joblib", "dask", "webdataset", "modal", "rich", "jinja2",
    "geopak.task", "geopak.metrics", "geopak.cli", "geopak.data.dataset",
    "geopak.data.datamodule", "geopak.data.augment", "geopak.geo.clustering",
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(home: Path) -> list[Path]:
    return sorted((home / "data/synthetic/photos").rglob("*.jpg"))[:11]


def test_a_first_answer_imports_nothing_that_only_training_needs(
    phases: dict[int, Path], photos: list[Path]
) -> None:
    code = f"""
import json, sys
from geopak import GeopakPredictor
result = GeopakPredictor({str(phases[2])!r}, device="cpu").predict({str(photos[0])!r})
unneeded = [name for name in {NOT_NEEDED!r} if name in sys.modules]
print(json.dumps([result["lat"], result["lon"], unneeded]))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lat, lon, unneeded = json.loads(run.stdout.splitlines()[-1])
    assert unneeded == []
    here = GeopakPredictor(phases[2], device="cpu").predict(photos[0])
    assert (lat, lon) == pytest.approx((here["lat"], here["lon"]), abs=1e-4)


def test_many_photos_are_what_each_is_alone_in_the_order_given(
    phases: dict[int, Path], photos: list[Path]
) -> None:
    predictor = GeopakPredictor(phases[2], device="cpu", batch_size=3)
    together = predictor.predict(photos)
    assert len(together) == 11
    for photo, result in zip(photos, together, strict=True):
        alone = predictor.predict(photo)
        assert result.keys() == alone.keys()
        assert result["province"] == alone["province"]
        for key in ("lat", "lon", "confidence", "gate"):
            assert result[key] == pytest.approx(alone[key], abs=1e-3), key
    assert len({(r["lat"], r["lon"]) for r in together}) > 5
    assert predictor.predict([]) == []


def test_every_kind_of_source_is_one_photo(phases: dict[int, Path], photos: list[Path]) -> None:
    predictor = GeopakPredictor(phases[2], device="cpu", batch_size=2)
    content = photos[0].read_bytes()
    expected = predictor.predict(photos[0])
    with Image.open(photos[0]) as image:
        same = [content, io.BytesIO(content), str(photos[0]), image, image]
        for result in (*predictor.predict(same), *map(predictor.predict, same[:1])):
            assert (result["lat"], result["lon"]) == pytest.approx(
                (expected["lat"], expected["lon"]), abs=1e-3
            )
    with photos[0].open("rb") as file:
        assert predictor.predict(file)["province"] == expected["province"]
    array = np.asarray(Image.open(io.BytesIO(content)))
    assert predictor.predict((array, array))[1]["province"] == expected["province"]


@pytest.mark.parametrize("place", [0, 4, 11])
def test_a_broken_photo_among_many_is_an_entry_and_the_rest_go_on(
    phases: dict[int, Path], photos: list[Path], tmp_path: Path, place: int
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:200])
    predictor = GeopakPredictor(phases[2], device="cpu", batch_size=3)
    whole = predictor.predict(photos)
    given = [*photos[:place], broken, *photos[place:]]
    answers = predictor.predict(given)
    failure = answers.pop(place)
    assert isinstance(failure, PhotoFailure)
    assert "broken.jpg" in failure.error
    assert failure["photo"] == str(broken)
    assert [a.photo for a in answers] == [str(p) for p in photos]
    for answer, expected in zip(answers, whole, strict=True):
        assert (answer["lat"], answer["lon"]) == pytest.approx(
            (expected["lat"], expected["lon"]), abs=1e-3
        )


def test_whatever_is_no_photo_is_an_entry_too(phases: dict[int, Path], photos: list[Path]) -> None:
    predictor = GeopakPredictor(phases[2], device="cpu", batch_size=2)
    odd = [None, 7, b"", b"no photo", np.zeros((3, 3, 7)), "nowhere.jpg", io.BytesIO(b"x")]
    for only in ([], [photos[0]]):
        answers = predictor.predict([*odd, *only])
        assert [a.error is not None for a in answers] == [True] * len(odd) + [False] * len(only)
        assert "A NoneType is no photo" in answers[0].error
        assert "nowhere.jpg" in answers[5].error
    with pytest.raises(PhotoError, match="of 8 bytes"):
        predictor.predict(b"no photo")


def test_what_is_neither_a_photo_nor_many_is_an_error(
    phases: dict[int, Path], photos: list[Path]
) -> None:
    predictor = GeopakPredictor(phases[2], device="cpu")
    for thing in (None, 7, torch.zeros(3, 8, 8)):
        with pytest.raises(PhotoError, match="is no photo: give a path"):
            predictor.predict(thing)
    for path in (photos[0], "nowhere"):
        with pytest.raises(PhotoError, match="is no folder"):
            list(predictor.stream(path))
    content = bytearray(photos[0].read_bytes())
    assert predictor.predict(content)["lat"] == predictor.predict(photos[0])["lat"]
    with photos[0].open(encoding="latin-1") as file, pytest.raises(PhotoError, match="as text"):
        predictor.predict(file)


def test_a_stream_takes_no_more_than_it_needs_and_holds_no_more(
    phases: dict[int, Path], photos: list[Path]
) -> None:
    predictor = GeopakPredictor(phases[2], device="cpu", batch_size=3)
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        content = photos[0].read_bytes()
        while True:
            taken += 1
            yield content

    answers = predictor.predict(endless())
    assert taken == 0
    for number in range(1, 32):
        assert next(answers).error is None
        assert taken <= number + 3 * predictor.batch_size
    answers.close()
    threads = threading.active_count()
    assert threads < 20


@pytest.mark.slow
def test_twelve_thousand_photos_take_no_more_memory_than_three_thousand(
    phases: dict[int, Path], photos: list[Path]
) -> None:
    code = f"""
import itertools, os
import torch
from geopak import GeopakPredictor

torch.set_num_threads(1)
predictor = GeopakPredictor({str(phases[2])!r}, device="cpu", batch_size=32)
photos = [{", ".join(repr(str(p)) for p in photos)}, "nowhere.jpg", b"no photo"]
answers = predictor.stream(itertools.islice(itertools.cycle(photos), 12_000))
for number, answer in enumerate(answers, start=1):
    if number % 3_000 == 0:
        with open("/proc/self/statm") as file:
            print(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    resident_mb = [float(line) for line in run.stdout.split()]
    assert len(resident_mb) == 4
    print(resident_mb)
    # The images of 9,000 photos would be 1,350 MB, their answers some 50.
    assert resident_mb[-1] - resident_mb[0] < 15


def test_an_error_of_the_iterable_is_passed_on(phases: dict[int, Path], photos: list[Path]) -> None:
    predictor = GeopakPredictor(phases[2], device="cpu", batch_size=3)

    def failing() -> Iterator[Path]:
        yield from photos[:2]
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError, match="the source is gone"):
        list(predictor.stream(failing()))


def test_a_folder_is_its_photos_by_name_with_subfolders(
    phases: dict[int, Path], photos: list[Path], tmp_path: Path
) -> None:
    for number, name in enumerate(("b.JPG", "a/z.jpg", "a/b/c.jpeg")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(photos[number].read_bytes())
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "a" / "broken.png").write_bytes(b"")
    predictor = GeopakPredictor(phases[2], device="cpu")
    answers = predictor.predict(tmp_path)
    names = [Path(a.photo).relative_to(tmp_path).as_posix() for a in answers]
    assert names == ["b.JPG", "a/broken.png", "a/z.jpg", "a/b/c.jpeg"]
    assert [a.error is None for a in answers] == [True, False, True, True]
    assert [dict(a) for a in predictor.stream(str(tmp_path))] == [dict(a) for a in answers]
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotoError, match="holds no image file"):
        predictor.predict(tmp_path / "empty")


def test_an_answer_is_a_dataclass_a_mapping_and_a_plain_dict(
    phases: dict[int, Path], photos: list[Path]
) -> None:
    answer = GeopakPredictor(phases[2], device="cpu").predict(photos[0])
    assert answer["lat"] == answer.lat
    assert set(answer) == {f.name for f in dataclasses.fields(answer)}
    assert {**answer}["hypotheses"][0]["lat"] == answer.hypotheses[0].lat
    with pytest.raises(KeyError):
        answer["to_dict"]
    plain = answer.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert type(plain["hypotheses"][0]) is dict
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.lat = 0.0


def test_bfloat16_encoders_move_no_answer_far_and_leave_the_heads_alone(
    phases: dict[int, Path], photos: list[Path]
) -> None:
    exact = GeopakPredictor(phases[2], device="cpu", rule="argmax").predict(photos)
    rough = GeopakPredictor(phases[2], device="cpu", rule="argmax", precision="bfloat16")
    for a, b in zip(exact, rough.predict(photos), strict=True):
        assert a.gate == pytest.approx(b.gate, abs=0.02)
        assert a.province_probabilities == pytest.approx(b.province_probabilities, abs=0.05)
        # Coordinates in bfloat16 would be multiples of 1/4 or 1/2 degree.
        assert (4 * b.lat) % 1 != 0
    assert any(a.gate != b.gate for a, b in zip(exact, rough.predict(photos), strict=True))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"device": "cuda:97"}, "device=cpu needs no GPU"),
        ({"device": "abacus"}, "device=abacus"),
        ({"precision": "int3"}, "precision='int3' must be one of auto, float32, bfloat16"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"coverage": 1.0}, "coverage=1.0"),
        ({"coverage": "0.9"}, "coverage=0.9 must be a number"),
        ({"abstain_below": float("nan")}, "abstain_below=nan"),
    ],
)
def test_what_cannot_be_is_refused_before_the_checkpoint_is_read(
    argument: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        GeopakPredictor("nowhere.ckpt", **argument)
