"""From a photo of any size to the model's square, in operations that ONNX has.

Resizing is two products with matrices of weights. ONNX's own ``Resize`` rounds otherwise than the
decoders of :mod:`geopak.data.images`, whose squares the model has learned from. Sums are of whole
numbers below 2³¹ in float64, so that they are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geopak.schema.model import SQUEEZE

# PyTorch resizes bytes with weights of 16 bits with their sign, Pillow with as many bits behind the
# point as follow.
_WEIGHT_BITS = 15
_PILLOW_PRECISION = 22
# To Pillow a photo more than so many times as tall as wide is a strip.
_STRIP = 100


def square_of(image: Tensor, size: int, framing: str) -> Tensor:
    """What :func:`geopak.data.images.load_image` makes of pixels, to the bit.

    It is resized by antialiased bilinear weights, along the rows first, with the rounding of the
    library that does it there: PyTorch's for a square in the middle, Pillow's where the middle lies
    between two pixels or the whole photo is squeezed. Of strips Pillow resizes the columns first.

    Args:
        image: (B, H, W, 3) uint8, upright, RGB.
        size: side of the square, pixels.
        framing: a kind of :data:`geopak.schema.model.FRAMINGS`.

    Returns:
        (B, 3, size, size) float32 whole numbers from 0 to 255.
    """
    height, width = (
        torch.arange(image.shape[axis], device=image.device).double() for axis in (1, 2)
    )
    num_rows, num_columns = height[-1] + 1, width[-1] + 1
    if framing == SQUEEZE:
        by_pillow = torch.ones((), dtype=torch.bool, device=image.device)
        side_across, side_down = num_columns, num_rows
    else:
        total = num_rows + num_columns
        by_pillow = total - 2 * torch.floor(total / 2) > 0.5
        side_across = side_down = torch.minimum(num_rows, num_columns)
    across, across_unit = _weights(width, num_columns, side_across, by_pillow, size)
    down, down_unit = _weights(height, num_rows, side_down, by_pillow, size)
    pixels = image.permute(0, 3, 1, 2).double()
    narrow = _rounded(pixels @ across.T, across_unit)
    square = _rounded(down @ narrow, down_unit)
    # A strip has no more columns than these, so that other photos lose no time.
    column = torch.arange(image.shape[1] // _STRIP + 1, device=image.device)
    index = torch.minimum(column, num_columns.long() - 1)
    few = across.index_select(1, index) * (column < num_columns).double()
    low = _rounded(down @ pixels.index_select(3, index), down_unit)
    is_strip = by_pillow & (num_rows > _STRIP * num_columns) & (num_rows > size)
    return torch.where(is_strip, _rounded(low @ few.T, across_unit), square).float()


def _weights(
    place: Tensor, length: Tensor, side: Tensor, by_pillow: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """How much each pixel of an axis counts in each of the square.

    Args:
        place: (L,) float64, 0 … L − 1.
        length, side: (), L and how much of it is taken, from the middle.
        by_pillow: () bool: Pillow resizes, which takes half pixels and looks beyond the side.
        size: of the result.

    Returns:
        (size, L) float64 whole numbers, and the number () that counts as 1.
    """
    margin = (length - side) / 2
    start = torch.where(by_pillow, margin, torch.floor(margin))
    lower = torch.where(by_pillow, torch.zeros_like(start), start)
    upper = torch.where(by_pillow, length, start + side)
    scale = side / size
    support = scale.clamp_min(1.0)
    target = torch.arange(size, device=place.device).double().unsqueeze(1)
    distance = (place - (start + (target + 0.5) * scale) + 0.5).abs() * (1 / support)
    inside = (place >= lower) & (place < upper)
    weight = (1 - distance).clamp_min(0.0) * inside.double()
    weight = weight / weight.sum(1, keepdim=True)
    # The most bits of which the largest weight still fits into 16 with its sign.
    units = 2.0 ** torch.arange(1, _PILLOW_PRECISION + 1, device=place.device).double()
    fits = torch.floor(0.5 + weight.amax((0, 1)) * units) < 2.0**_WEIGHT_BITS
    bits = torch.where(by_pillow, float(_PILLOW_PRECISION), fits.double().sum())
    unit = 2.0**bits
    return torch.floor(weight * unit + 0.5), unit


def _rounded(total: Tensor, unit: Tensor) -> Tensor:
    return torch.floor(total / unit + 0.5).clamp(0.0, 255.0)
