"""The CSV tables of Google Landmarks v2, of millions of rows, looked up by landmark or photo.

``train.csv`` (id, url, landmark_id) has 4.1 million rows in no order; a region has some thousands
of them. It is read once, and of each row only where it begins and its landmark are kept, 12 bytes;
rows that are asked for are read from the file. ``train_attribution.csv`` (id, url, author, license,
title) is kept as numbers of authors and licences, 16 bytes a row.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from geopak.errors import SourceError

_BLOCK_BYTES = 8 << 20


def check_header(path: Path, wanted: Sequence[str], what: str) -> None:
    """Checks that a table is there and has the columns that it should.

    Raises:
        SourceError: names the file and what it has instead.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            names = next(csv.reader(file), [])
    except OSError as error:
        raise SourceError(
            f"{path} cannot be read: {error.strerror}. It should be {what} of Google Landmarks v2, "
            f"from https://s3.amazonaws.com/google-landmark/metadata/{what}."
        ) from None
    if [name.strip() for name in names[: len(wanted)]] != list(wanted):
        raise SourceError(
            f"{path} line 1: its columns are {', '.join(names) or 'none'}, in place of "
            f"{', '.join(wanted)}. Is it {what} of Google Landmarks v2?"
        )


def fingerprint(path: Path) -> str:
    """Tells a table from another one: its size and a checksum of its beginning."""
    with path.open("rb") as file:
        return f"{path.stat().st_size:x}-{zlib.crc32(file.read(1 << 16)):08x}"


def read_labels(path: Path) -> Iterator[tuple[int, str | None, str]]:
    """Landmarks with the title of their category.

    Args:
        path: of ``train_label_to_category.csv``.

    Yields:
        (line, landmark, title): the title is ``Category:…`` with blanks, as Wikimedia writes it;
        the landmark is ``None`` for a row that has none, with the row in place of the title.
    """
    check_header(path, ("landmark_id", "category"), "train_label_to_category.csv")
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        for row in _readable(rows, path):
            if not row:
                continue
            title = title_of(row[1]) if len(row) > 1 else ""
            if re.fullmatch(r"\s*[0-9]{1,18}\s*", row[0]) and title.startswith("Category:"):
                yield rows.line_num, row[0].strip(), title
            else:
                yield rows.line_num, None, ",".join(row)[:100]


def _readable(rows: Any, path: Path) -> Iterator[list[str]]:
    """The rows of a ``csv.reader``, its errors with file and line."""
    try:
        yield from rows
    except csv.Error as error:
        raise SourceError(
            f"{path} line {rows.line_num}: {error}. Download the table again; it is no longer as "
            "it was published."
        ) from None


def title_of(url: str) -> str:
    """The title of a wiki page by its address: ``Category:Lake Saiful Muluk``."""
    path = urlsplit(url.strip().replace("?", "%3F")).path
    _, found, name = path.partition("/wiki/")
    return unquote(name).replace("_", " ").strip() if found else ""


def file_name_of(url: str) -> str:
    """The name of a file of Commons by the address of its picture."""
    path = urlsplit(url.strip().replace("?", "%3F")).path
    parts = path.split("/")
    # …/commons/thumb/a/ab/Name.jpg/960px-Name.jpg is a smaller one.
    name = parts[-2] if "thumb" in parts[:-2] else parts[-1]
    return unquote(name).replace("_", " ")


@dataclass(frozen=True)
class ImageRow:
    """A row of ``train.csv``."""

    image: str
    url: str
    landmark: str


class Images:
    """``train.csv`` by landmark.

    Args:
        path: of the table.

    Raises:
        SourceError: it is missing, another table, or a row is malformed (file and line).
    """

    def __init__(self, path: Path) -> None:
        check_header(path, ("id", "url", "landmark_id"), "train.csv")
        self.path = path
        self.malformed: list[tuple[int, str]] = []
        landmarks, offsets = [], []
        for block_landmarks, block_offsets in self._blocks():
            landmarks.append(block_landmarks)
            offsets.append(block_offsets)
        landmark = np.concatenate(landmarks) if landmarks else np.empty(0, np.int32)
        offset = np.concatenate(offsets) if offsets else np.empty(0, np.int64)
        order = np.argsort(landmark, kind="stable")
        self._landmarks, self._offsets = landmark[order], offset[order]

    def __len__(self) -> int:
        return len(self._landmarks)

    def of(self, landmark: int) -> list[ImageRow]:
        """The rows of a landmark, in the order of the file."""
        first, last = np.searchsorted(self._landmarks, [landmark, landmark + 1])
        found = []
        with self.path.open("rb") as file:
            for offset in self._offsets[first:last].tolist():
                file.seek(offset)
                image, url, name = _row(file.readline())
                found.append(ImageRow(image, url, name))
        return found

    def _blocks(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        line = 2
        with self.path.open("rb") as file:
            begins = len(file.readline())
            rest = b""
            while True:
                data = file.read(_BLOCK_BYTES)
                text = rest + data
                if not data:
                    if text:
                        yield self._parse(text + b"\n", begins, line)
                    return
                cut = text.rfind(b"\n") + 1
                rest, text = text[cut:], text[:cut]
                if text:
                    yield self._parse(text, begins, line)
                    begins += len(text)
                    line += text.count(b"\n")

    def _parse(
        self, text: bytes, begins: int, line: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))
        starts = np.concatenate([[0], ends[:-1] + 1])
        # Addresses may hold commas; the landmark is behind the last one.
        values = np.empty(len(ends), np.int32)
        good = np.ones(len(ends), bool)
        for k, row in enumerate(text.split(b"\n")[:-1]):
            try:
                values[k] = int(row[row.rindex(b",") + 1 :])
            except (ValueError, OverflowError):
                good[k] = False
                if row.strip():
                    self.malformed.append((line + k, row[:100].decode("utf-8", "replace")))
        return values[good], (starts[good] + begins).astype(np.int64)


def _row(line: bytes) -> tuple[str, str, str]:
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    parts = next(csv.reader([text]), [])
    if len(parts) == 3:
        return parts[0], parts[1], parts[2]
    # A comma in an address without quotes.
    image, _, rest = text.partition(",")
    url, _, landmark = rest.rpartition(",")
    return image, url, landmark


@dataclass(frozen=True)
class AttributionRow:
    """Whose a photo is, by ``train_attribution.csv``."""

    author: str
    license: str


class Attributions:
    """``train_attribution.csv`` by photo.

    Args:
        path: of the table.

    Raises:
        SourceError: it is missing or another table.
    """

    def __init__(self, path: Path) -> None:
        wanted = ("id", "url", "author", "license", "title")
        check_header(path, wanted, "train_attribution.csv")
        self._texts: list[str] = []
        numbers: dict[str, int] = {}
        ids: list[NDArray[np.uint64]] = []
        pairs: list[NDArray[np.int32]] = []
        self.malformed = 0

        def number_of(text: str) -> int:
            number = numbers.setdefault(text, len(self._texts))
            if number == len(self._texts):
                self._texts.append(text)
            return number

        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file)
            next(rows)
            for block in _chunks(_readable(rows, path), 100_000):
                keys, both = [], []
                for row in block:
                    key = _key(row[0]) if len(row) >= 4 else None
                    if key is None:
                        self.malformed += 1
                        continue
                    keys.append(key)
                    both.append((number_of(row[2].strip()), number_of(row[3].strip())))
                ids.append(np.array(keys, np.uint64))
                pairs.append(np.array(both, np.int32).reshape(-1, 2))
        every = np.concatenate(ids) if ids else np.empty(0, np.uint64)
        order = np.argsort(every, kind="stable")
        self._ids = every[order]
        self._pairs = np.concatenate(pairs)[order] if pairs else np.empty((0, 2), np.int32)

    def of(self, image: str) -> AttributionRow | None:
        """The row of a photo; ``None``: it has none."""
        key = _key(image)
        if key is None:
            return None
        at = int(np.searchsorted(self._ids, np.uint64(key)))
        if at == len(self._ids) or int(self._ids[at]) != key:
            return None
        author, license = self._pairs[at].tolist()
        return AttributionRow(self._texts[author], self._texts[license])


def _key(image: str) -> int | None:
    """A photo's identifier, 16 hexadecimal digits, as a number."""
    try:
        return int(image, 16) if len(image) == 16 else None
    except ValueError:
        return None


def _chunks(rows: Iterable[list[str]], size: int) -> Iterator[list[list[str]]]:
    block: list[list[str]] = []
    for row in rows:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
