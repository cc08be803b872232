"""Options of each source of photos, a module per source."""

from __future__ import annotations

from importlib import import_module

from geopak.errors import SourceError, nearest_name

_PLACES = {
    "flickr": "FlickrOptions",
    "google_places": "GooglePlacesOptions",
    "yfcc100m": "Yfcc100mOptions",
    "landmarks_v2": "LandmarksV2Options",
    "folder": "FolderOptions",
    "huggingface": "HuggingFaceOptions",
}
SOURCES = tuple(_PLACES)


def options_of(source: str) -> type:
    """The dataclass of a source's options.

    Raises:
        SourceError: there is no source of that name; the nearest is suggested.
    """
    if source not in _PLACES:
        raise SourceError(
            f"{source!r} is no source of photos.{nearest_name(source, SOURCES)} "
            f"Known: {', '.join(SOURCES)}."
        )
    found: type = getattr(import_module(f"geopak.schema.sources.{source}"), _PLACES[source])
    return found
