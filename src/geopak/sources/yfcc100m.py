"""YFCC100M: photos of Flickr under Creative Commons, from the public metadata dump.

The dump is a text of about 100 million lines, tab-separated, in one bzip2 file of about 15 GB or in
ten parts, with fields percent-encoded as in URLs (a plus sign is a space). Its README names 23
columns (:data:`COLUMNS`); the release of 2016 has two more, the line's number in front and a hash
behind the photo's identifier. Which of both a file is, its content tells.

A file is cut into parts of some megabytes, each a query of its own (:mod:`text_parts
<geopak.sources.text_parts>`): parts are read in any order, several at a time, and a run that was
killed reads only those that have no answer. Nothing but a part's photos stays in memory.

Most lines are only looked at: where are they? Those in the region's bounding box are looked at
closely and either given as photos or refused one by one; of the others each part says how many
there were and why.

B. Thomee and others, "YFCC100M: The New Data in Multimedia Research", CACM 59(2), 2016.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus, urlsplit

import numpy as np
from numpy.typing import NDArray

from geopak.errors import RefusedQueryError, SourceError
from geopak.geo.antimeridian import into_frame
from geopak.schema.sources.yfcc100m import Yfcc100mOptions
from geopak.sources import licenses
from geopak.sources.bzip2 import Blocks, DamagedError, ends_well
from geopak.sources.client import Client
from geopak.sources.flickr_levels import accuracy_km
from geopak.sources.records import Answer, Estimate, FoundPhoto, Query, Refused
from geopak.sources.text_parts import PartReader

if TYPE_CHECKING:
    import pyarrow as pa

    from geopak.geo.boundaries import Outlines
    from geopak.geo.region import Region

log = logging.getLogger(__name__)

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
# Hosts of the pictures that the dump names, and where these redirect to.
_DUMP_HOSTS = (
    "live.staticflickr.com",
    *(
        f"farm{k}.{name}"
        for k in range(1, 11)
        for name in ("staticflickr.com", "static.flickr.com")
    ),
)
_HEAD_BYTES = 4096
_READ_BYTES = 1 << 20
_REMEDY = (
    "Download the file again, whole, to the same place, and start again{again}; or go without what "
    "is missing: source.skip_damaged=true."
)
# Text is looked through so much at a time.
_CHUNK_BYTES = 4 << 20
_LINES_PER_MB = 7000
# Before a file that broke off is gone on with.
_PAUSE_S = 0.1


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


_WANTED = ("longitude", "latitude", "marker")


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


@dataclass
class _LocalFile:
    """A part of a file of this machine, read piece by piece."""

    path: Path

    async def pieces(self, start: int) -> AsyncGenerator[bytes, None]:
        with self.path.open("rb") as stream:
            stream.seek(start)
            while piece := await asyncio.to_thread(stream.read, _READ_BYTES):
                yield piece


@dataclass
class _RemoteFile:
    """A part of a file on a server that grants ranges, gone on with where it breaks off."""

    url: str
    client: Client
    retries: int
    size: int | None = None
    version: str | None = None

    async def pieces(self, start: int) -> AsyncGenerator[bytes, None]:
        import httpx

        at, failures = start, 0
        while self.size is None or at < self.size:
            before, broken = at, ""
            # Compressed on its way, a range would be one of other bytes.
            headers = {"Range": f"bytes={at}-", "Accept-Encoding": "identity"}
            async with self.client.stream(self.url, kind="block", headers=headers) as response:
                self._look_at_headers(response, at)
                try:
                    async for piece in response.aiter_raw(_READ_BYTES):
                        at += len(piece)
                        yield piece
                except httpx.TransportError as error:
                    broken = f"{type(error).__name__} {error}".strip()
            if self.size is not None and at >= self.size:
                return
            failures = 0 if at > before else failures + 1
            if failures > self.retries:
                raise SourceError(
                    f"{self.url} breaks off at byte {at:,} again and again "
                    f"({broken or 'no data'}). Start again later: what came before is kept. Or "
                    "download the file and give its path in source.files."
                )
            await asyncio.sleep(min(_PAUSE_S * 2**failures, 30.0))

    def _look_at_headers(self, response: Any, at: int) -> None:
        headers = response.headers
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("content-range", "").strip())
        if response.status_code != 206 or told is None or int(told[1]) != at:
            raise SourceError(
                f"{self.url} is not read in parts: its server grants no ranges of bytes. Download "
                "it and give its path in source.files."
            )
        version = headers.get("etag") or headers.get("last-modified") or ""
        size = int(told[2])
        if (self.version or version) != version or (self.size or size) != size:
            raise SourceError(_changed(self.url))
        self.version, self.size = version, size


def _changed(file: str) -> str:
    return (
        f"{file} is another file than when this collection began. Put the former one back, or "
        "begin a new collection with another out=."
    )


def is_url(file: str) -> bool:
    """Whether a file is an http(s) address."""
    return file.lower().startswith(("http://", "https://"))


class Yfcc100m:
    """The source ``yfcc100m``.

    Args:
        options: of the source.
        region: of which photos are wanted.
        outlines: of its provinces.
    """

    name = "yfcc100m"
    kinds = ("block",)
    # A request is for a part of many megabytes: time goes into reading it.
    rate_per_s = 5.0

    def __init__(self, options: Yfcc100mOptions, region: Region, outlines: Outlines) -> None:
        self.options = options
        self.region = region
        self.outlines = outlines
        hosts = {urlsplit(file).netloc for file in options.paths if is_url(file)}
        self.api_hosts = tuple(sorted(hosts))
        # Not all of staticflickr.com: photos that are gone redirect to a picture that says so, on
        # combo.staticflickr.com or s.yimg.com, which is no photo of the place.
        self.photo_hosts: tuple[str, ...] = (
            (urlsplit(options.pictures).netloc,) if options.pictures else _DUMP_HOSTS
        )
        self._threads = asyncio.Semaphore(options.threads or os.cpu_count() or 1)

    @property
    def _part_bytes(self) -> int:
        return max(1, round(self.options.part_mb * 2**20))

    def files(self) -> list[str]:
        """Paths and addresses of the dump, in the order of their names.

        Raises:
            SourceError: a path or pattern that no file has.
        """
        found: list[str] = []
        for name in self.options.paths:
            if is_url(name):
                found.append(name)
                continue
            path = os.path.expanduser(name)
            matches = [path] if os.path.isfile(path) else sorted(glob.glob(path))
            matches = [match for match in matches if os.path.isfile(match)]
            if not matches:
                raise SourceError(
                    f"source.files: there is no file {name}. Give the path of the YFCC100M "
                    "metadata (yfcc100m_dataset.bz2, or its parts with a pattern in quotes); "
                    "docs/sources/yfcc100m.md says where it is."
                )
            found += matches
        return list(dict.fromkeys(found))

    def start(self) -> Iterable[Query]:
        """One query per file, which cuts it into parts."""
        for file in self.files():
            if is_url(file):
                yield Query("file", {"file": file, **self._reading})
            else:
                size, version = _size_and_version(file)
                params = {"file": file, "size": size, "version": version}
                yield Query("file", {**params, **self._reading})

    @property
    def _reading(self) -> dict[str, Any]:
        """What decides over the photos of a line, in every query."""
        o = self.options
        return {"reading": [o.min_accuracy, str(o.size), o.pictures]}

    async def ask(self, query: Query, client: Client) -> Answer:
        """Cuts a file into parts, or looks through a part.

        Raises:
            SourceError: the file is missing, no dump of YFCC100M, another one than at the
                beginning, or damaged.
        """
        if query.kind == "file":
            return await self._ask_file(query, client)
        if query.kind == "end":
            return await asyncio.to_thread(self._ask_end, query)
        return await self._ask_part(query, client)

    async def locate(self, photo: FoundPhoto, client: Client) -> str:
        """The picture's address, as it was found."""
        assert photo.url is not None
        return photo.url

    def estimate(self, targets: Mapping[str, int]) -> Estimate:
        """Parts to read; their number is not known of files in the network."""
        files = self.files()
        local = [file for file in files if not is_url(file)]
        remote = [file for file in files if is_url(file)]
        size = sum(os.path.getsize(file) for file in local)
        parts = sum(-(-os.path.getsize(file) // self._part_bytes) for file in local)
        millions = size / 2**20 * _LINES_PER_MB / 1e6
        assumptions = [
            "the metadata is read until the targets are reached, which with a rare province is to "
            "its end: its photos are in no order",
            f"{len(local)} files of this machine with {size / 1e9:.2g} GB, {parts:,} parts, are "
            f"about {millions:.2g} million lines, some {millions / 2:.2g} minutes of one core",
        ]
        if not remote:
            return Estimate({"block": (0, 0)}, None, tuple(assumptions))
        # The whole dump is the most that an address may hold.
        most = -(-16_000_000_000 // self._part_bytes)
        assumptions.append(
            f"{len(remote)} addresses are read in parts of {self.options.part_mb:g} MB, a request "
            "each, and hold at most the whole dump of 16 GB together"
        )

        return Estimate({"block": (2 * len(remote), len(remote) + most)}, None, tuple(assumptions))

    def _open(self, params: Mapping[str, Any], client: Client | None) -> _LocalFile | _RemoteFile:
        file, version, size = params["file"], params.get("version"), params.get("size")
        if is_url(file):
            assert client is not None
            return _RemoteFile(file, client, self.options.retries, size, version)
        if not os.path.isfile(file):
            raise SourceError(f"{file} is no longer there. Put it back, and start again.")
        if version is not None and _size_and_version(file)[1] != version:
            raise SourceError(_changed(file))
        return _LocalFile(Path(file))

    async def _ask_file(self, query: Query, client: Client) -> Answer:
        file = query.params["file"]
        source = self._open(query.params, client)
        head = bytearray()
        blocks, text, compressed = Blocks(0), b"", None
        async with contextlib.aclosing(source.pieces(0)) as pieces:
            async for piece in pieces:
                head += piece
                if compressed is None:
                    if len(head) < 4:
                        continue
                    compressed = bytes(head[:3]) == b"BZh" and head[3:4] in b"123456789"
                if compressed:
                    text += await asyncio.to_thread(_first_text, blocks, piece)
                else:
                    text += piece
                if text.count(b"\n") >= 100 or len(head) > 8 << 20:
                    break
        if compressed and not text:
            with contextlib.suppress(DamagedError):
                text = b"".join(block for _, block in blocks.feed(b"", last=True))
        whole = text[: text.rfind(b"\n") + 1] or text
        lines = [line for line in whole.split(b"\n") if line.strip()][:100]
        width = layout_of(lines)
        if width is None:
            raise SourceError(_no_dump(file, bytes(head), bool(compressed), lines))
        base: dict[str, Any] = {
            "file": file, "columns": width, "compressed": bool(compressed), **self._reading,
        }  # fmt: skip
        if isinstance(source, _RemoteFile):
            size = source.size or len(head)
            return Answer(
                more=self._parts({**base, "version": source.version, "size": size}, 0, size)
            )
        size, base["version"] = _size_and_version(file)
        more = self._parts(base, 0, size)
        if compressed and not _whole(file):
            log.warning(
                "%s does not end as a bzip2 file does: it is truncated, and its last lines are "
                "missing. All before them is read.", file,
            )  # fmt: skip
            more += (Query("end", {**base, "size": size}),)
        return Answer(more=more)

    def _ask_end(self, query: Query) -> Answer:
        """The parts of a file that was truncated, once it is whole."""
        params = query.params
        if self.options.skip_damaged:
            return Answer()
        self._open({**params, "size": None}, None)
        size, before = os.path.getsize(params["file"]), params["size"]
        if size <= before and not _whole(params["file"]):
            raise SourceError(
                f"{params['file']} is truncated at byte {size:,} (the lines before are kept). "
                f"{_REMEDY.format(again='')}"
            )
        base = {key: value for key, value in params.items() if key != "size"}
        more = self._parts(base, before, size)
        if not _whole(params["file"]):
            more += (Query("end", {**base, "size": size}),)
        return Answer(more=more)

    def _parts(self, base: Mapping[str, Any], start: int, size: int) -> tuple[Query, ...]:
        """Queries of the parts of a file from a byte on."""
        step = self._part_bytes
        return tuple(
            Query("block", {**base, "start": first, "end": min(first + step, size)})
            for first in range(start, size, step)
        )

    async def _ask_part(self, query: Query, client: Client) -> Answer:
        # Held for all of it: so many parts are in memory at a time.
        async with self._threads:
            return await self._look_through(query, client)

    async def _look_through(self, query: Query, client: Client) -> Answer:
        params = query.params
        source = self._open(params, client)
        resume = params.get("resume_bit")
        start = params["start"] if resume is None else resume // 8
        begun = params.get("begun", "")
        reader = PartReader(
            start,
            params["end"],
            params["compressed"],
            resume,
            None if begun is None else begun.encode("latin-1"),
            self.options.skip_damaged,
        )
        where = f"{Path(params['file']).name} bytes {params['start']}-{params['end']}"
        lines = LineFilter(params["columns"], self.outlines, self.options, where)
        pending = bytearray()

        def work(piece: bytes, last: bool) -> None:
            for text in reader.feed(piece, last):
                pending.extend(text)
                if len(pending) >= _CHUNK_BYTES:
                    lines.look(bytes(pending))
                    pending.clear()

        async with contextlib.aclosing(source.pieces(start)) as pieces:
            async for piece in pieces:
                await asyncio.to_thread(work, piece, False)
                if reader.done:
                    break
        if not reader.done:
            await asyncio.to_thread(work, b"", True)
        if pending:
            await asyncio.to_thread(lines.look, bytes(pending))
        return self._answer(query, reader, lines.found, where)

    def _answer(self, query: Query, reader: PartReader, found: Findings, where: str) -> Answer:
        refused = list(found.refused)
        refused += [
            Refused(f"{where}: {reason}", reason, f"{count:,} lines")
            for reason, count in sorted(found.counts.items())
            if count
        ]
        more: tuple[Query, ...] = ()
        for damage in reader.damage:
            what = "truncated" if damage.truncated else "damaged"
            place = f"{query.params['file']} is {what} at byte {damage.bit // 8:,}"
            if self.options.skip_damaged:
                refused.append(Refused(f"{where}: bit {damage.bit}", "damaged_block", place))
            elif query.params.get("resume_bit") == damage.bit:
                # Data that end are at the end of all; damaged ones are not, and others go on.
                kind, again = (
                    (SourceError, "") if damage.truncated
                    else (RefusedQueryError, " with retry_failed=true")
                )  # fmt: skip
                raise kind(f"{place} (the lines before are kept). {_REMEDY.format(again=again)}")
            else:
                # A query of its own, asked again until the file is mended.
                begun = None if damage.begun is None else damage.begun.decode("latin-1")
                rest = {**query.params, "resume_bit": damage.bit, "begun": begun}
                more = (Query("rest", rest),)
        return Answer(tuple(found.photos), more, tuple(refused), found.lines)


def _first_text(blocks: Blocks, piece: bytes) -> bytes:
    with contextlib.suppress(DamagedError):
        return b"".join(text for _, text in blocks.feed(piece))
    return b""


def _size_and_version(file: str) -> tuple[int, str]:
    """Bytes of a file, and a checksum of its beginning that tells it from another one."""
    with open(file, "rb") as stream:
        return os.path.getsize(file), f"{zlib.crc32(stream.read(_HEAD_BYTES)):08x}"


def _whole(file: str) -> bool:
    with open(file, "rb") as stream:
        stream.seek(max(0, os.path.getsize(file) - 32))
        return ends_well(stream.read())


def _no_dump(file: str, head: bytes, compressed: bool, lines: list[bytes]) -> str:
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
