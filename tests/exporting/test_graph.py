"""What an exporter may lose on the way from a module to a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geopak.errors import ExportError
from geopak.geo.distance import haversine_km, latlon_of_vectors, move_km
from geopak.models.decode import MEAN_OF_DEGREES, RULES, decode_mean_of_degrees

pytest.importorskip("onnx")
ALL_RULES = {**RULES, MEAN_OF_DEGREES: decode_mean_of_degrees}


class Places(nn.Module):
    """Of (B, 4): where an offset of the last two from the first two leads, and more."""

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        here, offset_km = given[:, :2], given[:, 2:]
        there = move_km(here, offset_km)
        moved = haversine_km(here, there)
        # Twice the same: two outputs nevertheless.
        return there, moved, moved + 0.0, latlon_of_vectors(given[:, :3])


def run(
    module: nn.Module, example: Tensor, names: list[str], folder: Path, traced: int | None = None
) -> list[np.ndarray]:
    """What ONNX Runtime makes of the examples, with a graph that was traced with some of them."""
    import onnx
    import onnxruntime

    from geopak.exporting.onnx_model import traced_graph

    graph = traced_graph(module, example[:traced], "given", names, {0: "batch"})
    onnx.save(graph, folder / "m.onnx")
    session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == names
    return session.run(None, {"given": example.numpy()})


def test_small_terms_stay_in_the_graph(tmp_path: Path) -> None:
    # No offset, as in a cell of radius 0, is 0/0 without the term that keeps it finite.
    example = torch.tensor(
        [[33.4, 72.0, 0, 0], [25.0, 67.0, 1e-7, 0], [30.0, 70.0, 3, -40], [0, 0, 0, 0]],
        dtype=torch.float32,
    )
    found = run(Places(), example, ["there", "moved", "again", "latlon"], tmp_path)
    for ours, theirs in zip(Places()(example), found, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=1e-6, atol=1e-5)


class Rules(nn.Module):
    """Of (B, K, 3) places and probabilities: what every rule makes of them."""

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        points, probability = given[..., :2], given[..., 2].softmax(-1)
        return tuple(rule(points, probability, 25.0) for rule in ALL_RULES.values())


def test_every_rule_decides_as_in_pytorch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    # Clusters of hypotheses, so that discs hold several, and lone ones.
    center = torch.tensor([30.0, 70.0]) + 4 * torch.rand(40, 3, 2, generator=generator)
    places = center.repeat_interleave(3, 1) + 0.1 * torch.randn(40, 9, 2, generator=generator)
    example = torch.cat((places, 2 * torch.randn(40, 9, 1, generator=generator)), -1)
    found = run(Rules(), example, list(ALL_RULES), tmp_path, traced=2)
    for name, ours, theirs in zip(ALL_RULES, Rules()(example), found, strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), rtol=0, atol=1e-4, err_msg=name)


def test_a_module_that_cannot_be_exported_says_why(tmp_path: Path) -> None:
    class Doubting(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            return given if given.sum() > 0 else -given

    with pytest.raises(ExportError, match=r"data-dependent.*format=safetensors"):
        run(Doubting(), torch.rand(3, 4), ["sure"], tmp_path)
