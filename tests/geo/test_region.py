"""The region: names, settings, mistakes in them, and its way through a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from geopak.errors import RegionError
from geopak.geo.region import Province, Region


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
