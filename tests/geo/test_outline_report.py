"""What is questionable about outlines is found, measured and put into words."""

from __future__ import annotations

import json
from pathlib import Path

import pyproj
import pytest
from shapely.geometry import MultiPolygon, Polygon, box

from geopak.geo.boundaries import Outlines
from geopak.geo.region import Province, Region

REGION = Region(
    "toy", "Toyland", (Province("a", "Alpha"), Province("b", "Beta"), Province("c", "Gamma"))
)
GEOD = pyproj.Geod(ellps="WGS84")


def true_km2(polygon: Polygon) -> float:
    """Geodesic area with edges cut so fine that straight in degrees is the shortest way."""
    return abs(GEOD.geometry_area_perimeter(polygon.segmentize(0.01))[0]) / 1e6


def test_clean_outlines_have_nothing_to_say() -> None:
    outlines = Outlines((box(0, 40, 1, 42), box(1, 40, 2, 42), box(2, 40, 3, 41)))
    report = outlines.check(REGION)
    assert report.is_clean
    assert report.lines() == []
    assert report.area_km2["Alpha"] == pytest.approx(true_km2(box(0, 40, 1, 42)), rel=1e-4)


def test_overlaps_are_measured_and_placed() -> None:
    outlines = Outlines((box(0, 40, 1.1, 42), box(1, 40, 2, 42), box(1.05, 41.9, 3, 43)))
    report = outlines.check(REGION)
    assert not report.is_clean
    sizes = {overlap.provinces: overlap for overlap in report.overlaps}
    assert set(sizes) == {("Alpha", "Beta"), ("Alpha", "Gamma"), ("Beta", "Gamma")}
    strip = sizes["Alpha", "Beta"]
    assert strip.area_km2 == pytest.approx(true_km2(box(1, 40, 1.1, 42)), rel=1e-4)
    assert strip.share == pytest.approx(0.1, rel=1e-3)
    assert outlines.province_of([strip.at_deg]).tolist() == [0]
    assert list(report.overlaps) == sorted(report.overlaps, key=lambda o: -o.area_km2)
    assert any("Alpha and Beta overlap on 1," in line for line in report.lines())
    assert any("count as Alpha" in line for line in report.lines())


def test_holes_and_slivers_are_gaps() -> None:
    west = Polygon(box(0, 0, 1, 3).exterior.coords)
    # A hole between west and east, and a wedge that is open to the south.
    east = Polygon([(1.01, 0), (2, 0), (2, 3), (1, 3), (1, 2), (1.2, 1.8), (1, 1.6), (1, 0.5)])
    lake = Polygon(box(2, 0, 4, 3).exterior.coords, [box(3, 1, 3.2, 1.2).exterior.coords])
    outlines = Outlines((west, east, lake))
    gaps = {(gap.kind, gap.provinces): gap for gap in outlines.check(REGION).gaps}
    assert set(gaps) == {
        ("hole", ("Alpha", "Beta")), ("hole", ("Gamma",)), ("sliver", ("Alpha", "Beta"))
    }  # fmt: skip
    assert gaps["hole", ("Gamma",)].area_km2 == pytest.approx(
        true_km2(box(3, 1, 3.2, 1.2)), rel=1e-4
    )
    wedge = Polygon([(1, 0), (1.01, 0), (1, 0.5)])
    assert gaps["sliver", ("Alpha", "Beta")].area_km2 == pytest.approx(true_km2(wedge), rel=0.02)
    for gap in gaps.values():
        assert outlines.province_of([gap.at_deg]).tolist() == [-1]
    lines = outlines.check(REGION).lines()
    assert any(line.startswith("A hole of") and "in Gamma" in line for line in lines)
    assert any(
        line.startswith("A sliver of") and "between Alpha and Beta" in line for line in lines
    )


def test_a_bay_and_an_island_in_a_lake_are_no_gaps() -> None:
    bay = box(0, 0, 1, 3).difference(box(0.4, 0, 0.41, 1))
    lake = Polygon(box(1, 0, 3, 3).exterior.coords, [box(1.5, 1, 2.5, 2).exterior.coords])
    island = box(1.8, 1.2, 2, 1.5)
    outlines = Outlines((bay, lake, island))
    gaps = outlines.check(REGION).gaps
    assert [(gap.kind, gap.provinces) for gap in gaps] == [("hole", ("Beta", "Gamma"))]
    around = box(1.5, 1, 2.5, 2).difference(island)
    assert gaps[0].area_km2 == pytest.approx(true_km2(around), rel=1e-3)


def test_many_findings_are_summed_up() -> None:
    teeth = MultiPolygon([box(k, 0, k + 0.5, 1) for k in range(9)])
    comb = MultiPolygon([box(k + 0.4, 0, k + 1, 1) for k in range(9)])
    holes = box(0, 1, 9, 2)
    for k in range(9):
        holes = holes.difference(box(k + 0.3, 1.3, k + 0.3 + 0.01 * (k + 1), 1.6))
    report = Outlines((teeth, comb, holes)).check(REGION)
    assert len(report.gaps) == 9
    assert sum(line.startswith("A hole") for line in report.lines()) == 5
    assert any(line.startswith("4 more gaps, ") for line in report.lines())


def test_what_reading_left_to_tell_is_in_it(tmp_path: Path) -> None:
    spike = [[0, 0], [1, 0], [1, 1], [0.5, 1], [0.5, 1.3], [0.5, 1], [0, 1], [0, 0]]
    rings = {
        "Alpha": spike,
        "Beta": [[1, 0], [2, 0], [2, 1], [1, 1], [1, 0]],
        "BETA": [[5, 5], [6, 5], [6, 6], [5, 5]],
        "Gamma": [[2, 0], [3, 0], [3, 1], [2, 1], [2, 0]],
        "Delta": [[9, 9], [10, 9], [10, 10], [9, 9]],
    }
    features = [
        {
            "type": "Feature",
            "properties": {"name": name},
            "geometry": {"type": "Polygon", "coordinates": [ring]},
        }
        for name, ring in rings.items()
    ]
    path = tmp_path / "o.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    outlines = Outlines.from_dict(Outlines.load(path, REGION).to_dict())
    report = outlines.check(REGION)
    assert report.ignored == ("Delta",)
    assert report.several_features == {"Beta": 2}
    assert len(report.repaired) == 1
    assert report.repaired[0].startswith("feature 0 (Alpha): ")
    assert "0.5 1" in report.repaired[0]
    text = "\n".join(report.lines())
    for needle in ("repaired: feature 0 (Alpha)", "left out: Delta", "Beta of 2"):
        assert needle in text
    assert json.loads(json.dumps(report.to_dict()))["several_features"] == {"Beta": 2}
