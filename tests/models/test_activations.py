"""What is stored for the gradient: nothing below the blocks that train, little within them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from geopak.models.activations import checkpoint_activations
from geopak.models.encoders import Encoder, SceneEncoder, SemanticEncoder
from geopak.models.freezing import keep_frozen_in_eval, unfreeze_top
from tests.conftest import IMAGE_SIZE

UNFREEZE: dict[str, float | str] = {"semantic": 0.5, "scene": "last_stage"}


@pytest.fixture(params=["semantic", "scene"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Each encoder, as phase 2 trains it."""
    encoder: Encoder = request.getfixturevalue(request.param)
    unfreeze_top(encoder, UNFREEZE[request.param])
    return ready(encoder)


def ready(encoder: Encoder) -> Encoder:
    encoder.train()
    keep_frozen_in_eval(encoder)
    return encoder


def photos(size: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


def blocks_of(encoder: Encoder) -> list[nn.Module]:
    return [block for stage in encoder.stages() for block in stage]


@contextmanager
def stored_bytes(encoder: nn.Module) -> Iterator[Callable[[], int]]:
    """Within it, the bytes that autograd keeps beside the weights themselves."""
    weights = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*encoder.parameters(), *encoder.buffers())
    }
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # Kept, so that no other tensor gets the same address.
            seen[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def step(encoder: Encoder, image: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Gradients and statistics after one forward and backward pass."""
    torch.manual_seed(seed)
    encoder.zero_grad()
    encoder(image).square().sum().backward()
    gradients = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    # What was drawn until here: recomputation must leave the stream where it was.
    drawn = {"drawn": torch.rand(3)}
    return {**gradients, **dict(encoder.named_buffers()), **drawn}


def test_the_frozen_part_below_the_blocks_that_train_stores_nothing(encoder: Encoder) -> None:
    frozen = [b for b in blocks_of(encoder) if not any(p.requires_grad for p in b.parameters())]
    assert frozen
    assert len(frozen) < len(blocks_of(encoder))
    below: list[int] = []
    with stored_bytes(encoder) as stored:
        frozen[-1].register_forward_hook(lambda *_: below.append(stored()))
        output = encoder(photos())
        assert below == [0]
        assert stored() > 0
    output.sum().backward()


def test_a_frozen_encoder_stores_nothing(encoder: Encoder) -> None:
    unfreeze_top(encoder, 0.0)
    ready(encoder)
    with stored_bytes(encoder) as stored:
        assert not encoder(photos()).requires_grad
    assert stored() == 0


def test_checkpointed_blocks_store_their_input_alone(encoder: Encoder) -> None:
    with stored_bytes(encoder) as stored:
        encoder(photos())
        whole = stored()
    assert checkpoint_activations(encoder) == 2
    inputs: list[Tensor] = []
    for block in blocks_of(encoder)[-2:]:
        block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with stored_bytes(encoder) as stored:
        encoder(photos())
        less = stored()
    # Beside the inputs, what the top keeps: the last LayerNorm's, or the pooling's.
    needed = sum(tensor.untyped_storage().nbytes() for tensor in inputs)
    assert needed <= less <= 2 * needed
    assert less < whole / 2


def test_checkpointed_gradients_and_statistics_are_the_same(encoder: Encoder) -> None:
    checkpointed = copy.deepcopy(encoder)
    before = copy.deepcopy(encoder.state_dict())
    checkpoint_activations(checkpointed)
    assert checkpointed.state_dict().keys() == before.keys()
    for number in range(2):
        expected, found = (step(e, photos(seed=number)) for e in (encoder, checkpointed))
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    counts = [
        int(value) - int(before[name])
        for name, value in checkpointed.state_dict().items()
        if name.endswith("num_batches_tracked") and "layer4" in name
    ]
    assert set(counts) == ({2} if isinstance(encoder, SceneEncoder) else set())


def test_without_the_mend_statistics_would_move_twice(
    scene: SceneEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above sees the fault that it is there for."""
    from contextlib import nullcontext

    from geopak.models import activations

    unfreeze_top(scene, "last_stage")
    checkpoint_activations(scene)
    monkeypatch.setattr(activations, "statistics_untouched", lambda module: nullcontext())
    step(ready(scene), photos())
    assert int(scene.network.layer4[0].bn1.num_batches_tracked) == 2


def test_dropout_in_a_checkpointed_block_falls_on_the_same_units(
    semantic: SemanticEncoder,
) -> None:
    unfreeze_top(semantic, 0.5)
    for block in blocks_of(semantic)[-2:]:
        block.mlp.add_module("dropout", nn.Dropout(0.5))
    checkpointed = copy.deepcopy(ready(semantic))
    checkpoint_activations(checkpointed)
    expected, found = (step(e, photos(), seed=5) for e in (semantic, checkpointed))
    other = step(checkpointed, photos(), seed=6)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    assert not torch.equal(other["visual.ln_post.weight"], expected["visual.ln_post.weight"])


def test_nothing_is_computed_twice_without_gradients(encoder: Encoder) -> None:
    checkpoint_activations(encoder)
    before = copy.deepcopy(dict(encoder.named_buffers()))
    encoder.eval()
    with torch.no_grad():
        encoder(photos(1))
    for name, value in encoder.named_buffers():
        assert torch.equal(value, before[name])


def test_a_checkpointed_encoder_can_be_copied_and_frozen_again(encoder: Encoder) -> None:
    checkpoint_activations(encoder)
    assert checkpoint_activations(encoder) == 2
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    expected, found = encoder(photos()), other(photos())
    assert not torch.equal(expected, found)
    unfreeze_top(encoder, 0.0)
    assert not ready(encoder)(photos()).requires_grad


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_attention_takes_the_fused_kernel(
    semantic: SemanticEncoder, training: bool, frozen: bool
) -> None:
    unfreeze_top(semantic, 0.5 if frozen else 1.0)
    semantic.train(training)
    keep_frozen_in_eval(semantic)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile, torch.set_grad_enabled(training):
        output = semantic(photos())
        if training:
            output.sum().backward()
    calls = {event.key: event.count for event in profile.key_averages()}
    kernel = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert calls["aten::scaled_dot_product_attention"] == calls[kernel] == 4
    written_out = {"aten::softmax", "aten::_softmax", "aten::_native_multi_head_attention"}
    assert not written_out & calls.keys()
    if training:
        assert calls[f"{kernel}_backward"] == (2 if frozen else 4)
    assert torch.backends.mha.get_fastpath_enabled()
