"""Geography-safe augmentation of whole batches on their device.

Safe is what leaves the evidence of the place intact. A horizontal flip mirrors script and the side
of the road that people drive on, a large rotation breaks the horizon, a perspective warp bends
skylines: these are refused unless ``allow_unsafe`` says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from geopak.schema.loading import augmentation_strengths

_LUMA = (0.299, 0.587, 0.114)


class Augmenter:
    """Random transforms, drawn anew for every photo of a batch.

    Args:
        size: side of the images that come out, pixels.
        settings: those that differ from the defaults of
            :class:`geopak.schema.loading.Augmentation`.
        allow_unsafe: permit the unsafe ones.

    Raises:
        ConfigError: an unknown or refused transform, or a strength out of range.
    """

    def __init__(
        self, size: int, settings: Mapping[str, Any] | None = None, allow_unsafe: bool = False
    ) -> None:
        self.size = size
        self.settings = augmentation_strengths(settings, allow_unsafe)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Augments a batch.

        Args:
            image: (B, 3, S, S) uint8 or float in [0, 1], S at least ``size``.
            generator: on the CPU; the only source of randomness.

        Returns:
            (B, 3, size, size) float32 in [0, 1].
        """
        draw = _Draw(len(image), generator, image.device)
        x = self._geometry(image.float(), draw)
        x = self._colour(x, draw, full=255.0 if image.dtype == torch.uint8 else 1.0)
        x = self._weather(x, draw)
        return self._optics(x, draw).clamp_(0, 1)

    def _geometry(self, x: Tensor, draw: _Draw) -> Tensor:
        s = self.settings
        scale = draw.uniform(*s["crop_scale"])
        ratio = torch.exp(draw.uniform(*(math.log(v) for v in s["crop_ratio"])))
        width = torch.sqrt(scale * ratio).clamp(max=1)
        height = torch.sqrt(scale / ratio).clamp(max=1)
        flip = 1 - 2 * draw.happens(s["horizontal_flip"])
        angle = torch.deg2rad(draw.uniform(-s["rotation"], s["rotation"]))
        center_x = draw.uniform(-1, 1) * (1 - width)
        center_y = draw.uniform(-1, 1) * (1 - height)
        # Where the output's pixels lie in the input, from -1 to 1.
        side = torch.arange(1 - self.size, self.size, 2, device=x.device) / self.size
        column = (width * flip).view(-1, 1, 1) * side
        row = height.view(-1, 1, 1) * side.view(-1, 1)
        grid = x.new_empty((len(x), self.size, self.size, 2))
        grid[..., 0], grid[..., 1] = column, row
        if s["rotation"]:
            sine, cosine = angle.sin().view(-1, 1, 1), angle.cos().view(-1, 1, 1)
            grid[..., 0] = column * cosine - row * sine
            grid[..., 1] = column * sine + row * cosine
        grid += torch.stack((center_x, center_y), -1).view(-1, 1, 1, 2)
        if s["perspective"]:
            tilt = torch.stack([draw.uniform(-0.5, 0.5) for _ in range(2)], -1) * s["perspective"]
            grid = grid / (1 + (grid * tilt[:, None, None]).sum(-1, keepdim=True))
        # A plain crop never looks outside the picture; only unsafe transforms do.
        outside = "reflection" if s["rotation"] or s["perspective"] else "border"
        return functional.grid_sample(
            x, grid, mode="bilinear", padding_mode=outside, align_corners=False
        )

    def _colour(self, x: Tensor, draw: _Draw, full: float) -> Tensor:
        """Brightness, saturation and contrast as one affine map of the channels, then gamma.

        ``full`` is the value that comes out as 1.
        """
        s = self.settings
        brightness = draw.uniform(1 - s["brightness"], 1 + s["brightness"]).view(-1, 1, 1)
        saturation = draw.uniform(1 - s["saturation"], 1 + s["saturation"]).view(-1, 1, 1)
        contrast = draw.uniform(1 - s["contrast"], 1 + s["contrast"]).view(-1, 1, 1)
        luma = x.new_tensor(_LUMA).expand(1, 3, 3)
        mix = saturation * torch.eye(3, device=x.device) + (1 - saturation) * luma
        mean = (x.mean((2, 3)) / full * x.new_tensor(_LUMA)).sum(-1).view(-1, 1, 1)
        flat = torch.baddbmm(
            (mean * brightness * (1 - contrast)).expand(-1, 3, 1),
            brightness * contrast * mix / full,
            x.flatten(2),
        )
        x = flat.view_as(x).clamp_(1e-4, 1)
        if s["gamma"]:
            x.pow_(draw.map(torch.exp(draw.uniform(-s["gamma"], s["gamma"]))))
        return x

    def _weather(self, x: Tensor, draw: _Draw) -> Tensor:
        """Weather for a few photos of the batch."""
        for name, effect in (("fog", _fog), ("overcast", _overcast), ("rain", _rain)):
            x = self._some(x, draw, name, effect)
        return x

    def _optics(self, x: Tensor, draw: _Draw) -> Tensor:
        x = self._some(x, draw, "blur", _blur)
        if self.settings["noise"]:
            # Luminance noise: most of a small sensor's noise, at a third of the cost.
            amount = draw.map(draw.uniform(0, self.settings["noise"]))
            x += amount * draw.normal((len(x), 1, *x.shape[2:]))
        return x

    def _some(
        self, x: Tensor, draw: _Draw, name: str, effect: Callable[[Tensor, _Draw], Tensor]
    ) -> Tensor:
        """Applies an effect to the photos that its probability chooses, and works on no other."""
        if not self.settings[name]:
            return x
        rows = draw.chosen(self.settings[name])
        if len(rows):
            x[rows] = effect(x[rows], draw.of(len(rows)))
        return x


def _fog(x: Tensor, draw: _Draw) -> Tensor:
    """Thickens towards the top of the picture, where things are far."""
    depth = torch.linspace(1, 0.2, x.shape[2], device=x.device).view(1, 1, -1, 1)
    fog = draw.map(draw.uniform(0.2, 0.6)) * depth
    return x * (1 - fog) + 0.85 * fog


def _overcast(x: Tensor, draw: _Draw) -> Tensor:
    """Dims and greys."""
    strength = draw.map(draw.uniform(0.3, 0.8))
    grey = x.mean(1, keepdim=True) * 0.8 + 0.05
    return x * (1 - strength) + (0.5 * x + 0.5 * grey) * 0.9 * strength


def _rain(x: Tensor, draw: _Draw) -> Tensor:
    """Bright vertical streaks over a darker picture."""
    strength = draw.map(draw.uniform(0.3, 0.7))
    drops = (draw.field(x.shape[2], x.shape[3]) > 0.97).float()
    length = max(3, x.shape[2] // 10) | 1
    streaks = functional.avg_pool2d(drops, (length, 1), stride=1, padding=(length // 2, 0))
    return x * (1 - 0.15 * strength) + (streaks * length / 2).clamp(0, 1) * 0.5 * strength


def _blur(x: Tensor, draw: _Draw) -> Tensor:
    """A share of the mean over 3 × 3 pixels."""
    share = draw.map(draw.uniform(0.3, 1.0))
    soft = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return x * (1 - share) + soft * share


class _Draw:
    """Per-photo random numbers, made on the CPU so that every device gets the same ones."""

    def __init__(self, num: int, generator: torch.Generator, device: torch.device) -> None:
        self.num = num
        self.generator = generator
        self.device = device

    def uniform(self, low: float, high: float) -> Tensor:
        drawn = torch.rand(self.num, generator=self.generator)
        return (low + (high - low) * drawn).to(self.device)

    def of(self, num: int) -> _Draw:
        """The same source for another number of photos."""
        return _Draw(num, self.generator, self.device)

    def chosen(self, probability: float) -> Tensor:
        """Row numbers of the photos that something happens to."""
        drawn = torch.rand(self.num, generator=self.generator) < probability
        return drawn.nonzero().squeeze(1).to(self.device)

    def happens(self, probability: float) -> Tensor:
        return (self.uniform(0, 1) < probability).float()

    def field(self, height: int, width: int) -> Tensor:
        return torch.rand((self.num, 1, height, width), generator=self.generator).to(self.device)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    @staticmethod
    def map(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)
