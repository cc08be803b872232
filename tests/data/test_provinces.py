"""Photos get their province from the outlines, and what is odd about that is told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from shapely.geometry import box

from geopak.data.provinces import assign_provinces
from geopak.errors import ConfigError
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Province, Region
from geopak.schema.preparation import ProvinceSettings

REGION = Region("toy", "Toyland", (Province("west", "West"), Province("east", "East", ("E.",))))
OUTLINES = Outlines((box(60, 20, 70, 30), box(70, 20, 80, 30)))


def photos(*rows: tuple[float, float, str | None]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["latitude", "longitude", "label_province"])
    frame["label_province"] = frame["label_province"].astype("string")
    frame["id"] = [f"p{k}" for k in range(len(frame))]
    frame.index = pd.Index(range(100, 100 + len(frame)))
    return frame


def test_coordinates_win_and_disagreements_say_how_far_off_the_label_is() -> None:
    table = photos(
        (25, 65, "West"), (25, 65, None), (25, 70.01, "West"), (25, 79, "West"), (25, 75, "East")
    )
    inside, rejected, wrong = assign_provinces(table, OUTLINES, REGION, border_km=5.0)
    assert rejected.empty
    assert inside["province"].tolist() == ["West", "West", "East", "East", "East"]
    assert inside["province_id"].tolist() == [0, 0, 1, 1, 1]
    assert inside["near_border"].dtype == bool
    assert inside["near_border"].tolist() == [False, False, True, False, False]
    assert wrong.index.tolist() == [102, 103]
    assert wrong["near_border"].tolist() == [True, False]
    # A degree of longitude at 25 degrees of latitude is 100.8 km.
    assert wrong["label_away_km"].to_list() == pytest.approx([1.01, 907], rel=0.01)
    assert list(wrong) == [
        "id", "latitude", "longitude", "label_province", "province", "near_border",
        "label_away_km",
    ]  # fmt: skip


def test_a_rejection_says_what_was_probably_meant() -> None:
    table = photos((75, 25, "East"), (19.99, 65, "West"), (-5, -5, None), (25, 65, "West"))
    inside, rejected, _ = assign_provinces(table, OUTLINES, REGION, border_km=5.0)
    assert sorted([*inside.index, *rejected.index]) == [100, 101, 102, 103]
    assert rejected["reason"].tolist() == [
        "coordinates_swapped", "outside_region", "outside_region"
    ]  # fmt: skip
    assert "swapped it is in East" in rejected["detail"][100]
    assert "1.1 km outside its outlines" in rejected["detail"][101]
    assert rejected["detail"][102] == "-5.00000, -5.00000 is in no province of Toyland"


@pytest.mark.parametrize("keep", ["none", "outside", "inside"])
def test_nothing_to_place_is_fine(keep: str) -> None:
    rows = {"none": [], "outside": [(0.0, 0.0, "West")], "inside": [(25.0, 65.0, "West")]}[keep]
    inside, rejected, wrong = assign_provinces(photos(*rows), OUTLINES, REGION, border_km=5.0)
    assert len(inside) == (keep == "inside")
    assert len(rejected) == (keep == "outside")
    assert wrong.empty
    assert {"province", "province_id", "near_border"} <= set(inside)
    assert inside["near_border"].dtype == bool


def test_near_is_as_near_as_asked() -> None:
    rng = np.random.default_rng(0)
    lon = rng.uniform(69, 71, 500)
    table = photos(*[(25.0, float(x), None) for x in lon])
    for border_km in (0.0, 3.0, 40.0):
        inside, _, _ = assign_provinces(table, OUTLINES, REGION, border_km)
        expected = np.abs(lon - 70) * 111.195 * np.cos(np.radians(25)) <= border_km
        assert (inside["near_border"].to_numpy() == expected).all()


@pytest.mark.parametrize("border_km", [-1.0, float("nan"), float("inf")])
def test_a_distance_that_is_none_is_refused(border_km: float) -> None:
    with pytest.raises(ConfigError, match=r"provinces\.border_km"):
        ProvinceSettings(border_km=border_km)
