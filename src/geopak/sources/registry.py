"""Sources by name, each imported only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geopak.options import options
from geopak.schema.sources import options_of
from geopak.sources.records import Source

if TYPE_CHECKING:
    from geopak.geo.boundaries import Outlines
    from geopak.geo.region import Region

_CLASSES = {
    "flickr": "FlickrSource",
    "google_places": "GooglePlacesSource",
    "yfcc100m": "Yfcc100m",
    "landmarks_v2": "LandmarksV2",
    "folder": "FolderSource",
    "huggingface": "HuggingFaceSource",
}


def make_source(section: dict[str, Any], region: Region, outlines: Outlines) -> Source:
    """The source that a configuration section describes.

    Args:
        section: ``source`` of the configuration, plain containers.
        region, outlines: what it is to cover.

    Raises:
        ConfigError: an option that the source does not know.
        SourceError: there is no such source, or it cannot be used.
    """
    name = str(section.get("name"))
    chosen: Any = options(options_of(name), section, "source")
    kind = getattr(import_module(f"geopak.sources.{name}"), _CLASSES[name])
    source: Source = kind(chosen, region, outlines)
    return source
