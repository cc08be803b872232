"""Large files of this machine or of a server, read piece by piece from any byte on."""

from __future__ import annotations

import asyncio
import os
import re
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geopak.errors import SourceError
from geopak.sources.client import Client

_HEAD_BYTES = 4096
_READ_BYTES = 1 << 20
# Before a file that broke off is gone on with.
_PAUSE_S = 0.1


@dataclass
class LocalFile:
    """A part of a file of this machine, read piece by piece."""

    path: Path

    async def pieces(self, start: int) -> AsyncGenerator[bytes, None]:
        """Its bytes from one on."""
        with self.path.open("rb") as stream:
            stream.seek(start)
            while piece := await asyncio.to_thread(stream.read, _READ_BYTES):
                yield piece


@dataclass
class RemoteFile:
    """A part of a file on a server that grants ranges, gone on with where it breaks off."""

    url: str
    client: Client
    retries: int
    size: int | None = None
    version: str | None = None

    async def pieces(self, start: int) -> AsyncGenerator[bytes, None]:
        """Its bytes from one on.

        Raises:
            SourceError: the server grants no ranges, has another file, or breaks off for good.
        """
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
            raise SourceError(changed(self.url))
        self.version, self.size = version, size


def changed(file: str) -> str:
    """The message that a file is no longer the one that was begun with."""
    return (
        f"{file} is another file than when this collection began. Put the former one back, or "
        "begin a new collection with another out=."
    )


def is_url(file: str) -> bool:
    """Whether a file is an http(s) address."""
    return file.lower().startswith(("http://", "https://"))


def size_and_version(file: str) -> tuple[int, str]:
    """Bytes of a file, and a checksum of its beginning that tells it from another one."""
    with open(file, "rb") as stream:
        return os.path.getsize(file), f"{zlib.crc32(stream.read(_HEAD_BYTES)):08x}"
