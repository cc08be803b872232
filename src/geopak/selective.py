"""Answering only where it pays: what is gained by staying silent on the least sure photos.

El-Yaniv and Wiener, On the foundations of noise-free selective classification (JMLR 2010); the area
under the risk-coverage curve after Geifman, Uziel and El-Yaniv, Bias-reduced uncertainty estimation
for deep neural classifiers (ICLR 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    """How unlike the known photos a photo is, by its fused embedding.

    The squared Mahalanobis distance to the embeddings of known photos (Lee et al., A simple unified
    framework for detecting out-of-distribution samples and adversarial attacks, NeurIPS 2018, with
    one mean in place of one per class), told as the share of known photos that are as far off.

    Attributes:
        mean: (D,) of the known photos.
        whitening: (D, D) W with W·Wᵀ the inverse of their covariance.
        distance: (n,) of known photos that had no part in the two, ascending.
    """

    mean: Tensor
    whitening: Tensor
    distance: Tensor

    @classmethod
    def fit(cls, fused: Tensor, held_out: Tensor) -> Familiarity:
        """Learns what is usual.

        Args:
            fused: (M, D) embeddings that mean and covariance are taken of; the covariance is shrunk
                (Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance
                matrices, 2004), so that M may be less than D.
            held_out: (n, D) other embeddings, that distances are compared with.
        """
        from sklearn.covariance import LedoitWolf

        found = LedoitWolf().fit(fused.double().cpu().numpy())
        precision = torch.from_numpy(np.linalg.inv(found.covariance_))
        whitening = torch.linalg.cholesky(precision).float()
        fitted = cls(torch.from_numpy(found.location_).float(), whitening, torch.empty(0))
        distance = fitted.distance_of(held_out.cpu()).sort().values
        return cls(fitted.mean, whitening, distance)

    def distance_of(self, fused: Tensor) -> Tensor:
        """(B, D) embeddings -> (B,) squared Mahalanobis distance, on their device."""
        off = fused.float() - self.mean.to(fused.device)
        return (off @ self.whitening.to(fused.device)).square().sum(-1)

    def __call__(self, fused: Tensor) -> Tensor:
        """(B, D) embeddings -> (B,) share of known photos that are at least as far off.

        Of photos like the known ones it is uniform between 0 and 1: a conformal p-value. It counts
        the photo itself among the known, so that it is never 0.
        """
        known = self.distance.to(fused.device)
        nearer = torch.searchsorted(known, self.distance_of(fused).contiguous())
        return (len(known) - nearer + 1) / (len(known) + 1)

    def to_dict(self) -> dict[str, Tensor]:
        """Tensors, as a checkpoint holds them."""
        return {"mean": self.mean, "whitening": self.whitening, "distance": self.distance}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Familiarity:
        """Inverse of :meth:`to_dict`."""
        return cls(data["mean"], data["whitening"], data["distance"])
