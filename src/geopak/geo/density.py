"""Where photos are dense: HDBSCAN over a province, or over a sample of it that is never larger.

The sample is drawn by a hash of the coordinates, so that it depends neither on the order of the
photos nor on a random state.
"""

from __future__ import annotations

from dataclasses import dataclass

import hdbscan
import numpy as np
import pyproj
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from geopak.geo.distance import (
    EARTH_RADIUS_KM,
    haversine_km_array,
    latlon_of_vectors_array,
    unit_vectors_array,
)

# Within it the azimuthal-equidistant projection stretches no distance by more than a fifth.
_MAX_PROJECTED_KM = 6000.0
# Below, a cluster of the sample would be a chance meeting of a few points.
_LEAST_CLUSTER, _LEAST_SAMPLES = 5, 2
_SALT = np.uint64(0x67656F63656C6C73)


@dataclass(frozen=True, eq=False)
class RawClusters:
    """HDBSCAN's clusters before any rule, over all provinces.

    A province's noise points are one cluster, as in the published set. In a province that was
    sampled, every photo counts as what the nearest photo of the sample is.

    Attributes:
        province_id: (K,) int64.
        center_latlon_deg: (K, 2) means on the sphere, degrees.
        radius_km: (K,) distance from the center to the farthest photo.
        count: (K,) int64 photos; they add up to all photos.
        is_noise: (K,) bool.
    """

    province_id: NDArray[np.int64]
    center_latlon_deg: NDArray[np.float64]
    radius_km: NDArray[np.float64]
    count: NDArray[np.int64]
    is_noise: NDArray[np.bool_]

    @classmethod
    def concatenate(cls, parts: list[RawClusters]) -> RawClusters:
        """The clusters of several provinces together."""
        return cls(
            province_id=np.concatenate([part.province_id for part in parts]),
            center_latlon_deg=np.concatenate([part.center_latlon_deg for part in parts]),
            radius_km=np.concatenate([part.radius_km for part in parts]),
            count=np.concatenate([part.count for part in parts]),
            is_noise=np.concatenate([part.is_noise for part in parts]),
        )


class DenseClusters:
    """HDBSCAN's clusters of one province.

    Attributes:
        is_sampled: whether the province had more photos than were clustered.
    """

    def __init__(
        self,
        latlon_deg: NDArray[np.float64],
        min_cluster_size: int,
        min_samples: int,
        max_points: int,
    ) -> None:
        """Clusters photos.

        Args:
            latlon_deg: (N, 2) degrees, in ascending order of latitude, then longitude.
            min_cluster_size, min_samples: HDBSCAN's parameters for all photos; for a sample they
                shrink with its share.
            max_points: photos to cluster at most.
        """
        self._latlon_deg = latlon_deg
        rows = sample_rows(latlon_deg, max_points)
        self.is_sampled = len(rows) < len(latlon_deg)
        share = len(rows) / len(latlon_deg)
        size, samples = min_cluster_size, min_samples
        if self.is_sampled:
            size = min(size, max(_LEAST_CLUSTER, round(size * share)))
            samples = min(samples, max(_LEAST_SAMPLES, round(samples * share)))
        self._place = _Plane(latlon_deg)
        self._xy_m = self._place.xy_m(latlon_deg[rows])
        self._labels = _hdbscan(self._xy_m, size, samples)

    def nearest_cluster(self, latlon_deg: NDArray[np.float64]) -> NDArray[np.int64]:
        """(M,) number of the cluster of the nearest clustered photo, noise left aside.

        One cluster of everything, number 0, where HDBSCAN finds none.
        """
        dense = self._labels >= 0
        if not dense.any():
            return np.zeros(len(latlon_deg), np.int64)
        tree = cKDTree(self._xy_m[dense])
        _, nearest = tree.query(self._place.xy_m(latlon_deg), k=1, workers=-1)
        return self._labels[dense][nearest]

    def raw(self, province_id: int) -> RawClusters:
        """The clusters with the noise as one more, over all photos."""
        labels = self._labels
        if self.is_sampled:
            tree = cKDTree(self._xy_m)
            labels = np.concatenate(
                [
                    labels[tree.query(self._place.xy_m(part), k=1, workers=-1)[1]]
                    for part in np.array_split(self._latlon_deg, len(self._latlon_deg) // 10**6 + 1)
                ]
            )
        names, group = np.unique(labels, return_inverse=True)
        group = group.reshape(-1)
        vectors = unit_vectors_array(self._latlon_deg)
        total = np.stack([np.bincount(group, vectors[:, k]) for k in range(3)], axis=1)
        centers = latlon_of_vectors_array(total)
        away = haversine_km_array(self._latlon_deg, centers[group])
        radius = np.zeros(len(names))
        np.maximum.at(radius, group, away)
        return RawClusters(
            province_id=np.full(len(names), province_id, np.int64),
            center_latlon_deg=centers,
            radius_km=radius,
            count=np.bincount(group).astype(np.int64),
            is_noise=names < 0,
        )


def sample_rows(latlon_deg: NDArray[np.float64], max_points: int) -> NDArray[np.int64]:
    """Rows of a sample that is the same for any order in which the photos once were.

    Args:
        latlon_deg: (N, 2) in ascending order of latitude, then longitude: photos of one
            coordinate are told apart by their rank among themselves.
        max_points: size of the sample.

    Returns:
        Ascending row numbers: all of them, or ``max_points``.
    """
    num = len(latlon_deg)
    if num <= max_points:
        return np.arange(num)
    # Adding zero makes 0 of -0, which has other bits.
    bits = np.ascontiguousarray(latlon_deg + 0.0).view(np.uint64)
    starts = np.ones(num, bool)
    starts[1:] = (latlon_deg[1:] != latlon_deg[:-1]).any(1)
    first = np.maximum.accumulate(np.where(starts, np.arange(num), 0))
    rank = (np.arange(num) - first).astype(np.uint64)
    mixed = _mix(_mix(_mix(bits[:, 0] ^ _SALT) ^ bits[:, 1]) ^ rank)
    return np.sort(np.argsort(mixed, kind="stable")[:max_points])


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _Plane:
    """Metres around the mean of a province, or in space for one as wide as half the globe."""

    def __init__(self, latlon_deg: NDArray[np.float64]) -> None:
        center = latlon_of_vectors_array(unit_vectors_array(latlon_deg).sum(0))
        self._project = None
        if haversine_km_array(latlon_deg, center).max() <= _MAX_PROJECTED_KM:
            sphere = f"+R={EARTH_RADIUS_KM * 1000}"
            self._project = pyproj.Transformer.from_crs(
                f"+proj=longlat {sphere}",
                f"+proj=aeqd +lat_0={center[0]} +lon_0={center[1]} {sphere}",
            )

    def xy_m(self, latlon_deg: ArrayLike) -> NDArray[np.float64]:
        """(K, 2) degrees -> (K, 2) azimuthal-equidistant metres, or (K, 3) along chords."""
        points = np.asarray(latlon_deg, float)
        if self._project is None:
            return unit_vectors_array(points) * (EARTH_RADIUS_KM * 1000)
        east, north = self._project.transform(points[:, 1], points[:, 0])
        return np.stack((east, north), axis=1)


def _hdbscan(
    xy_m: NDArray[np.float64], min_cluster_size: int, min_samples: int
) -> NDArray[np.int64]:
    """(K,) cluster per point, -1 for noise; all noise where there is too little to cluster."""
    if len(xy_m) < 2 * min_cluster_size or min_cluster_size < 2:
        return np.full(len(xy_m), -1, np.int64)
    labels = hdbscan.HDBSCAN(
        min_cluster_size=min_cluster_size,
        min_samples=min(min_samples, len(xy_m) - 1),
        # Processes cost seconds to start and win nothing in two dimensions.
        core_dist_n_jobs=1,
    ).fit_predict(xy_m)
    return labels.astype(np.int64)
