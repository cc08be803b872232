"""How geocells are made: what the user may set, apart from what each province has of its own."""

from __future__ import annotations

from dataclasses import dataclass

from geopak.errors import ConfigError
from geopak.geo.region import Province

LEAST_CAP_KM = 0.01


@dataclass(frozen=True)
class CellSettings:
    """How geocells are made; what differs between provinces is in the region.

    Attributes:
        urban_radius_cap_km: largest radius of an urban cell; a province may have its own.
        rural_radius_cap_km: largest radius of any other cell; a province may have its own.
        grain_km: side of the squares of ground whose photos always share a cell.
        max_clustered_points: photos of a province that HDBSCAN sees; of more, a sample.
        merge_candidates: nearest cells, urban and others each, that a cell may be merged into.
        settle_rounds: rounds of moving photos to the cell with the nearest center.
    """

    urban_radius_cap_km: float = 5.0
    rural_radius_cap_km: float = 50.0
    grain_km: float = 0.1
    max_clustered_points: int = 100_000
    merge_candidates: int = 8
    settle_rounds: int = 10

    def __post_init__(self) -> None:
        for name in ("urban_radius_cap_km", "rural_radius_cap_km"):
            if not getattr(self, name) >= LEAST_CAP_KM:
                raise ConfigError(f"cells.{name} must be at least {LEAST_CAP_KM} km.")
        if not self.grain_km > 0:
            raise ConfigError("cells.grain_km must be positive.")
        for name, least in (
            ("max_clustered_points", 100),
            ("merge_candidates", 1),
            ("settle_rounds", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"cells.{name} must be at least {least}.")

    def cap_km(self, province: Province, urban: bool) -> float:
        """The radius cap of a cell of a province.

        Raises:
            ConfigError: the province's own cap is too small.
        """
        if urban:
            own, general = province.urban_radius_cap_km, self.urban_radius_cap_km
        else:
            own, general = province.rural_radius_cap_km, self.rural_radius_cap_km
        if own is not None and own < LEAST_CAP_KM:
            raise ConfigError(
                f"region.provinces.{province.key}: radius caps must be at least {LEAST_CAP_KM} km."
            )
        return general if own is None else own
