"""The region: names, settings, mistakes in them, and its way through a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from geopak.errors import RegionError
from geopak.geo.region import Province, Region, UrbanRule


def test_index_order_is_that_of_the_configuration(region: Region) -> None:
    assert [p.key for p in region.provinces] == ["capital", "desert", "coast_land"]
    assert region.names == ("Capital", "Great Desert", "Coast Land")
    assert region.num_provinces == 3


def test_settings_of_a_province_go_before_the_defaults(region: Region) -> None:
    assert [p.batch_quota for p in region.provinces] == [2, 2, 4]
    assert [p.tau_km for p in region.provinces] == [10, 100, 30]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("Great Desert", 1),
        ("great-desert", 1),
        ("GREAT  DESERT ", 1),
        ("desert", 1),
        ("coast_land", 2),
        ("the city", 0),
        ("Atlantis", None),
        (None, None),
        (3.5, None),
    ],
)
def test_a_name_is_found_by_key_name_or_alias_in_any_case(
    region: Region, name: object, index: int | None
) -> None:
    assert region.find(name) == index


def test_an_unknown_province_is_refused_with_the_nearest_name(region: Region) -> None:
    with pytest.raises(RegionError, match=r"'Great Dessert' is not .* Did you mean 'Great Desert'"):
        region.index_of("Great Dessert")


def test_one_spelling_for_two_provinces_is_refused(region_config: dict[str, Any]) -> None:
    region_config["provinces"]["desert"]["aliases"] = ["CAPITAL"]
    with pytest.raises(RegionError, match="'capital' names both 'capital' and 'desert'"):
        Region.from_config(region_config)


@pytest.mark.parametrize("place", ["provinces", "province_defaults"])
def test_an_unknown_setting_is_refused_with_the_nearest_name(
    region_config: dict[str, Any], place: str
) -> None:
    section = region_config[place]
    (section["desert"] if place == "provinces" else section)["tau_kms"] = 3
    with pytest.raises(RegionError, match=r"tau_kms is not a province setting.*'tau_km'"):
        Region.from_config(region_config)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("min_cluster_size", 0),
        ("min_samples", 0),
        ("target_cells", -1),
        ("tau_km", 0.0),
        ("tau_km", float("nan")),
        ("offset_scale", -1.0),
        ("batch_quota", -1),
        ("min_samples", 2.5),
        ("target_cells", "many"),
        ("tau_km", None),
        ("tau_km", True),
        ("urban_radius_cap_km", 0.0),
        ("rural_radius_cap_km", float("inf")),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(setting: str, value: float) -> None:
    with pytest.raises(RegionError, match=rf"region\.provinces\.desert\.{setting} must"):
        Province(key="desert", name="Desert", **{setting: value})  # type: ignore[arg-type]


def test_a_region_without_provinces_is_refused() -> None:
    with pytest.raises(RegionError, match="has no provinces"):
        Region.from_config({"name": "void", "provinces": {}})


def test_a_region_survives_a_checkpoint_that_unpickles_nothing(
    region: Region, tmp_path: Path
) -> None:
    torch.save(region.to_dict(), tmp_path / "region.pt")
    again = Region.from_dict(torch.load(tmp_path / "region.pt", weights_only=True))
    assert again == region
    assert again.find("the city") == 0


@pytest.mark.parametrize(
    ("setting", "value"), [("places", 0), ("places", 2.5), ("within_km", 0.0), ("place_km", "far")]
)
def test_an_urban_rule_out_of_range_is_refused_by_its_key(
    region_config: dict[str, Any], setting: str, value: object
) -> None:
    region_config["urban"] = {setting: value}
    with pytest.raises(RegionError, match=rf"region\.urban\.{setting} must"):
        Region.from_config(region_config)


def test_the_urban_rule_is_the_regions(region_config: dict[str, Any], region: Region) -> None:
    assert region.urban == UrbanRule()
    region_config["urban"] = {"places": 3}
    assert Region.from_config(region_config).urban == UrbanRule(places=3)
    region_config["urban"] = {"place": 3}
    with pytest.raises(RegionError, match=r"region\.urban\.place is not.*Did you mean 'place"):
        Region.from_config(region_config)


def test_radius_caps_of_a_province_are_the_general_ones_unless_set(
    region_config: dict[str, Any],
) -> None:
    region_config["provinces"]["desert"]["rural_radius_cap_km"] = 80
    capital, desert, _ = Region.from_config(region_config).provinces
    assert (capital.urban_radius_cap_km, capital.rural_radius_cap_km) == (None, None)
    assert (desert.urban_radius_cap_km, desert.rural_radius_cap_km) == (None, 80)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boundary_edges": "geodesy"}, r"boundary_edges='geodesy'.*Did you mean 'geodesic'"),
        ({"boundary_names": {"PK-1": "capitol"}}, r"'PK-1' is said to be 'capitol'.*'Capital'"),
        ({"boundary_names": "{x:y}"}, r"must map names.*boundary_names=\{SPELLING: capital\}"),
        ({"boundarys": "x"}, r"region\.boundarys is not a setting.*Did you mean 'boundaries'"),
        ({"name": None}, r"region\.name is missing"),
    ],
)
def test_a_mistake_in_the_region_is_named(
    region_config: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RegionError, match=message):
        Region.from_config(region_config | change)


def test_names_of_a_file_go_before_those_of_the_region(region_config: dict[str, Any]) -> None:
    region_config["boundary_names"] = {"AB-1": "desert", 7: "The City", "Capital": "coast_land"}
    region = Region.from_config(region_config)
    found = [region.find_in_file(n) for n in ("ab_1", 7, "7", "capital", "Great Desert", "x", None)]
    assert found == [1, 0, 0, 2, 1, None, None]
    assert region.find_in_file(float("nan")) is None
    assert region.find("capital") == 0
    assert hash(region) == hash(Region.from_config(region_config))


def test_a_checkpoint_of_an_older_version_has_the_defaults(region: Region) -> None:
    old = region.to_dict()
    for key in ("urban", "boundary_layer", "boundary_names", "boundary_edges"):
        del old[key]
    for province in old["provinces"]:
        del province["urban_radius_cap_km"], province["rural_radius_cap_km"]
    assert Region.from_dict(old) == region
