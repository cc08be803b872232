"""Which photos resemble each other, for a bootstrap that draws them together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geopak.data.split import SplitSettings, place_names, tie_keys


@dataclass(frozen=True, eq=False)
class PhotoGroups:
    """Groups of photos, and what made them.

    Attributes:
        label: (N,) equal for the photos of one group.
        ties: what ties two photos together -> share of the photos for which it is known.
    """

    label: NDArray[np.int64]
    ties: dict[str, float]


def group_photos(photos: pd.DataFrame, block_km: float = SplitSettings.block_km) -> PhotoGroups:
    """Groups photos by what the split never cuts: the block of ground, author and day, album.

    Photos are of one group if a chain of such ties leads from one to the other. A missing author,
    day or album ties nothing, so that where all are missing the groups are the blocks.

    Args:
        photos: as for :func:`geopak.data.split.split_photos`.
        block_km: side of the blocks.
    """
    place = place_names(
        photos[["latitude", "longitude"]].to_numpy(float), photos["province_id"], block_km
    )
    keys = {f"block of ground about {block_km:g} km wide": pd.Series(place)}
    keys |= tie_keys(photos)
    num = len(photos)
    photo, node = [], []
    num_nodes = num
    for key in keys.values():
        code, values = pd.factorize(key)
        known = np.flatnonzero(code >= 0)
        photo.append(known)
        node.append(num_nodes + code[known])
        num_nodes += len(values)
    row, column = np.concatenate(photo), np.concatenate(node)
    ties = coo_array((np.ones(len(row), bool), (row, column)), shape=(num_nodes, num_nodes))
    _, label = connected_components(ties, directed=False)
    known_share = {name: float(key.notna().mean()) for name, key in keys.items()}
    return PhotoGroups(label[:num].astype(np.int64), known_share)
