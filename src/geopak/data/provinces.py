"""The province of every photo, from its coordinates and the province outlines."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geopak.data.table import rejections
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region

# How far outside the region a rejected photo lies is told up to this distance.
_TOLD_KM = 50.0


def assign_provinces(
    photos: pd.DataFrame, outlines: Outlines, region: Region, border_km: float = 0.0
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Adds ``province``, ``province_id`` and ``near_border``; coordinates win over labels.

    Args:
        photos: with ``latitude, longitude`` (degrees) and ``label_province`` (may be missing).
        outlines: of the region's provinces.
        region: names the provinces.
        border_km: what is near; a border to the outside, at sea too, is a border.

    Returns:
        The photos inside the region with the three columns added; rejections of those outside
        (``coordinates_swapped`` when the swapped coordinates are inside, else
        ``outside_region``); and the photos whose label disagrees: ``id, latitude, longitude,
        label_province, province, near_border, label_away_km``, the last the distance to the
        province of the label, missing where the label names none. A few kilometres are the
        outlines' fuzz (or the photographer's), hundreds are a wrong label.
    """
    latlon_deg = photos[["latitude", "longitude"]].to_numpy(float)
    found = outlines.province_of(latlon_deg)
    rejected = _outside(photos.index[found < 0], latlon_deg[found < 0], outlines, region)
    inside = photos[found >= 0].copy()
    inside["province_id"] = found[found >= 0]
    inside["province"] = np.asarray(region.names, dtype=object)[inside["province_id"].to_numpy()]
    distance_km = outlines.border_distance_km(latlon_deg[found >= 0], border_km)
    inside["near_border"] = distance_km <= border_km

    wrong = inside["label_province"].notna() & (inside["label_province"] != inside["province"])
    columns = ["id", "latitude", "longitude", "label_province", "province", "near_border"]
    disagreements = inside.loc[wrong.fillna(False).astype(bool), columns].copy()
    label_id = np.array([region.names.index(n) if n in region.names else -1
                         for n in disagreements["label_province"]], np.int64)  # fmt: skip
    known = label_id >= 0
    away_km = np.full(len(disagreements), np.nan)
    away_km[known] = outlines.away_km(
        disagreements.loc[known, ["latitude", "longitude"]].to_numpy(float), label_id[known]
    )
    disagreements["label_away_km"] = np.round(away_km, 2)
    return inside, rejected, disagreements


def _outside(
    rows: pd.Index, latlon_deg: NDArray[np.float64], outlines: Outlines, region: Region
) -> pd.DataFrame:
    """Rejections of photos outside the region, with what was probably meant."""
    swapped_id = outlines.province_of(latlon_deg[:, ::-1])
    beyond_km = outlines.border_distance_km(latlon_deg, _TOLD_KM)
    reasons = np.where(swapped_id >= 0, "coordinates_swapped", "outside_region")
    details = []
    for (lat, lon), index, km in zip(latlon_deg.tolist(), swapped_id, beyond_km, strict=True):
        if index >= 0:
            said = f"lies outside, but swapped it is in {region.names[index]}"
        elif km <= _TOLD_KM:
            said = f"is in no province of {region.title}, {km:.1f} km outside its outlines"
        else:
            said = f"is in no province of {region.title}"
        details.append(f"{lat:.5f}, {lon:.5f} {said}")
    return rejections(rows, pd.Series(reasons, rows, "string"), details)
