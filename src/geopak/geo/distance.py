"""Distances and means on the sphere, for tensors (with gradients) and for arrays.

Coordinates are (..., 2) in degrees, latitude first; distances are great-circle kilometres on a
sphere of radius 6371.0088 km (IUGG mean radius).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

EARTH_RADIUS_KM = 6371.0088
KM_PER_DEGREE = EARTH_RADIUS_KM * np.pi / 180.0


def haversine_km(a_deg: Tensor, b_deg: Tensor) -> Tensor:
    """Great-circle distance whose gradient is finite everywhere, at zero distance too.

    With h the haversine, the distance is 2R·atan2(√(h+ε) − √ε, √(1−h+ε)): the shift by √ε keeps
    d = 0 exact and its gradient zero, where d√h/dh would be infinite. The shift costs less than a
    metre in float32, and the atan2 form stays accurate up to the antipode.

    Args:
        a_deg, b_deg: (..., 2) latitude and longitude in degrees, broadcast against each other.

    Returns:
        (...) kilometres, float32 or float64 like the input.
    """
    dtype = torch.promote_types(a_deg.dtype, b_deg.dtype)
    eps = 1e-15 if dtype == torch.float32 else 1e-24
    a, b = torch.deg2rad(a_deg), torch.deg2rad(b_deg)
    # Differences are taken in degrees: nearby float32 coordinates subtract exactly.
    delta = torch.deg2rad(b_deg - a_deg)
    sin2 = torch.sin(delta / 2).square()
    h = sin2[..., 0] + torch.cos(a[..., 0]) * torch.cos(b[..., 0]) * sin2[..., 1]
    # Rounding takes h below 0 beside a pole, where cos(90°) is negative, and above 1 at antipodes.
    h, rest = h.clamp_min(0), (1 - h).clamp_min(0)
    return 2 * EARTH_RADIUS_KM * torch.atan2(torch.sqrt(h + eps) - eps**0.5, torch.sqrt(rest + eps))


def haversine_km_array(a_deg: ArrayLike, b_deg: ArrayLike) -> NDArray[np.float64]:
    """Great-circle kilometres for arrays (..., 2) in degrees, latitude first, broadcast."""
    a, b = np.radians(np.asarray(a_deg, float)), np.radians(np.asarray(b_deg, float))
    sin2 = np.sin((b - a) / 2) ** 2
    h = sin2[..., 0] + np.cos(a[..., 0]) * np.cos(b[..., 0]) * sin2[..., 1]
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(h, 0.0, 1.0)))


def unit_vectors_array(latlon_deg: ArrayLike) -> NDArray[np.float64]:
    """(..., 2) degrees -> (..., 3) unit vectors."""
    lat, lon = np.moveaxis(np.radians(np.asarray(latlon_deg, float)), -1, 0)
    return np.stack((np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)), axis=-1)


def latlon_of_vectors_array(vectors: ArrayLike) -> NDArray[np.float64]:
    """(..., 3) vectors of any length -> (..., 2) degrees; 0, 0 for the zero vector."""
    x, y, z = np.moveaxis(np.asarray(vectors, float), -1, 0)
    return np.degrees(np.stack((np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)), axis=-1))


def arc_km(chord: ArrayLike) -> NDArray[np.float64]:
    """Great-circle kilometres between unit vectors that lie ``chord`` apart in a straight line."""
    half = np.minimum(np.asarray(chord, float) / 2, 1.0)
    return 2 * EARTH_RADIUS_KM * np.arcsin(half)


def unit_vectors(latlon_deg: Tensor) -> Tensor:
    """(..., 2) degrees -> (..., 3) unit vectors."""
    lat, lon = torch.deg2rad(latlon_deg).unbind(-1)
    return torch.stack((lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()), dim=-1)


def latlon_of_vectors(vectors: Tensor) -> Tensor:
    """(..., 3) vectors of any length -> (..., 2) degrees; gradients are finite on the axis too."""
    x, y, z = vectors.unbind(-1)
    horizontal = torch.sqrt(x.square() + y.square() + 1e-30)
    # A pole has every longitude: 0 is chosen.
    on_axis = (x == 0) & (y == 0)
    longitude = torch.atan2(y, x.masked_fill(on_axis, 1.0))
    return torch.rad2deg(torch.stack((torch.atan2(z, horizontal), longitude), -1))


def spherical_mean(latlon_deg: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean on the sphere: the direction of the mean unit vector.

    Args:
        latlon_deg: (..., K, 2) degrees.
        weights: (..., K), non-negative; ``None`` for equal weights.

    Returns:
        (..., 2) degrees.
    """
    vectors = unit_vectors(latlon_deg.double())
    if weights is not None:
        vectors = vectors * weights.double().unsqueeze(-1)
    return latlon_of_vectors(vectors.sum(-2)).to(latlon_deg.dtype)


def spherical_mean_array(latlon_deg: ArrayLike) -> NDArray[np.float64]:
    """Mean on the sphere of (K, 2) degrees -> (2,)."""
    return spherical_mean(torch.as_tensor(np.asarray(latlon_deg, float))).numpy()


def move_km(latlon_deg: Tensor, offset_north_east_km: Tensor) -> Tensor:
    """The point reached from (..., 2) degrees by an offset (..., 2) of km north and km east.

    The offset is the tangent vector of a geodesic (exponential map), so the great-circle distance
    moved is exactly the offset's length; smooth at zero offset.
    """
    lat, lon = torch.deg2rad(latlon_deg).unbind(-1)
    north, east = (offset_north_east_km / EARTH_RADIUS_KM).unbind(-1)
    angle2 = north.square() + east.square()
    # sin(x)/x and cos(x) as functions of x², finite in value and gradient at zero.
    angle = torch.sqrt(angle2 + 1e-18)
    sinc, cosine = torch.sin(angle) / angle, torch.cos(angle)
    up = torch.stack((lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()), -1)
    to_north = torch.stack((-lat.sin() * lon.cos(), -lat.sin() * lon.sin(), lat.cos()), -1)
    to_east = torch.stack((-lon.sin(), lon.cos(), torch.zeros_like(lon)), -1)
    tangent = north.unsqueeze(-1) * to_north + east.unsqueeze(-1) * to_east
    return latlon_of_vectors(cosine.unsqueeze(-1) * up + sinc.unsqueeze(-1) * tangent)
