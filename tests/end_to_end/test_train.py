"""Training through the command, with the real configuration and tiny encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from geopak.checkpoint import read_checkpoint
from geopak.cli import compose
from geopak.data.datamodule import GeopakDataModule
from geopak.types import Batch

from .conftest import TINY, Outcome

Command = Callable[..., Outcome]


def state(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def changed(before: Path, after: Path) -> set[str]:
    """Second-level names (``model.<part>``) of all tensors that differ."""
    old, new = state(before), state(after)
    assert old.keys() == new.keys()
    return {k.split(".")[1] for k in old if not torch.equal(old[k], new[k])}


def test_each_phase_starts_from_the_best_of_the_one_before(phases: dict[int, Path]) -> None:
    for phase in (1, 2):
        record = json.loads((phases[phase].parents[1] / "run.json").read_text())
        assert Path(record["parent"]) == phases[phase - 1]
        assert record["phase"] == phase


def test_phase_1_leaves_encoders_bit_identical(phases: dict[int, Path]) -> None:
    moved = changed(phases[0], phases[1])
    assert not moved & {"semantic", "scene"}
    assert {
        "semantic_projection", "scene_projection", "fusion", "province_head", "cell_heads",
        "cell_embedding", "province_embedding", "offset_head", "auxiliary_head",
    } <= moved  # fmt: skip


def test_phase_2_moves_the_top_of_both_encoders_only(phases: dict[int, Path]) -> None:
    old, new = state(phases[1]), state(phases[2])
    moved = {k for k in old if not torch.equal(old[k], new[k])}
    semantic = {k for k in moved if k.startswith("model.semantic.")}
    scene = {k for k in moved if k.startswith("model.scene.")}
    # 0.3 of 4 blocks is 1; the last stage of the ResNet is layer4.
    assert {k.split(".")[3] for k in semantic} == {"transformer", "ln_post"}
    assert {k.split(".")[5] for k in semantic if ".resblocks." in k} == {"3"}
    assert {k.split(".")[3] for k in scene} == {"layer4"}


def test_run_folder_logs_every_term_its_share_and_the_validation(phases: dict[int, Path]) -> None:
    (log,) = phases[2].parents[1].glob("csv/metrics.csv")
    columns = set(pd.read_csv(log).columns)
    for term in ("province", "cell", "offset", "auxiliary"):
        assert {f"train/loss/{term}", f"train/share/{term}"} <= columns
    assert {
        "train/gate_mean", "val/median_km", "val/province_macro_acc", "val/within_25km",
        "val/teacher_forced/median_km", "val/cell_top5",
    } <= columns  # fmt: skip
    assert any(c.startswith("lr-") for c in columns)


def test_summary_names_rates_before_the_first_step(home: Path, command: Command) -> None:
    outcome = command("train", "phase=0", "name=summary", *TINY, "phase.lr.heads=3e-4")
    assert outcome.status == 0, outcome.text
    assert "random weights: this" in " ".join(outcome.text.split())
    assert "3.0e-04" in outcome.text
    assert "frozen" in outcome.text


def test_resuming_continues_from_the_last_epoch_in_the_same_folder(
    home: Path, command: Command
) -> None:
    # An accuracy cannot exceed its first value when the learning rate is nought: epoch 0 stays
    # the best, and the last checkpoint must move on all the same.
    still = [*TINY, "phase.lr.heads=0", "model.lr.semantic=0", "model.lr.scene=0"]
    assert command("train", "phase=0", "name=resumed", *still).status == 0
    (last,) = (home / "outputs/resumed/phase-0").glob("*/checkpoints/last.ckpt")
    best = last.with_name("best.ckpt")
    assert torch.load(best, weights_only=True)["global_step"] == 3
    assert torch.load(last, weights_only=True)["global_step"] == 6
    arguments = ["phase=0", "name=resumed", *still, "phase.epochs=3", f"resume_from={last}"]
    outcome = command("train", *arguments)
    assert outcome.status == 0, outcome.text
    assert torch.load(last, weights_only=True)["global_step"] == 9
    assert (last.parents[1] / "csv-2" / "metrics.csv").is_file()
    record = json.loads((last.parents[1] / "run.json").read_text())
    assert record["epochs"] == 3


def test_a_resumed_run_draws_the_batches_of_its_epoch(home: Path, command: Command) -> None:
    """Loader processes begin to fetch before the trainer says which epoch it is."""
    loading = ["data.memory_cache=false", "data.num_workers=1"]
    arguments = ["train", "phase=0", "name=parts", *TINY, *loading]
    assert command(*arguments, "phase.epochs=1").status == 0
    (last,) = (home / "outputs/parts/phase-0").glob("*/checkpoints/last.ckpt")
    rows = batches_of(home, epoch=1)
    assert rows != batches_of(home, epoch=0)
    seen: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patch:
        original = GeopakDataModule.on_after_batch_transfer

        def spy(self: GeopakDataModule, batch: Batch, dataloader_idx: int) -> Batch:
            if self.trainer.training:
                seen.append(batch["row"].tolist())
            return original(self, batch, dataloader_idx)

        patch.setattr(GeopakDataModule, "on_after_batch_transfer", spy)
        assert command(*arguments, f"resume_from={last}").status == 0
    assert seen == rows


def batches_of(home: Path, epoch: int) -> list[list[int]]:
    """The rows that the sampler of the small runs draws in an epoch."""
    from geopak import build

    cfg = compose("train", TINY)
    region = build.build_region(cfg)
    datamodule = build.build_datamodule(cfg, build.build_prepared(cfg, region), region, 64)
    sampler = datamodule.train_sampler(rank=0)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_resuming_with_the_checkpoint_of_another_phase_is_refused(
    home: Path, command: Command, phases: dict[int, Path]
) -> None:
    outcome = command("train", "phase=1", "name=three", f"resume_from={phases[0]}", *TINY)
    assert outcome.status == 2
    assert "comes from phase 0, wanted is phase 1" in outcome.text


def test_mixed_precision_trains_with_clipped_gradients(home: Path, command: Command) -> None:
    outcome = command("train", "phase=0", "name=mixed", *TINY, "trainer.precision=bf16-mixed")
    assert outcome.status == 0, outcome.text


def test_without_a_parent_the_command_to_run_is_named(home: Path, command: Command) -> None:
    outcome = command("train", "phase=1", "name=parentless", "trainer=cpu")
    assert outcome.status == 2
    assert "python -m geopak.train phase=0 name=parentless" in outcome.text
    assert "Traceback" not in outcome.text


def test_init_from_takes_a_given_parent(
    home: Path, command: Command, phases: dict[int, Path]
) -> None:
    outcome = command("train", "phase=1", "name=given", f"init_from={phases[0]}", *TINY)
    assert outcome.status == 0, outcome.text


def test_a_checkpoint_of_the_wrong_phase_is_refused(
    home: Path, command: Command, phases: dict[int, Path]
) -> None:
    outcome = command("train", "phase=2", "name=wrong", f"init_from={phases[0]}", *TINY)
    assert outcome.status == 2
    assert "comes from phase 0, wanted is phase 1" in outcome.text


def test_a_checkpoint_of_another_region_is_refused(
    home: Path, command: Command, phases: dict[int, Path], tmp_path: Path
) -> None:
    checkpoint = torch.load(phases[0], weights_only=True)
    checkpoint["geopak"]["region"]["name"] = "elsewhere"
    checkpoint["geopak"]["region"]["title"] = "Elsewhere"
    other = tmp_path / "other.ckpt"
    torch.save(checkpoint, other)
    outcome = command("train", "phase=1", "name=region", f"init_from={other}", *TINY)
    assert outcome.status == 2
    assert "is of the region Elsewhere" in outcome.text


def test_quotas_that_do_not_fit_the_batch_are_refused(home: Path, command: Command) -> None:
    outcome = command("train", "phase=0", *TINY, "region.provinces.sindh.batch_quota=20")
    assert outcome.status == 2
    assert "sum to 68, not to data.batch_size=64" in outcome.text


def test_an_unknown_key_is_refused_with_the_nearest(home: Path, command: Command) -> None:
    outcome = command("train", "phase=0", "phase.lr.head=1e-3")
    assert outcome.status == 2
    assert "Did you mean 'phase.lr.heads' (conf/phase/0.yaml)?" in outcome.text


def test_an_unprepared_folder_names_the_command(
    home: Path, command: Command, tmp_path: Path
) -> None:
    outcome = command("train", "phase=0", f"data.root={tmp_path}", *TINY)
    assert outcome.status == 2
    assert "python -m geopak.prepare" in outcome.text


def test_the_default_model_is_pretrained_and_small() -> None:
    from geopak.build import build_model, load_pretrained
    from geopak.geo.region import Region
    from geopak.options import plain
    from tests.conftest import make_cells

    cfg = compose("train")
    region = Region.from_config({"name": "three", "provinces": {"a": {}, "b": {}, "c": {}}})
    config = plain(cfg.model)
    model = build_model(config, region, make_cells())
    before = {k: v.clone() for k, v in model.semantic.state_dict().items()}
    load_pretrained(model, config)
    encoders = [*model.semantic.parameters(), *model.scene.parameters()]
    assert sum(p.numel() for p in encoders) <= 5_000_000
    moved = [k for k, v in model.semantic.state_dict().items() if not torch.equal(v, before[k])]
    assert len(moved) > 40
    shipped = [Path(config[e]["checkpoint"]) for e in ("semantic", "scene")]
    assert sum(p.stat().st_size for p in shipped) <= 6_000_000
