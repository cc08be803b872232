"""YFCC100M: photos of Flickr under Creative Commons, from the public metadata dump.

The dump is a text of about 100 million lines (:mod:`yfcc_lines <geopak.sources.yfcc_lines>`), in
one bzip2 file of about 15 GB or in ten parts.

A file is cut into parts of some megabytes, each a query of its own (:mod:`text_parts
<geopak.sources.text_parts>`): parts are read in any order, several at a time, and a run that was
killed reads only those that have no answer. Nothing but a part's photos stays in memory.

Of lines that are not looked at closely each part says how many there were and why.

B. Thomee and others, "YFCC100M: The New Data in Multimedia Research", CACM 59(2), 2016.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from geopak.errors import RefusedQueryError, SourceError
from geopak.schema.sources.yfcc100m import Yfcc100mOptions
from geopak.sources.bzip2 import Blocks, DamagedError, ends_well
from geopak.sources.client import Client
from geopak.sources.large_files import LocalFile, RemoteFile, changed, is_url, size_and_version
from geopak.sources.records import Answer, Estimate, FoundPhoto, Query, Refused
from geopak.sources.text_parts import PartReader
from geopak.sources.yfcc_lines import Findings, LineFilter, layout_of, why_no_dump

if TYPE_CHECKING:
    from geopak.geo.boundaries import Outlines
    from geopak.geo.region import Region

log = logging.getLogger(__name__)

# Hosts of the pictures that the dump names, and where these redirect to.
_DUMP_HOSTS = (
    "live.staticflickr.com",
    *(
        f"farm{k}.{name}"
        for k in range(1, 11)
        for name in ("staticflickr.com", "static.flickr.com")
    ),
)
_REMEDY = (
    "Download the file again, whole, to the same place, and start again{again}; or go without what "
    "is missing: source.skip_damaged=true."
)
# Text is looked through so much at a time.
_CHUNK_BYTES = 4 << 20
_LINES_PER_MB = 7000


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
                size, version = size_and_version(file)
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

    def _open(self, params: Mapping[str, Any], client: Client | None) -> LocalFile | RemoteFile:
        file, version, size = params["file"], params.get("version"), params.get("size")
        if is_url(file):
            assert client is not None
            return RemoteFile(file, client, self.options.retries, size, version)
        if not os.path.isfile(file):
            raise SourceError(f"{file} is no longer there. Put it back, and start again.")
        if version is not None and size_and_version(file)[1] != version:
            raise SourceError(changed(file))
        return LocalFile(Path(file))

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
            raise SourceError(why_no_dump(file, bytes(head), bool(compressed), lines))
        base: dict[str, Any] = {
            "file": file, "columns": width, "compressed": bool(compressed), **self._reading,
        }  # fmt: skip
        if isinstance(source, RemoteFile):
            size = source.size or len(head)
            return Answer(
                more=self._parts({**base, "version": source.version, "size": size}, 0, size)
            )
        size, base["version"] = size_and_version(file)
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


def _whole(file: str) -> bool:
    with open(file, "rb") as stream:
        stream.seek(max(0, os.path.getsize(file) - 32))
        return ends_well(stream.read())
