"""What is not finite, and what is said of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils import get_total_norm

from geopak.build import build_phase, optimizer_options
from geopak.cli import compose
from geopak.finite import Finding, FiniteWatch, Step, describe, diagnose
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.losses import LossOptions
from geopak.models.decode import DecodingOptions
from geopak.models.geolocator import Geolocator
from geopak.task import TASKS, GeolocationTask
from geopak.types import Batch

NAMES = {row: f"p{row} (a/{row}.jpg)" for row in range(64)}


def test_a_fused_optimizer_leaves_out_a_bad_step_and_all_after_it() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    watch = FiniteWatch()
    moved = []
    for norm in (1.0, float("nan"), 1.0):
        before = weight.detach().clone()
        weight.grad = torch.full((3,), norm)
        watch._hold_back(optimizer, torch.tensor([1.0, norm]))
        optimizer.step()
        moved.append(not torch.equal(before, weight))
    assert moved == [True, False, False]
    assert weight.isfinite().all()
    assert optimizer.state[weight]["exp_avg"].isfinite().all()


@pytest.fixture
def task(model: Geolocator, region: Region, cells: CellTable) -> GeolocationTask:
    """Phase 1 of the small model; a stub stands for the trainer."""
    cfg = compose("train", ["phase=1"])
    task = TASKS[1](
        model=model,
        phase=build_phase(cfg),
        region=region,
        cells=cells,
        loss_options=LossOptions(),
        decoding=DecodingOptions(),
        optimizer=optimizer_options(cfg),
        encoders_pretrained=True,
        num_steps=100,
        identity={},
    )
    plugin = SimpleNamespace(forward_context=contextlib.nullcontext)
    task._trainer = SimpleNamespace(  # type: ignore[assignment]
        current_epoch=0, precision_plugin=plugin
    )
    return task


def examined(task: GeolocationTask, batch: Batch) -> Finding:
    """What is found of a first step with a batch."""
    value, _ = task.compute_loss(batch)
    value.total.backward()
    norm = get_total_norm([p.grad for p in task.parameters() if p.grad is not None])
    terms = {name: term.detach() for name, term in value.terms.items()}
    values = torch.stack((value.total.detach(), norm))
    assert not values.isfinite().all()
    return diagnose(task, Step(1, 1, [(batch, terms)], values, is_first=True))


def test_the_photo_without_a_place_is_told_apart(
    task: GeolocationTask, make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch(6)
    batch["row"] += 10
    batch["latlon_deg"][4, 0] = torch.nan
    finding = examined(task, batch)
    assert finding.terms == {"offset": "nan", "auxiliary": "nan"}
    assert finding.guilty == [14]
    assert finding.rows == [10, 11, 12, 13, 14, 15]
    assert (finding.weights, finding.gradients) == ([], [])


def test_a_photo_that_spoils_the_gradient_alone_is_told_apart(
    task: GeolocationTask, make_batch: Callable[..., Batch]
) -> None:
    """The gradient of a square root is infinite at nought."""
    seen: list[torch.Tensor] = []
    model = task.model
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 0, 0, 0]))
    weight = model.auxiliary_head.layers[0].weight
    model.auxiliary_head.register_forward_hook(
        lambda _, inputs, output: output + (weight[0, 0].abs() * seen[-1]).sqrt().unsqueeze(1)
    )
    batch = make_batch(6)
    batch["image"][2, 0, 0, 0] = 0
    finding = examined(task, batch)
    assert finding.terms == {}
    assert finding.is_loss_finite
    assert finding.gradients == ["auxiliary_head.layers.0.weight"]
    assert finding.guilty == [2]


def test_weights_that_were_broken_before_are_named(
    task: GeolocationTask, make_batch: Callable[..., Batch]
) -> None:
    with torch.no_grad():
        task.model.fusion.gate.weight[0, 0] = torch.inf
    finding = examined(task, make_batch(4))
    assert finding.weights == ["fusion.gate.weight"]
    assert finding.guilty == [0, 1, 2, 3]
    assert finding.is_first


@pytest.mark.parametrize(
    ("finding", "said"),
    [
        (
            Finding(terms={"cell": "nan"}, guilty=[3], rows=[1, 2, 3], is_loss_finite=False),
            ["epoch 2, step 7: the loss is not finite: cell = nan", "to blame: p3 (a/3.jpg).",
             "prepare again"],
        ),
        (
            Finding(gradients=["fusion.gate.weight"], guilty=[1, 2], rows=[1, 2]),
            ["the gradient is not finite, of fusion.gate.weight", "Every photo of the batch",
             "phase.lr.heads", "trainer.precision=32-true"],
        ),
        (
            Finding(terms={"cell": "inf"}, weights=["x.bias"], is_first=True, rows=[1]),
            ["Weights were not finite before this step: x.bias", "init_from="],
        ),
        (
            Finding(terms={"cell": "inf"}, weights=["x.bias"], rows=[1]),
            ["Weights were not finite before this step: x.bias", "lower the learning rates"],
        ),
        (Finding(rows=[1], is_loss_finite=False), ["though every term is", "No photo of the"]),
        (
            Finding(rows=list(range(20))),
            ["too large for its norm", "p7 (a/7.jpg) and 12 more, see health.json"],
        ),
    ],
)  # fmt: skip
def test_the_message_says_what_whose_fault_and_what_to_do(
    finding: Finding, said: list[str]
) -> None:
    message = describe(finding, 2, 7, NAMES, Path("last.ckpt"), "16-mixed")
    for part in [*said, "last.ckpt is of before this step"]:
        assert part in message


def test_findings_of_two_processes_are_one() -> None:
    one = Finding(weights=["a"], rows=[1, 2])
    other = Finding({"cell": "nan"}, weights=["a"], guilty=[5], rows=[5, 6], is_loss_finite=False)
    assert one.merged(other) == Finding(
        {"cell": "nan"}, weights=["a"], guilty=[5], rows=[1, 2, 5, 6], is_loss_finite=False
    )
