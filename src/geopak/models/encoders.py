"""The two image encoders, their pretrained weights and their ordered layer groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import Tensor, nn

from geopak.errors import CheckpointError, ConfigError, nearest_name
from geopak.models.weight_files import check_fit, read_weights
from geopak.schema.model import check_patches

# Parts of a full CLIP checkpoint beside its visual tower.
_CLIP_TEXT_PARTS = (
    "transformer.",
    "text.",
    "token_embedding.",
    "ln_final.",
    "positional_embedding",
    "text_projection",
    "logit_scale",
    "logit_bias",
    "attn_mask",
    "input_resolution",
    "context_length",
    "vocab_size",
)
# Where the class token of a vision transformer is taken.
CLASS_TOKENS = ("after_norm", "before_norm")


class Encoder(nn.Module):
    """An image encoder that normalises its own input and knows its blocks from bottom to top.

    Attributes:
        dim: width of the embedding.
        shape: arguments that it was made with, beside the weights all that its output depends on.
    """

    dim: int
    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], shape: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.shape = dict(shape)
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(1, 3, 1, 1), persistent=False)

    def encode(self, normalised: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, dim)."""
        return self.encode((image - self.mean) / self.std)

    @property
    def trains(self) -> bool:
        """Whether any of its parameters is trainable."""
        return any(p.requires_grad for p in self.parameters())

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of weights, shape and code: of all that the output depends on."""
        statistics = [self.mean.flatten().tolist(), self.std.flatten().tolist()]
        digest = hashlib.sha256(Path(__file__).read_bytes())
        digest.update(f"{type(self).__name__} {sorted(self.shape.items())} {statistics}".encode())
        for name, value in self.body().state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def stem(self) -> list[nn.Module | nn.Parameter]:
        """What lies below the first block."""
        raise NotImplementedError

    def stages(self) -> list[list[nn.Module]]:
        """Blocks from bottom to top, grouped by stage."""
        raise NotImplementedError

    def top(self) -> list[nn.Module | nn.Parameter]:
        """What lies above the last block; trains whenever any block does."""
        raise NotImplementedError

    def load_pretrained(self, state: Mapping[str, Tensor], source: str) -> None:
        """Loads weights for exactly this encoder.

        Raises:
            CheckpointError: missing or unexpected keys, or wrong shapes, each by name.
        """
        body = self.body()
        own = body.state_dict()
        # BatchNorm counts its batches since PyTorch 0.4.1, files like Places365's are older. The
        # count is not used at a fixed momentum.
        counters = {k: v for k, v in own.items() if k.endswith(".num_batches_tracked")}
        state = {**counters, **state}
        check_fit(
            f"{source} does not hold the weights of this {type(self).__name__}",
            missing=sorted(own.keys() - state.keys()),
            unexpected=sorted(state.keys() - own.keys()),
            shapes=sorted(
                f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
                for k in own.keys() & state.keys()
                if state[k].shape != own[k].shape
            ),
            remedy="Choose the file and the model that belong together.",
        )
        body.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()})

    def body(self) -> nn.Module:
        """The library's module whose state dict a checkpoint holds."""
        raise NotImplementedError


@contextmanager
def fused_attention() -> Iterator[None]:
    """Within it, attention is the fused kernel in evaluation and frozen blocks too.

    Left alone, PyTorch takes another one wherever no gradient is needed, with the attention matrix
    written out on a CPU, which is slower for batches.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class SemanticEncoder(Encoder):
    """CLIP vision transformer: the class token before projection.

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision (2021).

    Args:
        image_size: side of the square input, pixels.
        patch_size, width, layers, heads, mlp_ratio: shape of the transformer.
        quick_gelu: the activation ``x·sigmoid(1.702x)`` that the OpenAI weights were trained with.
        mean, std: channel statistics of the pretraining.
        class_token: taken ``after_norm``, the final LayerNorm, or ``before_norm``, as the published
            model does; that LayerNorm is then no part of the encoder.

    Raises:
        ConfigError: a choice that there is not, or patches that do not fill the picture.
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        quick_gelu: bool,
        mean: Sequence[float],
        std: Sequence[float],
        mlp_ratio: float = 4.0,
        class_token: str = "after_norm",
    ) -> None:
        if class_token not in CLASS_TOKENS:
            raise ConfigError(
                f"model.semantic.shape.class_token={class_token!r} is unknown."
                f"{nearest_name(class_token, CLASS_TOKENS)} Known: {', '.join(CLASS_TOKENS)}."
            )
        super().__init__(
            mean,
            std,
            {
                "image_size": image_size,
                "patch_size": patch_size,
                "width": width,
                "layers": layers,
                "heads": heads,
                "quick_gelu": quick_gelu,
                "mlp_ratio": mlp_ratio,
                "class_token": class_token,
            },
        )
        check_patches(image_size, patch_size)
        self.visual = VisionTransformer(
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            layers=layers,
            heads=heads,
            mlp_ratio=mlp_ratio,
            act_layer=QuickGELU if quick_gelu else nn.GELU,
        )
        # Without the projection every parameter lies on the path to the embedding.
        self.visual.proj = None
        self.normed = class_token == "after_norm"
        if not self.normed:
            self.visual.ln_post = nn.Identity()
        self.dim = width

    def encode(self, normalised: Tensor) -> Tensor:
        with fused_attention():
            embedding: Tensor = self.visual(normalised)
        return embedding

    def stem(self) -> list[nn.Module | nn.Parameter]:
        v = self.visual
        return [v.conv1, v.class_embedding, v.positional_embedding, v.ln_pre]

    def stages(self) -> list[list[nn.Module]]:
        return [[block] for block in self.visual.transformer.resblocks]

    def top(self) -> list[nn.Module | nn.Parameter]:
        return [self.visual.ln_post] if self.normed else []

    def load_pretrained(self, state: Mapping[str, Tensor], source: str) -> None:
        """See :meth:`Encoder.load_pretrained`; a final LayerNorm that is not in use is left out."""
        if not self.normed:
            state = {k: v for k, v in state.items() if not k.startswith("ln_post.")}
        super().load_pretrained(state, source)

    def body(self) -> nn.Module:
        return self.visual


class SceneEncoder(Encoder):
    """A timm ResNet without its classifier: globally pooled features.

    Zhou et al., Places: A 10 Million Image Database for Scene Recognition (2018).

    Args:
        architecture: name of a timm ResNet.
        options: further arguments of ``timm.create_model`` (``layers``, ``channels``, …).
        mean, std: channel statistics of the pretraining.
    """

    def __init__(
        self,
        architecture: str,
        mean: Sequence[float],
        std: Sequence[float],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(mean, std, {"architecture": architecture, **dict(options or {})})
        self.network = timm.create_model(
            architecture, pretrained=False, num_classes=0, **dict(options or {})
        )
        if not hasattr(self.network, "layer4"):
            raise ConfigError(
                f"model.scene.architecture={architecture} is not a ResNet of timm. "
                f"Try one of: {', '.join(timm.list_models('resnet*')[:6])}, …"
            )
        self.dim = int(self.network.num_features)  # type: ignore[arg-type]
        # Convolutions run about twice as fast in this layout, on CPU and GPU alike.
        self.network.to(memory_format=torch.channels_last)

    def encode(self, normalised: Tensor) -> Tensor:
        embedding: Tensor = self.network(normalised.contiguous(memory_format=torch.channels_last))
        return embedding

    def stem(self) -> list[nn.Module | nn.Parameter]:
        return [self.network.get_submodule(name) for name in ("conv1", "bn1")]

    def stages(self) -> list[list[nn.Module]]:
        return [list(getattr(self.network, f"layer{i}")) for i in range(1, 5)]

    def top(self) -> list[nn.Module | nn.Parameter]:
        return []

    def body(self) -> nn.Module:
        return self.network


def clip_visual_weights(path: str | Path) -> dict[str, Tensor]:
    """The visual tower of a CLIP checkpoint, without its projection.

    Accepts a full CLIP state dict (``visual.*`` beside the text tower) or a bare visual tower.

    Raises:
        CheckpointError: keys that belong to neither tower.
    """
    state = read_weights(path)
    if any(k.startswith("visual.") for k in state):
        foreign = [k for k in state if not k.startswith(("visual.", *_CLIP_TEXT_PARTS))]
        if foreign:
            raise CheckpointError(
                f"{path}: unexpected keys beside CLIP's two towers: {', '.join(foreign[:8])}."
            )
        state = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    state.pop("proj", None)
    return state


def scene_weights(path: str | Path) -> dict[str, Tensor]:
    """A scene classifier's state dict without the classifier."""
    return {k: v for k, v in read_weights(path).items() if not k.startswith("fc.")}


def download_clip(architecture: str, tag: str) -> Path:
    """The weight file of an open_clip model, from its cache or the hub.

    Raises:
        CheckpointError: not cached and not reachable; names the offline remedy.
    """
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    config = get_pretrained_cfg(architecture, tag)
    if not config:
        raise CheckpointError(f"open_clip knows no weights {tag!r} for {architecture!r}.")
    try:
        return Path(download_pretrained(config))
    except Exception as error:
        raise CheckpointError(
            f"The weights {tag!r} of {architecture} could not be downloaded "
            f"({type(error).__name__}). Without network, download the file elsewhere and pass it "
            "as model.semantic.checkpoint=FILE."
        ) from error
