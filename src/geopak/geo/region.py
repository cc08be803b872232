"""The region (a country) that a model is made for, as an ordered set of provinces with settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from geopak.errors import RegionError, nearest_name


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

    def __post_init__(self) -> None:
        for field in ("min_cluster_size", "min_samples", "target_cells"):
            if getattr(self, field) < 1:
                raise RegionError(f"region.provinces.{self.key}.{field} must be at least 1.")
        for field in ("tau_km", "offset_scale"):
            if not getattr(self, field) > 0:
                raise RegionError(f"region.provinces.{self.key}.{field} must be positive.")
        if self.batch_quota < 0:
            raise RegionError(f"region.provinces.{self.key}.batch_quota must not be negative.")


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
    """

    name: str
    title: str
    provinces: tuple[Province, ...]
    boundaries: str | None = None
    boundary_name_field: str | None = None

    def __post_init__(self) -> None:
        if not self.provinces:
            raise RegionError(f"Region {self.name!r} has no provinces.")
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

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Region:
        """Builds the region from a mapping with the keys of ``conf/region/*.yaml``.

        Args:
            config: ``name, title, boundaries, boundary_name_field, province_defaults, provinces``;
                ``provinces`` maps a key to the settings that differ from ``province_defaults``.

        Raises:
            RegionError: unknown setting, missing name, or a value out of range.
        """
        known = {f.name for f in dataclasses.fields(Province)} - {"key"}
        defaults = dict(config.get("province_defaults") or {})
        provinces = []
        for key, settings in (config.get("provinces") or {}).items():
            merged = {**defaults, **dict(settings or {})}
            merged.setdefault("name", str(key).replace("_", " ").title())
            for setting in merged:
                if setting not in known:
                    raise RegionError(
                        f"region.provinces.{key}.{setting} is not a province setting."
                        f"{nearest_name(setting, known)} Known: {', '.join(sorted(known))}."
                    )
            merged["aliases"] = tuple(merged.get("aliases") or ())
            provinces.append(Province(key=str(key), **merged))
        name = str(config["name"])
        return cls(
            name=name,
            title=str(config.get("title") or name.title()),
            provinces=tuple(provinces),
            boundaries=config.get("boundaries"),
            boundary_name_field=config.get("boundary_name_field"),
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
        """Inverse of :meth:`to_dict`."""
        provinces = tuple(
            Province(**{**p, "aliases": tuple(p["aliases"])}) for p in data["provinces"]
        )
        return cls(**{**data, "provinces": provinces})

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
