"""What a photo file and the files beside it state: where, when and by whom it was taken.

A position may be in the file's EXIF data, in its XMP packet, in a ``.xmp`` file beside it, and in
the JSON file that Google Takeout puts there. All are read; :func:`believed` picks one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from os.path import splitext
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from geopak.data.takeout import (
    Takeout,
    belongs,
    by_folded_name,
    folded,
    read_takeout,
    sidecar_names,
)
from geopak.data.xmp import xmp_degrees, xmp_number, xmp_properties
from geopak.errors import PhotoError
from geopak.geo.distance import haversine_km_array

# With those that are not decoded here: such a file is rejected with a reason, not passed over.
IMAGE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".jp2",
        ".heic", ".heif", ".dng",
    }
)  # fmt: skip
# Where a position may come from, in the order in which they are believed.
EXIF, XMP, XMP_FILE = "exif", "xmp", "xmp_file"
TAKEOUT_CAMERA, TAKEOUT = "takeout_camera", "takeout"
ORIGINS = (EXIF, XMP, XMP_FILE, TAKEOUT_CAMERA, TAKEOUT)
# Positions of one photo that are farther apart contradict each other.
MAX_DISAGREEMENT_KM = 1.0
# Datums that agree with WGS 84 within a few metres.
_DATUMS = re.compile(
    r"(WGS(19)?84(G\d+)?|ETRS(19)?89|NAD(19)?83|GRS(19)?80|JGD20(00|11)|GDA(94|2020))?"
)
# Metres per unit of dilution of precision: what a single-frequency receiver errs by.
_METRES_PER_DOP = 5.0
_MOST_XMP_BYTES = 10 * 2**20
# EXIF 2.31 and 2.32; Pillow names them too, but not in every version.
_POSITIONING_ERROR, _OFFSET, _OFFSET_ORIGINAL = 0x1F, 0x9010, 0x9011


@dataclass(frozen=True)
class Position:
    """A position that a photo states.

    Attributes:
        latitude, longitude: degrees, WGS 84, seven decimals at most.
        origin: one of :data:`ORIGINS`.
        accuracy_km: how exact it is; ``None``: not stated.
    """

    latitude: float
    longitude: float
    origin: str
    accuracy_km: float | None = None

    def __str__(self) -> str:
        return f"{self.origin} {degrees_text(self.latitude)}, {degrees_text(self.longitude)}"


@dataclass(frozen=True)
class Problem:
    """Why something that is stated cannot be used.

    Attributes:
        reason: short, of a fixed vocabulary.
        detail: what was there.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class PhotoFacts:
    """What is stated of a photo; what is not is ``None`` or empty.

    Attributes:
        width, height: pixels, as the file's header says.
        positions: in the order of :data:`ORIGINS`.
        problems: positions and files that cannot be used.
        captured_at: ISO 8601, with the offset from UTC where it is known.
        author: who made it.
        rights: whatever is said of its licence, texts and addresses.
        title: given by its author.
    """

    width: int
    height: int
    positions: tuple[Position, ...] = ()
    problems: tuple[Problem, ...] = ()
    captured_at: str | None = None
    author: str | None = None
    rights: tuple[str, ...] = ()
    title: str | None = None


class Beside:
    """The files of a folder, to find a photo's sidecars among.

    Args:
        folder: where they are.
        names: of its files.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        self._names = set(names)
        self._folded = by_folded_name(
            sorted(name for name in self._names if name.lower().endswith((".json", ".xmp")))
        )

    def takeout(self, photo: str) -> tuple[str | None, Takeout | None, Problem | None]:
        """Name and content of a photo's Takeout JSON, or why it cannot be used."""
        for candidate in sidecar_names(photo):
            name = self._find(candidate.name)
            if name is None:
                continue
            try:
                takeout = read_takeout(self.folder / name)
            except (ValueError, OSError) as error:
                return name, None, Problem("sidecar_broken", f"{name}: {_first_line(error)}")
            if takeout and (not candidate.is_clipped or belongs(photo, takeout)):
                return name, takeout, None
        return None, None, None

    def xmp(self, photo: str) -> tuple[str | None, dict[str, list[str]], Problem | None]:
        """Name and properties of a photo's ``.xmp`` file, or why it cannot be used."""
        for candidate in (f"{photo}.xmp", f"{splitext(photo)[0]}.xmp"):
            name = self._find(candidate)
            if name is None:
                continue
            file = self.folder / name
            try:
                if file.stat().st_size > _MOST_XMP_BYTES:
                    raise ValueError("more than 10 MiB are no XMP")
                return name, xmp_properties(file.read_bytes()), None
            except (ValueError, OSError) as error:
                return name, {}, Problem("sidecar_broken", f"{name}: {_first_line(error)}")
        return None, {}, None

    def _find(self, name: str) -> str | None:
        return name if name in self._names else self._folded.get(folded(name))


def read_facts(file: Path, beside: Beside | None = None) -> PhotoFacts:
    """What a photo and its sidecars state.

    Args:
        file: an image file; its header is read, not its pixels.
        beside: the folder's files; ``None``: sidecars are not looked for.

    Raises:
        PhotoError: the file cannot be opened as an image; says why, without the folder's name.
    """
    try:
        with Image.open(file) as image:
            size = image.size
            packet = image.info.get("xmp")
            exif = _exif_of(image)
    except Exception as error:  # decoders raise whatever a broken file causes
        raise PhotoError(_first_line(error).partition(" '")[0] or type(error).__name__) from error
    parts = [_of_exif(exif)]
    if isinstance(packet, str):
        packet = packet.encode()
    if isinstance(packet, bytes) and packet:
        try:
            parts.append(_of_xmp(xmp_properties(packet), XMP))
        except ValueError as error:
            parts.append(_Part(problems=(Problem("xmp_broken", str(error)),)))
    if beside is not None:
        name, properties, problem = beside.xmp(file.name)
        if name:
            parts.append(_Part(problems=(problem,)) if problem else _of_xmp(properties, XMP_FILE))
        _, takeout, problem = beside.takeout(file.name)
        if problem:
            parts.append(_Part(problems=(problem,)))
        elif takeout:
            parts.append(_of_takeout(takeout))
    return _united(size, parts)


def believed(
    facts: PhotoFacts,
    origins: Sequence[str] = ORIGINS,
    max_disagreement_km: float | None = MAX_DISAGREEMENT_KM,
) -> Position | Problem:
    """The position that is taken for a photo's, or why none is.

    Args:
        facts: what is stated.
        origins: those that are believed, the first before the others.
        max_disagreement_km: two positions farther apart contradict each other, and none is
            taken; ``None``: the first is taken whatever the others say.
    """
    usable = sorted(
        (p for p in facts.positions if p.origin in origins), key=lambda p: origins.index(p.origin)
    )
    if not usable:
        ignored = [str(p) for p in facts.positions]
        if ignored:
            return Problem("position_not_believed", "; ".join(ignored))
        return facts.problems[0] if facts.problems else Problem("no_coordinate", "")
    first = usable[0]
    if max_disagreement_km is not None:
        for other in usable[1:]:
            away_km = float(
                haversine_km_array(
                    [first.latitude, first.longitude], [other.latitude, other.longitude]
                )
            )
            if away_km > max_disagreement_km:
                return Problem("positions_disagree", f"{first} and {other}: {away_km:.1f} km apart")
    return first


def degrees_text(value: float) -> str:
    """Degrees without more decimals than are known: whole degrees must not look exact."""
    return f"{value:.7f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class _Part:
    positions: tuple[Position, ...] = ()
    problems: tuple[Problem, ...] = ()
    captured_at: str | None = None
    author: str | None = None
    rights: tuple[str, ...] = ()
    title: str | None = None


def _united(size: tuple[int, int], parts: Sequence[_Part]) -> PhotoFacts:
    """The first of everything that is stated, and all positions, problems and rights."""

    def first(name: str) -> Any:
        return next((v for v in (getattr(part, name) for part in parts) if v), None)

    positions = [p for part in parts for p in part.positions]
    return PhotoFacts(
        *size,
        positions=tuple(sorted(positions, key=lambda p: ORIGINS.index(p.origin))),
        problems=tuple(p for part in parts for p in part.problems),
        captured_at=first("captured_at"),
        author=first("author"),
        rights=tuple(dict.fromkeys(r for part in parts for r in part.rights)),
        title=first("title"),
    )


@dataclass(frozen=True)
class _Exif:
    base: Mapping[int, Any]
    details: Mapping[int, Any]
    gps: Mapping[int, Any]
    problem: Problem | None = None


def _exif_of(image: Image.Image) -> _Exif:
    try:
        exif = image.getexif()
        ifd = ExifTags.IFD
        return _Exif(dict(exif), dict(exif.get_ifd(ifd.Exif)), dict(exif.get_ifd(ifd.GPSInfo)))
    except Exception as error:  # Pillow lets broken EXIF raise whatever it causes
        return _Exif({}, {}, {}, Problem("exif_broken", type(error).__name__))


def _of_exif(exif: _Exif) -> _Part:
    problems = [exif.problem] if exif.problem else []
    gps = exif.gps
    degrees = [
        _exif_degrees(gps, tag, letters)
        for tag, letters in ((ExifTags.GPS.GPSLatitude, "NS"), (ExifTags.GPS.GPSLongitude, "EW"))
    ]
    found = _position(
        degrees[0],
        degrees[1],
        EXIF,
        datum=_text(gps.get(ExifTags.GPS.GPSMapDatum)),
        status=_text(gps.get(ExifTags.GPS.GPSStatus)),
        error_m=_number(gps.get(_POSITIONING_ERROR)),
        dop=_number(gps.get(ExifTags.GPS.GPSDOP)),
    )
    if isinstance(found, Problem):
        problems.append(found)
    details, base = exif.details, exif.base
    return _Part(
        positions=(found,) if isinstance(found, Position) else (),
        problems=tuple(problems),
        captured_at=exif_moment(
            _text(details.get(ExifTags.Base.DateTimeOriginal)),
            _text(details.get(_OFFSET_ORIGINAL)) or _text(details.get(_OFFSET)),
        ),
        author=_text(base.get(ExifTags.Base.Artist)) or None,
        rights=tuple(filter(None, [_text(base.get(ExifTags.Base.Copyright))])),
    )


def _exif_degrees(gps: Mapping[int, Any], tag: int, letters: str) -> float | None:
    """Signed degrees; ``None``: not stated, or no number. Without a letter they are positive."""
    reference = _text(gps.get(tag - 1)).upper()[:1]
    try:
        degrees, minutes, seconds = (float(part) for part in gps[tag])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    value = degrees + minutes / 60 + seconds / 3600
    return -value if reference == letters[1] else value


def _of_xmp(properties: Mapping[str, Sequence[str]], origin: str) -> _Part:
    def first(*names: str) -> str:
        return next((properties[name][0] for name in names if name in properties), "")

    found = _position(
        xmp_degrees(first("exif:GPSLatitude"), "NS"),
        xmp_degrees(first("exif:GPSLongitude"), "EW"),
        origin,
        datum=first("exif:GPSMapDatum"),
        status=first("exif:GPSStatus"),
        error_m=xmp_number(first("exifEX:GPSHPositioningError", "exif:GPSHPositioningError")),
        dop=xmp_number(first("exif:GPSDOP")),
    )
    names = ("cc:license", "xmpRights:WebStatement", "xmpRights:UsageTerms", "dc:rights")
    return _Part(
        positions=(found,) if isinstance(found, Position) else (),
        problems=(found,) if isinstance(found, Problem) else (),
        captured_at=_iso_moment(
            first("exif:DateTimeOriginal", "photoshop:DateCreated", "xmp:CreateDate")
        ),
        author=", ".join(properties.get("dc:creator", ())) or None,
        rights=tuple(text for name in names for text in properties.get(name, ())),
        title=first("dc:title") or None,
    )


def _of_takeout(takeout: Takeout) -> _Part:
    found = [
        _position(*place, origin)
        for place, origin in ((takeout.camera, TAKEOUT_CAMERA), (takeout.assigned, TAKEOUT))
        if place
    ]
    return _Part(
        positions=tuple(p for p in found if isinstance(p, Position)),
        problems=tuple(p for p in found if isinstance(p, Problem)),
        captured_at=takeout.captured_at,
        title=takeout.description,
    )


def _position(
    latitude: float | None,
    longitude: float | None,
    origin: str,
    *,
    datum: str = "",
    status: str = "",
    error_m: float | None = None,
    dop: float | None = None,
) -> Position | Problem | None:
    """A position, why it cannot be one, or ``None`` where nothing is stated."""
    if latitude is None and longitude is None:
        return None
    stated = f"{origin} {latitude}, {longitude}"
    if latitude is None or longitude is None or not math.isfinite(latitude + longitude):
        return Problem("coordinate_not_a_number", stated)
    if abs(latitude) > 90 or abs(longitude) > 180:
        return Problem("coordinate_out_of_range", stated)
    if latitude == 0 and longitude == 0:
        return Problem("coordinates_zero", f"{stated}: 0, 0 stands for a missing position")
    if status.upper()[:1] == "V":
        return Problem("position_void", f"{stated}: the receiver had no fix (GPSStatus V)")
    if not _DATUMS.fullmatch(re.sub(r"[^A-Z0-9]", "", datum.upper())):
        return Problem("datum_unknown", f"{stated} in the datum {datum!r}, not WGS 84")
    place = Position(round(latitude, 7), round(longitude, 7), origin)
    metres = error_m if error_m else dop * _METRES_PER_DOP if dop else None
    if metres is None or not 0 < metres < math.inf:
        return place
    return replace(place, accuracy_km=round(metres / 1000, 6))


def exif_moment(taken: str, offset: str = "") -> str | None:
    """``2021:05:03 10:11:12`` and ``+05:00`` as ISO 8601; ``None``: no moment there is."""
    found = re.match(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d)(?::(\d\d))?", taken)
    if not found:
        return None
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in found.groups())
        moment = datetime(year, month, day, hour, minute, second).isoformat()
    except ValueError:
        return None
    zone = re.fullmatch(r"(?:Z|[+-]\d\d:\d\d)", offset.strip())
    return moment + (zone[0] if zone else "")


def _iso_moment(text: str) -> str | None:
    """A moment or a day of XMP that exists; XMP allows years and months alone too."""
    if re.fullmatch(r"\d{4}(-\d\d)?", text):
        return text
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return None
    return text


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _text(value: object) -> str:
    """A value of EXIF as text that any table can hold."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    text = str(value).encode(errors="replace").decode()
    return text.replace("\0", " ").strip()


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(_lines(str(error)), "")


def _lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line)
