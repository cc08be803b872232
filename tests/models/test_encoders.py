"""The encoders and the weight files they load: small, and CLIP and Places365 at full size."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import open_clip
import pytest
import timm
import torch
import torchvision
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn

from geopak.build import build_model, build_region, load_pretrained
from geopak.cli import compose
from geopak.errors import CheckpointError, ConfigError
from geopak.models.encoders import (
    Encoder,
    SceneEncoder,
    SemanticEncoder,
    clip_visual_weights,
    download_clip,
    scene_weights,
)
from geopak.models.geolocator import Geolocator
from geopak.models.weight_files import read_weights
from geopak.options import plain
from tests.conftest import make_cells

# What stands beside the visual tower in a CLIP state dict.
TEXT_KEYS = (
    "positional_embedding",
    "text_projection",
    "logit_scale",
    "token_embedding.weight",
    "ln_final.weight",
    "ln_final.bias",
    "transformer.resblocks.0.attn.in_proj_weight",
)


def scrambled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Other values of the same kind, so that loading them shows."""
    generator = torch.Generator().manual_seed(0)
    return {
        k: torch.rand(v.shape, generator=generator) + 0.5 if v.is_floating_point() else v + 7
        for k, v in state.items()
    }


def assert_holds(encoder: Encoder, state: dict[str, Tensor]) -> None:
    own = encoder.body().state_dict()
    assert own.keys() == state.keys()
    for key, value in own.items():
        torch.testing.assert_close(value, state[key].to(value.dtype), rtol=0, atol=0)


@pytest.fixture
def clip_state(semantic: SemanticEncoder) -> dict[str, Tensor]:
    """A small CLIP state dict with both towers and the projection."""
    visual = scrambled(semantic.body().state_dict())
    return {
        **{f"visual.{k}": v for k, v in visual.items()},
        "visual.proj": torch.rand(32, 16),
        **{k: torch.zeros(2) for k in TEXT_KEYS},
    }


def bare(clip_state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        k.removeprefix("visual."): v
        for k, v in clip_state.items()
        if k.startswith("visual.") and k != "visual.proj"
    }


def test_an_encoder_normalises_with_its_own_statistics(scene: SceneEncoder) -> None:
    scene.eval()
    image = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    scene.mean, scene.std = mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
    by_hand = torch.stack([(image[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    torch.testing.assert_close(scene(image), scene.network(by_hand), rtol=1e-4, atol=1e-5)


def test_statistics_are_configuration_and_not_weights(semantic: SemanticEncoder) -> None:
    assert not {"mean", "std"} & semantic.state_dict().keys()


@pytest.mark.parametrize(("quick", "kind"), [(True, QuickGELU), (False, nn.GELU)])
def test_the_activation_is_the_one_asked_for(
    model_config: dict[str, Any], quick: bool, kind: type[nn.Module]
) -> None:
    shape = model_config["semantic"]["shape"] | {"quick_gelu": quick}
    encoder = SemanticEncoder(image_size=32, **shape)
    kinds = {type(m) for m in encoder.modules() if isinstance(m, (QuickGELU, nn.GELU))}
    assert kinds == {kind}


def test_an_image_that_does_not_divide_into_patches_is_refused(
    model_config: dict[str, Any],
) -> None:
    with pytest.raises(ConfigError, match=r"model\.image_size=40 is not a multiple"):
        SemanticEncoder(image_size=40, **model_config["semantic"]["shape"])


def test_an_architecture_that_is_no_resnet_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a ResNet of timm"):
        SceneEncoder("mobilenetv3_small_050", [0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize("form", ["full.safetensors", "full.pt", "visual.pt", "half.pt"])
def test_every_form_of_a_clip_file_loads(
    semantic: SemanticEncoder, clip_state: dict[str, Tensor], tmp_path: Path, form: str
) -> None:
    state = bare(clip_state) if form == "visual.pt" else clip_state
    if form == "half.pt":
        state = {k: v.half() for k, v in state.items()}
    path = tmp_path / form
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    semantic.load_pretrained(clip_visual_weights(path), str(path))
    assert_holds(semantic, bare(state if form == "half.pt" else clip_state))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_archive_loads(
    semantic: SemanticEncoder, clip_state: dict[str, Tensor], tmp_path: Path
) -> None:
    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = semantic.body()

        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    clip = Clip()
    clip.visual.load_state_dict(bare(clip_state))
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.trace(clip, torch.zeros(1)).save(str(path))
    loaded = clip_visual_weights(path)
    semantic.load_pretrained(loaded, str(path))
    assert_holds(semantic, bare(clip_state))


@pytest.mark.parametrize("counters", [True, False], ids=["new", "without BatchNorm counters"])
def test_a_places365_file_loads(scene: SceneEncoder, tmp_path: Path, counters: bool) -> None:
    state = scrambled(scene.body().state_dict())
    if not counters:
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    path = tmp_path / "resnet.pth.tar"
    write_places365(state | {"fc.weight": torch.rand(365, 12), "fc.bias": torch.rand(365)}, path)
    scene.load_pretrained(scene_weights(path), str(path))
    zero = torch.tensor(0)
    assert_holds(scene, {k: state.get(k, zero) for k in scene.body().state_dict()})


class Python2Pickler(pickle._Pickler):  # type: ignore[misc, name-defined]
    """Writes text as the byte strings that it was in Python 2."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_str(self, text: str) -> None:
        content = text.encode()
        self.write(pickle.SHORT_BINSTRING + bytes([len(content)]) + content)
        self.memoize(text)

    dispatch[str] = save_str


def python2_dump(value: Any, file: Any, protocol: int) -> None:
    Python2Pickler(file, protocol).dump(value)


def write_places365(state: dict[str, Tensor], path: Path) -> None:
    """As PyTorch before 0.4 wrote it from Python 2: no zip archive, a DataParallel's keys."""
    content = {
        "epoch": 90,
        "arch": "resnet50",
        "state_dict": {f"module.{k}": v for k, v in state.items()},
        "best_prec1": 54.65,
    }
    python2 = SimpleNamespace(__name__="python2", Pickler=Python2Pickler, dump=python2_dump)
    torch.save(
        content,
        path,
        pickle_module=python2,
        pickle_protocol=2,
        _use_new_zipfile_serialization=False,
    )


@pytest.mark.parametrize("encoder", ["semantic", "scene"])
def test_missing_unexpected_and_misshapen_keys_are_refused_by_name(
    model: Geolocator, encoder: str
) -> None:
    part: Encoder = getattr(model, encoder)
    before = {k: v.clone() for k, v in part.body().state_dict().items()}
    state = dict(before)
    first, second = [k for k in state if k.endswith("weight")][:2]
    shape = tuple(state[second].shape)
    state["extra.weight"] = torch.zeros(2)
    state[second] = torch.zeros(*shape, 2)
    del state[first]
    with pytest.raises(CheckpointError) as caught:
        part.load_pretrained(state, "weights.pt")
    message = str(caught.value)
    assert "weights.pt" in message
    assert f"missing keys: {first}" in message
    assert "unexpected keys: extra.weight" in message
    assert f"wrong shapes: {second} {(*shape, 2)} instead of {shape}" in message
    assert_holds(part, before)


def test_keys_of_neither_clip_tower_are_refused_by_name(
    clip_state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(clip_state | {"head.weight": torch.zeros(1)}, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match=r"unexpected keys.*head\.weight"):
        clip_visual_weights(tmp_path / "clip.pt")


class Evil:
    """Unpickling it would call a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled",))


def test_a_file_that_is_no_weights_is_refused(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(CheckpointError, match="No weight file at"):
        read_weights(tmp_path / "missing.pt")
    for name in ("text.pt", "text.safetensors", "text.pth.tar"):
        (tmp_path / name).write_text("<html>404: Not Found</html>")
        with pytest.raises(CheckpointError, match=r"cannot be read as model weights"):
            read_weights(tmp_path / name)
    torch.save({"a": torch.zeros(3)}, tmp_path / "whole.pt")
    cut = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(CheckpointError, match="cannot be read as model weights"):
        read_weights(tmp_path / "cut.pt")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        read_weights(tmp_path / "list.pt")
    torch.save({"state_dict": {"a": Evil()}}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="cannot be read as model weights"):
        read_weights(tmp_path / "evil.pt")
    assert "unpickled" not in capsys.readouterr().out


def test_an_unknown_source_of_clip_weights_is_refused() -> None:
    with pytest.raises(CheckpointError, match="knows no weights 'openay' for 'ViT-B-16'"):
        download_clip("ViT-B-16", "openay")


@pytest.fixture(scope="module")
def full_config() -> dict[str, Any]:
    cfg = compose("train", ["model=clip_places365"])
    config = plain(cfg.model)
    config["region"] = build_region(cfg)
    return config


@pytest.fixture(scope="module")
def full_model(full_config: dict[str, Any]) -> Iterator[Geolocator]:
    """ViT-B/16 and ResNet-50 as conf/model/clip_places365.yaml describes them."""
    torch.manual_seed(0)
    yield build_model(full_config, full_config["region"], make_cells(0, (1, 3, 40, 5, 9, 2, 4)))
    gc.collect()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The libraries' own networks and files of their weights in the published formats."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("weights")
    clip = open_clip.create_model("ViT-B-16-quickgelu", pretrained=None)
    # OpenAI's weights are published in half precision.
    visual = {f"visual.{k}": v.half() for k, v in clip.visual.state_dict().items()}
    clip.visual.load_state_dict({k.removeprefix("visual."): v.float() for k, v in visual.items()})
    # The text tower's keys as they are; its values are of no use here.
    text = {k: torch.zeros(1) for k in clip.state_dict() if not k.startswith("visual.")}
    save_file(visual | text, folder / "open_clip_model.safetensors")
    resnet = torchvision.models.resnet50(num_classes=365).eval()
    old = {k: v for k, v in resnet.state_dict().items() if "num_batches_tracked" not in k}
    write_places365(old, folder / "resnet50_places365.pth.tar")
    yield {
        "clip": folder / "open_clip_model.safetensors",
        "places": folder / "resnet50_places365.pth.tar",
        "visual": clip.visual.eval(),
        "resnet": resnet,
    }
    for file in folder.iterdir():
        file.unlink()


def test_the_published_pair_is_built_as_its_weights_need_it(
    full_model: Geolocator, full_config: dict[str, Any]
) -> None:
    semantic, scene = full_model.semantic, full_model.scene
    assert (semantic.dim, scene.dim) == (768, 2048)
    assert [len(stage) for stage in semantic.stages()] == [1] * 12
    assert [len(stage) for stage in scene.stages()] == [3, 4, 6, 3]
    assert any(isinstance(m, QuickGELU) for m in semantic.modules())
    assert not any(isinstance(m, nn.GELU) for m in semantic.modules())
    assert semantic.mean.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert semantic.std.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_STD)
    imagenet = timm.data.IMAGENET_DEFAULT_MEAN
    assert scene.mean.flatten().tolist() == pytest.approx(imagenet)
    # Bottlenecks and pooled width of torchvision's, so that its keys fit.
    assert sum(p.numel() for p in scene.parameters()) == 23_508_032
    assert full_config["image_size"] == 224


def test_published_weights_give_what_the_libraries_own_networks_give(
    full_model: Geolocator, full_config: dict[str, Any], originals: dict[str, Any]
) -> None:
    full_config["semantic"]["checkpoint"] = originals["clip"]
    full_config["scene"]["checkpoint"] = originals["places"]
    load_pretrained(full_model, full_config)
    full_model.eval()
    image = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = full_model.embed(image)
        token, pooled = features.split([768, 2048], dim=-1)
        assert token.shape == (2, 768)
        # Ours is the class token before the projection: projecting it gives CLIP's embedding.
        normalised = torchvision.transforms.functional.normalize(
            image, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        )
        visual = originals["visual"]
        torch.testing.assert_close(token @ visual.proj, visual(normalised), rtol=1e-3, atol=1e-4)
        normalised = torchvision.transforms.functional.normalize(
            image, timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
        )
        resnet = originals["resnet"]
        torch.testing.assert_close(resnet.fc(pooled), resnet(normalised), rtol=1e-3, atol=1e-4)
        output = full_model.heads(features)
    assert output.cell_log_prob.shape == (2, 64)
    assert output.cell_log_prob.isfinite().all()
    assert output.province_logits.shape == (2, 7)


def test_weights_of_the_other_encoder_are_refused(
    full_model: Geolocator, originals: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=r"missing keys: .*unexpected keys: bn1"):
        full_model.semantic.load_pretrained(clip_visual_weights(originals["places"]), "places")
    with pytest.raises(CheckpointError, match=r"missing keys: .*unexpected keys: "):
        full_model.scene.load_pretrained(scene_weights(originals["clip"]), "clip")


def test_without_a_scene_file_the_remedy_is_named(
    full_model: Geolocator, full_config: dict[str, Any], originals: dict[str, Any]
) -> None:
    config = full_config | {"semantic": {"checkpoint": originals["clip"], "source": None}}
    config["scene"] = {"checkpoint": None}
    with pytest.raises(CheckpointError, match=r"model\.scene\.checkpoint=FILE"):
        load_pretrained(full_model, config)
