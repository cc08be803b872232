"""How well the shipped province outlines agree with a reference file and with the towns.

    python -m benchmarks.outlines --reference geoBoundaries-PAK-ADM1.geojson

Prints the intersection over union of every province in an equal-area projection and the share of
towns that lie in the province their row names. The last line is JSON about the check that comes
closest to failing: ``value`` of at least ``limit``, their ``ratio``, and whether it reaches
``target``, as then every check ``holds``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyproj
import shapely
from omegaconf import OmegaConf

from geopak.cli import CONFIG_DIR
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region

LIMIT_IOU, LIMIT_IOU_SMALL, LIMIT_TOWNS = 0.90, 0.75, 0.97
SMALL_AREA_KM2 = 20_000


def equal_area(outlines: Outlines, middle_deg: tuple[float, float]) -> list[shapely.Geometry]:
    """The polygons in metres, in Lambert's azimuthal equal-area projection about a point."""
    crs = f"+proj=laea +lat_0={middle_deg[0]} +lon_0={middle_deg[1]} +datum=WGS84"
    project = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform
    return [shapely.transform(p, project, interleaved=False) for p in outlines.polygons]


def town_agreement(towns_file: Path, outlines: Outlines, region: Region) -> tuple[int, int]:
    """(number of towns inside the province that their row names, number of towns)."""
    towns = pd.read_csv(towns_file)
    stated = np.array([-2 if (i := region.find(n)) is None else i for n in towns["province"]])
    found = outlines.province_of(towns[["latitude", "longitude"]].to_numpy())
    return int((stated == found).sum()), len(towns)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--region", default="pakistan", help="file of conf/region")
    parser.add_argument("--reference", type=Path, required=True, help="GeoJSON to measure against")
    args = parser.parse_args()
    config = OmegaConf.load(CONFIG_DIR / "region" / f"{args.region}.yaml")
    region = Region.from_config(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    own = Outlines.of_region(region)
    south, west, north, east = own.bounds_deg
    middle_deg = (south + north) / 2, (west + east) / 2
    areas = equal_area(own, middle_deg)
    theirs = Outlines.load(args.reference, region)
    references = equal_area(theirs, middle_deg)

    checks: list[tuple[str, float, float]] = []
    print(f"{'province':24s}{'IoU':>7s}{'at least':>10s}{'area ratio':>12s}")
    for name, mine, reference in zip(region.names, areas, references, strict=True):
        iou = mine.intersection(reference).area / mine.union(reference).area
        limit = LIMIT_IOU_SMALL if reference.area < SMALL_AREA_KM2 * 1e6 else LIMIT_IOU
        checks.append((f"intersection over union of {name}", iou, limit))
        print(f"{name:24s}{iou:7.3f}{limit:10.2f}{mine.area / reference.area:12.3f}")
    for whose, outlines in (("own", own), ("reference", theirs)):
        right, num_towns = town_agreement(Path(config.towns), outlines, region)
        print(f"towns in the right province, {whose}: {right} of {num_towns}", end=" ")
        print(f"({right / num_towns:.1%})")
        if outlines is own:
            checks.append(("towns in the right province", right / num_towns, LIMIT_TOWNS))
    closest, value, limit = min(checks, key=lambda check: check[1] / check[2])
    print(f"closest to its limit: {closest}")
    target = 1.0
    summary = {
        "name": "outlines",
        "value": round(value, 4),
        "limit": limit,
        "ratio": round(value / limit, 4),
        "target": target,
        "holds": value / limit >= target,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
