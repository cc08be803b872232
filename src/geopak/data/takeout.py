"""Google Takeout: the JSON files that hold what Google Photos knows of the photos beside them.

Google documents neither their names nor their content. What is known comes from those who read many
exports: the issues and tests of immich-go (simulot/immich-go, ``adapters/googlePhotos``) and of
ente's importer (ente-io/ente, pull request 4956), and the field notes of
papa-vova/gphotos-321sync (``Google_Takeout_Structure.md``).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from os.path import splitext
from pathlib import Path
from typing import Any

# Since 2024; before, the JSON had the photo's name alone.
_SUPPLEMENT = ".supplemental-metadata"
# Longest name of a sidecar without number and .json, in UTF-16 units: emoji count as two.
_MOST_UNITS = 46
# What Google Photos puts behind the name of a photo that was edited there, by language.
_EDITED = (
    "edited", "bearbeitet", "bewerkt", "editado", "ha editado", "editada", "editat", "modifié",
    "modificato", "edytowane", "redigerad", "redigeret", "redigert", "muokattu", "düzenlendi",
    "編集済み", "已修改", "수정됨",
)  # fmt: skip
_NUMBERED = re.compile(r"(?P<stem>.+)\((?P<number>\d{1,4})\)", re.DOTALL)
_MOST_BYTES = 10 * 2**20


def folded(name: str) -> str:
    """A file name as it is compared: Unicode composed, without case."""
    return unicodedata.normalize("NFC", name).casefold()


def _clipped(text: str, units: int = _MOST_UNITS) -> str:
    """The first so many UTF-16 units of a text, without half a character."""
    return text.encode("utf-16-le")[: 2 * units].decode("utf-16-le", "ignore")


@dataclass(frozen=True)
class SidecarName:
    """A name that the sidecar of a photo may have.

    Attributes:
        name: of the JSON file.
        is_clipped: the photo's own name is cut off in it, so that it may be that of another.
    """

    name: str
    is_clipped: bool


def sidecar_names(photo: str) -> Iterator[SidecarName]:
    """Names that a photo's sidecar may have, the likeliest first.

    ``IMG.jpg`` has ``IMG.jpg.supplemental-metadata.json`` (cut to 46 characters before ``.json``)
    or ``IMG.jpg.json``, ``IMG(1).jpg`` has ``IMG.jpg.supplemental-metadata(1).json`` or
    ``IMG.jpg(1).json``, and ``IMG-edited.jpg`` that of ``IMG.jpg``.

    Args:
        photo: file name.
    """
    stem, suffix = splitext(photo)
    yield from _forms(photo, "")
    numbered = _NUMBERED.fullmatch(stem)
    number = f"({numbered['number']})" if numbered else ""
    if numbered:
        stem = numbered["stem"]
        yield from _forms(stem + suffix, number)
    for word in _EDITED:
        if folded(stem).endswith(folded(f"-{word}")):
            original = unicodedata.normalize("NFC", stem)[: -len(word) - 1]
            yield from _forms(original + suffix, number)


def _forms(photo: str, number: str) -> Iterator[SidecarName]:
    is_clipped = _clipped(photo) != photo
    for whole in (photo + _SUPPLEMENT, photo):
        yield SidecarName(f"{_clipped(whole)}{number}.json", is_clipped)


@dataclass(frozen=True)
class Takeout:
    """What a sidecar says.

    Attributes:
        title: the photo's name before Google Photos made it unique and fit for files.
        camera: latitude and longitude (degrees) as the file had them when it was uploaded.
        assigned: those that Google Photos shows: the camera's, the user's or an estimate.
        captured_at: ISO 8601, UTC.
        description: text of the user.
    """

    title: str | None
    camera: tuple[float, float] | None
    assigned: tuple[float, float] | None
    captured_at: str | None
    description: str | None


def read_takeout(file: Path) -> Takeout | None:
    """What a sidecar says; ``None``: the JSON is no photo's sidecar.

    Raises:
        ValueError: it cannot be read as JSON, or is larger than any sidecar.
        OSError: it cannot be read.
    """
    content = read_json(file)
    if not isinstance(content, dict) or "photoTakenTime" not in content:
        return None
    return Takeout(
        title=_text(content.get("title")),
        camera=_position(content.get("geoDataExif")),
        assigned=_position(content.get("geoData")),
        captured_at=_moment(content["photoTakenTime"]),
        description=_text(content.get("description")),
    )


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is none, or larger than 10 MiB.
        OSError: it cannot be read.
    """
    if file.stat().st_size > _MOST_BYTES:
        raise ValueError("a JSON file of more than 10 MiB is no sidecar")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"broken JSON ({type(error).__name__})") from error


def album_title(content: Any) -> str | None:
    """The title of an album, if that is what a folder's JSON file tells of."""
    if not isinstance(content, dict) or "photoTakenTime" in content:
        return None
    album = content.get("albumData", content)
    is_album = isinstance(album, dict) and ({"date", "access"} & set(album))
    return _text(album.get("title")) if is_album else None


def belongs(photo: str, takeout: Takeout) -> bool:
    """Whether a title can be that of a photo whose own name is cut off in its sidecar's.

    Names are cut at their end, and characters that files may not have become ``_``.
    """
    if takeout.title is None:
        return True
    stem = splitext(photo)[0]
    numbered = _NUMBERED.fullmatch(stem)
    stem = folded(numbered["stem"] if numbered else stem)
    title = folded(splitext(takeout.title)[0])
    return len(stem) <= len(title) and all(
        a == b or a == "_" for a, b in zip(stem, title, strict=False)
    )


def by_folded_name(names: Iterable[str]) -> dict[str, str]:
    """File names by what they are compared as; of several that are equal so, the first."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(folded(name), name)
    return found


def _position(place: Any) -> tuple[float, float] | None:
    try:
        latitude, longitude = float(place["latitude"]), float(place["longitude"])
    except (KeyError, TypeError, ValueError):
        return None
    # Zeros stand for none.
    is_there = math.isfinite(latitude) and math.isfinite(longitude) and (latitude or longitude)
    return (latitude, longitude) if is_there else None


def _moment(value: Any) -> str | None:
    try:
        seconds = int(value["timestamp"])
        return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else None
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def _text(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None
