"""The province of every photo, from its coordinates and the province outlines."""

from __future__ import annotations

import numpy as np
import pandas as pd

from geopak.data.table import rejections
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region


def assign_provinces(
    photos: pd.DataFrame, outlines: Outlines, region: Region
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Adds ``province`` and ``province_id``; where a label disagrees, the coordinates win.

    Args:
        photos: with ``latitude, longitude`` (degrees) and ``label_province`` (may be missing).
        outlines: of the region's provinces.
        region: names the provinces.

    Returns:
        The photos inside the region with the two columns added; rejections of those outside
        (``coordinates_swapped`` when the swapped coordinates are inside, else
        ``outside_region``); and the photos whose label disagrees: ``id, latitude, longitude,
        label_province, province``.
    """
    latlon_deg = photos[["latitude", "longitude"]].to_numpy(float)
    found = outlines.province_of(latlon_deg)
    names = np.asarray(region.names, dtype=object)
    outside_deg = latlon_deg[found < 0]
    swapped_id = outlines.province_of(outside_deg[:, ::-1])
    reasons = ["coordinates_swapped" if index >= 0 else "outside_region" for index in swapped_id]
    details = [
        f"{lat:.5f}, {lon:.5f} "
        + (
            f"lies outside, but swapped it is in {names[index]}"
            if index >= 0
            else f"is in no province of {region.title}"
        )
        for (lat, lon), index in zip(outside_deg.tolist(), swapped_id, strict=True)
    ]
    rows = photos.index[found < 0]
    rejected = rejections(rows, pd.Series(reasons, rows, "string"), details)
    inside = photos[found >= 0].copy()
    inside["province_id"] = found[found >= 0]
    inside["province"] = names[inside["province_id"].to_numpy()]
    wrong = inside["label_province"].notna() & (inside["label_province"] != inside["province"])
    columns = ["id", "latitude", "longitude", "label_province", "province"]
    return inside, rejected, inside.loc[wrong.fillna(False), columns]
