"""What a file of answers says of a photo: the answer, its comparison, how both are written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon

from geopak.geo.circles import cut_at_antimeridian
from geopak.geo.extents import Ground
from geopak.geo.region import Region
from geopak.results import Answer, PlaceRegion

# A metre, of coordinates in degrees.
DECIMALS = 5
# Some 300 m: the ground of cells is drawn no finer.
GROUND_TOLERANCE_DEG = 0.003


@dataclass(frozen=True)
class Entry:
    """An answer and what else is known of its photo, which has a path.

    Attributes:
        answer: of the predictor.
        gps: latitude and longitude that the photo's EXIF data state, degrees.
        gps_error_km: from there to the predicted place.
        gps_in_region: whether the cell of that place is in the answer's region.
        thumbnail: an encoded JPEG; empty where there is none.
        state: of the photo's file when it was asked, see :func:`file_state`.
    """

    answer: Answer
    gps: tuple[float, float] | None = None
    gps_error_km: float | None = None
    gps_in_region: bool | None = None
    thumbnail: bytes = b""
    state: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """What a file of answers says of a photo that is in it already.

    Attributes:
        photo, model, state: as they are written.
        failed: it could not be read.
        declined: its answer is below ``abstain_below``.
        gps_error_km, gps_in_region: see :class:`Entry`.
    """

    photo: str
    model: str
    state: str
    failed: bool
    declined: bool
    gps_error_km: float | None
    gps_in_region: bool | None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Known:
        """Of a record of any format: nested or flat, of typed values or of texts.

        Raises:
            KeyError, ValueError: it is no such record.
        """
        gps = record.get("gps") or {}
        error_km = gps.get("error_km", record.get("gps_error_km"))
        in_region = gps.get("in_region", record.get("gps_in_region"))
        return cls(
            photo=str(record["photo"]),
            model=str(record["model"]),
            state=str(record["photo_state"]),
            failed=bool(record.get("error")),
            declined=not record.get("error") and str(record["answered"]).lower() == "false",
            gps_error_km=None if error_km in (None, "") else float(error_km),
            gps_in_region=None if in_region in (None, "") else str(in_region).lower() == "true",
        )


def file_state(photo: str | Path) -> str:
    """Tells a photo's file from what it was before: size and time of change; empty: there is none.

    What a file holds is not read: that would take as long as asking again.
    """
    try:
        found = os.stat(photo)
    except (OSError, ValueError):
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}"


@dataclass(frozen=True)
class Setting:
    """What the answers of a file have in common.

    Attributes:
        model: names checkpoint and options; a file goes on only with answers of the same.
        region: names the provinces.
        grounds: N polygons, the ground of each cell, degrees; empty where no region is drawn.
        page: beginning and end of an HTML page with a record per line between them.
    """

    model: str
    region: Region
    grounds: Sequence[Ground] = ()
    page: tuple[str, str] = ("", "")


def written(text: object) -> str:
    """A text that every format can hold: in one line of UTF-8.

    What can be printed stays as it is. Other texts are written as a shell quotes them,
    ``$'a\\nb'``, so that different texts are written differently, and a shell finds the file.
    """
    plain = str(text)
    if plain.isprintable() and not plain.startswith("$'"):
        return plain
    safe = plain.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{''.join(c if c.isprintable() else _spelled(c) for c in safe)}'"


def _spelled(character: str) -> str:
    """A character by its escape in the quotes of a shell, where ``\\xa0`` is a byte, no letter."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"  # of a name that is no UTF-8
    if code >= 0x7F:
        return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return character.encode("unicode_escape").decode()


def plain_grounds(grounds: Sequence[Ground]) -> list[Ground]:
    """Cells' grounds with fewer vertices, still without gaps between them."""
    simple = shapely.coverage_simplify(np.array(grounds, object), GROUND_TOLERANCE_DEG)
    return list(simple)


def joined_ground(region: PlaceRegion, grounds: Sequence[Ground]) -> Ground:
    """The ground of a region's cells as one geometry, longitudes between -180 and 180."""
    # On a grid, so that neighbours that touch nearly touch.
    union = shapely.union_all([grounds[k] for k in region.cell_ids], grid_size=10**-DECIMALS)
    polygons = [p for p in shapely.get_parts(union) if isinstance(p, Polygon)]
    return cut_at_antimeridian(MultiPolygon(polygons))


def record_of(entry: Entry, model: str) -> dict[str, Any]:
    """All that is known of a photo as plain dicts and lists."""
    record = entry.answer.to_dict()
    record["photo"] = written(record["photo"])
    if record["error"] is not None:
        record["error"] = written(" ".join(str(record["error"]).split()))
    if entry.gps is not None:
        record["gps"] = {
            "lat": entry.gps[0],
            "lon": entry.gps[1],
            "error_km": entry.gps_error_km,
            "in_region": entry.gps_in_region,
        }
    record["photo_state"] = entry.state
    record["model"] = model
    return record
