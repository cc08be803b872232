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
from geopak.geo.distance import haversine_km_array
from geopak.geo.region import Region
from geopak.models.geolocator import Geolocator

_CHUNK = 4096


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
    photos = PhotoDataset(prepared, model.image_size, framing=model.framing)
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


@dataclass(frozen=True, eq=False)
class KnownPhoto:
    """A train photo, as another photo sees it.

    Attributes:
        path: its file.
        latlon_deg: where it was taken, degrees.
        province_id: its province.
        similarity: cosine of both descriptors, at most 1.
        away_km: from the place that the other photo's answer names.
    """

    path: Path
    latlon_deg: tuple[float, float]
    province_id: int
    similarity: float
    away_km: float


class PhotoIndex:
    """Train photos, to find those that look most like another photo.

    Args:
        descriptor: (K, D) unit vectors of :func:`descriptors`.
        dims: length of each encoder's part of the features.
        paths: K files.
        latlon_deg: (K, 2) degrees.
        province_id: (K,).
    """

    def __init__(
        self,
        descriptor: Tensor,
        dims: Sequence[int],
        paths: Sequence[Path],
        latlon_deg: NDArray[np.float64],
        province_id: NDArray[np.int64],
    ) -> None:
        self._descriptor, self._dims, self._paths = descriptor, tuple(dims), paths
        self._latlon_deg, self._province_id = latlon_deg, province_id

    @classmethod
    def of_folder(
        cls,
        model: Geolocator,
        region: Region,
        prepared: str | Path,
        root: str | Path,
        folder: str | Path,
    ) -> PhotoIndex:
        """All train photos of a prepared set on disk, as :meth:`of_train`.

        Args:
            model: its encoders, on their device.
            region: the model's.
            prepared, root: folders of the set and of its photos.
            folder: of the feature caches.

        Raises:
            GeopakError: the set is missing or of another region.
        """
        return cls.of_train(model, PreparedSet.read(prepared, root, region), folder)

    @classmethod
    def of_train(
        cls, model: Geolocator, prepared: PreparedSet, folder: str | Path, num_workers: int = 0
    ) -> PhotoIndex:
        """All train photos of a set, by the features of the model's encoders.

        Args:
            model: its encoders, on their device.
            prepared: the set.
            folder: of the feature caches; what is not there is encoded once.
            num_workers: processes that load photos.

        Raises:
            FeatureCacheError: the cache cannot be used.
            PhotoError: a photo that cannot be read.
        """
        photos = PhotoDataset(prepared, model.image_size, framing=model.framing)
        rows = prepared.rows("train")
        cached = cached_features(
            Encoding(model, model.cell_center_deg.device, num_workers=num_workers),
            photos,
            rows,
            content_hashes([photos.paths[r] for r in rows], hash_folder(folder)),
            Pictures(model.image_size),
            folder,
            "float32",
        )
        dims = (model.semantic.dim, model.scene.dim)
        table = prepared.photos.iloc[rows]
        places = cached.position[torch.from_numpy(rows)]
        known = torch.empty(len(rows), sum(dims))
        # All at once they would be in memory several times.
        for part, out in zip(places.split(_CHUNK), known.split(_CHUNK), strict=True):
            out.copy_(descriptors(cached.values[part, 0], dims))
        return cls(
            known,
            dims,
            [Path(photos.paths[r]) for r in rows],
            table[["latitude", "longitude"]].to_numpy(float),
            table["province_id"].to_numpy(np.int64),
        )

    def nearest(
        self, features: Tensor, num: int, answer_deg: tuple[float, float]
    ) -> list[KnownPhoto]:
        """The most similar photos, most similar first.

        Args:
            features: (D,) of both encoders side by side, of :meth:`Geolocator.embed`.
            num: of photos.
            answer_deg: place that distances are told from, degrees.
        """
        query = descriptors(features.detach().cpu().float()[None], self._dims)[0]
        found = (self._descriptor @ query).topk(min(num, len(self._descriptor)))
        away_km = haversine_km_array(self._latlon_deg[found.indices.numpy()], answer_deg)
        return [
            KnownPhoto(
                self._paths[row],
                (float(self._latlon_deg[row, 0]), float(self._latlon_deg[row, 1])),
                int(self._province_id[row]),
                similarity,
                float(km),
            )
            for row, similarity, km in zip(
                found.indices.tolist(), found.values.tolist(), away_km, strict=True
            )
        ]
