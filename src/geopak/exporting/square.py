"""From a photo of any size to the model's square, in operations that ONNX has.

Resizing is two products with matrices of weights. ONNX's own ``Resize`` rounds otherwise than the
decoders of :mod:`geopak.data.images`, whose squares the model has learned from.
"""

from __future__ import annotations

import torch
from torch import Tensor

# PyTorch resizes bytes with weights of 16 bits with their sign, Pillow with as many bits behind the
# point as follow.
_WEIGHT_BITS = 15
_PILLOW_PRECISION = 22


def square_of(image: Tensor, size: int) -> Tensor:
    """What :func:`geopak.data.images.load_image` makes of pixels, as whole numbers.

    The square in the middle, resized by antialiased bilinear weights, along the rows first, with
    the rounding of the library that does it there: PyTorch's, or Pillow's where the middle lies
    between two pixels. Of the latter's 30-bit sums float32 loses the last, so that a pixel in
    thousands differs by one step of 255.

    Args:
        image: (B, H, W, 3) uint8, upright, RGB.
        size: side of the square, pixels.

    Returns:
        (B, 3, size, size) float32 whole numbers from 0 to 255.
    """
    height, width = (
        torch.arange(image.shape[axis], device=image.device).double() for axis in (1, 2)
    )
    num_rows, num_columns = height[-1] + 1, width[-1] + 1
    side = torch.minimum(num_rows, num_columns)
    total = num_rows + num_columns
    between = total - 2 * torch.floor(total / 2) > 0.5
    across, across_unit = _weights(width, num_columns, side, between, size)
    down, down_unit = _weights(height, num_rows, side, between, size)
    pixels = image.permute(0, 3, 1, 2).float()
    narrow = _rounded(pixels @ across.T, across_unit)
    return _rounded(down @ narrow, down_unit)


def _weights(
    place: Tensor, length: Tensor, side: Tensor, between: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """How much each pixel of an axis counts in each of the square.

    Args:
        place: (L,) float64, 0 … L − 1.
        length, side: (), L and the side of the square in it.
        between: () bool, the middle of rows and columns is not that of a pixel in both.
        size: of the result.

    Returns:
        (size, L) float32 whole numbers, and the number () that counts as 1.
    """
    margin = (length - side) / 2
    start = torch.where(between, margin, torch.floor(margin))
    lower = torch.where(between, torch.zeros_like(start), start)
    upper = torch.where(between, length, start + side)
    scale = side / size
    support = scale.clamp_min(1.0)
    target = torch.arange(size, device=place.device).double().unsqueeze(1)
    distance = (place + 0.5 - (start + (target + 0.5) * scale)).abs() / support
    inside = (place >= lower) & (place < upper)
    weight = (1 - distance).clamp_min(0.0) * inside.double()
    weight = weight / weight.sum(1, keepdim=True)
    # The most bits of which the largest weight still fits into 16 with its sign.
    units = 2.0 ** torch.arange(1, _PILLOW_PRECISION + 1, device=place.device).double()
    fits = torch.floor(0.5 + weight.amax((0, 1)) * units) < 2.0**_WEIGHT_BITS
    bits = torch.where(between, float(_PILLOW_PRECISION), fits.double().sum())
    unit = 2.0**bits
    return torch.floor(weight * unit + 0.5).float(), unit.float()


def _rounded(total: Tensor, unit: Tensor) -> Tensor:
    return torch.floor(total / unit + 0.5).clamp(0.0, 255.0)
