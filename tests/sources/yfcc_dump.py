"""Lines as the YFCC100M metadata dump has them, a region for them, and a server that has them."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote_plus

import shapely

from geopak.geo.boundaries import Outlines
from tests.sources.stand_in import Reply, Request

# Two provinces, of which one is a triangle: the box holds more than the region.
WEST = shapely.box(60, 24, 66, 30)
EAST = shapely.Polygon([(66, 24), (74, 24), (66, 34)])
OUTLINES = Outlines((WEST, EAST))
BOX = (24.0, 60.0, 34.0, 74.0)
BY = "http://creativecommons.org/licenses/by/2.0/"


def dump_line(
    number: int,
    latitude: Any = "",
    longitude: Any = "",
    *,
    columns: int = 23,
    marker: Any = 0,
    license_url: str = BY,
    accuracy: Any = 16,
    title: str = "A title",
    nickname: str = "Ana + Bé",
    taken: str = "2012-02-16 09:56:37.0",
    description: str = "",
    **other: Any,
) -> bytes:
    """One line without its line feed; ``other`` overrides fields by name, as they are written."""
    given = latitude != ""
    user, photo = f"{39000000 + number}@N{number % 8:02d}", str(6985418911 + number)
    secret, server = f"{number * 7919 % 16**10:010x}", 7000 + number % 500
    fields = {
        "line": str(number),
        "id": photo,
        "hash": f"{number:032x}",
        "user": user,
        "nickname": quote_plus(nickname),
        "taken": taken,
        "uploaded": str(1331840483 + number),
        "device": "Canon+PowerShot+ELPH+310+HS",
        "title": quote_plus(title),
        "description": quote_plus(description),
        "tags": "one,two+words,%D8%A7",
        "machine_tags": "",
        "longitude": str(longitude),
        "latitude": str(latitude),
        "accuracy": str(accuracy) if given else "",
        "page_url": f"http://www.flickr.com/photos/{user}/{photo}/",
        "download_url": f"http://farm8.staticflickr.com/{server}/{photo}_{secret}.jpg",
        "license": "Attribution License",
        "license_url": license_url,
        "server": str(server),
        "farm": "8",
        "secret": secret,
        "original_secret": f"{number * 104729 % 16**10:010x}",
        "extension": "jpg",
        "marker": str(marker),
    }
    assert set(other) <= set(fields), other
    fields.update({name: str(value) for name, value in other.items()})
    if columns == 23:
        del fields["line"], fields["hash"]
    return "\t".join(fields.values()).encode()


def draw_dump(
    count: int, box: tuple[float, float, float, float], seed: int = 0, columns: int = 23
) -> list[bytes]:
    """Lines of which about half have a place, and half of those lie in or near a box.

    Args:
        count: of lines.
        box: south, west, north, east.
        seed: of the draw.
        columns: of the layout.
    """
    rng = random.Random(seed)
    south, west, north, east = box
    lines = []
    for number in range(count):
        place: tuple[Any, Any] = ("", "")
        if rng.random() < 0.5:
            place = (
                round(rng.uniform(south - 1, north + 1), 6),
                round(rng.uniform(west - 1, east + 1), 6),
            )
            if rng.random() < 0.5:
                place = (round(rng.uniform(-90, 90), 6), round(rng.uniform(-180, 180), 6))
        lines.append(
            dump_line(
                number,
                *place,
                columns=columns,
                marker=int(rng.random() < 0.05),
                accuracy=rng.randrange(1, 17),
                description=" ".join(f"w{rng.randrange(10**6)}" for _ in range(rng.randrange(40))),
            )
        )
    return lines


class Files:
    """Files of a server that grants ranges of bytes."""

    def __init__(self, files: dict[str, bytes], ranges: bool = True) -> None:
        self.files = files
        self.ranges = ranges
        self.version = '"1"'

    def __call__(self, request: Request) -> Reply:
        body = self.files.get(request.path)
        if body is None:
            return Reply(b"gone", 404)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        headers = {"ETag": self.version, "Accept-Ranges": "bytes"}
        if not found or not self.ranges:
            return Reply(body, headers=headers)
        start = int(found[1])
        end = min(int(found[2]) if found[2] else len(body) - 1, len(body) - 1)
        if start >= len(body):
            return Reply(b"", 416, {"Content-Range": f"bytes */{len(body)}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
        return Reply(body[start : end + 1], 206, headers)


def as_text(lines: Sequence[bytes]) -> bytes:
    """Lines as a file has them."""
    return b"".join(line + b"\n" for line in lines)
