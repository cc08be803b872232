"""The whole network: shapes, no loop over samples, one bound for training and inference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from geopak.geo.cells import CellTable
from geopak.geo.distance import haversine_km
from geopak.geo.region import Region
from geopak.losses import GeolocationLoss, LossOptions
from geopak.models.geolocator import Geolocator
from geopak.types import Batch, ModelOutput

# Operations that make the host wait for a value, or whose result's shape hangs on values.
HOST_OPS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique")


class Recorder(TorchDispatchMode):
    """Writes down every operation that reaches the device."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.ops.append(func.name())
        return func(*args, **(kwargs or {}))


def step(model: Geolocator, loss: GeolocationLoss, batch: Batch) -> torch.Tensor:
    output = model(batch["image"])
    return loss(output, batch, model.locate(output.fused, batch["cell_id"]), 0.5).total


def test_shapes_and_ranges(model: Geolocator, make_batch: Callable[..., Batch]) -> None:
    output = model(make_batch(5)["image"])
    assert output.province_logits.shape == (5, 3)
    assert output.cell_log_prob.shape == (5, 44)
    assert output.fused.shape == (5, 24)
    assert output.aux_latlon_deg.shape == (5, 2)
    assert ((output.gate > 0) & (output.gate < 1)).all()
    assert output.gate.shape == (5,)
    for part in output.cell_log_prob.split((1, 3, 40), dim=1):
        torch.testing.assert_close(part.exp().sum(1), torch.ones(5))


@pytest.mark.parametrize("training", [True, False])
def test_forward_and_loss_do_the_same_operations_for_any_batch_size(
    model: Geolocator,
    region: Region,
    cells: CellTable,
    make_batch: Callable[..., Batch],
    training: bool,
) -> None:
    model.train(training)
    loss = GeolocationLoss(region, cells, LossOptions())
    recorded = []
    for size in (2, 16):
        with Recorder() as recorder:
            step(model, loss, make_batch(size))
        recorded.append(recorder.ops)
    assert recorded[0] == recorded[1]
    assert len(recorded[0]) > 100
    waiting = {op for op in recorded[0] if any(name in op for name in HOST_OPS)}
    assert not waiting


@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_a_place_is_the_same_in_training_and_inference_and_within_its_bound(
    model: Geolocator, cells: CellTable, region: Region, shift: float
) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model.offset_head.output.bias += shift
    fused, cell_id = torch.randn(44, 24), torch.arange(44)
    trained = model.train().locate(fused, cell_id)
    assert torch.equal(trained, model.eval().locate(fused, cell_id))
    distance_km = haversine_km(trained.detach(), model.cell_center_deg)
    for k in range(44):
        scale = region.provinces[cells.province_id[k]].offset_scale
        bound_km = cells.radius_km[k] * scale
        assert float(distance_km[k]) < bound_km + 0.005
        if shift:
            assert float(distance_km[k]) > 0.99 * bound_km


def test_several_cells_an_image_are_placed_as_one_by_one(model: Geolocator) -> None:
    model.eval()
    fused, cell_id = torch.randn(3, 24), torch.randint(44, (3, 5))
    together = model.locate(fused, cell_id)
    assert together.shape == (3, 5, 2)
    for k in range(5):
        torch.testing.assert_close(together[:, k], model.locate(fused, cell_id[:, k]))


def test_an_image_is_judged_alone(model: Geolocator, make_batch: Callable[..., Batch]) -> None:
    model.eval()
    image = make_batch(6)["image"]
    together: ModelOutput = model(image)
    alone: ModelOutput = model(image[2:3])
    for field in dataclasses.fields(ModelOutput):
        torch.testing.assert_close(
            getattr(together, field.name)[2:3], getattr(alone, field.name), rtol=1e-4, atol=1e-5
        )


def test_groups_are_a_partition_of_all_parameters(model: Geolocator) -> None:
    listed = [p for modules in model.groups().values() for m in modules for p in m.parameters()]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(model.parameters())


def test_a_region_of_a_single_cell_has_a_finite_auxiliary_scale(
    model: Geolocator, cells: CellTable
) -> None:
    assert (model.auxiliary_head.scale_deg >= 1).all()
    torch.testing.assert_close(
        model.auxiliary_head.center_deg,
        torch.from_numpy(cells.center_latlon_deg.mean(0)).float(),
        rtol=1e-5,
        atol=1e-4,
    )
