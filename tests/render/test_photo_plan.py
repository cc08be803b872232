"""The plan of a rendered photo set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from geopak.geo.boundaries import Outlines
from geopak.geo.distance import haversine_km_array
from geopak.geo.region import Region
from geopak.render.photo_plan import plan_photos
from geopak.render.towns import Towns
from geopak.schema.rendering import PhotoSetConfig


def plan(
    settings: dict[str, Any], *where: Any, **changes: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    config = PhotoSetConfig.from_config({**settings, **changes})
    return plan_photos(config, *where, settings["landscape"]["photo_shares"])


@pytest.fixture(scope="module")
def big_plan(
    settings: dict[str, Any], region: Region, towns: Towns, outlines: Outlines
) -> tuple[pd.DataFrame, pd.DataFrame]:
    return plan(settings, region, towns, outlines, num_photos=4000)


def test_shares_of_provinces(
    big_plan: tuple[pd.DataFrame, Any], settings: dict, region: Region
) -> None:
    rows = big_plan[0]
    wanted = settings["landscape"]["photo_shares"]
    for index, province in enumerate(region.provinces):
        share = (rows["true_province_id"] == index).mean()
        assert share == pytest.approx(wanted[province.key], abs=0.004)


def test_places(big_plan: tuple[pd.DataFrame, Any], towns: Towns, outlines: Outlines) -> None:
    rows = big_plan[0]
    point = rows[["true_latitude", "true_longitude"]].to_numpy()
    assert (outlines.province_of(point) == rows["true_province_id"]).all()
    to_town = haversine_km_array(point[:, None], towns.latlon_deg[None]).min(1)
    assert np.median(to_town) < 8
    assert (to_town > 20).mean() > 0.005
    largest = haversine_km_array(point, towns.latlon_deg[towns.population.argmax()]) < 40
    assert largest.mean() < 0.4


def test_albums_are_of_one_author_day_and_place(big_plan: tuple[pd.DataFrame, Any]) -> None:
    rows = big_plan[0].query("defect == ''")
    albums = rows.groupby("album")
    assert (albums["author"].nunique() == 1).all()
    assert (rows["captured_at"].str[:10].groupby(rows["album"]).nunique() == 1).all()
    assert 1.8 < albums.size().mean() < 3.2
    assert albums["true_latitude"].agg(np.ptp).max() < 0.03
    assert rows.groupby("author")["album"].nunique().mean() > 2
    assert not rows["captured_at"].duplicated().mean() > 0.01


def test_without_shares_population_decides(
    settings: dict[str, Any], region: Region, towns: Towns, outlines: Outlines
) -> None:
    config = PhotoSetConfig.from_config({**settings, "num_photos": 2000, "defects": {}})
    rows, defects = plan_photos(config, region, towns, outlines)
    assert defects.empty
    weight = np.bincount(towns.province_id, towns.population**0.55)
    share = np.bincount(rows["true_province_id"]) / len(rows)
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.02)
