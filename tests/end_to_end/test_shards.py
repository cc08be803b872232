"""Shards through the real commands: made, trained from, evaluated from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from geopak.checkpoint import read_checkpoint
from geopak.data.shards import INDEX_NAME, ShardBatches, ShardIndex
from geopak.types import Batch

from .conftest import TINY, Outcome, run_command

SMALL = ("photos_per_shard=20", "executor.workers=1")


@pytest.fixture(scope="module")
def root(home: Path) -> Path:
    return home / "data" / "synthetic"


@pytest.fixture(scope="module")
def made(root: Path) -> Outcome:
    outcome = run_command("prepare", "shards", *SMALL)
    assert outcome.status == 0, outcome.text
    return outcome


@pytest.fixture(scope="module")
def shards(made: Outcome, root: Path) -> Path:
    return root / "shards"


def test_every_photo_of_the_set_is_in_the_shards(made: Outcome, shards: Path, root: Path) -> None:
    photos = pd.read_parquet(root / "prepared/photos.parquet")
    index = ShardIndex.read(str(shards))
    found = [
        sample.row
        for part in (*index.train, *index.held_out.values())
        for shard in part
        for sample in index.samples(shard)
    ]
    wanted = photos.index[photos["split"].isin(("train", "val", "test"))]
    assert sorted(found) == wanted.tolist()
    assert f"shards: {shards}" in made.text
    set_id = json.loads((root / "prepared/manifest.json").read_text())["set_id"]
    assert json.loads((shards / INDEX_NAME).read_text())["prepared"]["set_id"] == set_id


def test_shards_made_again_are_the_same_and_replace_nothing_else(
    shards: Path, root: Path, tmp_path: Path
) -> None:
    before = {p.name: p.read_bytes() for p in shards.rglob("*.tar")}
    again = run_command("prepare", "shards", *SMALL)
    assert again.status == 0, again.text
    assert {p.name: p.read_bytes() for p in shards.rglob("*.tar")} == before
    (tmp_path / "letter.txt").write_text("not to be lost")
    for out, message in (
        (tmp_path, "holds no shards; it is not replaced"),
        (root, "it would be replaced"),
    ):
        refused = run_command("prepare", "shards", *SMALL, f"out={out}")
        assert refused.status == 2
        assert message in refused.text
    assert (tmp_path / "letter.txt").is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("photos_per_shard=0", "photos_per_shard=0 must be at least 1"),
        ("shard_mb=much", "shard_mb='much' must be a number"),
        ("seed=-1", "seed=-1 must be at least 0"),
        ("photos_per_shart=5", "Did you mean 'photos_per_shard'"),
        ("prepared=nowhere", "No manifest.json in nowhere"),
    ],
)
def test_what_cannot_work_is_refused(home: Path, override: str, message: str) -> None:
    refused = run_command("prepare", "shards", override)
    assert refused.status != 0
    assert message in refused.text


@pytest.mark.slow
def test_evaluation_from_shards_gives_the_numbers_of_the_files(
    shards: Path, root: Path, phases: dict[int, Path], tmp_path: Path
) -> None:
    common = (f"ckpt={phases[2]}", "bootstrap_resamples=20", "batch_size=7")
    files = run_command("evaluate", *common, "num_workers=0", f"out={tmp_path / 'files'}")
    assert files.status == 0, files.text
    # No photo is on this machine.
    streamed = run_command(
        "evaluate",
        *common,
        "num_workers=2",
        f"root={tmp_path / 'nothing'}",
        f"prepared={root / 'prepared'}",
        f"shards={shards}",
        f"out={tmp_path / 'shards'}",
    )
    assert streamed.status == 0, streamed.text
    reports = [json.loads((tmp_path / n / "report.json").read_text()) for n in ("files", "shards")]
    assert reports[0] == reports[1]
    tables = [pd.read_parquet(tmp_path / n / "predictions.parquet") for n in ("files", "shards")]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.slow
def test_calibration_from_shards_gives_the_numbers_of_the_files(
    shards: Path, root: Path, phases: dict[int, Path], tmp_path: Path
) -> None:
    common = (f"ckpt={phases[2]}", "batch_size=7")
    files = run_command("calibrate", *common, "num_workers=0", f"out={tmp_path / 'files.ckpt'}")
    assert files.status == 0, files.text
    streamed = run_command(
        "calibrate",
        *common,
        "num_workers=2",
        f"root={tmp_path / 'nothing'}",
        f"prepared={root / 'prepared'}",
        f"shards={shards}",
        f"out={tmp_path / 'shards.ckpt'}",
    )
    assert streamed.status == 0, streamed.text
    ours, theirs = (
        read_checkpoint(tmp_path / f"{n}.ckpt")["geopak"]["calibration"]
        for n in ("files", "shards")
    )
    assert ours["fitted_on"] == theirs["fitted_on"]
    assert ours["province_temperature"] == pytest.approx(theirs["province_temperature"], rel=1e-3)
    assert ours["cell_temperature"] == pytest.approx(theirs["cell_temperature"], rel=1e-3)
    torch.testing.assert_close(ours["score"], theirs["score"], atol=1e-4, rtol=1e-3)
    # Train photos are not to be had one by one: half of val stands for them.
    assert not torch.equal(ours["familiarity"]["mean"], theirs["familiarity"]["mean"])


def test_evaluation_refuses_shards_of_another_set(
    shards: Path, phases: dict[int, Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(shards, tmp_path / "shards"))
    text = (broken / INDEX_NAME).read_text()
    content = json.loads(text)
    content["prepared"]["photos_sha256"] = "0" * 64
    (broken / INDEX_NAME).write_text(json.dumps(content))
    refused = run_command("evaluate", f"ckpt={phases[2]}", f"shards={broken}")
    assert refused.status == 2
    assert "were made from another prepared set" in refused.text
    assert "python -m geopak.prepare shards root=" in refused.text


def test_all_phases_train_from_shards_alone(
    shards: Path, root: Path, home: Path, tmp_path: Path
) -> None:
    outcome = run_command(
        "train",
        "-m",
        "phase=0,1,2",
        "name=streamed",
        *TINY,
        "data=shards",
        # No photo is on this machine.
        f"data.root={tmp_path / 'nothing'}",
        f"data.prepared={root / 'prepared'}",
        f"data.shards={shards}",
        "data.num_workers=2",
    )
    assert outcome.status == 0, outcome.text
    for phase in (0, 1, 2):
        [best] = (home / "outputs/streamed" / f"phase-{phase}").glob("*/checkpoints/best.ckpt")
        config = torch.load(best, weights_only=True)["geopak"]["config"]
        assert "shards" not in config["data"]


def test_a_resumed_run_goes_on_with_the_stream(
    shards: Path, root: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []
    original = ShardBatches.__getitem__

    def watched(self: ShardBatches, asked: tuple[int, int]) -> Batch:
        batch = original(self, asked)
        drawn.append(batch["row"].tolist())
        return batch

    def rows_of(*arguments: str) -> list[list[int]]:
        common = ("phase=0", "data=shards", f"data.root={root}", "data.num_workers=0")
        drawn.clear()
        outcome = run_command("train", *TINY, *common, *arguments)
        assert outcome.status == 0, outcome.text
        return drawn.copy()

    monkeypatch.setattr(ShardBatches, "__getitem__", watched)
    whole = rows_of("name=whole-stream")
    part = rows_of("name=part", "phase.epochs=1")
    [last] = (home / "outputs/part").glob("phase-0/*/checkpoints/last.ckpt")
    rest = rows_of("name=part", f"resume_from={last}")
    assert len(whole) == 6
    assert part + rest == whole


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.shards=nowhere"], "No shards at nowhere"),
        (["data.sampling=random"], "data.sampling=random needs photo files"),
    ],
)
def test_training_that_cannot_work_is_refused(
    shards: Path, root: Path, overrides: list[str], message: str
) -> None:
    refused = run_command("train", *TINY, "data=shards", f"data.root={root}", *overrides)
    assert refused.status == 2
    assert message in refused.text
    assert "Traceback" not in refused.text
