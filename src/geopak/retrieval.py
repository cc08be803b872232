"""The coordinate of the train photo that looks most alike, a baseline that learns nothing.

Hays and Efros, IM2GPS: estimating geographic information from a single image (CVPR 2008), with the
features of frozen encoders and one neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from geopak.data.content_hashes import content_hashes
from geopak.data.dataset import PhotoDataset, PreparedSet
from geopak.data.feature_store import hash_folder
from geopak.data.features import Encoding, Pictures, cached_features
from geopak.models.geolocator import Geolocator


@dataclass(frozen=True, eq=False)
class NearestPhotos:
    """For each of N photos, where the most similar train photo was taken.

    Attributes:
        latlon_deg: (N, 2) degrees.
        province_id: (N,) its province.
        similarity: (N,) cosine.
    """

    latlon_deg: NDArray[np.float64]
    province_id: NDArray[np.int64]
    similarity: NDArray[np.float64]


def descriptors(features: Tensor, dims: Sequence[int]) -> Tensor:
    """Unit vectors in which every encoder counts the same.

    Args:
        features: (N, sum of dims) of the encoders side by side.
        dims: length of each encoder's part.

    Returns:
        (N, sum of dims): the parts at length 1 each, concatenated, at length 1.
    """
    parts = [normalize(part, dim=-1) for part in features.split(list(dims), dim=-1)]
    return normalize(torch.cat(parts, dim=-1), dim=-1)


def most_similar(query: Tensor, known: Tensor, chunk_rows: int = 1024) -> tuple[Tensor, Tensor]:
    """The nearest neighbour by cosine similarity.

    Args:
        query: (Q, D) unit vectors.
        known: (K, D) unit vectors.
        chunk_rows: queries compared at a time, which bounds the memory.

    Returns:
        (Q,) row in ``known``, the first among equals, and (Q,) the cosine.
    """
    found = [(part @ known.T).max(dim=-1) for part in query.split(chunk_rows)]
    return torch.cat([f.indices for f in found]), torch.cat([f.values for f in found])


def nearest_train_photos(
    model: Geolocator,
    prepared: PreparedSet,
    rows: NDArray[np.int64],
    folder: str | Path,
    num_workers: int = 0,
) -> NearestPhotos:
    """Looks every photo up among the train photos, by the features of the model's encoders.

    Args:
        model: its encoders, on their device.
        prepared: the set.
        rows: (N,) of the photos to look up.
        folder: of the feature caches.
        num_workers: processes that load photos.

    Raises:
        FeatureCacheError: the cache cannot be used.
        PhotoError: a photo that cannot be read.
    """
    photos = PhotoDataset(prepared, model.image_size)
    encoding = Encoding(model, model.cell_center_deg.device, num_workers=num_workers)
    dims = (model.semantic.dim, model.scene.dim)

    def describe(of: NDArray[np.int64]) -> Tensor:
        contents = content_hashes([photos.paths[r] for r in of], hash_folder(folder))
        cached = cached_features(
            encoding, photos, of, contents, Pictures(model.image_size), folder, "float32"
        )
        return descriptors(cached.values[cached.position[torch.from_numpy(of)], 0], dims)

    train = prepared.rows("train")
    index, similarity = most_similar(describe(rows), describe(train))
    nearest = prepared.photos.iloc[train[index.numpy()]]
    return NearestPhotos(
        nearest[["latitude", "longitude"]].to_numpy(float),
        nearest["province_id"].to_numpy(np.int64),
        similarity.double().numpy(),
    )
