"""An imported checkpoint in the other commands: evaluate, predict, a phase that starts there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from geopak import GeopakPredictor
from geopak.checkpoint import read_checkpoint
from geopak.geo.cells import CellTable
from tests.end_to_end.conftest import Outcome, run_command
from tests.published.restatement import (
    SMALL,
    Published,
    cell_metadata,
    overrides,
    photo_as_published,
    random_weights,
    write,
)

CELLS = (5, 4, 3, 2, 2, 2, 3)


@pytest.fixture(scope="module")
def imported(home: Path) -> Path:
    folder = home / "published"
    folder.mkdir()
    metadata = cell_metadata(CELLS, counts=False)
    original = random_weights(Published(SMALL, metadata))
    outcome = run_command(
        "import_geopak",
        *write(original, metadata, folder),
        *overrides(SMALL),
        f"prepared={home}/data/synthetic/prepared",
        f"prepared_out={home}/data/imported",
    )
    assert outcome.status == 0, outcome.text
    # Of a module that is needed no more is named than what is left out.
    assert "post_layernorm, encoder.clip_model.logit_scale" in outcome.text
    return home / "outputs/imported/checkpoints/best.ckpt"


def _evaluate(imported: Path, *arguments: str) -> Outcome:
    return run_command(
        "evaluate", f"ckpt={imported}", "bootstrap_resamples=20", "num_workers=0", *arguments
    )


def test_it_is_evaluated_on_another_set_and_the_report_says_what_it_is(
    imported: Path, home: Path
) -> None:
    refused = _evaluate(imported)
    assert refused.status == 2
    assert "other_set=true" in refused.text
    outcome = _evaluate(imported, "other_set=true")
    assert outcome.status == 0, outcome.text
    folder = imported.parents[1] / "report-test"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "best_model.pth" in page
    assert "mean of degrees" in page
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert len(predictions) > 10
    # Most photos are not square; the original squeezes them.
    shapes = set()
    original = random_weights(Published(SMALL, cell_metadata(CELLS, counts=False)))
    for row in predictions.head(8).itertuples():
        photo = home / "data/synthetic" / row.path
        with Image.open(photo) as image:
            shapes.add(image.size)
        (expected,) = original.predict(photo_as_published(photo, SMALL.image)[None])
        assert row.predicted_latitude == pytest.approx(expected["lat"], abs=1e-4)
        assert row.predicted_longitude == pytest.approx(expected["lon"], abs=1e-4)
    assert sum(width != height for width, height in shapes) >= 3
    card = GeopakPredictor(imported, device="cpu").generate_model_card().text
    assert "the whole photo, squeezed into a square" in card


def test_a_report_says_that_photos_per_cell_are_not_known(imported: Path, home: Path) -> None:
    alone = home / "outputs/alone/checkpoints/best.ckpt"
    outcome = run_command(
        "import_geopak",
        f"checkpoint={home}/published/best_model.pth",
        f"cells={home}/published/cell_metadata.csv",
        *overrides(SMALL),
        f"out={alone}",
    )
    assert outcome.status == 0, outcome.text
    assert "no column of photos per cell" in outcome.text
    outcome = _evaluate(alone, "other_set=true", "split=val")
    assert outcome.status == 0, outcome.text
    page = (alone.parents[1] / "report-val/report.html").read_text(encoding="utf-8")
    assert "photos per cell unknown" in page
    here = imported.parents[1] / "report-test/report.html"
    assert "photos per cell unknown" not in here.read_text(encoding="utf-8")


def test_it_predicts_from_the_command_line(imported: Path, home: Path) -> None:
    photo = next((home / "data/synthetic").rglob("*.jpg"))
    outcome = run_command("predict", f"images={photo}", f"ckpt={imported}")
    assert outcome.status == 0, outcome.text
    assert "within 25 km" in outcome.text


def test_its_cells_get_their_counts_from_the_prepared_set(imported: Path, home: Path) -> None:
    photos = pd.read_parquet(home / "data/imported/photos.parquet")
    cells = CellTable.read(home / "data/imported/cells.parquet")
    stored = CellTable.from_dict(read_checkpoint(imported)["geopak"]["cells"])
    assert stored.fingerprint() == cells.fingerprint()
    train = photos[photos["split"] == "train"]
    for k in range(cells.num_cells):
        assert cells.count[k] == (train["cell_id"] == k).sum()
    assert (cells.province_id[photos["cell_id"]] == photos["province_id"]).all()
    np.testing.assert_array_equal(
        photos["cell_id"],
        cells.nearest(photos[["latitude", "longitude"]], photos["province_id"]),
    )
    before = pd.read_parquet(home / "data/synthetic/prepared/photos.parquet")
    unchanged = [c for c in before.columns if c not in ("cell_id", "urban")]
    pd.testing.assert_frame_equal(photos[unchanged], before[unchanged])


def test_a_phase_starts_from_it(imported: Path, home: Path) -> None:
    arguments = [
        "phase=2",
        "model=published",
        *overrides(SMALL),
        f"init_from={imported}",
        f"data.prepared={home}/data/imported",
        "name=from_imported",
        "trainer=cpu",
        "callbacks.progress_bar=false",
        "data.batches_per_epoch=2",
        "trainer.log_every_n_steps=1",
        "phase.epochs=1",
        "decoding.rule=mean_of_degrees",
    ]
    outcome = run_command("train", *arguments)
    assert outcome.status == 0, outcome.text
    (best,) = (home / "outputs/from_imported/phase-2").glob("*/checkpoints/best.ckpt")
    trained, start = read_checkpoint(best), read_checkpoint(imported)
    moved = trained["state_dict"]["model.offset_head.output.weight"]
    begun = start["state_dict"]["model.offset_head.output.weight"]
    assert not torch.equal(moved, begun)
    assert float((moved - begun).abs().max()) < 0.01
    frozen = "model.semantic.visual.conv1.weight"
    assert torch.equal(trained["state_dict"][frozen], start["state_dict"][frozen])
    assert trained["geopak"]["model"]["framing"] == "squeeze"
    other = run_command("train", *arguments, "model.framing=crop")
    assert other.status == 2
    assert "with another framing: squeeze instead of crop" in other.text
    other = run_command(
        "train", *[a.replace("model=published", "model=clip_places365") for a in arguments],
        "model.framing=squeeze",
    )  # fmt: skip
    assert other.status == 2
    assert "with another semantic" in other.text


def test_files_that_are_there_are_not_overwritten(imported: Path, home: Path) -> None:
    again = [
        f"checkpoint={home}/published/best_model.pth",
        f"cells={home}/published/cell_metadata.csv",
        *overrides(SMALL),
    ]
    refused = run_command("import_geopak", *again)
    assert refused.status == 2
    assert "overwrite=true" in refused.text
    out = f"out={home}/other.ckpt"
    prepared = f"{home}/data/synthetic/prepared"
    for target, message in (("data/imported", "is there already"), ("data/synthetic/prepared", "")):
        refused = run_command(
            "import_geopak", *again, out, f"prepared={prepared}", f"prepared_out={home}/{target}"
        )
        assert refused.status == 2
        assert (message or "another folder") in refused.text
    assert not (home / "other.ckpt").exists()
