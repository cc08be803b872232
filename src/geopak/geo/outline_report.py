"""What is questionable about province outlines, in numbers and in words.

Overlays are made in longitude and latitude, as the outlines are; areas are computed after an
equal-area projection of the pieces, on the ellipsoid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from geopak.geo.outline_files import as_polygon
from geopak.geo.region import Region

if TYPE_CHECKING:
    from geopak.geo.boundaries import Outlines

# Gaps between provinces that are open to the outside count as slivers up to this width.
_SLIVER_DEG = 0.02
# A tenth of a millimetre: overlays are no more exact.
_ROUNDING_DEG = 1e-9
# Smaller overlaps and gaps are rounding, not geography.
_LEAST_KM2 = 1e-4
# So many overlaps or gaps are told one by one in words.
_TOLD = 5
_CHORD_DEG = 0.1


@dataclass(frozen=True)
class Overlap:
    """Ground that two provinces claim.

    Attributes:
        provinces: their names; the first one gets the photos taken there.
        area_km2: square kilometres.
        share: of the smaller of the two provinces.
        at_deg: latitude and longitude inside the largest piece.
    """

    provinces: tuple[str, str]
    area_km2: float
    share: float
    at_deg: tuple[float, float]


@dataclass(frozen=True)
class Gap:
    """Ground between provinces, or inside one, that belongs to none.

    Attributes:
        kind: ``hole``, enclosed on all sides, or ``sliver``, narrow and open to the outside.
        provinces: names of those that border it.
        area_km2: square kilometres.
        at_deg: latitude and longitude inside it.
    """

    kind: str
    provinces: tuple[str, ...]
    area_km2: float
    at_deg: tuple[float, float]


@dataclass(frozen=True)
class OutlineReport:
    """What is questionable about the outlines of a region.

    Attributes:
        area_km2: area of each province by name.
        overlaps: the largest first.
        gaps: the largest first.
        repaired: features whose invalid rings were mended, with the place.
        ignored: names of features that are no province.
        several_features: number of features per province made of more than one.
    """

    area_km2: dict[str, float]
    overlaps: tuple[Overlap, ...]
    gaps: tuple[Gap, ...]
    repaired: tuple[str, ...]
    ignored: tuple[str, ...]
    several_features: dict[str, int]

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing that could misplace a photo."""
        return not (self.overlaps or self.gaps or self.repaired)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return {
            "area_km2": dict(self.area_km2),
            "overlaps": [_plain(overlap) for overlap in self.overlaps],
            "gaps": [_plain(gap) for gap in self.gaps],
            "repaired": list(self.repaired),
            "ignored": list(self.ignored),
            "several_features": dict(self.several_features),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OutlineReport:
        """Inverse of :meth:`to_dict`."""

        def found(kind: type[Any], items: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
            return tuple(
                kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in item.items()})
                for item in items
            )

        return cls(
            area_km2=dict(data["area_km2"]),
            overlaps=found(Overlap, data["overlaps"]),
            gaps=found(Gap, data["gaps"]),
            repaired=tuple(data["repaired"]),
            ignored=tuple(data["ignored"]),
            several_features=dict(data["several_features"]),
        )

    def lines(self) -> list[str]:
        """The findings in words, one line each; empty when there is nothing to say."""
        out = []
        for overlap in self.overlaps[:_TOLD]:
            first, second = overlap.provinces
            out.append(
                f"{first} and {second} overlap on {_km2(overlap.area_km2)} "
                f"({overlap.share:.2%} of the smaller), around {_place(overlap.at_deg)}. Photos "
                f"there count as {first}."
            )
        out += _rest(self.overlaps, "overlaps")
        for gap in self.gaps[:_TOLD]:
            between = " and ".join(gap.provinces)
            where = f"between {between}" if len(gap.provinces) > 1 else f"in {between}"
            out.append(
                f"A {gap.kind} of {_km2(gap.area_km2)} {where}, around {_place(gap.at_deg)}, is in "
                "no province. Photos there are rejected as outside the region."
            )
        out += _rest(self.gaps, "gaps")
        out += [f"Invalid ring, repaired: {feature}." for feature in self.repaired]
        if self.ignored:
            out.append(f"Features that are no province, left out: {', '.join(self.ignored)}.")
        if self.several_features:
            each = ", ".join(f"{name} of {n}" for name, n in self.several_features.items())
            out.append(f"Provinces made of several features: {each}.")
        return out


def examine_outlines(outlines: Outlines, region: Region) -> OutlineReport:
    """Looks for overlaps and gaps, and collects what reading the file left to tell.

    Args:
        outlines: in class-index order.
        region: names the provinces.
    """
    _, west, _, east = outlines.bounds_deg
    areas = _Areas((west + east) / 2)
    polygons = np.array(outlines.polygons, object)
    area_km2 = [areas.km2(polygon) for polygon in outlines.polygons]
    overlaps = []
    pairs = shapely.STRtree(polygons).query(polygons, predicate="intersects").T
    for first, second in sorted(tuple(pair) for pair in pairs.tolist() if pair[0] < pair[1]):
        shared = as_polygon(shapely.intersection(polygons[first], polygons[second]))
        shared_km2 = areas.km2(shared)
        if shared_km2 > _LEAST_KM2:
            overlaps.append(
                Overlap(
                    provinces=(region.names[first], region.names[second]),
                    area_km2=shared_km2,
                    share=shared_km2 / min(area_km2[first], area_km2[second]),
                    at_deg=_point_in(shared),
                )
            )
    return OutlineReport(
        area_km2=dict(zip(region.names, area_km2, strict=True)),
        overlaps=tuple(sorted(overlaps, key=lambda overlap: -overlap.area_km2)),
        gaps=tuple(sorted(_gaps(polygons, region, areas), key=lambda gap: -gap.area_km2)),
        repaired=outlines.repaired,
        ignored=outlines.ignored,
        several_features={
            name: n
            for name, n in zip(region.names, outlines.num_features or (), strict=False)
            if n > 1
        },
    )


def _gaps(polygons: NDArray[np.object_], region: Region, areas: _Areas) -> list[Gap]:
    together = shapely.union_all(polygons)
    holes = [
        shapely.Polygon(ring)
        for part in shapely.get_parts(as_polygon(together))
        for ring in part.interiors
    ]
    # An island in a lake lies inside the hole but is no gap.
    holes = [piece for hole in holes for piece in _pieces(hole.difference(together))]
    filled = shapely.union_all([together, *holes])
    # Widened and narrowed again, the land has closed what is narrower than a sliver.
    half = _SLIVER_DEG / 2
    closed = shapely.buffer(filled, half, join_style="mitre", mitre_limit=2.0)
    closed = shapely.buffer(closed, -half, join_style="mitre", mitre_limit=2.0)
    found = [("hole", hole) for hole in holes]
    # Without the margin, rounding leaves a film along the coast that joins what is apart.
    closed = closed.difference(shapely.buffer(filled, _ROUNDING_DEG))
    found += [("sliver", sliver) for sliver in _pieces(closed)]
    gaps = []
    for kind, piece in found:
        km2 = areas.km2(piece)
        owners = np.flatnonzero(shapely.dwithin(polygons, piece, 3 * _ROUNDING_DEG))
        # A narrow bay of one province is coast, not a gap.
        if km2 > _LEAST_KM2 and (kind == "hole" or _is_between(piece, polygons[owners])):
            names = tuple(region.names[owner] for owner in owners)
            gaps.append(Gap(kind, names, km2, _point_in(piece)))
    return gaps


def _is_between(sliver: BaseGeometry, neighbours: NDArray[np.object_]) -> bool:
    """Whether two provinces run along a sliver, rather than one with another's corner."""
    if len(neighbours) < 2:
        return False
    side = shapely.boundary(sliver)
    along = shapely.length(
        shapely.intersection(side, shapely.buffer(neighbours, 3 * _ROUNDING_DEG))
    )
    return bool(np.sort(along)[-2] > 0.2 * side.length)


def _pieces(geometry: BaseGeometry) -> list[BaseGeometry]:
    return [piece for piece in shapely.get_parts(as_polygon(geometry)) if not piece.is_empty]


class _Areas:
    """Square kilometres of pieces of longitude and latitude, edges straight in degrees."""

    def __init__(self, middle_lon_deg: float) -> None:
        import pyproj

        # Cylindrical: any extent, and meridians and parallels stay straight.
        crs = f"+proj=cea +lon_0={middle_lon_deg} +datum=WGS84 +units=m"
        self._project = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)

    def km2(self, geometry: BaseGeometry) -> float:
        if geometry.is_empty:
            return 0.0
        fine = shapely.segmentize(geometry, _CHORD_DEG)
        metres = shapely.transform(fine, self._project.transform, interleaved=False)
        return float(metres.area) / 1e6


def _point_in(geometry: BaseGeometry) -> tuple[float, float]:
    largest = max(_pieces(geometry), key=lambda piece: piece.area)
    point = largest.representative_point()
    return round(point.y, 5), round((point.x + 180) % 360 - 180, 5)


def _plain(finding: Overlap | Gap) -> dict[str, Any]:
    values = dataclasses.asdict(finding)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _km2(area: float) -> str:
    return f"{area:,.0f} km²" if area >= 10 else f"{area:.2g} km²"


def _place(latlon_deg: tuple[float, float]) -> str:
    return f"{latlon_deg[0]:.3f}, {latlon_deg[1]:.3f}"


def _rest(findings: Sequence[Overlap | Gap], what: str) -> list[str]:
    rest = findings[_TOLD:]
    if not rest:
        return []
    return [f"{len(rest)} more {what}, {_km2(sum(f.area_km2 for f in rest))} together."]
