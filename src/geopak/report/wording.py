"""How pages and figures word decoding rules and distances."""

from __future__ import annotations

_TITLES = {
    "densest_cell": "densest cell",
    "province_centroid_true": "centroid of the true province",
    "argmax": "most probable hypothesis",
    "max_within_km": "most probability nearby",
}


def rule_title(name: str) -> str:
    """A decoding rule or baseline in words: ``geometric_median`` -> ``geometric median``."""
    return _TITLES.get(name, name.replace("_", " "))


def format_km(distance_km: float) -> str:
    """Kilometres with the digits a reader can use: ``0.42``, ``3.1``, ``57``, ``1,204``."""
    digits = 2 if distance_km < 0.995 else 1 if distance_km < 9.95 else 0
    return f"{distance_km:,.{digits}f}"
