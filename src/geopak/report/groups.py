"""Which photos resemble each other, for a bootstrap that draws them together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geopak.data.ties import block_codes, components, tie_codes
from geopak.schema.preparation import SplitSettings

# A bootstrap cannot widen an interval by places that it has never seen.
FEW_PHOTOS = 10
FEW_GROUPS = 20


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
    """Groups photos by what ties them: the block of ground, author and day, album, look.

    Photos are of one group if a chain of such ties leads from one to the other. A missing author,
    day or album ties nothing, so that where all are missing the groups are the blocks.

    Args:
        photos: as for :func:`geopak.data.split.split_photos`.
        block_km: side of the blocks.
    """
    latlon_deg = photos[["latitude", "longitude"]].to_numpy(float)
    block = pd.factorize(block_codes(latlon_deg, block_km))[0].astype(np.int64)
    province = pd.factorize(photos["province_id"])[0].astype(np.int64)
    num = len(photos)
    place = block * (province.max(initial=0) + 1) + province
    keys = {f"block of ground about {block_km:g} km wide": place} | tie_codes(photos)
    edges = []
    num_nodes = num
    for code in keys.values():
        known = np.flatnonzero(code >= 0)
        edges.append((known, num_nodes + code[known]))
        num_nodes += int(code.max(initial=-1)) + 1
    known_share = {name: float((code >= 0).mean()) for name, code in keys.items()}
    return PhotoGroups(components(num, edges, num_nodes), known_share)
