from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from geopak.cli import CONFIG_DIR, PACKAGE_DIR, compose
from geopak.errors import RegionError, TableError
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.render.towns import Towns, make_rows, suspicious_rows


def city(number: int, name: str, lat: float, lon: float, population: int, code: str = "01") -> dict:
    return {
        "geonameid": number,
        "name": name,
        "latitude": lat,
        "longitude": lon,
        "countrycode": "XX",
        "population": population,
        "admin1code": code,
    }


REGIONS = sorted(file.stem for file in (CONFIG_DIR / "region").glob("*.yaml"))


@pytest.mark.parametrize("name", REGIONS)
def test_shipped_tables(name: str) -> None:
    config = compose("prepare", [f"region={name}"]).region
    region = Region.from_config(config)
    towns = Towns.read(config.towns, region)
    assert 100 <= len(towns) <= 650
    assert (towns.population > 0).all()
    assert set(towns.province_id) == set(range(region.num_provinces))
    assert len(set(zip(towns.name, map(tuple, towns.latlon_deg), strict=True))) == len(towns)
    assert (
        Outlines.of_region(region).province_of(towns.latlon_deg) == towns.province_id
    ).mean() >= 0.97


def test_shipped_tables_are_attributed_and_can_be_made_again() -> None:
    folder = PACKAGE_DIR / "assets" / "towns"
    text = (folder / "README.md").read_text()
    assert "GeoNames" in text
    assert "Creative Commons Attribution 4.0" in text
    for table in folder.glob("*.csv"):
        assert f"`{table.name}`" in text
        assert f"--out src/geopak/assets/towns/{table.name}" in text


def test_making_a_table_for_any_country() -> None:
    cities = [
        city(1, "Alpha", 10.0, 20.0, 5000),
        city(2, "Alphaville", 10.01, 20.0, 900),
        city(3, "Beta", 11.0, 20.0, 0, "02"),
        city(4, "Wrong", 12.0, 20.0, 7000),
        city(5, "Elsewhere", 12.0, 20.0, 7000, "99"),
        {**city(6, "Abroad", 1.0, 2.0, 7000), "countrycode": "YY"},
    ]
    rows = make_rows(cities, "XX", {"01": "West", "02": "East"}, drop=[4], population_floor=300)
    assert [(r["name"], r["population"], r["province"]) for r in rows] == [
        ("Alpha", 5000, "West"),
        ("Beta", 300, "East"),
    ]


def test_a_town_amid_another_province_is_suspicious() -> None:
    rows = [
        {"name": str(k), "latitude": k / 10, "longitude": 0.0, "province": "A"} for k in range(10)
    ]
    rows[4]["province"] = "B"
    found = suspicious_rows(rows)
    assert len(found) == 1
    assert found[0].startswith("4 ")


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        (None, TableError, "python -m geopak.render.towns"),
        ("name,latitude\nx,1\n", TableError, "longitude"),
        ("name,latitude,longitude,population,province\n", TableError, "no row"),
        ("name,latitude,longitude,population,province\nx,1,2,many,Sindh\n", TableError, "line 2"),
        ("name,latitude,longitude,population,province\nx,1,2,0,Sindh\n", TableError, "positive"),
        ("name,latitude,longitude,population,province\nx,nan,2,5,Sindh\n", TableError, "latitude"),
        ("name,latitude,longitude,population,province\nx,1,2,5,Sind h\n", RegionError, "Sindh"),
    ],
)
def test_bad_tables(
    tmp_path: Path, region: Region, text: str | None, error: type[Exception], says: str
) -> None:
    path = tmp_path / "towns.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=says):
        Towns.read(path, region)


def test_reading(tmp_path: Path, region: Region) -> None:
    path = tmp_path / "towns.csv"
    path.write_text("name,latitude,longitude,population,province\nx,25.5,67.25,1000,sind\n")
    towns = Towns.read(path, region)
    np.testing.assert_array_equal(towns.latlon_deg, [[25.5, 67.25]])
    assert towns.province_id.tolist() == [region.index_of("Sindh")]
