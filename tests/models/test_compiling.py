"""Compiled encoders: the same numbers in every way of use, few compilations, the same names.

Most tests stop before code is generated (``aot_eager``), which takes a C++ compiler half a minute.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from geopak.errors import ConfigError
from geopak.models.activations import checkpoint_activations
from geopak.models.compiling import check_compiler, compile_encoder, is_compiled
from geopak.models.encoders import Encoder
from geopak.models.freezing import keep_frozen_in_eval, unfreeze_top
from geopak.models.geolocator import Geolocator
from tests.conftest import IMAGE_SIZE


@pytest.fixture
def without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured, differentiated and partitioned, then run by PyTorch."""
    torch.compiler.reset()
    counters.clear()
    original = torch.compile

    def compile_graphs(function: Callable[..., Any], **options: Any) -> Any:
        return original(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", compile_graphs)


def photos(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


def results(encoder: Encoder, training: bool, size: int, seed: int) -> dict[str, Tensor]:
    """Output, gradients and statistics of one pass."""
    encoder.train(training)
    keep_frozen_in_eval(encoder)
    encoder.zero_grad()
    with torch.set_grad_enabled(training):
        output = encoder(photos(size, seed))
        if training:
            output.square().sum().backward()
    gradients = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **gradients, **dict(encoder.named_buffers())}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=3e-4, msg=name)


def prepared(encoder: Encoder, name: str, checkpointed: bool) -> tuple[Encoder, Encoder]:
    """An encoder as phase 2 trains it, and a compiled copy."""
    unfreeze_top(encoder, 0.5 if name == "semantic" else "last_stage")
    compiled = copy.deepcopy(encoder)
    if checkpointed:
        checkpoint_activations(compiled)
    compile_encoder(compiled)
    return encoder, compiled


# Training and validation by turns, with uneven last batches of several sizes.
USES = [(False, 8), (True, 8), (False, 8), (False, 3), (True, 8), (False, 5), (False, 7), (True, 8)]


@pytest.mark.parametrize(
    ("name", "checkpointed"),
    [pytest.param("semantic", False, marks=pytest.mark.slow), ("scene", True)],
)
def test_a_compiled_encoder_gives_the_same_and_is_compiled_a_few_times(
    request: pytest.FixtureRequest, without_code: None, name: str, checkpointed: bool
) -> None:
    eager, compiled = prepared(request.getfixturevalue(name), name, checkpointed)
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for seed, (training, size) in enumerate(USES):
        assert_same(*(results(e, training, size, seed) for e in (eager, compiled)))
    # Evaluation, training, evaluation of any size.
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]


def test_frozen_encoders_and_their_features_are_the_same(
    model: Geolocator, without_code: None
) -> None:
    for encoder in (model.semantic, model.scene):
        unfreeze_top(encoder, 0.0)
    compiled = copy.deepcopy(model)
    for encoder in (compiled.semantic, compiled.scene):
        compile_encoder(encoder)
    for mode in (nullcontext, torch.inference_mode):
        with mode():
            features = [m.train().embed(photos(4)) for m in (model, compiled)]
        torch.testing.assert_close(features[1], features[0], rtol=1e-4, atol=1e-5)
        assert not features[1].requires_grad
    # Another arithmetic, so another feature cache.
    assert compiled.encoder_fingerprint() != model.encoder_fingerprint()


def test_copies_and_saved_weights_are_not_compiled(model: Geolocator, without_code: None) -> None:
    plain = copy.deepcopy(model)
    compile_encoder(model.semantic)
    assert is_compiled(model.semantic)
    assert not is_compiled(copy.deepcopy(model).semantic)
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())
    assert is_compiled(model.semantic)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["semantic", "scene"])
def test_generated_code_gives_the_same(request: pytest.FixtureRequest, name: str) -> None:
    torch.compiler.reset()
    eager, compiled = prepared(request.getfixturevalue(name), name, checkpointed=True)
    for seed, (training, size) in enumerate([(True, 8), (False, 3), (True, 8)]):
        assert_same(*(results(e, training, size, seed) for e in (eager, compiled)))


def test_without_a_compiler_the_remedy_is_named() -> None:
    from torch._inductor import config

    missing = config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False})
    with missing, pytest.raises(ConfigError, match=r"needs a C\+\+ compiler.*No working C\+\+"):
        check_compiler(torch.device("cpu"))


def test_hooks_of_other_modules_see_a_compiled_encoder(
    semantic: Encoder, without_code: None
) -> None:
    """DDP and the trainer hook the whole; what is compiled lies below."""
    seen: list[nn.Module] = []
    compile_encoder(semantic)
    semantic.register_forward_hook(lambda module, *_: seen.append(module))
    semantic.eval()(photos(2))
    assert seen == [semantic]
