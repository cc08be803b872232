"""How exact a place is that Flickr gives with a level of accuracy."""

from __future__ import annotations

STREET, WORLD = 16, 1
_STREET_KM = 0.1


def accuracy_km(level: int | None) -> float | None:
    """Kilometres that a coordinate of a level may be off.

    Flickr has levels from 1 (the world) over 3 (a country), 6 (a region) and 11 (a city) to 16 (a
    street), as it says of ``flickr.photos.search``: the zoom of the map that a photo was put on, or
    16 for a coordinate of the camera. Each zoom shows twice the ground of the next; a street is
    taken as 100 m, which makes 3 km of a city and 100 km of a region.

    Args:
        level: ``None`` or 0, which Flickr gives where it does not know: not known.
    """
    if level is None or not WORLD <= level <= STREET:
        return None
    return float(_STREET_KM * 2 ** (STREET - level))
