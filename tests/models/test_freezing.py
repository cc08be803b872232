"""Freezing: no gradient, eval mode, fixed statistics; which blocks a fraction names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from geopak.errors import ConfigError
from geopak.models.encoders import Encoder, SceneEncoder, SemanticEncoder
from geopak.models.freezing import num_unfrozen_blocks, set_frozen, unfreeze_top
from geopak.models.geolocator import Geolocator


class Stack(Encoder):
    """An encoder of nothing but blocks."""

    def __init__(self, blocks_per_stage: list[int]) -> None:
        super().__init__([0.5] * 3, [0.5] * 3, {})
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(sum(blocks_per_stage)))
        self.blocks_per_stage = blocks_per_stage

    def stages(self) -> list[list[nn.Module]]:
        blocks = iter(self.blocks)
        return [[next(blocks) for _ in range(n)] for n in self.blocks_per_stage]

    def top(self) -> list[nn.Module | nn.Parameter]:
        return []


def trainable(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("blocks_per_stage", "unfreeze", "expected"),
    [
        ([1] * 12, 0.3, 4),
        ([1] * 12, 0.25, 3),
        ([1] * 6, 0.3, 2),
        ([1] * 12, 0.0, 0),
        ([1] * 12, 1.0, 12),
        ([1] * 12, 1, 12),
        ([3, 4, 6, 3], "last_stage", 3),
        ([3, 4, 6, 3], 0.3, 5),
        ([1, 1, 2, 1], "last_stage", 1),
    ],
)
def test_a_fraction_counts_blocks_of_the_actual_encoder(
    blocks_per_stage: list[int], unfreeze: float | str, expected: int
) -> None:
    encoder = Stack(blocks_per_stage)
    assert num_unfrozen_blocks(encoder, unfreeze) == expected
    assert unfreeze_top(encoder, unfreeze) == expected
    trains = [all(p.requires_grad for p in block.parameters()) for block in encoder.blocks]
    assert trains == [False] * (len(trains) - expected) + [True] * expected


@pytest.mark.parametrize("unfreeze", [-0.1, 1.1, "last_block", None, float("nan"), [0.3]])
def test_anything_else_is_refused(unfreeze: object) -> None:
    with pytest.raises(ConfigError, match=r"phase\.unfreeze must be"):
        num_unfrozen_blocks(Stack([1] * 4), unfreeze)  # type: ignore[arg-type]


def test_the_top_of_a_transformer_is_its_last_blocks_and_the_last_norm(
    semantic: SemanticEncoder,
) -> None:
    assert unfreeze_top(semantic, 0.5) == 2
    expected = (
        "visual.transformer.resblocks.2.",
        "visual.transformer.resblocks.3.",
        "visual.ln_post.",
    )
    names = [name for name, _ in semantic.named_parameters()]
    assert trainable(semantic) == {name for name in names if name.startswith(expected)}


def test_the_top_of_a_resnet_is_its_last_stage(scene: SceneEncoder) -> None:
    assert unfreeze_top(scene, "last_stage") == 2
    names = [name for name, _ in scene.named_parameters()]
    assert trainable(scene) == {name for name in names if name.startswith("network.layer4.")}


@pytest.mark.parametrize("encoder", ["semantic", "scene"])
def test_stem_blocks_and_top_are_the_whole_encoder(model: Geolocator, encoder: str) -> None:
    part: Encoder = getattr(model, encoder)
    listed: list[nn.Parameter] = []
    for piece in [*part.stem(), *(b for stage in part.stages() for b in stage), *part.top()]:
        listed += [piece] if isinstance(piece, nn.Parameter) else list(piece.parameters())
    assert len(listed) == len(set(listed))
    assert set(listed) == set(part.parameters())


@pytest.mark.parametrize("encoder", ["semantic", "scene"])
def test_a_fraction_of_one_trains_the_stem_too(model: Geolocator, encoder: str) -> None:
    part: Encoder = getattr(model, encoder)
    set_frozen([part], True)
    unfreeze_top(part, 1.0)
    assert trainable(part) == {name for name, _ in part.named_parameters()}
    assert all(m.training for m in model.train().modules())


def test_frozen_modules_stay_in_eval_mode_and_the_others_do_not(model: Geolocator) -> None:
    unfreeze_top(model.semantic, 0.0)
    unfreeze_top(model.scene, "last_stage")
    model.train()
    frozen = [*model.semantic.modules(), *model.scene.network.layer1.modules()]
    assert not any(m.training for m in frozen)
    assert not model.scene.network.bn1.training
    assert all(m.training for block in model.scene.stages()[-1] for m in block.modules())
    assert all(m.training for m in model.province_head.modules())
    nn.ModuleList([model]).train()  # as a LightningModule around it would
    assert not any(m.training for m in frozen)


def test_batchnorm_statistics_of_frozen_stages_do_not_move(model: Geolocator) -> None:
    unfreeze_top(model.scene, "last_stage")
    model.train()
    before = copy.deepcopy(model.scene.state_dict())
    for _ in range(3):
        model.scene(torch.rand(4, 3, 32, 32))
    moved = {k for k, v in model.scene.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all(k.startswith("network.layer4.") for k in moved)


def test_freezing_is_reversible(model: Geolocator) -> None:
    everything = trainable(model)
    set_frozen([model], True)
    assert not trainable(model)
    assert not any(m.training for m in model.train().modules())
    set_frozen([model], False)
    assert trainable(model) == everything
    assert all(m.training for m in model.train().modules())


def test_a_bare_parameter_can_be_frozen(semantic: SemanticEncoder) -> None:
    set_frozen([semantic.visual.class_embedding], True)
    assert "visual.class_embedding" not in trainable(semantic)
