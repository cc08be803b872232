"""Every experiment of conf/experiment/ablation: composed, built, and taught a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from geopak.build import build_model, build_phase, optimizer_options
from geopak.cli import CONFIG_DIR, compose
from geopak.errors import ConfigError
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.models.decode import decode
from geopak.options import options, plain
from geopak.phases import set_up_training
from geopak.schema.training import DecodingOptions, LossOptions
from geopak.task import TASKS, GeolocationTask
from geopak.types import Batch

VARIANTS = sorted(f.stem for f in (CONFIG_DIR / "experiment/ablation").glob("*.yaml"))
# A decoding rule has no part in training.
TRAINED_VARIANTS = [v for v in VARIANTS if not v.startswith("decoding_")]
MakeBatch = Callable[..., Batch]
MakeTask = Callable[..., GeolocationTask]


@functools.cache
def composed(*overrides: str) -> DictConfig:
    return compose("train", list(overrides))


@pytest.fixture
def make_task(model_config: dict[str, Any], region: Region, cells: CellTable) -> MakeTask:
    """The task of a phase as an experiment configures it, small encoders in place of its own."""

    def make(phase: int, variant: str, *overrides: str) -> GeolocationTask:
        cfg = composed(f"phase={phase}", f"experiment=ablation/{variant}", *overrides)
        torch.manual_seed(0)
        chosen = plain(cfg.model)
        config = {**chosen, **{k: model_config[k] for k in ("semantic", "scene", "sizes")}}
        model = build_model({**config, "image_size": model_config["image_size"]}, region, cells)
        task = TASKS[phase](
            model=model,
            phase=build_phase(cfg),
            region=region,
            cells=cells,
            loss_options=options(LossOptions, plain(cfg.loss), "loss"),
            decoding=options(DecodingOptions, plain(cfg.decoding), "decoding"),
            optimizer=optimizer_options(cfg),
            encoders_pretrained=True,
            num_steps=100,
            identity={},
        )
        task._trainer = SimpleNamespace(current_epoch=0)  # type: ignore[assignment]
        return task

    return make


def differences(variant: str) -> set[str]:
    """Keys of the training configuration that an experiment changes."""
    own, usual = (plain(composed("phase=1", *e)) for e in ([f"experiment=ablation/{variant}"], []))

    def changed(a: Any, b: Any, prefix: str) -> set[str]:
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            return {k for key in a for k in changed(a[key], b[key], f"{prefix}.{key}".lstrip("."))}
        return set() if a == b else {prefix}

    return changed(own, usual, "")


def test_every_experiment_changes_what_it_is_named_after() -> None:
    assert {variant: differences(variant) for variant in VARIANTS} == {
        "full": set(),
        "no_scene_encoder": {"model.fusion.kind"},
        "mean_fusion": {"model.fusion.kind"},
        "concat_fusion": {"model.fusion.kind"},
        "flat_cells": {"model.cell_heads", "loss.cell_target"},
        "no_label_smoothing": {"loss.soft_labels"},
        "no_offset": {"model.offset.bound", "loss.offset"},
        "hard_clamp": {"model.offset.bound"},
        "no_auxiliary": {"loss.auxiliary"},
        "random_batches": {"data.sampling"},
        "regression_only": {
            "phase.parent",
            *(f"loss.{term}" for term in ("province", "cell", "offset", "auxiliary")),
            "decoding.rule",
        },
        "decoding_mean": {"decoding.rule"},
        "decoding_argmax": {"decoding.rule"},
        "decoding_geometric_median": set(),
        "decoding_max_within_km": {"decoding.rule"},
    }


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("variant", TRAINED_VARIANTS)
def test_every_trainable_parameter_gets_a_gradient(
    make_task: MakeTask, make_batch: MakeBatch, variant: str, phase: int
) -> None:
    """Distributed training ends with an error where one does not."""
    if variant == "regression_only" and phase == 0:
        with pytest.raises(ConfigError, match=r"loss\.province=0.*begin with another phase="):
            make_task(0, variant)
        return
    task = make_task(phase, variant)
    task.train()
    value, output = task.compute_loss(make_batch(12))
    value.total.backward()
    assert value.total.isfinite()
    assert set(value.terms) == {t for t in task.phase.losses if getattr(task.loss.options, t) > 0}
    trained = set()
    for name, parameter in task.model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            trained.add(name.split(".")[0])
    assert "fused" not in trained
    assert decode(task.model, output, task.decoding)[task.decoding.rule].latlon_deg.isfinite().all()


TRAINED = {
    "no_scene_encoder": {"scene_projection": False, "fusion": False, "cell_heads": True},
    "flat_cells": {"cell_heads": False, "province_head": True, "offset_head": True},
    "no_offset": {"offset_head": False, "cell_embedding": False, "cell_heads": True},
    "no_auxiliary": {"auxiliary_head": False, "offset_head": True},
    "regression_only": {"province_head": False, "cell_heads": False, "auxiliary_head": True},
}


@pytest.mark.parametrize("variant", TRAINED)
def test_what_no_term_reaches_stays_frozen(make_task: MakeTask, variant: str) -> None:
    model = make_task(1, variant).model
    trains = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    for part, expected in TRAINED[variant].items():
        assert (part in trains) == expected, part


def test_an_encoder_that_is_left_out_never_adapts(make_task: MakeTask) -> None:
    task = make_task(2, "no_scene_encoder")
    assert task.model.semantic.trains
    assert not task.model.scene.trains


def test_the_cell_term_trains_the_provinces_where_it_is_of_the_region(make_task: MakeTask) -> None:
    for target, expected in (("region", True), ("province", False)):
        overrides = ["loss.province=0", f"loss.cell_target={target}"]
        model = make_task(1, "full", *overrides).model
        trains = any(p.requires_grad for p in model.province_head.parameters())
        assert trains == expected


def test_an_offset_term_with_nothing_to_train_is_refused(make_task: MakeTask) -> None:
    with pytest.raises(ConfigError, match=r"model\.offset\.bound=none.*[Ss]et loss\.offset=0"):
        make_task(1, "no_offset", "loss.offset=1")


def test_a_flat_model_learns_cells_and_provinces_with_its_one_head(
    make_task: MakeTask, make_batch: MakeBatch
) -> None:
    task = make_task(1, "flat_cells")
    for module in task.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0
    optimizer = torch.optim.Adam(task.trainable["heads"], lr=1e-2)
    first = None
    for _ in range(12):
        value, _ = task.compute_loss(make_batch(24))
        first = first or {name: float(term.detach()) for name, term in value.terms.items()}
        optimizer.zero_grad()
        value.total.backward()
        optimizer.step()
    for name in ("province", "cell"):
        assert float(value.terms[name].detach()) < 0.7 * first[name], name


def test_temperature_is_of_the_flat_head_too(make_task: MakeTask) -> None:
    task = make_task(0, "flat_cells")
    assert task.model.province_head.temperature == 1.2
    set_up_training(task.model, build_phase(composed("phase=1")), True)
    assert task.model.province_head.temperature == 1.0
