"""The plan of a rendered photo set: who photographs where and when, and what is bad on purpose.

Every row is decided before anything is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geopak.errors import ConfigError
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.render.towns import Towns
from geopak.render.world import town_radius_km
from geopak.schema.rendering import COPIES, PhotoSetConfig, PlacesConfig

COLUMNS = (
    "id",
    "path",
    "latitude",
    "longitude",
    "province",
    "source",
    "license",
    "author",
    "captured_at",
    "url",
    "width",
    "height",
    "album",
)
DECIMALS = 6
# How far inside its province a wrongly labelled photo lies, and how far outside the region a
# photo's wrong coordinate, so that no reasonable outline puts either elsewhere.
_CLEARLY_INSIDE_KM = 12.0
_CLEARLY_OUTSIDE_DEG = 3.0
# A re-encoded copy is smaller than its original.
_COPY_SCALE = 0.85
_Array = NDArray[np.float64]


def plan_photos(
    config: PhotoSetConfig,
    region: Region,
    towns: Towns,
    outlines: Outlines,
    photo_shares: Mapping[str, float] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decides every row of the set before anything is drawn.

    Args:
        config: the set.
        region: names the provinces.
        towns: where people live and photograph.
        outlines: a photo's province is the one that its coordinate lies in.
        photo_shares: share of the photos per province key; ``None``: by town weight.

    Returns:
        The photo table with the columns ``COLUMNS`` and, for drawing, ``picture`` (number of the
        picture: a copy has its original's), ``defect`` (a kind of ``DEFECTS`` or empty),
        ``true_latitude``, ``true_longitude`` and ``true_province_id``; and the table of defects
        with ``id, kind, detail, original_id``.

    Raises:
        ConfigError: shares or defects that the region cannot give.
    """
    counts = config.defect_counts()
    num_originals = config.num_photos - sum(counts[kind] for kind in COPIES)
    rng = np.random.default_rng([config.seed, 0])
    inhabited = outlines.province_of(towns.latlon_deg)
    weight = towns.population**config.places.town_exponent
    shares = _province_shares(region, inhabited, weight, photo_shares)
    parts = [
        _plan_province(config.places, towns, weight, inhabited, outlines, province, count, rng)
        for province, count in enumerate(round_to_total(shares * num_originals))
        if count
    ]
    rows = pd.concat(parts, ignore_index=True)
    rows["album"] = rows.groupby(["true_province_id", "album"], sort=False).ngroup()
    rows = rows.iloc[rng.permutation(len(rows))].reset_index(drop=True)
    rows["picture"] = np.arange(len(rows))
    rows["province"] = np.array(region.names, object)[rows["true_province_id"]]
    low, high = config.image.short_side_px
    short = rng.integers(low, high + 1, len(rows))
    aspect = rng.choice(config.image.aspects, len(rows))
    rows["width"] = np.round(short * np.maximum(aspect, 1.0)).astype(int)
    rows["height"] = np.round(short * np.maximum(1.0 / aspect, 1.0)).astype(int)
    rows["latitude"], rows["longitude"] = rows["true_latitude"], rows["true_longitude"]
    rows["defect"], rows["detail"], rows["original"] = "", "", -1
    rows = _spoil(rows, counts, region, outlines, rng)

    rows = rows.iloc[rng.permutation(len(rows))].reset_index(drop=True)
    rows["id"] = [f"{k:06d}" for k in range(len(rows))]
    folder = [k // config.image.photos_per_folder for k in range(len(rows))]
    rows["path"] = [f"photos/{f:03d}/{i}.jpg" for f, i in zip(folder, rows["id"], strict=True)]
    rows["source"], rows["license"], rows["url"] = "synthetic", "CC0-1.0", ""
    rows["album"] = [f"album-{k:05d}" for k in rows["album"]]

    first = rows[~rows["defect"].isin(COPIES)].set_index("picture")["id"]
    bad = rows[rows["defect"] != ""]
    defects = pd.DataFrame(
        {
            "id": bad["id"],
            "kind": bad["defect"],
            "detail": bad["detail"],
            "original_id": [first[k] if k >= 0 else "" for k in bad["original"]],
        }
    ).reset_index(drop=True)
    extra = ["picture", "defect", "true_latitude", "true_longitude", "true_province_id"]
    return rows[[*COLUMNS, *extra]], defects


def _province_shares(
    region: Region,
    inhabited: NDArray[np.int64],
    weight: _Array,
    photo_shares: Mapping[str, float] | None,
) -> _Array:
    keys = [p.key for p in region.provinces]
    shares = np.bincount(inhabited[inhabited >= 0], weight[inhabited >= 0], region.num_provinces)
    if photo_shares is not None:
        wanted = np.array([float(photo_shares.get(key, 0.0)) for key in keys])
        if not wanted.sum() > 0:
            raise ConfigError("landscape.photo_shares gives no province a photo.")
        without = [
            k for k, share, has in zip(keys, wanted, shares > 0, strict=True) if share and not has
        ]
        if without:
            raise ConfigError(
                f"landscape.photo_shares asks for photos in {', '.join(without)}, where the towns "
                "table has no town. Add towns to region.towns or leave the province out."
            )
        shares = wanted
    if not shares.sum() > 0:
        raise ConfigError("No town of region.towns lies within region.boundaries.")
    normalised: _Array = shares / shares.sum()
    return normalised


def round_to_total(amounts: _Array) -> list[int]:
    """Whole numbers next to ``amounts`` with the same sum (largest remainders)."""
    whole = np.floor(amounts + 1e-9).astype(int)
    rest = round(float(amounts.sum())) - int(whole.sum())
    whole[np.argsort(whole - amounts, kind="stable")[:rest]] += 1
    return [int(number) for number in whole]


def _plan_province(
    places: PlacesConfig,
    towns: Towns,
    weight: _Array,
    inhabited: NDArray[np.int64],
    outlines: Outlines,
    province: int,
    num_photos: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Albums of one province, cut to ``num_photos`` rows."""
    here = np.flatnonzero(inhabited == province)
    town = rng.choice(here, num_photos, p=weight[here] / weight[here].sum())
    size = rng.geometric(1.0 / places.album_size, num_photos)
    num_albums = int(np.searchsorted(np.cumsum(size), num_photos)) + 1
    town, size = town[:num_albums], size[:num_albums]
    home, radius = towns.latlon_deg[town], town_radius_km(towns.population[town])

    def around(rows: NDArray[np.int64]) -> _Array:
        # A Student-t with 3 degrees of freedom: most are close, some far out of town.
        return _moved(home[rows], radius[rows, None] * rng.standard_t(3, (len(rows), 2)))

    def wild(rows: NDArray[np.int64]) -> _Array:
        return _moved(home[rows], places.wilderness_km * rng.standard_normal((len(rows), 2)))

    kind = rng.random(num_albums)
    center = _draw_inside(around, home, outlines, province)
    away = kind < places.wilderness_share
    center[away] = _draw_inside(
        lambda k: wild(np.flatnonzero(away)[k]), home[away], outlines, province
    )
    at_spot = kind > 1.0 - places.spot_share
    zipf = 1.0 / np.arange(1, places.spots_per_town + 1)
    rank = rng.choice(places.spots_per_town, num_albums, p=zipf / zipf.sum())
    spots: dict[int, _Array] = {}
    for k in np.unique(town[at_spot]):
        scale = town_radius_km(towns.population[k])
        base = np.repeat(towns.latlon_deg[k : k + 1], places.spots_per_town, 0)
        spots[k] = _draw_inside(
            lambda rows, base=base, scale=scale: _moved(  # type: ignore[misc]
                base[rows], scale * rng.standard_t(3, (len(rows), 2))
            ),
            base,
            outlines,
            province,
        )
    for k in np.flatnonzero(at_spot):
        center[k] = spots[town[k]][rank[k]]

    album = np.repeat(np.arange(num_albums), size)[:num_photos]
    point = _draw_inside(
        lambda rows: _moved(
            center[album[rows]], places.jitter_km * rng.standard_normal((len(rows), 2))
        ),
        center[album],
        outlines,
        province,
    )
    author = _authors(places, town, rng, f"{province}")
    start = _start_times(places, num_albums, rng)
    # Photos of an album follow each other within the day.
    step = np.concatenate([np.arange(n) for n in size])[:num_photos]
    taken = start[album] + (step * 300 + rng.integers(0, 240, num_photos)).astype("timedelta64[s]")
    return pd.DataFrame(
        {
            "true_latitude": point[:, 0],
            "true_longitude": point[:, 1],
            "true_province_id": province,
            "album": album,
            "author": author[album],
            "captured_at": np.datetime_as_string(taken, unit="s"),
        }
    )


def _authors(
    places: PlacesConfig, town: NDArray[np.int64], rng: np.random.Generator, prefix: str
) -> NDArray[np.object_]:
    """An author per album: of the town, some more diligent than others, or a traveller."""
    names = np.empty(len(town), object)
    for k in np.unique(town):
        rows = np.flatnonzero(town == k)
        pool = max(1, round(len(rows) / places.albums_per_author))
        zipf = 1.0 / np.arange(1, pool + 1) ** 0.5
        for row, number in zip(rows, rng.choice(pool, len(rows), p=zipf / zipf.sum()), strict=True):
            names[row] = f"author-{prefix}-{k:04d}-{number:03d}"
    travels = rng.random(len(town)) < places.traveller_share
    pool = max(1, round(len(town) * places.traveller_share / places.albums_per_author))
    for row in np.flatnonzero(travels):
        names[row] = f"traveller-{prefix}-{rng.integers(pool):04d}"
    return names


def _start_times(
    places: PlacesConfig, count: int, rng: np.random.Generator
) -> NDArray[np.datetime64]:
    first = np.datetime64(f"{places.years[0]}-01-01", "D")
    days = int((np.datetime64(f"{places.years[1] + 1}-01-01", "D") - first).astype(int))
    day = first + rng.integers(0, days, count).astype("timedelta64[D]")
    second = rng.integers(6 * 3600, 18 * 3600, count)
    start: NDArray[np.datetime64] = day.astype("datetime64[s]") + second.astype("timedelta64[s]")
    return start


def _moved(latlon_deg: _Array, north_east_km: _Array) -> _Array:
    """(N, 2) degrees moved by (N, 2) km, rounded as the table will have them."""
    # Here, not above: torch comes with it, which the drawing processes do without.
    from geopak.geo.distance import KM_PER_DEGREE

    shrink = np.cos(np.radians(latlon_deg[:, :1]))
    delta = north_east_km / KM_PER_DEGREE / np.concatenate((np.ones_like(shrink), shrink), 1)
    moved: _Array = np.round(latlon_deg + delta, DECIMALS)
    return moved


def _draw_inside(
    draw_rows: Callable[[NDArray[np.int64]], _Array],
    otherwise: _Array,
    outlines: Outlines,
    province: int,
    rounds: int = 20,
) -> _Array:
    """Points drawn again until they lie in a province; ``otherwise`` (N, 2) if they never do."""
    out = otherwise.copy()
    rows = np.arange(len(out))
    for _ in range(rounds):
        if not len(rows):
            break
        points = draw_rows(rows)
        good = outlines.province_of(points) == province
        out[rows[good]] = points[good]
        rows = rows[~good]
    return np.round(out, DECIMALS)


def _spoil(
    rows: pd.DataFrame,
    counts: Mapping[str, int],
    region: Region,
    outlines: Outlines,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Adds copies and spoils as many other rows as asked; no row has two defects."""
    free = rng.permutation(len(rows))
    point = rows[["true_latitude", "true_longitude"]].to_numpy(float)
    province = rows["true_province_id"].to_numpy()

    def take(kind: str, good: NDArray[np.bool_], why: str) -> NDArray[np.int64]:
        nonlocal free
        chosen = free[good[free]][: counts[kind]]
        if len(chosen) < counts[kind]:
            raise ConfigError(
                f"defects.{kind}: {counts[kind]} asked for, but only {len(chosen)} photos {why}. "
                f"Set defects.{kind} lower."
            )
        free = free[~np.isin(free, chosen)]
        return chosen

    deep = np.full(len(rows), region.num_provinces > 1)
    for bearing in np.linspace(0, 2 * np.pi, 8, endpoint=False) if counts["wrong_label"] else ():
        step = _CLEARLY_INSIDE_KM * np.array([[math.cos(bearing), math.sin(bearing)]])
        deep &= outlines.province_of(_moved(point, step)) == province
    chosen = take("wrong_label", deep, "lie deep enough inside one of several provinces")
    shift = rng.integers(1, max(2, region.num_provinces), len(chosen))
    wrong = np.array(region.names, object)[(province[chosen] + shift) % region.num_provinces]
    _mark(rows, chosen, "wrong_label", [f"lies in {region.names[p]}" for p in province[chosen]])
    rows.loc[chosen, "province"] = wrong

    south, west, north, east = outlines.bounds_deg
    crossed = outlines.province_of(point[:, ::-1]) < 0
    chosen = take("swapped", crossed, "lie outside the region when swapped")
    _mark(rows, chosen, "swapped", ["latitude and longitude exchanged"] * len(chosen))
    rows.loc[chosen, ["latitude", "longitude"]] = point[chosen][:, ::-1]

    chosen = take("outside", np.full(len(rows), True), "are left")
    margin = _CLEARLY_OUTSIDE_DEG
    wrong_points = np.zeros((0, 2))
    while len(wrong_points) < len(chosen):
        drawn = np.round(rng.uniform((-60, -180), (70, 180), (4 * len(chosen), 2)), DECIMALS)
        lat, lon = drawn[:, 0], drawn[:, 1]
        near = (
            (lat > south - margin)
            & (lat < north + margin)
            & (lon > west - margin)
            & (lon < east + margin)
        )
        # Nor may it look like a coordinate of the region that was swapped.
        drawn = drawn[~near & (outlines.province_of(drawn[:, ::-1]) < 0)]
        wrong_points = np.concatenate((wrong_points, drawn))
    truth = [f"taken at {lat:.6f}, {lon:.6f}" for lat, lon in point[chosen]]
    _mark(rows, chosen, "outside", truth)
    rows.loc[chosen, ["latitude", "longitude"]] = wrong_points[: len(chosen)]

    chosen = take("truncated", np.full(len(rows), True), "are left")
    _mark(rows, chosen, "truncated", ["file cut off"] * len(chosen))

    parts = [rows]
    for kind in COPIES:
        copies = rows.loc[take(kind, np.full(len(rows), True), "are left to copy")].copy()
        copies["defect"], copies["original"] = kind, copies["picture"]
        copies["detail"] = "same bytes" if kind == "duplicate" else "scaled and re-encoded"
        if kind == "near_duplicate":
            for side in ("width", "height"):
                copies[side] = (copies[side] * _COPY_SCALE).round().astype(int)
        parts.append(copies)
    return pd.concat(parts, ignore_index=True)


def _mark(rows: pd.DataFrame, chosen: NDArray[np.int64], kind: str, detail: Sequence[str]) -> None:
    rows.loc[chosen, "defect"] = kind
    rows.loc[chosen, "detail"] = np.array(detail, object)
