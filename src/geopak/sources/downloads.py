"""From the address of a picture to a checked file: what it is, is seen by decoding it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
import warnings
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from geopak.data.atomic import whole_file
from geopak.errors import QuotaSpentError, SourceError
from geopak.sources.addresses import ForbiddenAddressError
from geopak.sources.http import HttpClient
from geopak.sources.http_errors import (
    DeniedError,
    RefusedStatusError,
    TooLargeError,
    TryAgainError,
    UnavailableError,
)
from geopak.sources.ledger import Download
from geopak.sources.privacy import Privacy

if TYPE_CHECKING:
    from PIL import Image

FOLDER = "photos"
# What Pillow may take a file for. A JPEG with further pictures behind it is an MPO to it.
_OPENED = ("JPEG", "PNG", "WEBP")
# What our own files are called in the folder of a source, and while they are written.
_OURS = re.compile(
    r"[0-9a-f]{2}/([0-9a-f]{20}\.(jpg|png|webp)|\.[0-9a-f]{20}\.(jpg|png|webp)\.partial)"
)
# The ending that we give a file.
_ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp"}


@dataclass(frozen=True)
class PhotoLimits:
    """What a picture may be.

    Attributes:
        max_bytes: of the file.
        max_pixels: that it may say it has, before it is decoded.
        min_side_px: of the shorter side.
    """

    max_bytes: int = 40_000_000
    max_pixels: int = 80_000_000
    min_side_px: int = 224


class RejectedPhotoError(Exception):
    """A photo that cannot be had or used.

    Args:
        reason: short name.
        detail: what was there.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class UnwritableError(SourceError):
    """A folder that photos cannot be written into; it concerns all of them."""


def file_stem(source: str, source_id: str) -> str:
    """The name that a photo's file has, without an ending: made by us, not by the source."""
    return hashlib.sha256(f"{source}\n{source_id}".encode()).hexdigest()[:20]


def _decode(body: bytes, limits: PhotoLimits) -> tuple[Image.Image, str]:
    """The decoded picture and the ending for its file.

    Raises:
        RejectedPhotoError: it is no picture that can be used.
        TryAgainError: its end is missing.
    """
    from PIL import Image

    if not body:
        raise TryAgainError("an empty file")
    start = body[:200].lstrip().lower()
    with warnings.catch_warnings():
        # Size is judged below; broken EXIF data is no one's concern here.
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(io.BytesIO(body), formats=_OPENED)
        except Image.DecompressionBombError as error:
            raise RejectedPhotoError("too_many_pixels", str(error)) from None
        except Exception:
            # Readers of damaged files raise whatever they stumble over.
            is_page = start.startswith((b"<!doctype", b"<html", b"<?xml"))
            what = "a web page" if is_page else f"a file that begins with {body[:12]!r}"
            raise RejectedPhotoError("not_an_image", f"{what} in place of a photo") from None
        width, height = picture.size
        if width * height > limits.max_pixels:
            raise RejectedPhotoError(
                "too_many_pixels", f"{width} × {height}, more than {limits.max_pixels:,}"
            )
        if min(width, height) < limits.min_side_px:
            raise RejectedPhotoError(
                "too_small", f"{width} × {height}, under {limits.min_side_px} pixels"
            )
        try:
            picture.load()
        except OSError as error:
            if "truncated" in str(error):
                raise TryAgainError(f"a picture without its end ({error})") from None
            raise RejectedPhotoError("undecodable", str(error)) from None
        except Exception as error:
            raise RejectedPhotoError("undecodable", str(error)) from None
    return picture, _ENDINGS[str(picture.format)]


class Downloader:
    """Gets photos into the folder of a collection.

    Args:
        client: for pictures; ``None``: the source's photos are files.
        out: of the collection.
        limits: what is accepted.
        privacy: what is done to it.
    """

    def __init__(
        self, client: HttpClient | None, out: Path, limits: PhotoLimits, privacy: Privacy
    ) -> None:
        self.client = client
        self.out = out
        self.limits = limits
        self.privacy = privacy
        # Pictures are large: so many are decoded at a time.
        self._decoding = asyncio.Semaphore(max(1, min(4, os.cpu_count() or 1)))

    async def fetch(self, source: str, source_id: str, url: str) -> Download:
        """Gets one photo; its file is on the disk when this returns.

        Args:
            source: its name.
            source_id: of the photo.
            url: ``http(s):``, or ``file:`` where the source has files.

        Raises:
            RejectedPhotoError: it cannot be had or used, and why.
        """

        async def use(body: bytes) -> Download:
            async with self._decoding:
                return await asyncio.to_thread(self._write, source, source_id, body)

        if self.client is None:
            return await self._read(url, use)
        try:
            return await self.client.get_file(url, max_bytes=self.limits.max_bytes, use=use)
        except (QuotaSpentError, UnwritableError):
            raise
        except TooLargeError as error:
            raise RejectedPhotoError("too_large", str(error)) from None
        except ForbiddenAddressError as error:
            raise RejectedPhotoError("forbidden_address", str(error)) from None
        except DeniedError as error:
            raise RejectedPhotoError("denied", f"status {error.status}") from None
        except RefusedStatusError as error:
            gone = error.status in (404, 410)
            raise RejectedPhotoError(
                "gone" if gone else "refused", f"status {error.status}"
            ) from None
        except UnavailableError as error:
            raise RejectedPhotoError("unavailable", str(error)) from None
        except SourceError as error:
            raise RejectedPhotoError("refused", str(error)) from None

    async def _read(self, url: str, use: Callable[[bytes], Awaitable[Download]]) -> Download:
        parts = urlsplit(url)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise RejectedPhotoError("forbidden_address", f"{url} is no file of this machine")
        path = Path(unquote(parts.path))

        def read() -> bytes:
            with path.open("rb") as file:
                return file.read(self.limits.max_bytes + 1)

        try:
            body = await asyncio.to_thread(read)
        except OSError as error:
            raise RejectedPhotoError("gone", f"{error.strerror}") from None
        if len(body) > self.limits.max_bytes:
            raise RejectedPhotoError("too_large", f"more than {self.limits.max_bytes:,} bytes")
        try:
            return await use(body)
        except TryAgainError as error:
            raise RejectedPhotoError("undecodable", str(error)) from None

    def _write(self, source: str, source_id: str, body: bytes) -> Download:
        picture, ending = _decode(body, self.limits)
        digest = hashlib.sha256(body).hexdigest()
        try:
            kept, changes = self.privacy.apply(body, picture)
        except Exception as error:
            # What has not been looked at must not be kept.
            raise RejectedPhotoError("unchecked", f"{type(error).__name__}: {error}") from None
        if kept is None:
            raise RejectedPhotoError(changes, f"{changes} found (privacy.{changes}=drop)")
        stem = file_stem(source, source_id)
        ending = ".jpg" if changes else ending
        path = f"{FOLDER}/{source}/{stem[:2]}/{stem}{ending}"
        width, height = _upright_size(picture)
        try:
            write_file(self.out / path, kept)
        except OSError as error:
            raise UnwritableError(
                f"{self.out / path} cannot be written: {error.strerror or error}. Make room, or "
                "let it be written, and give the same command again."
            ) from None
        return Download(digest, path, width, height, len(kept), changes)


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height as a photo is shown; as it is stored where its EXIF data are broken."""
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(picture).size
    except Exception:
        return picture.size


def write_file(path: Path, body: bytes) -> None:
    """Writes a file whole or not at all, and returns when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_bytes(body)


def sweep(out: Path, sources: Iterable[str], wanted: set[str]) -> set[str]:
    """Removes what a kill left behind: files of ours that no photo of the ledger has.

    Only names that we give are removed, in the folders of the collection's sources, and no link is
    followed: whatever else lies there is someone's.

    Args:
        out: of the collection.
        sources: of the collection.
        wanted: paths relative to it, with forward slashes.

    Returns:
        Those of them that are not there.
    """
    missing = set(wanted)
    for source in sources:
        folder = out / FOLDER / source
        if (out / FOLDER).is_symlink() or folder.is_symlink():
            continue
        for inner, _, names in os.walk(folder):
            for name in names:
                path = Path(inner, name)
                within = path.relative_to(folder).as_posix()
                if f"{FOLDER}/{source}/{within}" in wanted:
                    missing.discard(f"{FOLDER}/{source}/{within}")
                elif _OURS.fullmatch(within) and not path.is_symlink():
                    path.unlink()
    return {name for name in missing if not (out / name).is_file()}
