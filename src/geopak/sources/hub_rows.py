"""Rows of a data set as photos: which column says what, and whether that can be used."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geopak.errors import SourceError, nearest_name
from geopak.schema.sources.huggingface import HuggingFaceOptions
from geopak.sources.hub_files import DataSetFiles
from geopak.sources.records import FoundPhoto, Refused
from geopak.sources.rights import license_of

_REQUIRED = ("image", "latitude", "longitude")
# Known names of columns, where the configuration says nothing of one.
_SAME_NAME = tuple(f.name for f in dataclasses.fields(FoundPhoto) if f.name != "extra")


@dataclass(frozen=True)
class Columns:
    """Which column says what.

    Attributes:
        of: field -> column.
    """

    of: Mapping[str, str]

    @classmethod
    def find(
        cls, wished: Mapping[Any, str | list[str] | None], there: Sequence[str], where: str
    ) -> Columns:
        """Looks for every field's column.

        Raises:
            SourceError: none holds the picture or a coordinate.
        """
        folded = {name.casefold(): name for name in reversed(list(there))}
        of = {}
        for field in dict.fromkeys((*_REQUIRED, *_SAME_NAME, "id", "source", *wished)):
            names = wished.get(field, field)
            names = [names] if isinstance(names, str) else names or []
            found = next((folded[n.casefold()] for n in names if n.casefold() in folded), None)
            if found is not None:
                of[field] = found
            elif field in _REQUIRED:
                hint = nearest_name(names[0] if names else field, there)
                raise SourceError(
                    f"{where} has no column for {field} ({', '.join(names) or 'none is named'})."
                    f"{hint} It has: {', '.join(there)}. Name it, source.columns.{field}=COLUMN."
                )
        return cls(of)

    def facts(self) -> list[str]:
        """The columns but the picture."""
        image = self.of["image"]
        return list(dict.fromkeys(name for name in self.of.values() if name != image))


class RowReader:
    """Makes photos of rows.

    Args:
        options: which columns say what, and what holds where none does.
        files: of the data set; a row may name no others.
    """

    def __init__(self, options: HuggingFaceOptions, files: DataSetFiles) -> None:
        self._options = options
        self._files = files

    def columns(self, there: Sequence[str]) -> Columns:
        """Which of the columns that are there says what.

        Raises:
            SourceError: none holds the picture or a coordinate.
        """
        return Columns.find(self._options.columns, there, f"The data set {self._files.label}")

    def photo(
        self, place: str, row: Mapping[str, Any], columns: Columns, extra: dict[str, Any]
    ) -> FoundPhoto | Refused:
        """A row as a photo, or why it is none.

        Args:
            place: of the row in the data set.
            row: column -> value.
            columns: that say what.
            extra: what leads to the picture.
        """

        def said(field: str) -> Any:
            value = row.get(columns.of[field]) if field in columns.of else None
            return None if value == "" else value

        own = said("id")
        source_id = f"{self._files.label}/{place if own is None else own}"
        latitude, longitude = said("latitude"), said("longitude")
        if latitude is None or longitude is None:
            return Refused(source_id, "no_coordinate")
        values = number(latitude), number(longitude)
        shown = f"{latitude!r}, {longitude!r}"
        if values[0] is None or values[1] is None:
            return Refused(source_id, "coordinate_not_a_number", shown)
        if abs(values[0]) > 90 or abs(values[1]) > 180:
            return Refused(source_id, "coordinate_out_of_range", shown)
        if values == (0.0, 0.0):
            return Refused(source_id, "coordinates_zero", shown)
        if "image" in extra and not self._files.is_own(str(extra["image"]), str(extra["revision"])):
            return Refused(
                source_id, "picture_elsewhere", f"{extra['image']!r} is no file of the data set"
            )
        license, origin = _text(said("license")), _text(said("source"))
        if origin is not None:
            extra["source"] = origin
        if license is not None and license_of(license) is None:
            extra["license_text"] = license
        accuracy_km = number(said("accuracy_km"))
        return FoundPhoto(
            source_id=source_id,
            latitude=values[0],
            longitude=values[1],
            accuracy_km=accuracy_km if accuracy_km is not None and accuracy_km >= 0 else None,
            license=license_of(license)
            if license is not None
            else license_of(self._options.license),
            author=_text(said("author")) or self._options.author,
            author_url=_url(said("author_url")),
            page_url=_url(said("page_url")),
            captured_at=_moment(said("captured_at")),
            title=_text(said("title")),
            width=_pixels(said("width")),
            height=_pixels(said("height")),
            album=_text(said("album")),
            extra=extra,
        )


def number(value: Any) -> float | None:
    """A finite number, or ``None``."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _pixels(value: Any) -> int | None:
    side = number(value)
    return int(side) if side is not None and 1 <= side < 1e6 else None


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, (bytes, Mapping, list)):
        return None
    return str(value).strip() or None


def _url(value: Any) -> str | None:
    text = _text(value)
    return text if text and re.match(r"https?://", text) else None


def _moment(value: Any) -> str | None:
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat()
    return _text(value)
