"""Lines of the metadata dump of YFCC100M: their layouts, and which are photos of a region.

Fields are separated by tabs and percent-encoded as in URLs (a plus sign is a space). The dump's
README names 23 columns (:data:`COLUMNS`); the release of 2016 has two more, the line's number in
front and a hash behind the photo's identifier. Which of both a file is, its content tells.

Most lines are only looked at: where are they? Those in the region's bounding box are looked at
closely and either given as photos or refused one by one; the others are counted by reason.
"""

from __future__ import annotations

import contextlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus, urlsplit

import numpy as np
from numpy.typing import NDArray

from geopak.geo.antimeridian import into_frame
from geopak.schema.sources.yfcc100m import Yfcc100mOptions
from geopak.sources import licenses
from geopak.sources.flickr_levels import accuracy_km
from geopak.sources.records import FoundPhoto, Refused

if TYPE_CHECKING:
    import pyarrow as pa

    from geopak.geo.boundaries import Outlines

# As the dump's README has them.
COLUMNS = (
    "id", "user", "nickname", "taken", "uploaded", "device", "title", "description", "tags",
    "machine_tags", "longitude", "latitude", "accuracy", "page_url", "download_url", "license",
    "license_url", "server", "farm", "secret", "original_secret", "extension", "marker",
)  # fmt: skip
# The layouts by their number of columns.
LAYOUTS: Mapping[int, tuple[str, ...]] = {
    23: COLUMNS,
    25: ("line", "id", "hash", *COLUMNS[1:]),
}
PHOTO, VIDEO = b"0", b"1"
# Python counts ² and its like as digits too, and reads no number of thousands of them.
_WHOLE = re.compile(r"[0-9]{1,20}")
_USER = re.compile(r"\d+@N\d+")
_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_TAKEN = re.compile(r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d:\d\d))?")
_SUFFIX = {"500": "", "640": "_z", "1024": "_b"}
_WANTED = ("longitude", "latitude", "marker")


def fields_of(line: bytes) -> list[bytes]:
    """The fields of a line, as they are in the dump."""
    return line.rstrip(b"\r\n").split(b"\t")


def layout_of(lines: Iterable[bytes]) -> int | None:
    """The number of columns that lines have, by what stands in them; ``None``: no layout fits."""
    fitting: Counter[int] = Counter()
    total = 0
    for line in lines:
        total += 1
        parts = fields_of(line)
        names = LAYOUTS.get(len(parts))
        if names is None:
            continue
        values = dict(zip(names, parts, strict=True))
        user = unquote_plus(values["user"].decode("ascii", "replace"))
        if values["id"].isdigit() and _USER.fullmatch(user) and values["marker"] in (PHOTO, VIDEO):
            fitting[len(parts)] += 1
    best = max(fitting, key=lambda width: fitting[width], default=None)
    return best if best is not None and fitting[best] * 2 > total else None


@dataclass
class Findings:
    """What was found in some lines.

    Attributes:
        lines: looked through.
        photos: those that can be used.
        refused: lines that cannot, kept one by one.
        counts: lines that are only counted, by reason.
    """

    lines: int = 0
    photos: list[FoundPhoto] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class LineFilter:
    """Finds the photos of a region in lines of the dump.

    Args:
        width: columns that a line has, 23 or 25.
        outlines: of the region.
        options: of the source.
        where: names the lines' place in messages.
    """

    def __init__(
        self, width: int, outlines: Outlines, options: Yfcc100mOptions, where: str = ""
    ) -> None:
        self.columns = LAYOUTS[width]
        self.outlines = outlines
        self.options = options
        self.where = where
        self.found = Findings()
        self._at = {name: k for k, name in enumerate(self.columns)}
        self._keys = [f"f{k}" for k in range(width)]

    def look(self, text: bytes) -> None:
        """Looks through whole lines."""
        columns = self._quick_columns(text)
        if columns is None:
            # A line that is not as the others: one by one.
            lines = [line for line in text.split(b"\n") if line.strip()]
            self._look_one_by_one(lines)
            return
        self._look_at_once(text, *columns)

    def _quick_columns(self, text: bytes) -> list[pa.Array] | None:
        """Longitude, latitude and marker of all lines; ``None`` where a line is malformed."""
        import pyarrow as pa
        from pyarrow import csv

        # Within a line either would end it, here but not there.
        if b"\r" in text or b"\0" in text:
            return None
        try:
            table = csv.read_csv(
                pa.BufferReader(text),
                csv.ReadOptions(
                    use_threads=False, block_size=len(text) + 1, column_names=self._keys
                ),
                csv.ParseOptions(
                    delimiter="\t", quote_char=False, double_quote=False, escape_char=False,
                    newlines_in_values=False, ignore_empty_lines=False,
                ),
                csv.ConvertOptions(
                    include_columns=[self._keys[self._at[name]] for name in _WANTED],
                    column_types=dict.fromkeys(self._keys, pa.binary()),
                    strings_can_be_null=False,
                ),
            )  # fmt: skip
        except pa.ArrowInvalid:
            return None
        if table.num_rows != text.count(b"\n"):
            return None
        return [column.combine_chunks() for column in table.columns]

    def _look_at_once(
        self, text: bytes, longitude: pa.Array, latitude: pa.Array, marker: pa.Array
    ) -> None:
        import pyarrow.compute as pc

        found = self.found
        total = len(longitude)
        given = pc.and_(
            pc.greater(pc.binary_length(longitude), 0), pc.greater(pc.binary_length(latitude), 0)
        )
        rows = np.flatnonzero(given.to_numpy(zero_copy_only=False))
        points = np.empty((len(rows), 2))
        for k, column in enumerate((latitude, longitude)):
            numbers = _numbers(column.take(rows))
            if numbers is None:
                lines = text.split(b"\n")
                lines.pop()
                self._look_one_by_one(lines)
                return
            points[:, k] = numbers
        valid = _are_coordinates(points)
        inside = valid.copy()
        inside[valid] = self._in_box(points[valid])
        found.lines += total
        found.counts["no_coordinate"] += total - len(rows)
        found.counts["outside_box"] += int((valid & ~inside).sum())
        close = np.flatnonzero(inside | ~valid)
        if not len(close):
            return
        provinces = self.outlines.province_of(points[close])
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
        for k, province in zip(close.tolist(), provinces.tolist(), strict=True):
            row = int(rows[k])
            line = text[ends[row - 1] + 1 if row else 0 : ends[row]]
            latitude, longitude = points[k].tolist()
            self._take(fields_of(line), bool(valid[k]), latitude, longitude, province)

    def _look_one_by_one(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            self.found.lines += 1
            parts = fields_of(line)
            if len(parts) != len(self.columns):
                self._refuse(
                    self._name(line), "malformed_line",
                    f"{len(parts)} columns in place of {len(self.columns)}: {_shown(line)}",
                )  # fmt: skip
                continue
            texts = parts[self._at["latitude"]], parts[self._at["longitude"]]
            if not all(texts):
                self.found.counts["no_coordinate"] += 1
                continue
            numbers = [float(t) if _NUMBER.fullmatch(t) else np.nan for t in texts]
            point = np.array([numbers])
            valid = bool(_are_coordinates(point)[0])
            if valid and not self._in_box(point)[0]:
                self.found.counts["outside_box"] += 1
                continue
            province = int(self.outlines.province_of(point)[0])
            self._take(parts, valid, numbers[0], numbers[1], province)

    def _name(self, line: bytes) -> str:
        """A line that has no identifier by its place and content."""
        return f"{self.where} line {zlib.crc32(line):08x}"

    def _in_box(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        south, west, north, east = self.outlines.bounds_deg
        lon = into_frame(points[:, 1], west, east)
        lat = points[:, 0]
        return (lat >= south) & (lat <= north) & (lon >= west) & (lon <= east)

    def _refuse(self, source_id: str, reason: str, detail: str = "") -> None:
        self.found.refused.append(Refused(source_id, reason, detail))

    def _take(
        self, parts: list[bytes], valid: bool, latitude: float, longitude: float, province: int
    ) -> None:
        """A line whose place is in the box, or whose coordinate is none."""
        values = {name: _text(part) for name, part in zip(self.columns, parts, strict=True)}
        source_id = values["id"]
        place = f"{values['latitude']}, {values['longitude']}"
        if not _WHOLE.fullmatch(source_id):
            line = b"\t".join(parts)
            self._refuse(self._name(line), "malformed_line", f"no identifier: {_shown(line)}")
        elif not valid:
            self._refuse(source_id, "bad_coordinate", place)
        elif values["marker"] == "1":
            self._refuse(source_id, "video", place)
        elif values["marker"] != "0":
            self._refuse(source_id, "malformed_line", f"marker {values['marker'][:20]!r}")
        elif province < 0:
            self._refuse(source_id, "outside_region", place)
        else:
            level = int(values["accuracy"]) if _WHOLE.fullmatch(values["accuracy"]) else None
            url = self._picture(values)
            if level is not None and level < self.options.min_accuracy:
                self._refuse(source_id, "accuracy_too_low", f"level {level}")
            elif url is None:
                self._refuse(source_id, "no_picture", values["download_url"][:200])
            else:
                self.found.photos.append(photo_of(values, latitude, longitude, level, url))

    def _picture(self, values: Mapping[str, str]) -> str | None:
        """Address of the picture in the size that is asked for.

        It is made as https://www.flickr.com/services/api/misc.urls.html says; the dump's own one is
        that of 500 pixels.
        """
        size, base = str(self.options.size), self.options.pictures
        server, secret, extension = values["server"], values["secret"], "jpg"
        suffix = _SUFFIX.get(size)
        if suffix is None:
            suffix, secret = "_o", values["original_secret"]
            extension = values["extension"] or "jpg"
        whole = all(re.fullmatch(r"[0-9A-Za-z]+", t) for t in (server, secret, extension))
        if base is not None and whole:
            return f"{base.rstrip('/')}/{server}/{values['id']}_{secret}{suffix}.{extension}"
        given = urlsplit(values["download_url"])
        if given.scheme not in ("http", "https") or not given.netloc:
            return None
        path, dot, ending = given.path.rpartition(".")
        if not suffix:
            return values["download_url"]
        if suffix != "_o":
            return f"{given.scheme}://{given.netloc}{path}{suffix}{dot}{ending}"
        folder = path.rpartition("/")[0]
        if not whole:
            return None
        return f"{given.scheme}://{given.netloc}{folder}/{values['id']}_{secret}_o.{extension}"


def photo_of(
    values: Mapping[str, str], latitude: float, longitude: float, level: int | None, url: str
) -> FoundPhoto:
    """A photo from the decoded fields of its line."""
    page = values["page_url"]
    user = values["user"]
    return FoundPhoto(
        source_id=values["id"],
        latitude=latitude,
        longitude=longitude,
        url=url,
        accuracy_km=accuracy_km(level),
        license=licenses.from_url(values["license_url"]),
        author=values["nickname"] or user or None,
        author_url=f"https://www.flickr.com/people/{user}/" if _USER.fullmatch(user) else None,
        page_url=page.replace("http://", "https://", 1) if page else None,
        captured_at=captured_at(values["taken"]),
        title=values["title"] or None,
    )


def captured_at(text: str) -> str | None:
    """ISO 8601 of ``2012-02-16 09:56:37.0``; ``None`` for what is no date (``null``, year 0)."""
    found = _TAKEN.match(text)
    if not found:
        return None
    iso = f"{found[1]}T{found[2]}" if found[2] else found[1]
    with contextlib.suppress(ValueError):
        datetime.fromisoformat(iso)
        return iso
    return None


def _text(part: bytes) -> str:
    return unquote_plus(part.decode("utf-8", "replace"), errors="replace")


def _shown(line: bytes) -> str:
    return line[:80].decode("utf-8", "backslashreplace")


def _numbers(column: pa.Array) -> NDArray[np.float64] | None:
    """A column of text as numbers; ``None`` if a value is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        numbers = pc.cast(column.cast(pa.string()), pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None
    # Arrow also reads 'nan' and 'inf', which are no numbers here either.
    return numbers if np.isfinite(numbers).all() else None


def _are_coordinates(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    return (np.abs(points[:, 0]) <= 90) & (np.abs(points[:, 1]) <= 180)


def why_no_dump(file: str, head: bytes, compressed: bool, lines: list[bytes]) -> str:
    """Says what is wrong with a file whose lines have no layout, and what to do."""
    known = "; ".join(f"{width}: {', '.join(names)}" for width, names in LAYOUTS.items())
    if not head:
        return f"{file} is empty. Download it again."
    if not lines:
        what = "no whole block of bzip2 could be read" if compressed else "it has no lines"
        return f"{file} is no metadata of YFCC100M: {what}. Download it again."
    number, line = next(
        (
            (k, line)
            for k, line in enumerate(lines, start=1)
            if len(fields_of(line)) not in LAYOUTS or layout_of([line]) is None
        ),
        (1, lines[0]),
    )
    return (
        f"{file} line {number} is no line of the YFCC100M metadata: it has "
        f"{len(fields_of(line))} columns ({_shown(line)!r}). Known are, separated by tabs, {known}."
    )
