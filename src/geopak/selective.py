"""Answering only where it pays: what is gained by staying silent on the least sure photos.

El-Yaniv and Wiener, On the foundations of noise-free selective classification (JMLR 2010); the area
under the risk-coverage curve after Geifman, Uziel and El-Yaniv, Bias-reduced uncertainty estimation
for deep neural classifiers (ICLR 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RiskCurve:
    """Mean loss of the answered photos, if the k of the highest score are answered, k = 1 … N.

    Attributes:
        risk: (N,) by the score; photos of equal score are answered in a random order, on average.
        oracle: (N,) by the loss itself: no score does better.
        random: by no score at all: the mean loss.
    """

    risk: NDArray[np.float64]
    oracle: NDArray[np.float64]
    random: float

    @property
    def share(self) -> NDArray[np.float64]:
        """(N,) share of the photos that is answered."""
        return np.arange(1, len(self.risk) + 1) / len(self.risk)

    @property
    def areas(self) -> dict[str, float]:
        """Area under each curve, and ``gained``: how far the score comes from random to oracle."""
        model, oracle = float(self.risk.mean()), float(self.oracle.mean())
        room = self.random - oracle
        return {
            "score": model,
            "random": self.random,
            "oracle": oracle,
            "gained": (self.random - model) / room if room > 0 else 0.0,
        }


def risk_curve(score: ArrayLike, loss: ArrayLike) -> RiskCurve:
    """What an answer costs on average, against how many photos are answered.

    Args:
        score: (N,) the surer, the higher; N at least 1.
        loss: (N,) of the answer, such as kilometres, or 0 and 1.
    """
    s, losses = np.asarray(score, float), np.asarray(loss, float)
    _, tied = np.unique(-s, return_inverse=True)
    # Of photos with one score each stands for their mean, whichever comes first.
    expected = (np.bincount(tied, losses) / np.bincount(tied))[np.sort(tied)]
    answered = np.arange(1, len(losses) + 1)
    return RiskCurve(
        np.cumsum(expected) / answered, np.cumsum(np.sort(losses)) / answered, float(losses.mean())
    )


@dataclass(frozen=True, eq=False)
class Familiarity:
    """How unlike the train photos a photo is, by what the model sees in it.

    A Gaussian is fitted to vectors of train photos whose covariance is free along their K strongest
    directions and the same along all others (Tipping and Bishop, Probabilistic principal component
    analysis, 1999), so that fewer photos than numbers are enough. The squared Mahalanobis distance
    to it (Lee et al., A simple unified framework for detecting out-of-distribution samples, NeurIPS
    2018, without their classes) is told as the share of unseen photos of the region that are as far
    off.

    Attributes:
        mean, scale: (D,) of the train photos, number by number; 1 where all are the same.
        directions: (K, D) unit vectors, in units of ``scale``.
        variance: (K,) along these.
        rest: () variance along any other.
        distance: (n,) of unseen photos of the region, ascending.
    """

    mean: Tensor
    scale: Tensor
    directions: Tensor
    variance: Tensor
    rest: Tensor
    distance: Tensor

    @classmethod
    def fit(cls, train: Tensor, unseen: Tensor, num_directions: int) -> Familiarity:
        """Learns what is usual.

        Args:
            train: (M, D) vectors of train photos; M at least 3.
            unseen: (n, D) of photos of the region that the model was not trained on.
            num_directions: K at the most; at least half of all directions stay for the rest.
        """
        from sklearn.utils.extmath import randomized_svd

        vectors = train.double().cpu().numpy()
        mean, scale = vectors.mean(0), vectors.std(0)
        scale = np.where(scale > 1e-6 * np.abs(mean) + 1e-12, scale, 1.0)
        standard = (vectors - mean) / scale
        degrees = len(vectors) - 1
        most = max(1, min(num_directions, degrees // 2, vectors.shape[1] // 2))
        _, singular, directions = randomized_svd(standard, most, random_state=0)
        variance = singular**2 / degrees
        rest = ((standard**2).sum() / degrees - variance.sum()) / max(1, vectors.shape[1] - most)
        # Where the strongest directions hold everything, any other counts as hardly varying.
        rest = max(rest, 1e-6 * variance[-1], 1e-12)
        parts = (mean, scale, directions, np.maximum(variance, rest), np.asarray(rest), np.empty(0))
        fitted = cls(*(torch.from_numpy(part).float() for part in parts))
        return replace(fitted, distance=fitted.distance_of(unseen.cpu()).sort().values)

    def distance_of(self, vectors: Tensor) -> Tensor:
        """(B, D) -> (B,) squared Mahalanobis distance."""
        off = (vectors.float() - self.mean) / self.scale
        along = off @ self.directions.T
        beside = (off - along @ self.directions).square().sum(-1)
        return (along.square() / self.variance).sum(-1) + beside / self.rest

    def __call__(self, vectors: Tensor) -> Tensor:
        """(B, D) -> (B,) share of the unseen photos that are at least as far off.

        For photos like these it is uniform between 0 and 1: a conformal p-value. It counts the
        photo itself among them, so that it is never 0.
        """
        nearer = torch.searchsorted(self.distance, self.distance_of(vectors).contiguous())
        return (len(self.distance) - nearer + 1) / (len(self.distance) + 1)

    def to(self, device: str | torch.device) -> Familiarity:
        """The same on a device, that of the vectors to be asked about."""
        return Familiarity(**{name: value.to(device) for name, value in vars(self).items()})

    def to_dict(self) -> dict[str, Tensor]:
        """Tensors, as a checkpoint holds them."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Familiarity:
        """Inverse of :meth:`to_dict`."""
        return cls(**data)
