"""How good the shipped province outlines are, and how fast points are looked up in outlines.

    python -m benchmarks.outlines --region pakistan --reference geoBoundaries-PAK-ADM1.geojson
    python -m benchmarks.outlines --region bangladesh

Prints what is questionable about the outlines, the share of towns that lie in the province their
row names, with the towns that do not, and, against a reference file, the intersection over union of
every province in an equal-area projection and the distance between the two files' borders; then
points per second. The last line is JSON about the check that comes closest to failing: ``value`` of
at least ``limit``, their ``ratio``, and whether it reaches ``target``, as then every check
``holds``.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray
from omegaconf import OmegaConf

from geopak.cli import CONFIG_DIR
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region

LIMIT_IOU, LIMIT_IOU_SMALL, LIMIT_TOWNS = 0.90, 0.75, 0.97
SMALL_AREA_KM2 = 20_000
BORDER_KM = 5.0


def equal_area(outlines: Outlines, middle_deg: tuple[float, float]) -> list[shapely.Geometry]:
    """The polygons in metres, in Lambert's azimuthal equal-area projection about a point."""
    crs = f"+proj=laea +lat_0={middle_deg[0]} +lon_0={middle_deg[1]} +datum=WGS84"
    project = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform
    return [shapely.transform(p, project, interleaved=False) for p in outlines.polygons]


def town_agreement(towns_file: Path, outlines: Outlines, region: Region) -> tuple[int, list[str]]:
    """(number of towns, those that lie elsewhere than in the province that their row names)."""
    towns = pd.read_csv(towns_file)
    stated = np.array([-2 if (i := region.find(n)) is None else i for n in towns["province"]])
    found = outlines.province_of(towns[["latitude", "longitude"]].to_numpy())
    names = [*region.names, "no province"]
    elsewhere = [
        f"{towns['name'][k]}: {towns['province'][k]}, lies in {names[found[k]]}"
        for k in np.flatnonzero(stated != found)
    ]
    return len(towns), elsewhere


def border_points_deg(outlines: Outlines) -> NDArray[np.float64]:
    """(N, 2) latitude and longitude about every kilometre along all borders."""
    rings = shapely.get_rings(shapely.get_parts(np.array(outlines.polygons, object)))
    points = [shapely.line_interpolate_point(r, np.arange(0, r.length, 0.01)) for r in rings]
    return shapely.get_coordinates(np.concatenate(points))[:, ::-1]


def compare(own: Outlines, theirs: Outlines, region: Region) -> list[tuple[str, float, float]]:
    """Prints how two sets of outlines differ; (what, value, limit) of each province."""
    south, west, north, east = own.bounds_deg
    middle_deg = (south + north) / 2, (west + east) / 2
    checks = []
    print(f"\n{'province':24s}{'points':>7s}{'IoU':>7s}{'at least':>10s}{'area ratio':>12s}")
    pairs = zip(equal_area(own, middle_deg), equal_area(theirs, middle_deg), strict=True)
    for name, polygon, (mine, reference) in zip(region.names, own.polygons, pairs, strict=True):
        iou = mine.intersection(reference).area / mine.union(reference).area
        limit = LIMIT_IOU_SMALL if reference.area < SMALL_AREA_KM2 * 1e6 else LIMIT_IOU
        checks.append((f"intersection over union of {name}", iou, limit))
        points = shapely.get_num_coordinates(polygon) - shapely.get_num_geometries(polygon)
        print(f"{name:24s}{points:7d}{iou:7.3f}{limit:10.2f}{mine.area / reference.area:12.3f}")
    away_km = own.border_distance_km(border_points_deg(theirs), np.inf)
    median, most, nearly_all = np.percentile(away_km, [50, 75, 90])
    print(
        f"\nthe reference's borders are {median:.1f} km from the own ones (median), 75% within "
        f"{most:.1f} km, 90% within {nearly_all:.1f} km"
    )
    return checks


def time_lookups(outlines: Outlines, whose: str, num_points: int) -> None:
    """Prints points per second, for points all over the country."""
    south, west, north, east = outlines.bounds_deg
    drawn = np.random.default_rng(0).uniform((south, west), (north, east), (num_points, 2))
    inside = drawn[outlines.province_of(drawn) >= 0]
    points = np.resize(inside, (num_points, 2))
    outlines.border_distance_km(points[:1], BORDER_KM)
    tasks: dict[str, Callable[[], Any]] = {
        "province of a point": lambda: outlines.province_of(points),
        f"distance to a border up to {BORDER_KM:g} km": lambda: outlines.border_distance_km(
            points, BORDER_KM
        ),
    }
    vertices = int(shapely.get_num_coordinates(np.array(outlines.polygons, object)).sum())
    for task, run in tasks.items():
        began = time.perf_counter()
        run()
        rate = num_points / (time.perf_counter() - began)
        print(f"{whose} outlines ({vertices:,} points), {task}: {rate:,.0f} per second")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--region", default="pakistan", help="file of conf/region")
    parser.add_argument("--reference", type=Path, help="outline file to measure against")
    parser.add_argument("--points", type=int, default=1_000_000, help="points to look up")
    args = parser.parse_args()
    config = OmegaConf.load(CONFIG_DIR / "region" / f"{args.region}.yaml")
    region = Region.from_config(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    all_outlines = {"own": Outlines.of_region(region)}
    if args.reference:
        all_outlines["reference"] = Outlines.load(args.reference, region)
    own = all_outlines["own"]

    report = own.check(region)
    print("\n".join(report.lines() or ["no overlap, no gap, no invalid ring"]))
    for name, area_km2 in report.area_km2.items():
        print(f"{name:24s}{area_km2:12,.0f} km²")
    checks = compare(own, all_outlines["reference"], region) if args.reference else []
    print()
    for whose, outlines in all_outlines.items():
        num_towns, elsewhere = town_agreement(Path(config.towns), outlines, region)
        right = num_towns - len(elsewhere)
        print(f"towns in the right province, {whose}: {right} of {num_towns}", end=" ")
        print(f"({right / num_towns:.1%})", *elsewhere, sep="\n  ")
        if outlines is own:
            checks.append(("towns in the right province", right / num_towns, LIMIT_TOWNS))
    print()
    for whose, outlines in all_outlines.items():
        time_lookups(outlines, whose, args.points)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory: {peak_mb:,.0f} MB with {args.points:,} points")

    closest, value, limit = min(checks, key=lambda check: check[1] / check[2])
    print(f"closest to its limit: {closest}")
    target = 1.0
    summary = {
        "name": "outlines",
        "region": region.name,
        "value": round(value, 4),
        "limit": limit,
        "ratio": round(value / limit, 4),
        "target": target,
        "holds": value / limit >= target,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
