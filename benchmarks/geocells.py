"""How long geocells take, how much memory, and whether they hold their invariants.

    python -m benchmarks.geocells
    python -m benchmarks.geocells --points 1000000

Photos are drawn like those of the rendered set (towns by population, sights that many photograph,
some wilderness), as many per province as the published set has. Every size is measured in a
process of its own, so that peaks of memory are its own. It prints one line of JSON per size:

``seconds``, ``cpu_seconds`` and ``peak_mb`` (libraries and photos included) of ``build_cells``;
``violations``, what :func:`geopak.geo.invariants.check_invariants` found, none wanted; radii beside
their caps; and ``photo_to_center_km``, how much of a prior it is to know the cell.

At the published size a restatement of the published recipe runs on the same photos beside it (own
code: one UTM zone per province, HDBSCAN as it comes over all photos, clusters and their noise taken
as cells): ``value`` is the seconds of ``build_cells``, ``limit`` those of the recipe, and
``ratio``, the times by which it is faster, should reach ``target``. HDBSCAN as it comes starts four
processes, which takes most of its time here: ``peer_one_process`` is the recipe without them. At
other sizes ``value`` is the peak of memory and ``limit`` what it may be.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from geopak.cli import CONFIG_DIR
from geopak.geo.boundaries import Outlines
from geopak.geo.distance import KM_PER_DEGREE
from geopak.geo.region import Region
from geopak.render.towns import Towns
from geopak.render.world import town_radius_km
from geopak.schema.rendering import PlacesConfig

PUBLISHED = {
    "sindh": 65_221,
    "punjab": 8_459,
    "khyber_pakhtunkhwa": 5_344,
    "ict": 4_410,
    "balochistan": 3_627,
    "gilgit_baltistan": 2_379,
    "azad_kashmir": 1_075,
}
SIZES = (sum(PUBLISHED.values()), 1_000_000, 10_000_000)
TARGET_SPEEDUP = 3.0
LIMIT_MB = 6144
DECIMALS = 6
_BATCH = 2_000_000

Points = NDArray[np.float64]


def load_region() -> tuple[Region, Towns]:
    """The shipped region and its towns."""
    config = OmegaConf.load(CONFIG_DIR / "region" / "pakistan.yaml")
    region = Region.from_config(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    return region, Towns.read(config.towns, region)


def draw_points(num_points: int, seed: int = 0) -> tuple[Points, NDArray[np.int64]]:
    """Photos as the rendered set has them: (N, 2) degrees and (N,) provinces, in mixed order."""
    region, towns = load_region()
    outlines = Outlines.of_region(region)
    places = PlacesConfig()
    rng = np.random.default_rng([seed, num_points])
    inhabited = outlines.province_of(towns.latlon_deg)
    radius_km = town_radius_km(towns.population)
    weight = towns.population**places.town_exponent
    published = np.array([PUBLISHED[p.key] for p in region.provinces])
    wanted = published * num_points // published.sum()
    wanted[published.argmax()] += num_points - wanted.sum()

    town_of_sight = np.repeat(np.arange(len(towns)), places.spots_per_town)
    scatter = rng.standard_t(3, (len(town_of_sight), 2))
    sights = _moved(towns.latlon_deg[town_of_sight], radius_km[town_of_sight, None] * scatter)
    zipf = 1 / np.arange(1, places.spots_per_town + 1)

    def draw(province: int, num: int) -> Points:
        here = np.flatnonzero(inhabited == province)
        town = rng.choice(here, num, p=weight[here] / weight[here].sum())
        base = towns.latlon_deg[town]
        away_km = radius_km[town, None] * rng.standard_t(3, (num, 2))
        kind = rng.random(num)
        wild = kind < places.wilderness_share
        away_km[wild] = places.wilderness_km * rng.standard_normal((int(wild.sum()), 2))
        at_sight = kind >= 1 - places.spot_share
        rank = rng.choice(places.spots_per_town, int(at_sight.sum()), p=zipf / zipf.sum())
        base[at_sight] = sights[town[at_sight] * places.spots_per_town + rank]
        away_km[at_sight] = places.jitter_km * rng.standard_normal((len(rank), 2))
        points = _moved(base, away_km)
        return points[outlines.province_of(points) == province]

    parts: list[Points] = []
    for province, num in enumerate(wanted.tolist()):
        lacking = num
        while lacking:
            part = draw(province, min(_BATCH, lacking + lacking // 10 + 100))[:lacking]
            parts.append(part)
            lacking -= len(part)
    order = rng.permutation(num_points)
    return np.concatenate(parts)[order], np.repeat(np.arange(len(wanted)), wanted)[order]


def _moved(latlon_deg: Points, north_east_km: Points) -> Points:
    delta = north_east_km / KM_PER_DEGREE
    delta[:, 1] /= np.cos(np.radians(latlon_deg[:, 0]))
    moved: Points = np.round(latlon_deg + delta, DECIMALS)
    return moved


def measure_build(points: Points, province_id: NDArray[np.int64]) -> dict[str, Any]:
    """Builds cells once and looks at them."""
    from geopak.geo.clustering import CellSettings, build_cells
    from geopak.geo.distance import haversine_km_array
    from geopak.geo.invariants import check_invariants

    region, _ = load_region()
    settings = CellSettings()
    before_mb = _peak_mb()
    clock, cpu = time.perf_counter(), _cpu_seconds()
    built = build_cells(points, province_id, region, settings)
    seconds, cpu_seconds = time.perf_counter() - clock, _cpu_seconds() - cpu
    peak_mb = _peak_mb()
    cells, cell_id = built.cells, built.cell_id
    clock = time.perf_counter()
    nearest = cells.nearest(points, province_id)
    nearest_seconds = time.perf_counter() - clock
    away_km = haversine_km_array(points, cells.center_latlon_deg[cell_id])
    violations = check_invariants(cells, cell_id, points, province_id, region, settings)

    def largest(of: NDArray[np.bool_]) -> float:
        return round(float(cells.radius_km[of].max(initial=0.0)), 3)

    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_mb": round(peak_mb),
        "peak_mb_before": round(before_mb),
        "nearest_seconds": round(nearest_seconds, 2),
        "cells": cells.num_cells,
        "sparse": int(cells.sparse.sum()),
        "photos_in_sparse": round(float(cells.count[cells.sparse].sum() / len(points)), 4),
        "radius_km": {
            "median": round(float(np.median(cells.radius_km)), 3),
            "max_urban": largest(cells.urban),
            "cap_urban": settings.urban_radius_cap_km,
            "max_rural": largest(~cells.urban),
            "cap_rural": settings.rural_radius_cap_km,
        },
        "photo_to_center_km": {
            "median": round(float(np.median(away_km)), 3),
            "mean": round(float(away_km.mean()), 3),
            "p90": round(float(np.quantile(away_km, 0.9)), 3),
        },
        "in_nearest_cell": round(float((nearest == cell_id).mean()), 4),
        "sampled_provinces": int((np.bincount(province_id) > settings.max_clustered_points).sum()),
        "before": {
            "clusters": len(built.before.count),
            "max_radius_km": round(float(built.before.radius_km.max()), 1),
        },
        "violations": violations,
    }


def measure_peer(
    points: Points, province_id: NDArray[np.int64], processes: int | None
) -> dict[str, Any]:
    """The published recipe restated; ``processes`` of HDBSCAN, ``None`` as it comes."""
    import hdbscan
    import pyproj

    from geopak.geo.distance import haversine_km_array

    region, _ = load_region()
    options = {} if processes is None else {"core_dist_n_jobs": processes}
    radii: list[float] = []
    noise_radii: list[float] = []
    away_km: list[NDArray[np.float64]] = []
    clock, cpu = time.perf_counter(), _cpu_seconds()
    for province in range(region.num_provinces):
        own = points[province_id == province]
        zone = int((own[:, 1].mean() + 180) // 6) + 1
        to_utm = pyproj.Transformer.from_crs("EPSG:4326", f"EPSG:{32600 + zone}")
        xy_m = np.stack(to_utm.transform(own[:, 0], own[:, 1]), axis=1)
        settings = region.provinces[province]
        clusterer = hdbscan.HDBSCAN(
            min_cluster_size=settings.min_cluster_size,
            min_samples=settings.min_samples,
            **options,
        )
        labels = clusterer.fit_predict(xy_m)
        for label in np.unique(labels):
            members = own[labels == label]
            away_km.append(haversine_km_array(members, members.mean(0)))
            radii.append(float(away_km[-1].max()))
            if label < 0:
                noise_radii.append(radii[-1])
    seconds, cpu_seconds = time.perf_counter() - clock, _cpu_seconds() - cpu
    away = np.concatenate(away_km)
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "peak_mb": round(_peak_mb()),
        "cells": len(radii),
        "max_radius_km": round(max(radii), 1),
        "max_noise_radius_km": round(max(noise_radii, default=0.0), 1),
        "photo_to_center_km": {
            "median": round(float(np.median(away)), 3),
            "mean": round(float(away.mean()), 3),
        },
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


MEASURES = {
    "build": measure_build,
    "peer": lambda points, province_id: measure_peer(points, province_id, None),
    "peer_one_process": lambda points, province_id: measure_peer(points, province_id, 1),
}


def _in_own_process(what: str, num_points: int, file: Path) -> Any:
    command = [sys.executable, "-m", "benchmarks.geocells"]
    command += ["--do", what, "--points", str(num_points), "--file", str(file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout) if done.stdout else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--points", type=int, help="this size alone")
    parser.add_argument("--do", choices=["draw", *MEASURES], help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.do == "draw":
        latlon_deg, province_id = draw_points(args.points)
        np.savez(args.file, latlon_deg=latlon_deg, province_id=province_id)
        return
    if args.do:
        with np.load(args.file) as drawn:
            result = MEASURES[args.do](drawn["latlon_deg"], drawn["province_id"])
        print(json.dumps(result))
        return
    for num_points in [args.points] if args.points else SIZES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "points.npz"
            _in_own_process("draw", num_points, file)
            row = {"name": f"geocells {num_points}", "points": num_points}
            row |= _in_own_process("build", num_points, file)
            if num_points == SIZES[0]:
                row |= {w: _in_own_process(w, num_points, file) for w in list(MEASURES)[1:]}
                value, limit, target = row["seconds"], row["peer"]["seconds"], TARGET_SPEEDUP
            else:
                value, limit, target = row["peak_mb"], LIMIT_MB, 1.0
        ratio = limit / max(value, math.ulp(1.0))
        row |= {"value": value, "limit": limit, "ratio": round(ratio, 2), "target": target}
        row["holds"] = ratio >= target and not row["violations"]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
