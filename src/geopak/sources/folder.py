"""Photos of a folder: with EXIF or XMP positions, or out of a Google Takeout."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from geopak.data.photo_facts import (
    IMAGE_SUFFIXES,
    Beside,
    Problem,
    believed,
    read_facts,
)
from geopak.data.takeout import album_title, read_json
from geopak.errors import PhotoError, RefusedQueryError, SourceError
from geopak.schema.sources.folder import FolderOptions
from geopak.sources.client import Client
from geopak.sources.records import Answer, Estimate, FoundPhoto, Query, Refused
from geopak.sources.rights import license_of

# Files of cameras that no decoder here opens, whatever their content.
_RAW_SUFFIXES = frozenset(
    {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"}
)
_HEIF_SUFFIXES = frozenset({".heic", ".heif"})
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_PHOTO_SUFFIXES = IMAGE_SUFFIXES | _RAW_SUFFIXES
_SIDECAR_SUFFIXES = frozenset({".json", ".xmp"})
# Folders in which programs keep thumbnails.
_THUMBNAILS = frozenset({"@eadir", "__macosx"})
_CONVERT = "cannot be decoded here; export it as JPEG (its sidecars then still apply)"


@dataclass(frozen=True)
class _Listing:
    """What is in one folder; paths are relative to the root, with forward slashes.

    Attributes:
        photos: names of files that may be photos, sorted.
        beside: to find their sidecars among.
        refused: everything else, with reasons.
        album: of its photos.
    """

    photos: tuple[str, ...]
    beside: Beside
    refused: tuple[Refused, ...]
    album: str | None


class FolderSource:
    """The photos of a folder and its subfolders.

    A query is asked of every folder, named with the time of its last change: a folder that gets
    new photos is asked again. Nothing is downloaded: :meth:`locate` names files.

    Args:
        options: which folder, and what is believed.
        region, outlines: not needed.

    Raises:
        SourceError: the folder is missing.
    """

    name = "folder"
    api_hosts: tuple[str, ...] = ()
    photo_hosts: tuple[str, ...] = ()
    # Whoever has the folder knows what may be done with its photos.
    licenses: tuple[str, ...] | None = None
    # Folders that have changed since are queries of their own.
    start_every_run = True

    def __init__(self, options: FolderOptions, region: Any = None, outlines: Any = None) -> None:
        self._options = options
        self._root = os.path.realpath(os.path.expanduser(options.root))
        if not os.path.isdir(self._root):
            raise SourceError(
                f"source.root={options.root} is not a folder. Name the folder that holds the "
                "photos."
            )
        license = options.license
        if license is not None and license_of(license) is None:
            raise SourceError(
                f"source.license={license!r} is no known licence. Use a key such as cc-by-4.0, "
                "cc0 or all-rights-reserved."
            )
        self._license = license_of(license)
        mark = hashlib.sha256(os.fsencode(self._root)).hexdigest()[:6]
        base = _as_text(os.path.basename(self._root)) or "root"
        self._label = (options.label or f"{base}-{mark}").strip("/")
        told = {k: v for k, v in asdict(options).items() if k not in ("root", "photos_per_query")}
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        self._reading = digest[:8]
        self._last: tuple[str, int, _Listing] | None = None

    def start(self) -> Iterator[Query]:
        """A query for every folder, in the order of their paths."""
        for folder, changed in self._folders():
            yield self._query(folder, changed)

    async def ask(self, query: Query, client: Client | None = None) -> Answer:
        """The photos of a folder, or the next of them.

        Raises:
            RefusedQueryError: the folder cannot be read.
        """
        return await asyncio.to_thread(self._answer, query)

    async def locate(self, photo: FoundPhoto, client: Client | None = None) -> str:
        """The ``file:`` address of a photo.

        Raises:
            RefusedQueryError: it is gone, or has become a link out of the folder.
        """
        path = os.path.join(self._root, str(photo.extra["path"]))
        if not self._is_inside(path) or not os.path.isfile(path):
            raise RefusedQueryError(
                f"{photo.source_id} is no longer a file inside source.root={self._options.root}."
            )
        return Path(os.path.abspath(path)).as_uri()

    def estimate(self, targets: Mapping[str, int]) -> Estimate:
        """How many folders and files there are; nothing is asked of a network."""
        folders = files = 0
        for folder, _ in self._folders():
            folders += 1
            names = os.listdir(os.path.join(self._root, folder))
            files += sum(_suffix(name) in _PHOTO_SUFFIXES for name in names)
        return Estimate(
            {"folder": (folders, folders)},
            assumptions=(
                f"{files:,} files in {folders:,} folders have the suffix of a photo; how many "
                "state a position is only known when they are read.",
                "Files are read on this machine; nothing is asked of a network.",
            ),
        )

    def _folders(self) -> Iterator[tuple[str, int]]:
        """Relative path and time of change (ns) of every folder that is read, sorted."""
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            full = os.path.join(self._root, folder)
            try:
                changed = os.stat(full).st_mtime_ns
                with os.scandir(full) as entries:
                    inner = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
            except OSError:
                # It is said when the folder is asked.
                changed, inner = 0, []
            yield folder, changed
            kept = (name for name in inner if self._skipped(name) is None and _is_text(name))
            waiting += sorted((_joined(folder, name) for name in kept), reverse=True)

    def _query(self, folder: str, changed: int, after: str | None = None) -> Query:
        params = {
            "label": self._label, "folder": folder, "changed": changed, "reading": self._reading,
        }  # fmt: skip
        return Query("folder", params if after is None else params | {"after": after})

    def _answer(self, query: Query) -> Answer:
        folder, changed = str(query.params["folder"]), int(query.params["changed"])
        after = query.params.get("after")
        try:
            listing = self._listing(folder, changed)
        except OSError as error:
            raise RefusedQueryError(
                f"The folder {folder or '.'!r} of source.root={self._options.root} cannot be "
                f"read: {error.strerror or error}. Let it be read, or move it away."
            ) from error
        rest = [name for name in listing.photos if after is None or name > after]
        names, later = (
            rest[: self._options.photos_per_query],
            rest[self._options.photos_per_query :],
        )
        read = [self._read(folder, name, listing) for name in names]
        others = listing.refused if after is None else ()
        return Answer(
            photos=tuple(photo for photo in read if isinstance(photo, FoundPhoto)),
            more=(self._query(folder, changed, names[-1]),) if later else (),
            refused=(*(photo for photo in read if isinstance(photo, Refused)), *others),
            seen=len(read) + len(others),
        )

    def _listing(self, folder: str, changed: int) -> _Listing:
        # A large folder is asked for block after block.
        if self._last and self._last[:2] == (folder, changed):
            return self._last[2]
        photos, files, refused = [], [], []
        full = os.path.join(self._root, folder)
        with os.scandir(full) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                problem = self._entry_problem(entry)
                is_folder = entry.is_dir(follow_symlinks=False)
                if problem:
                    refused.append(self._refused(folder, entry.name, problem))
                elif not is_folder:
                    files.append(entry.name)
                    if _suffix(entry.name) in _PHOTO_SUFFIXES:
                        photos.append(entry.name)
        beside = Beside(Path(full), files)
        others = [name for name in files if _suffix(name) not in _PHOTO_SUFFIXES]
        album, orphans, is_takeout = self._json_files(Path(full), others, files, beside)
        for name in others:
            if name in orphans:
                text = "there is no photo to this sidecar; unpack every part of the Takeout archive"
                refused.append(self._refused(folder, name, Problem("photo_missing", text)))
            elif _suffix(name) not in _SIDECAR_SUFFIXES:
                problem = Problem("other_file", "not the suffix of a photo")
                refused.append(self._refused(folder, name, problem))
        listing = _Listing(
            tuple(photos), beside, tuple(refused), self._album(folder, album, is_takeout, photos)
        )
        self._last = (folder, changed, listing)
        return listing

    def _album(
        self, folder: str, title: str | None, is_takeout: bool, photos: Sequence[str]
    ) -> str | None:
        """What ties the photos of a folder: not the root, nor a folder that holds many visits."""
        if self._options.album == "none" or not folder:
            return None
        # A Takeout's folders of years have no album file.
        if len(photos) > self._options.max_album_photos or (is_takeout and title is None):
            return None
        return _as_text(f"{self._label}/{folder}")

    def _json_files(
        self, full: Path, others: Sequence[str], files: Sequence[str], beside: Beside
    ) -> tuple[str | None, set[str], bool]:
        """Title of the album, Takeout sidecars without a photo, and whether there are sidecars."""
        jsons = [name for name in others if _suffix(name) == ".json"]
        if not jsons:
            return None, set(), False
        used = {beside.takeout(name)[0] for name in files if _suffix(name) not in _SIDECAR_SUFFIXES}
        title, orphans = None, set()
        for name in jsons:
            if name in used:
                continue
            try:
                content = read_json(full / name)
            except (ValueError, OSError):
                continue
            title = title or album_title(content)
            if isinstance(content, dict) and "photoTakenTime" in content:
                orphans.add(name)
        return title, orphans, bool(orphans or used - {None})

    def _entry_problem(self, entry: os.DirEntry[str]) -> Problem | None:
        if not _is_text(entry.name):
            return Problem("name_not_utf8", "rename it")
        if entry.is_symlink():
            if not self._is_inside(entry.path):
                return Problem("link_outside", "a link that leaves the folder")
            # Unlike those of the entry, these know links that lead to themselves.
            if os.path.isdir(entry.path):
                return Problem("link_to_folder", "that folder is read under its own name")
            if not os.path.isfile(entry.path):
                return Problem("link_broken", "a link to nothing")
        elif not (entry.is_file() or entry.is_dir()):
            # Reading from a pipe or device may never end.
            return Problem("not_a_file", "a pipe, socket or device")
        return self._skipped(entry.name)

    def _skipped(self, name: str) -> Problem | None:
        if name.lower() in _THUMBNAILS:
            return Problem("thumbnails", "a folder of thumbnails")
        if name.startswith(".") and not self._options.hidden:
            return Problem("hidden", "its name begins with a dot (source.hidden)")
        return None

    def _is_inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._root or real.startswith(self._root.rstrip(os.sep) + os.sep)

    def _refused(self, folder: str, name: str, problem: Problem) -> Refused:
        return Refused(self._id(folder, name), problem.reason, _as_text(problem.detail))

    def _id(self, folder: str, name: str) -> str:
        return _as_text(f"{self._label}/{_joined(folder, name)}")

    def _read(self, folder: str, name: str, listing: _Listing) -> FoundPhoto | Refused:
        path = Path(self._root, folder, name)
        suffix = _suffix(name)
        if suffix in _RAW_SUFFIXES | _HEIF_SUFFIXES:
            problem = Problem("no_decoder", f"{suffix[1:].upper()} {_CONVERT}")
            return self._refused(folder, name, problem)
        try:
            facts = read_facts(path, listing.beside)
        except PhotoError as error:
            problem = Problem("unreadable", str(error))
            if _is_heif(path):
                problem = Problem("no_decoder", f"HEIC under another suffix {_CONVERT}")
            return self._refused(folder, name, problem)
        place = believed(facts, self._options.origins, self._options.max_disagreement_km)
        if isinstance(place, Problem):
            return self._refused(folder, name, place)
        return FoundPhoto(
            source_id=self._id(folder, name),
            latitude=place.latitude,
            longitude=place.longitude,
            accuracy_km=place.accuracy_km,
            license=license_of(facts.rights, self._license),
            author=facts.author or self._options.author,
            captured_at=facts.captured_at,
            title=facts.title,
            width=facts.width,
            height=facts.height,
            album=listing.album,
            extra={"path": _joined(folder, name), "position_from": place.origin},
        )


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_text(name: str) -> bool:
    return _as_text(name) == name


def _as_text(name: str) -> str:
    """A file name as text: bytes that are no UTF-8 are written out."""
    return name.encode(errors="backslashreplace").decode()


def _is_heif(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            head = stream.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS
