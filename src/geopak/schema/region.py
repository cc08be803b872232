"""A region's section of the configuration, down to every province."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from geopak.geo.region import Province, Region, UrbanRule
from geopak.options import PartOf

ProvinceSettings = Annotated[dict[str, Any], PartOf(Province, without=("key",))]


@dataclass(frozen=True)
class RegionOptions:
    """The keys of ``conf/region/*.yaml``; see :meth:`geopak.geo.region.Region.from_config`.

    Attributes:
        towns: table of the region's towns, for rendered photos.
        province_defaults: settings that provinces have where they have none of their own.
    """

    name: str
    provinces: Mapping[str, ProvinceSettings | None]
    title: str | None = None
    boundaries: str | None = None
    boundary_name_field: str | None = None
    boundary_layer: str | None = None
    boundary_names: Mapping[str, str] | None = None
    boundary_edges: Literal["planar", "geodesic"] | None = "planar"
    towns: str | None = None
    urban: Annotated[dict[str, Any], PartOf(UrbanRule)] | None = None
    province_defaults: ProvinceSettings | None = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.region()

    def region(self) -> Region:
        """The region that is described.

        Raises:
            RegionError: a value out of range, or names that do not fit each other.
        """
        return Region.from_config({f.name: getattr(self, f.name) for f in fields(self)})
