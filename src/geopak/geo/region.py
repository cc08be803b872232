"""The region (a country) that a model is made for, as an ordered set of provinces with settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from geopak.errors import RegionError, nearest_name


def _check_whole(key: str, value: Any, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least:
        raise RegionError(f"{key} must be a whole number, at least {least}, not {value!r}.")


def _check_positive(key: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise RegionError(f"{key} must be a positive number, not {value!r}.")


@dataclass(frozen=True)
class Province:
    """A first-level unit of the region with its own clustering, loss and sampling settings.

    Attributes:
        key: short lower-case name used in configuration (``khyber_pakhtunkhwa``).
        name: display name; unique in the region.
        aliases: other spellings accepted in tables and boundary files.
        min_cluster_size: fewest photos of a geocell, and HDBSCAN's parameter of that name.
        min_samples: HDBSCAN's parameter of that name.
        target_cells: number of geocells wished for.
        tau_km: length scale of the soft cell labels, kilometres.
        offset_scale: bound of the in-cell offset, as a multiple of the cell radius.
        batch_quota: photos of this province in every training batch.
        urban_radius_cap_km: largest radius of an urban geocell here; ``None``: the general one.
        rural_radius_cap_km: largest radius of any other geocell here; ``None``: the general one.
    """

    key: str
    name: str
    aliases: tuple[str, ...] = ()
    min_cluster_size: int = 40
    min_samples: int = 10
    target_cells: int = 100
    tau_km: float = 50.0
    offset_scale: float = 1.0
    batch_quota: int = 8
    urban_radius_cap_km: float | None = None
    rural_radius_cap_km: float | None = None

    def __post_init__(self) -> None:
        where = f"region.provinces.{self.key}"
        for field in ("min_cluster_size", "min_samples", "target_cells"):
            _check_whole(f"{where}.{field}", getattr(self, field), least=1)
        _check_whole(f"{where}.batch_quota", self.batch_quota, least=0)
        for field in ("tau_km", "offset_scale"):
            _check_positive(f"{where}.{field}", getattr(self, field))
        for field in ("urban_radius_cap_km", "rural_radius_cap_km"):
            if getattr(self, field) is not None:
                _check_positive(f"{where}.{field}", getattr(self, field))


@dataclass(frozen=True)
class UrbanRule:
    """When a coordinate counts as lying in town, by the photos around it.

    Attributes:
        places: so many places with photos, at least, ...
        within_km: ... within so many kilometres.
        place_km: side of the squares of ground that count as one place.
    """

    places: int = 12
    within_km: float = 5.0
    place_km: float = 0.5

    def __post_init__(self) -> None:
        _check_whole("region.urban.places", self.places, least=1)
        for field in ("within_km", "place_km"):
            _check_positive(f"region.urban.{field}", getattr(self, field))


BOUNDARY_EDGES = ("planar", "geodesic")
# Keys of conf/region/*.yaml that others read.
_OTHER_KEYS = {"province_defaults", "towns"}


def _check_keys(where: str, settings: Mapping[str, Any], known: set[str], what: str) -> None:
    for setting in settings:
        if setting not in known:
            raise RegionError(
                f"{where}.{setting} is not {what}.{nearest_name(str(setting), known)} "
                f"Known: {', '.join(sorted(known))}."
            )


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split())


@dataclass(frozen=True)
class Region:
    """A country: its provinces in class-index order and where their boundaries are.

    Attributes:
        name: short lower-case name (``pakistan``).
        title: display name.
        provinces: in index order; the index is the class index everywhere.
        boundaries: path of the file with the province outlines.
        boundary_name_field: attribute of that file which names the province; ``None``: found by
            looking for the attribute whose values are province names.
        boundary_layer: layer of that file, where it has several; ``None``: the only one.
        boundary_names: key, name or alias of a province per name that the file has for it; for
            names that are no spelling of the province otherwise, such as a code.
        boundary_edges: what runs between two vertices: ``planar``, a straight line in longitude
            and latitude as GeoJSON says, or ``geodesic``, the shortest way over ground.
        urban: when a photo counts as taken in town.
    """

    name: str
    title: str
    provinces: tuple[Province, ...]
    boundaries: str | None = None
    boundary_name_field: str | None = None
    boundary_layer: str | None = None
    boundary_names: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    boundary_edges: str = "planar"
    urban: UrbanRule = UrbanRule()

    def __post_init__(self) -> None:
        if not self.provinces:
            raise RegionError(f"Region {self.name!r} has no provinces.")
        if self.boundary_edges not in BOUNDARY_EDGES:
            raise RegionError(
                f"region.boundary_edges={self.boundary_edges!r} is unknown."
                f"{nearest_name(str(self.boundary_edges), BOUNDARY_EDGES)} "
                f"Known: {', '.join(BOUNDARY_EDGES)}."
            )
        owner: dict[str, str] = {}
        for province in self.provinces:
            for spelling in {_fold(s) for s in (province.key, province.name, *province.aliases)}:
                if owner.setdefault(spelling, province.key) != province.key:
                    raise RegionError(
                        f"Region {self.name!r}: {spelling!r} names both {owner[spelling]!r} and "
                        f"{province.key!r}. Change one province's name or aliases."
                    )
        object.__setattr__(
            self,
            "_index",
            {s: [p.key for p in self.provinces].index(k) for s, k in owner.items()},
        )
        for spelling, name in self.boundary_names.items():
            if self.find(name) is None:
                raise RegionError(
                    f"region.boundary_names: {spelling!r} is said to be {name!r}, which is no "
                    f"province of {self.title}.{nearest_name(str(name), self.names)} "
                    f"Known: {', '.join(self.names)}."
                )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Region:
        """Builds the region from a mapping with the keys of ``conf/region/*.yaml``.

        Args:
            config: ``name, title, provinces, province_defaults, urban`` and the ``boundary…`` keys
                of the attributes; ``provinces`` maps a key to the settings that differ from
                ``province_defaults``, ``urban`` has those that differ from :class:`UrbanRule`'s.

        Raises:
            RegionError: unknown setting, missing name, or a value out of range.
        """
        own = {f.name for f in dataclasses.fields(cls)}
        _check_keys("region", config, own | _OTHER_KEYS, "a setting of a region")
        if not config.get("name"):
            raise RegionError("region.name is missing: a short lower-case name of the country.")
        known = {f.name for f in dataclasses.fields(Province)} - {"key"}
        defaults = dict(config.get("province_defaults") or {})
        provinces = []
        for key, settings in (config.get("provinces") or {}).items():
            merged = {**defaults, **dict(settings or {})}
            merged.setdefault("name", str(key).replace("_", " ").title())
            _check_keys(f"region.provinces.{key}", merged, known, "a province setting")
            merged["aliases"] = tuple(merged.get("aliases") or ())
            provinces.append(Province(key=str(key), **merged))
        urban = dict(config.get("urban") or {})
        rule = {f.name for f in dataclasses.fields(UrbanRule)}
        _check_keys("region.urban", urban, rule, "a setting of the urban rule")
        names = config.get("boundary_names") or {}
        if not isinstance(names, Mapping):
            example = provinces[0].key if provinces else "province"
            raise RegionError(
                f"region.boundary_names={names!r} must map names in the file to provinces: "
                f"region.boundary_names={{SPELLING: {example}}}."
            )
        name = str(config["name"])
        return cls(
            name=name,
            title=str(config.get("title") or name.replace("_", " ").title()),
            provinces=tuple(provinces),
            boundaries=config.get("boundaries"),
            boundary_name_field=config.get("boundary_name_field"),
            boundary_layer=config.get("boundary_layer"),
            boundary_names={str(spelling): str(province) for spelling, province in names.items()},
            boundary_edges=config.get("boundary_edges") or "planar",
            urban=UrbanRule(**urban),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers only, so that a checkpoint with it loads with ``weights_only=True``."""
        out = dataclasses.asdict(self)
        out["provinces"] = [
            {**province, "aliases": list(province["aliases"])} for province in out["provinces"]
        ]
        return out

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Region:
        """Inverse of :meth:`to_dict`; what an older version did not know has its default."""
        provinces = tuple(
            Province(**{**p, "aliases": tuple(p["aliases"])}) for p in data["provinces"]
        )
        urban = UrbanRule(**data.get("urban", {}))
        return cls(**{**data, "provinces": provinces, "urban": urban})

    @property
    def num_provinces(self) -> int:
        return len(self.provinces)

    @property
    def names(self) -> tuple[str, ...]:
        """Display names in class-index order."""
        return tuple(p.name for p in self.provinces)

    def find(self, name: object) -> int | None:
        """Class index of a name, key or alias in any case and spacing; ``None`` if unknown."""
        index: dict[str, int] = self._index  # type: ignore[attr-defined]
        return index.get(_fold(name)) if isinstance(name, str) else None

    def find_in_file(self, name: object) -> int | None:
        """Like :meth:`find`, but a file's own names for provinces (``boundary_names``) go first."""
        names = {_fold(spelling): province for spelling, province in self.boundary_names.items()}
        # Codes may be numbers; a missing value is no name.
        text = None if name is None or name != name else _fold(str(name))
        return self.find(names.get(text, name)) if text is not None else None

    def index_of(self, name: str) -> int:
        """Like :meth:`find`, but raises.

        Raises:
            RegionError: the name is not a province; the nearest known one is suggested.
        """
        index = self.find(name)
        if index is None:
            raise RegionError(
                f"{name!r} is not a province of {self.title}.{nearest_name(str(name), self.names)} "
                f"Known: {', '.join(self.names)}. Add other spellings to "
                f"region.provinces.<key>.aliases."
            )
        return index
