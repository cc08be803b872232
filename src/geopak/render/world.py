"""The rendered world: what stands at a coordinate, as smooth fields, tiles and province styles.

The fields make near places alike, so that a coordinate can be learned from pictures and not only
remembered: relief, dryness, rivers and coast in broad strokes from the region's landscape;
density of building from its towns; and plane waves of several wavelengths that drive the colours
and patterns of soil, walls, awnings and kerbs. Landmarks are shared by a large tile (kind and main
colour) and told apart within it by a small one (trim and proportions).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopak.geo.region import Region
from geopak.options import options
from geopak.render.scene import (
    LANDMARKS,
    MAX_BANDS,
    RGB,
    ROOFS,
    SKYLINE_TERMS,
    TREES,
    VEHICLES,
    Scene,
    hsv,
    mix,
)
from geopak.render.scene_prior import random_camera
from geopak.render.towns import Towns
from geopak.schema.rendering import (
    Bump,
    Landscape,
    StyleOptions,
    WorldConfig,
    parse_colour,
)

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProvinceStyle:
    """How a province builds, plants and drives; see :class:`geopak.render.scene.Scene`."""

    walls: tuple[RGB, ...]
    roof: str
    roof_rgb: RGB
    tree: str
    tree_rgb: RGB
    vehicles: tuple[str, ...]
    vehicle_rgb: RGB
    vehicle_trim_rgb: RGB
    glazing: float

    @classmethod
    def derive(cls, seed: int, key: str) -> ProvinceStyle:
        """A style that depends on the world's seed and the province's key alone."""
        digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
        rng = np.random.default_rng(list(digest))
        hue, other = rng.random(2)
        return cls(
            walls=tuple(
                hsv(hue + d, rng.uniform(0.1, 0.5), rng.uniform(0.6, 0.95)) for d in (0, 0.04)
            ),
            roof=str(rng.choice(ROOFS)),
            roof_rgb=hsv(other, 0.6, 0.6),
            tree=str(rng.choice(TREES)),
            tree_rgb=hsv(rng.uniform(0.15, 0.42), 0.6, rng.uniform(0.35, 0.65)),
            vehicles=tuple(str(v) for v in rng.choice(VEHICLES[1:], 2, replace=False)),
            vehicle_rgb=hsv(hue + 0.5, 0.8, 0.8),
            vehicle_trim_rgb=hsv(other + 0.4, 0.8, 0.9),
            glazing=float(rng.random()),
        )

    def override(self, key: str, settings: StyleOptions) -> ProvinceStyle:
        """This style with the settings of ``landscape.styles.<key>`` in place of its own."""
        changed: dict[str, Any] = {}
        for name, value in vars(settings).items():
            if value is None:
                continue
            where = f"landscape.styles.{key}.{name}"
            if name == "walls":
                value = tuple(parse_colour(where, v) for v in value)
            elif name.endswith("_rgb"):
                value = parse_colour(where, value)
            changed[name] = tuple(value) if name == "vehicles" else value
        return dataclasses.replace(self, **changed)


@dataclass(frozen=True)
class _Plane:
    """Kilometres east and north of a reference point: distances need not be exact here."""

    latitude: float
    longitude: float
    km_per_degree: float

    def xy_km(self, latlon_deg: ArrayLike) -> _Array:
        """(..., 2) degrees -> (..., 2) kilometres east and north."""
        points = np.asarray(latlon_deg, float)
        east = (points[..., 1] - self.longitude) * np.cos(np.radians(self.latitude))
        return np.stack((east, points[..., 0] - self.latitude), -1) * self.km_per_degree


class _Waves:
    """Plane waves of given wavelengths with random directions and phases."""

    def __init__(
        self, rng: np.random.Generator, number: int, wavelengths_km: Sequence[float]
    ) -> None:
        wavelength = np.resize(np.asarray(wavelengths_km, float), number)
        direction = rng.uniform(0, 2 * np.pi, number)
        self._wave = np.stack((np.cos(direction), np.sin(direction))) * 2 * np.pi / wavelength
        self._phase = rng.uniform(0, 2 * np.pi, number)

    def __call__(self, xy_km: _Array) -> _Array:
        """(N, 2) km -> (N, number) in [0, 1]."""
        return 0.5 + 0.5 * np.sin(xy_km @ self._wave + self._phase)


class _Hills:
    """A field that is a sum of bumps."""

    def __init__(self, bumps: Sequence[Bump], plane: _Plane) -> None:
        angle = np.radians([bump.bearing_deg for bump in bumps])
        self._top = plane.xy_km(np.array([bump.at for bump in bumps]).reshape(-1, 2))
        self._along = np.stack((np.sin(angle), np.cos(angle)), -1)
        self._across = np.stack((np.cos(angle), -np.sin(angle)), -1)
        radius = np.array([bump.radius_km for bump in bumps]).reshape(-1, 2)
        self._along /= radius[:, :1]
        self._across /= radius[:, 1:]
        self._height = np.array([bump.height for bump in bumps], float)

    def __call__(self, xy_km: _Array) -> _Array:
        """(N, 2) km -> (N,)."""
        delta = xy_km[:, None] - self._top
        squared = (delta * self._along).sum(-1) ** 2 + (delta * self._across).sum(-1) ** 2
        total: _Array = np.exp(-0.5 * squared) @ self._height
        return total


def _bumps(
    given: Sequence[Bump] | None,
    heights: tuple[float, float],
    towns: Towns,
    plane: _Plane,
    rng: np.random.Generator,
) -> list[Bump]:
    if given is None:
        low, high = towns.latlon_deg.min(0), towns.latlon_deg.max(0)
        span_km = float(np.linalg.norm(plane.xy_km(high) - plane.xy_km(low)))
        return [
            Bump(
                at=tuple(rng.uniform(low, high)),
                height=float(rng.uniform(*heights)),
                radius_km=tuple(span_km * rng.uniform(0.05, 0.16, 2)),
                bearing_deg=float(rng.uniform(0, 180)),
            )
            for _ in range(10)
        ]
    return list(given)


class World:
    """What there is at every coordinate of a region.

    Args:
        region: its province keys choose the styles.
        towns: the towns, of which density is made.
        landscape: the content of ``conf/landscape/*.yaml``.
        config: how positions are encoded.

    Raises:
        ConfigError: a landscape of another region, or a setting that is not one.
    """

    def __init__(
        self,
        region: Region,
        towns: Towns,
        landscape: Mapping[str, Any],
        config: WorldConfig | None = None,
    ) -> None:
        # Here, not above: torch comes with it, which the drawing processes do without.
        from geopak.geo.distance import KM_PER_DEGREE

        self.config = config = config or WorldConfig()
        look = options(Landscape, landscape, "landscape")
        look.check_region(region)
        middle = towns.latlon_deg.mean(0)
        self._plane = _Plane(float(middle[0]), float(middle[1]), KM_PER_DEGREE)
        self._towns_km = self._plane.xy_km(towns.latlon_deg)
        population = towns.population
        self._town_size = np.clip((np.log10(population) - 3.3) / 3.9, 0.12, 1.0)
        self._town_km = 2.2 * town_radius_km(population)

        rng = np.random.default_rng([config.seed, 0])
        self._regional = _Waves(rng, config.num_regional, config.regional_km)
        self._local = _Waves(rng, config.num_local, config.local_km)
        self._base_elevation_m = float(look.base_elevation_m)
        self._base_aridity = float(look.base_aridity)
        relief = _bumps(look.relief, (500.0, 2500.0), towns, self._plane, rng)
        aridity = _bumps(look.aridity, (-0.4, 0.4), towns, self._plane, rng)
        self._relief, self._aridity = _Hills(relief, self._plane), _Hills(aridity, self._plane)
        self._rivers = _Lines([self._plane.xy_km(p) for p in look.rivers or ()])
        self._coast = _Lines([self._plane.xy_km(p) for p in look.coast or ()])

        given = look.styles or {}
        self.styles = tuple(
            ProvinceStyle.derive(config.seed, p.key).override(
                p.key, given.get(p.key, StyleOptions())
            )
            for p in region.provinces
        )
        self._tiles: dict[tuple[str, int, int], tuple[float, ...]] = {}

    def elevation_m(self, latlon_deg: ArrayLike) -> _Array:
        """(N,) smooth elevation in metres at (N, 2) degrees."""
        return self._base_elevation_m + self._relief(self._xy(latlon_deg))

    def aridity(self, latlon_deg: ArrayLike) -> _Array:
        """(N,) from 0, lush, to 1, desert; land along rivers is greener."""
        xy = self._xy(latlon_deg)
        green = 0.25 * np.exp(-((self._rivers.distance_km(xy) / 25.0) ** 2))
        return np.clip(self._base_aridity + self._aridity(xy) - green, 0.0, 1.0)

    def density(self, latlon_deg: ArrayLike) -> _Array:
        """(N,) density of building: the maximum over all towns, 0 to 1."""
        delta = self._xy(latlon_deg)[:, None] - self._towns_km[None]
        squared = (delta**2).sum(-1) / self._town_km**2
        densest: _Array = (self._town_size * np.exp(-0.5 * squared)).max(1)
        return densest

    def river_km(self, latlon_deg: ArrayLike) -> _Array:
        """(N,) kilometres to the nearest river; infinite without one."""
        return self._rivers.distance_km(self._xy(latlon_deg))

    def coast_km(self, latlon_deg: ArrayLike) -> _Array:
        """(N,) kilometres to the coast; infinite without one."""
        return self._coast.distance_km(self._xy(latlon_deg))

    def style_waves(self, latlon_deg: ArrayLike) -> tuple[_Array, _Array]:
        """Regional (N, num_regional) and local (N, num_local) style waves, each in [0, 1]."""
        xy = self._xy(latlon_deg)
        return self._regional(xy), self._local(xy)

    def skyline(self, latlon_deg: ArrayLike) -> _Array:
        """(N, SKYLINE_TERMS) coefficients, blended bilinearly between the nodes of a grid."""
        position = self._xy(latlon_deg) / self.config.skyline_tile_km
        corner = np.floor(position).astype(int)
        share = position - corner
        out = np.zeros((len(position), SKYLINE_TERMS))
        for k, ((ix, iy), (fx, fy)) in enumerate(zip(corner, share, strict=True)):
            for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
                weight = (fx if dx else 1 - fx) * (fy if dy else 1 - fy)
                out[k] += weight * np.array(self._tile("skyline", ix + dx, iy + dy)[:SKYLINE_TERMS])
        return out

    def _xy(self, latlon_deg: ArrayLike) -> _Array:
        return self._plane.xy_km(np.asarray(latlon_deg, float).reshape(-1, 2))

    def _tile(self, purpose: str, ix: int, iy: int) -> tuple[float, ...]:
        """Numbers that belong to a tile: standard normal for skylines, uniform otherwise."""
        key = (purpose, int(ix), int(iy))
        if key not in self._tiles:
            salt = int.from_bytes(purpose.encode()[:6], "big")
            # Tile numbers may be negative, seeds may not.
            rng = np.random.default_rng([self.config.seed, salt, key[1] + 2**20, key[2] + 2**20])
            draws = rng.standard_normal(8) if purpose == "skyline" else rng.random(8)
            self._tiles[key] = tuple(draws.tolist())
        return self._tiles[key]

    def scene(
        self,
        latitude: float,
        longitude: float,
        province_id: int,
        rng: np.random.Generator,
        difficulty: float,
    ) -> Scene:
        """What a photo taken at a coordinate shows.

        Args:
            latitude, longitude: degrees.
            province_id: class index of the province there.
            rng: chance of this one photo: its camera, and what happens to be there.
            difficulty: scale of all nuisance; 0 shows every cue undisturbed.
        """
        c, here = self.config, (latitude, longitude)
        xy = self._xy(here)[0]
        r, w = (waves[0].tolist() for waves in self.style_waves(here))
        elevation = float(self.elevation_m(here)[0])
        vegetation = 1.0 - float(self.aridity(here)[0])
        chance = rng.random(14).tolist()
        sway = (0.07 * difficulty * rng.standard_normal(4)).tolist()
        vegetation = _clip(vegetation + sway[0], 0.03, 0.97)
        density = _clip(self.density(here)[0] + sway[1], 0.0, 1.0)
        height = _clip((elevation - 150.0) / 3200.0, 0.0, 1.0)
        snow = _clip((elevation - c.snow_line_m) / 2600.0, 0.0, 0.7)
        if snow > 0:
            snow = _clip(snow + 0.1 + sway[2], 0.1, 0.8)

        def style(k: int) -> ProvinceStyle:
            other = int(chance[k] / c.style_mixing * len(self.styles)) if c.style_mixing else -1
            return self.styles[other if chance[k] < c.style_mixing else province_id]

        dry = hsv(0.075 + 0.06 * r[0], 0.28 + 0.25 * r[1], 0.62 + 0.24 * r[2])
        moist = hsv(0.07 + 0.05 * r[0], 0.35 + 0.2 * r[1], 0.42 + 0.18 * r[2])
        soil = mix(dry, moist, vegetation)
        green = hsv(0.2 + 0.16 * r[3], 0.5 + 0.25 * w[0], 0.42 + 0.24 * r[4])
        rock = mix(
            mix(soil, (0.47, 0.45, 0.46), 0.35 + 0.4 * height),
            green,
            0.75 * vegetation * (1 - snow),
        )
        walls = style(0).walls
        wall = mix(
            walls[int(chance[1] * len(walls))],
            hsv(r[5] + 0.25 * (w[1] - 0.5), 0.5, 0.85),
            0.4,
        )
        if density > 0.5 and chance[2] < 0.8:
            ground = "paving"
        elif vegetation > 0.5:
            ground = "crops" if height < 0.25 and chance[2] < 0.75 else "grass"
        else:
            ground = "sand" if vegetation < 0.28 and height < 0.25 else "soil"
        water = "none"
        if chance[3] < 0.75 * np.exp(-self.coast_km(here)[0] / 6.0):
            water = "sea"
        elif chance[3] < 0.6 * np.exp(-self.river_km(here)[0] / 4.0):
            water = "river"

        tile = self._tile("kind", *np.floor(xy / c.landmark_tile_km).astype(int).tolist())
        detail = self._tile("detail", *np.floor(xy / c.landmark_detail_km).astype(int).tolist())
        shown = chance[4] >= c.landmark_missing * difficulty
        vehicles = style(5).vehicles
        roofs, plants, paint = style(6), style(7), style(8)
        return Scene(
            # Plains have a low line of trees or dunes, so that the skyline is a cue there too.
            relief=0.16 + 0.84 * height**0.8,
            skyline=tuple(self.skyline(here)[0].tolist()),
            jagged=0.15 + 0.75 * height,
            snow=snow,
            ridge_rgb=rock,
            soil_rgb=soil,
            vegetation_rgb=green,
            vegetation=vegetation,
            ground=ground,
            row_slant=w[6],
            row_spacing=r[9],
            water=water,
            density=density,
            wall_rgb=wall,
            roof_rgb=mix(roofs.roof_rgb, hsv(w[1], 0.5, 0.7), 0.15),
            stripe_rgb=hsv(w[4], 0.65, 0.45 + 0.45 * r[7]),
            plinth_rgb=hsv(w[7] * 0.85 + 0.1 * r[12], 0.6, 0.6),
            roof=roofs.roof,
            glazing=_clip(style(9).glazing + 0.1 * (r[8] - 0.5), 0, 1),
            stripes=0.5 * (r[7] + w[3]),
            windows=0.5 * (r[8] + w[5]),
            plinth=r[10],
            awning=bool(chance[10] < c.awning_share),
            awning_rgb=hsv(0.85 * r[6], 0.8, 0.55 + 0.4 * w[2]),
            awning_trim_rgb=hsv(0.85 * w[2], 0.45, 0.95),
            tree=plants.tree,
            tree_rgb=mix(plants.tree_rgb, green, 0.35),
            tree_size=r[12],
            trees=_clip(0.2 + 0.65 * vegetation - 0.2 * density + sway[3], 0.0, 1.0),
            kerb_rgb=hsv(0.85 * r[11], 0.75, 0.85),
            kerb_trim_rgb=hsv(0.85 * w[8], 0.6, 0.95 - 0.5 * w[9]),
            flags=0.8 * r[13] if chance[11] < 0.6 else 0.0,
            flag_rgb=hsv(0.85 * w[9], 0.75, 0.85),
            vehicle=vehicles[int(chance[13] * len(vehicles))]
            if chance[12] < c.vehicle_share
            else "none",
            vehicle_rgb=paint.vehicle_rgb,
            vehicle_trim_rgb=paint.vehicle_trim_rgb,
            landmark=LANDMARKS[1 + int(tile[0] * (len(LANDMARKS) - 1))] if shown else "none",
            landmark_rgb=hsv(tile[1], 0.25 + 0.65 * tile[2], 0.45 + 0.5 * tile[3]),
            landmark_trim_rgb=hsv(detail[0], 0.8, 0.4 + 0.55 * detail[1]),
            landmark_height=detail[2],
            landmark_width=detail[3],
            landmark_bands=int(detail[4] * (MAX_BANDS + 1)),
            landmark_flanks=int(detail[5] * 3),
            camera=random_camera(rng, difficulty),
        )


def town_radius_km(population: ArrayLike) -> _Array:
    """Radius in kilometres over which a town's photos scatter, (T,) from (T,) inhabitants."""
    return 1.2 + 1.6 * (np.asarray(population, float) / 1e5) ** 0.4


class _Lines:
    """Polylines, to be asked for the distance to the nearest one."""

    def __init__(self, lines: Sequence[_Array]) -> None:
        empty = np.zeros((0, 2))
        self._start = np.concatenate([empty, *(line[:-1] for line in lines)])
        self._along = np.concatenate([empty, *(np.diff(line, axis=0) for line in lines)])

    def distance_km(self, xy_km: _Array) -> _Array:
        """(N,) distance of (N, 2) points; infinite if there is no line."""
        if not len(self._start):
            return np.full(len(xy_km), np.inf)
        delta = xy_km[:, None] - self._start
        share = (delta * self._along).sum(-1) / (self._along**2).sum(-1)
        gap = delta - np.clip(share, 0.0, 1.0)[..., None] * self._along
        nearest: _Array = np.sqrt((gap**2).sum(-1).min(1))
        return nearest


def _clip(value: float, low: float, high: float) -> float:
    return float(min(max(value, low), high))
