"""The phases as conf/phase/*.yaml says them: what trains, at which rate, what stays as it is."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from geopak.build import build_phase, optimizer_options, scale_learning_rates
from geopak.cli import compose
from geopak.errors import ConfigError
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.losses import LossOptions
from geopak.models.decode import DecodingOptions
from geopak.models.geolocator import Geolocator
from geopak.options import plain
from geopak.phases import parameter_counts, set_up_training
from geopak.task import TASKS, GeolocationTask, learning_rate_factor
from geopak.types import Batch

MakeBatch = Callable[..., Batch]
PHASES = (0, 1, 2)


@functools.cache
def composed(index: int, *overrides: str) -> DictConfig:
    return compose("train", [f"phase={index}", *overrides])


@pytest.fixture
def make_task(
    model: Geolocator, region: Region, cells: CellTable
) -> Callable[..., GeolocationTask]:
    """Makes the task of a phase as training does; a stub stands for the trainer."""

    def make(index: int, *overrides: str, pretrained: bool = True) -> GeolocationTask:
        cfg = composed(index, *overrides)
        phase = build_phase(cfg)
        task = TASKS[index](
            model=model,
            phase=phase,
            region=region,
            cells=cells,
            loss_options=LossOptions(**plain(cfg.loss)),
            decoding=DecodingOptions(),
            optimizer=optimizer_options(cfg),
            encoders_pretrained=pretrained,
            num_steps=100,
            identity={},
        )
        trainer = SimpleNamespace(current_epoch=0)
        task._trainer = trainer  # type: ignore[assignment]
        return task

    return make


def optimizer_of(task: GeolocationTask) -> torch.optim.Optimizer:
    return task.configure_optimizers()["optimizer"]


def train(task: GeolocationTask, make_batch: MakeBatch, steps: int) -> None:
    optimizer = optimizer_of(task)
    task.train()
    for i in range(steps):
        value, _ = task.compute_loss(make_batch(12, seed=i))
        optimizer.zero_grad()
        value.total.backward()
        optimizer.step()


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("index", PHASES)
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one_does(
    make_task: Callable[..., GeolocationTask],
    make_batch: MakeBatch,
    index: int,
    pretrained: bool,
) -> None:
    task = make_task(index, pretrained=pretrained)
    task.train()
    value, _ = task.compute_loss(make_batch(12))
    value.total.backward()
    for name, parameter in task.model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # The head of a province with a single cell has nothing to choose.
        if not name.startswith("cell_heads.heads.0."):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("index", PHASES)
def test_every_trainable_parameter_is_in_one_optimizer_group_at_the_rate_of_its_part(
    make_task: Callable[..., GeolocationTask], index: int, pretrained: bool
) -> None:
    rates = ["phase.lr.heads=3e-3", "phase.lr.semantic=2e-5", "phase.lr.scene=7e-6"]
    task = make_task(index, *rates, pretrained=pretrained)
    rate_of: dict[nn.Parameter, float] = {}
    for group in optimizer_of(task).param_groups:
        for parameter in group["params"]:
            assert parameter not in rate_of
            rate_of[parameter] = group["initial_lr"]
    for name, parameter in task.model.named_parameters():
        part = name.split(".")[0]
        expected = {"semantic": 2e-5, "scene": 7e-6}.get(part, 3e-3)
        assert rate_of.pop(parameter, None) == (expected if parameter.requires_grad else None)
    assert not rate_of


TRAINS = {
    0: {"semantic_projection", "scene_projection", "fusion", "province_head"},
    1: {
        "semantic_projection",
        "scene_projection",
        "fusion",
        "province_head",
        "cell_heads",
        "cell_embedding",
        "province_embedding",
        "offset_head",
        "auxiliary_head",
    },
}
TRAINS[2] = TRAINS[1] | {"semantic", "scene"}


@pytest.mark.parametrize("index", PHASES)
def test_what_trains_is_what_the_method_says(
    make_task: Callable[..., GeolocationTask], index: int
) -> None:
    task = make_task(index)
    names = [n for n, p in task.model.named_parameters() if p.requires_grad]
    assert {n.split(".")[0] for n in names} == TRAINS[index]
    # Of four transformer blocks 30% is one; of the ResNet the last stage.
    encoders = {".".join(n.split(".")[:4]) for n in names if n.startswith("semantic.")}
    expected = {"semantic.visual.transformer.resblocks", "semantic.visual.ln_post.weight"}
    assert encoders == (expected | {"semantic.visual.ln_post.bias"} if index == 2 else set())
    blocks = {n.split(".")[4] for n in names if "resblocks" in n}
    assert blocks == ({"3"} if index == 2 else set())
    stages = {n.split(".")[2] for n in names if n.startswith("scene.")}
    assert stages == ({"layer4"} if index == 2 else set())


@pytest.mark.parametrize("index", PHASES)
def test_training_moves_what_trains_and_leaves_the_rest_bit_identical(
    make_task: Callable[..., GeolocationTask], make_batch: MakeBatch, index: int
) -> None:
    task = make_task(index)
    before = copy.deepcopy(task.model.state_dict())
    train(task, make_batch, steps=3)
    after = task.model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    trainable = {name for name, p in task.model.named_parameters() if p.requires_grad}
    # Statistics move with the stage that they belong to, and only with it.
    statistics = {k for k in after if k.startswith("scene.network.layer4.") and "running_" in k}
    statistics |= {k for k in after if k.startswith("scene.network.layer4.") and "num_b" in k}
    assert changed - trainable == (statistics if index == 2 else set())
    assert {n for n in trainable - changed if not n.startswith("cell_heads.heads.0.")} == set()


def test_phase_2_keeps_no_graph_below_the_first_block_that_trains(
    make_task: Callable[..., GeolocationTask], make_batch: MakeBatch
) -> None:
    task = make_task(2)
    task.train()
    seen: dict[str, bool] = {}
    watched = {
        **{f"block {i}": b for i, [b] in enumerate(task.model.semantic.stages())},
        **{f"layer{i}": task.model.scene.network.get_submodule(f"layer{i}") for i in range(1, 5)},
    }
    for name, module in watched.items():
        module.register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out.requires_grad})
        )
    task.compute_loss(make_batch(6))
    below = {"block 0", "block 1", "block 2", "layer1", "layer2", "layer3"}
    assert seen == {name: name not in below for name in watched}


def test_phases_follow_each_other_on_one_model(
    make_task: Callable[..., GeolocationTask], model: Geolocator
) -> None:
    fresh = {}
    for index in PHASES:
        task = make_task(index)
        fresh[index] = {n for n, p in task.model.named_parameters() if p.requires_grad}
    for index in reversed(PHASES):
        task = make_task(index)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == fresh[index]
        assert model.province_head.temperature == (1.2 if index == 0 else 1.0)


def test_phase_0_without_pretrained_weights_trains_both_encoders_whole(
    make_task: Callable[..., GeolocationTask],
) -> None:
    task = make_task(0, pretrained=False)
    counts = parameter_counts(task.model)
    assert counts["semantic"][0] == counts["semantic"][1] > 0
    assert counts["scene"][0] == counts["scene"][1] > 0
    assert counts["cell_heads"][0] == 0
    assert task.train().model.scene.network.bn1.training
    assert task.learning_rates().keys() == {"heads", "semantic", "scene"}


def test_parameter_counts_are_those_of_the_groups(
    make_task: Callable[..., GeolocationTask],
) -> None:
    task = make_task(1)
    counts = parameter_counts(task.model)
    everything = list(task.model.parameters())
    assert sum(total for _, total in counts.values()) == sum(p.numel() for p in everything)
    trained = sum(p.numel() for p in everything if p.requires_grad)
    assert sum(trainable for trainable, _ in counts.values()) == trained
    assert counts["scene"] == (0, counts["scene"][1])


def test_phase_2_with_nothing_unfrozen_is_refused(
    make_task: Callable[..., GeolocationTask],
) -> None:
    with pytest.raises(ConfigError, match=r"phase\.unfreeze leaves both encoders frozen"):
        make_task(2, "phase.unfreeze.semantic=0", "phase.unfreeze.scene=0")


def test_offset_ramp_rises_over_the_first_epochs_and_stays(
    make_task: Callable[..., GeolocationTask], make_batch: MakeBatch
) -> None:
    task = make_task(1)
    task.eval()
    weight = []
    for epoch in range(7):
        task._trainer.current_epoch = epoch  # type: ignore[union-attr]
        with torch.no_grad():
            value, _ = task.compute_loss(make_batch(6))
        part = float(value.shares["offset"] * value.total)
        weight.append(part / (float(value.terms["offset"]) / LossOptions().offset_scale_km))
    assert weight == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1], rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["phase.train=[projection]"], r"names 'projection'.*'projections'"),
        (["phase.train=[semantic]"], "names 'semantic'"),
        (["phase.train=[]"], "does not train its province_head"),
        (["phase.schedule=linear"], r"phase\.schedule='linear' is unknown"),
        (["phase.warmup=1.0"], r"phase\.warmup"),
        (["phase.monitor_mode=least"], r"phase\.monitor_mode"),
        (["phase.epochs=0"], r"phase\.epochs"),
        (["~phase.lr.scene"], r"phase\.lr\.scene is missing"),
        (["+phase.unfreeze.text=0.5"], r"phase\.unfreeze\.text"),
        (["phase.unfreeze.semantic=2"], r"phase\.unfreeze\.semantic=2 must be a fraction"),
        (["phase.unfreeze.scene=top"], r"phase\.unfreeze\.scene=top must be a fraction"),
        (["phase.unfreeze.scene=true"], r"phase\.unfreeze\.scene=true must be a number or a name"),
        (["phase.unfreeze=1"], r"phase\.unfreeze=1 must be a section"),
        (["phase.lr=null"], r"phase\.lr=null must be a section"),
        (["phase.lr.heads=abc"], r"phase\.lr\.heads='abc' must be a number"),
        (["phase.lr.heads=-1"], r"phase\.lr\.heads=-1 must be 0 or more"),
        (["phase.lr.scene=nan"], r"phase\.lr\.scene=nan must be a number"),
        (["phase.epochs=abc"], r"phase\.epochs='abc' must be an integer \(conf/phase/1\.yaml\)\."),
        (["phase.epochs=2.5"], r"phase\.epochs=2\.5 must be an integer \("),
        (["phase.epochs=true"], r"phase\.epochs=true must be an integer \("),
        (["phase.parent=first"], r"phase\.parent='first' must be an integer or null \("),
        (["phase.train=[1]"], r"phase\.train=.* must be a list of names"),
        (["+phase.lrs=1"], r"phase\.lrs is not an option.*'lr'"),
        (["~phase.monitor"], r"lacks phase\.monitor"),
    ],
)
def test_a_phase_that_cannot_work_is_refused(
    model: Geolocator, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        set_up_training(model, build_phase(composed(1, *overrides)), encoders_pretrained=True)


def test_a_phase_that_trains_nothing_is_refused(model: Geolocator) -> None:
    idle = replace(build_phase(composed(1)), train=())
    with pytest.raises(ConfigError, match="trains nothing"):
        set_up_training(model, idle, encoders_pretrained=True)


def test_a_constant_rate_is_the_peak_throughout() -> None:
    assert {learning_rate_factor(s, 100, "constant", 0.0) for s in range(101)} == {1.0}


def test_a_cosine_falls_from_the_peak_to_zero() -> None:
    factors = [learning_rate_factor(s, 100, "cosine", 0.0) for s in range(101)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-9)
    assert factors == sorted(factors, reverse=True)
    assert factors[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_rises_to_the_peak(schedule: str) -> None:
    factors = [learning_rate_factor(s, 100, schedule, 0.1) for s in range(100)]
    assert 0 < factors[0] < 0.2
    assert factors[:11] == sorted(factors[:11])
    assert factors[10] == pytest.approx(1)
    assert max(factors) <= 1


def test_the_rate_of_every_group_follows_the_schedule(
    make_task: Callable[..., GeolocationTask],
) -> None:
    configured: dict[str, Any] = make_task(2).configure_optimizers()  # type: ignore[assignment]
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    peaks = {g["name"]: g["lr"] for g in optimizer.param_groups}
    assert peaks.keys() == {"heads", "semantic", "scene"}
    for _ in range(50):
        optimizer.step()
        scheduler.step()
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.5 * peaks[group["name"]])


@pytest.mark.parametrize(
    ("overrides", "world_size", "factor"),
    [
        ([], 1, 1.0),
        ([], 8, 1.0),
        (["optimizer.lr_scaling=sqrt"], 1, 1.0),
        (["optimizer.lr_scaling=sqrt"], 8, math.sqrt(8)),
        (["optimizer.lr_scaling=linear"], 8, 8.0),
        (["optimizer.lr_scaling=linear", "data.batch_size=32"], 2, 1.0),
        (["optimizer.lr_scaling=linear", "data.batch_size=16"], 2, 0.5),
        (["optimizer.lr_scaling=linear", "trainer.accumulate_grad_batches=4"], 2, 8.0),
        (["optimizer.lr_scaling=linear", "optimizer.reference_batch=128"], 4, 2.0),
        (["trainer=a100_multi"], 4, 2.0),
        (["trainer=a100_cluster"], 16, 4.0),
        (["trainer=fsdp"], 4, 2.0),
        (["trainer=a100_multi", "optimizer.lr_scaling=none"], 4, 1.0),
        (["trainer=a100"], 1, 1.0),
    ],
)
def test_learning_rates_grow_with_the_photos_of_a_step(
    overrides: list[str], world_size: int, factor: float
) -> None:
    cfg = composed(2, *overrides)
    phase = build_phase(cfg)
    scaled, by = scale_learning_rates(cfg, phase, world_size)
    assert by == pytest.approx(factor)
    assert scaled.lr == pytest.approx({group: factor * rate for group, rate in phase.lr.items()})


@pytest.mark.parametrize(
    ("precision", "fused"), [("32-true", True), ("bf16-mixed", True), ("16-mixed", False)]
)
def test_adamw_stays_fused_where_nothing_scales_the_loss(precision: str, fused: bool) -> None:
    cfg = composed(2, f"trainer.precision={precision}")
    assert optimizer_options(cfg)["fused"] is fused


@pytest.mark.parametrize("trainer", ["cpu", "gpu", "a100", "a100_multi", "fsdp"])
def test_every_preset_trains_with_a_fused_adamw_unless_it_scales_the_loss(
    make_task: Callable[..., GeolocationTask], trainer: str
) -> None:
    optimizer = optimizer_of(make_task(2, f"trainer={trainer}"))
    assert isinstance(optimizer, torch.optim.AdamW)
    expected = trainer != "gpu"
    assert [group["fused"] for group in optimizer.param_groups] == [expected] * 3
    assert not any(group["foreach"] for group in optimizer.param_groups)


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_a_clipped_step_of_bf16_is_that_of_the_plain_optimizer(
    make_task: Callable[..., GeolocationTask], make_batch: MakeBatch, clip: float
) -> None:
    task = make_task(2)
    value, _ = task.compute_loss(make_batch(8))
    value.total.backward()
    trained = [p for group in task.trainable.values() for p in group]
    gradients = [p.grad.clone() for p in trained if p.grad is not None]
    before = [p.detach().clone() for p in trained]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    if clip == 0.05:
        assert norm > clip
    task.trainer.precision = "bf16-mixed"  # type: ignore[misc]
    # A scheduler holds its optimizer weakly and is kept as long.
    fused = task.configure_optimizers()
    task.configure_gradient_clipping(fused["optimizer"], clip, None)
    scale = min(1.0, clip / (float(norm) + 1e-6))
    for parameter, gradient in zip(trained, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * scale)
    fused["optimizer"].step()
    after = [p.detach().clone() for p in trained]
    for parameter, old, gradient in zip(trained, before, gradients, strict=True):
        parameter.data.copy_(old)
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(trained, clip)
    task.optimizer_options["fused"] = False
    configured = task.configure_optimizers()
    configured["optimizer"].step()
    for parameter, expected in zip(trained, after, strict=True):
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)
