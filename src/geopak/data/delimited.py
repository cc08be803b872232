"""Tables as delimited text: every row with the line it begins on, whatever the lines hold.

Text is read block by block. A block whose lines are all plain rows is parsed as a whole by
pyarrow; one that holds a line which is not (too many values, an open quote, bytes that are not
UTF-8, a value over several lines) is gone through line by line, so that one bad line costs no more
than its own row.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from geopak.errors import TableError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": ","}
# A quoted value that goes on for longer was never meant to.
MAX_LINES_OF_A_ROW = 1000
_BLOCK_BYTES = 8 << 20
# Of a block with a line that is no plain row, so many are tried together.
_LINES_AT_ONCE = 512
_OTHER_DELIMITERS = (";", "\t", ",", "|")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*")
_NO_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "compressed with gzip",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
_BOM = b"\xef\xbb\xbf"


class DelimitedFile:
    """A CSV, TSV or other delimited text file, plain or compressed with gzip.

    The delimiter is that of the suffix, unless the header has none of it and has one of ``; | ,``
    or tab instead. Lines end in LF or CRLF (or CR, in a file without LF); values may be quoted
    with ``"`` and then hold delimiters and line ends. Lines that hold nothing are no rows.

    Args:
        path: the file.
        block_bytes: how much of it is parsed at a time.

    Attributes:
        names: what the header calls the columns, as written.
        delimiter: between values.

    Raises:
        TableError: the file is empty, not text, or its header cannot be read.
    """

    def __init__(self, path: Path, block_bytes: int = _BLOCK_BYTES) -> None:
        self.path = path
        self._block_bytes = block_bytes
        try:
            with self._open() as stream:
                start = stream.read(max(block_bytes, 1 << 20))
        except (OSError, EOFError) as error:
            raise TableError(_unreadable(path, error)) from error
        for magic, what in _NO_TEXT.items():
            if start.startswith(magic):
                raise TableError(
                    f"{path} is {what}, which its name does not say. Save it as UTF-8 text, or "
                    "give it the suffix of its format."
                )
        self._bom = len(_BOM) if start.startswith(_BOM) else 0
        self._returns_only = b"\n" not in start and b"\r" in start
        start = start[self._bom :]
        if self._returns_only:
            start = start.replace(b"\r", b"\n")
        lines = [line.rstrip(b"\r") for line in start.split(b"\n", 2 * MAX_LINES_OF_A_ROW)]
        first = next((k for k, line in enumerate(lines) if line.strip()), None)
        if first is None:
            raise TableError(f"{path} has no rows and no header; it is empty.")
        try:
            head = lines[first].decode()
        except UnicodeDecodeError as error:
            raise TableError(
                f"{path} line {first + 1}: the header is not UTF-8 text ({error}). Save the table "
                "as UTF-8."
            ) from error
        if "\0" in head:
            raise TableError(f"{path} line {first + 1}: the header holds NUL bytes; no text table.")
        own = DELIMITERS[suffix_of(path)]
        others = [d for d in _OTHER_DELIMITERS if d in head]
        self.delimiter = own if own in head or not others else others[0]
        asked = 0

        def feed() -> Iterator[str]:
            nonlocal asked
            for line in lines[first : first + MAX_LINES_OF_A_ROW]:
                asked += 1
                yield line.decode(errors="replace") + "\n"

        rows = csv.reader(feed(), delimiter=self.delimiter, strict=True)
        try:
            self.names = [" ".join(name.split()) for name in next(rows)]
        except csv.Error as error:
            raise TableError(
                f"{path} line {first + 1}: the header cannot be read ({error}). It must name the "
                "columns; quotes that open must close."
            ) from error
        self._first_line = first + asked + 1

    def _open(self) -> IO[bytes]:
        if self.path.suffix.lower() == ".gz":
            return gzip.open(self.path, "rb")  # type: ignore[return-value]
        return self.path.open("rb")

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Reads all rows, in order.

        Args:
            columns: one name per column of the file; ``latitude`` and ``longitude`` help to tell a
                row from the text of a quote that was left open.

        Yields:
            Tables with ``columns`` as text without surrounding blanks, null where empty; ``line``,
            the number of the line where the row begins (the header is on line 1); and
            ``malformed``, why the row could not be read as one, else null.

        Raises:
            TableError: the file cannot be read to its end.
        """
        reader = _Rows(columns, self.delimiter)
        line, pending = 1, b""
        try:
            for data, last in self._whole_lines():
                if line < self._first_line:
                    # The header has been read; a block may end within it.
                    *skipped, data = data.split(b"\n", self._first_line - line)
                    line += len(skipped)
                    if line < self._first_line:
                        continue
                data = pending + data
                used_lines, used_bytes = 0, 0
                for table, num_lines, num_bytes in reader.parse(data, line, last):
                    used_lines += num_lines
                    used_bytes += num_bytes
                    if table.num_rows:
                        yield table
                line, pending = line + used_lines, data[used_bytes:]
        except (OSError, EOFError) as error:
            raise TableError(_unreadable(self.path, error)) from error

    def _whole_lines(self) -> Iterator[tuple[bytes, bool]]:
        """Blocks that end where a line does, and whether a block is the last."""
        with self._open() as stream:
            stream.read(self._bom)
            rest: list[bytes] = []
            while chunk := stream.read(self._block_bytes):
                if self._returns_only:
                    chunk = chunk.replace(b"\r", b"\n")
                cut = chunk.rfind(b"\n") + 1
                if cut:
                    yield b"".join([*rest, chunk[:cut]]), False
                    rest = []
                rest.append(chunk[cut:])
            yield b"".join(rest), True


def suffix_of(path: Path) -> str:
    """The lower-case suffix that names the format, without that of a compression."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return name.suffix.lower()


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path} cannot be read to its end: {error}. Check that the file is complete."


def clean_text(column: pa.Array) -> pa.Array:
    """Text without surrounding blanks; null where nothing is left."""
    trimmed = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.equal(pc.binary_length(trimmed), 0), None, trimmed)


def row_table(
    columns: Sequence[str],
    values: Sequence[pa.Array],
    line: pa.Array,
    malformed: pa.Array | None = None,
) -> pa.Table:
    """A table of rows as every reader yields them: text, ``line`` and ``malformed``."""
    if malformed is None:
        malformed = pa.nulls(len(line), pa.large_string())
    return pa.table(
        [*(clean_text(v) for v in values), line, malformed],
        names=[*columns, "line", "malformed"],
    )


class _Rows:
    """Turns lines of text into rows."""

    def __init__(self, columns: Sequence[str], delimiter: str) -> None:
        self.columns = list(columns)
        self.delimiter = delimiter
        self._numbers = [k for k, c in enumerate(columns) if c in ("latitude", "longitude")]
        self._keys = [f"f{k}" for k in range(len(self.columns))]

    def parse(self, data: bytes, line: int, last: bool) -> Iterator[tuple[pa.Table, int, int]]:
        """All rows of a block.

        Args:
            data: whole lines.
            line: number of the first.
            last: nothing follows. Otherwise a row that may go on after the block is left.

        Yields:
            Rows, and how many lines and bytes they are made of.
        """
        table = self.parse_plain(data, line) if data else None
        if table is not None:
            yield table, table.num_rows, len(data)
            return
        lines = data.split(b"\n")
        sizes = [len(text) + 1 for text in lines]
        sizes[-1] -= 1
        if not lines[-1]:
            lines.pop()
        at = 0
        while at < len(lines):
            stop = min(at + _LINES_AT_ONCE, len(lines))
            table = self.parse_plain(b"\n".join(lines[at:stop]), line + at)
            used = stop - at
            if table is None:
                table, used = self.parse_lines(lines, at, stop, line, last)
            if not used:
                return
            yield table, used, sum(sizes[at : at + used])
            at += used

    def parse_plain(self, data: bytes, line: int) -> pa.Table | None:
        """The rows of a block in which every line is a row; ``None`` if one is not."""
        if b"\0" in data or data.count(b"\r") != data.count(b"\r\n"):
            return None
        if not data.endswith(b"\n"):
            data += b"\n"
        try:
            table = arrow_csv.read_csv(
                pa.BufferReader(data),
                arrow_csv.ReadOptions(column_names=self._keys, block_size=len(data) + 1),
                arrow_csv.ParseOptions(
                    delimiter=self.delimiter, newlines_in_values=True, ignore_empty_lines=True
                ),
                arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(self._keys, pa.large_string()),
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:
            return None
        # A blank line, a value over several lines, or a quote left open makes fewer rows than
        # lines; only on the last line does it not, and then the value has the line's end.
        if table.num_rows != data.count(b"\n") or len(self.columns) == 1:
            return None
        table = table.combine_chunks()
        if any("\n" in value for value in table.slice(table.num_rows - 1).to_pylist()[0].values()):
            return None
        lines = pa.array(np.arange(line, line + table.num_rows, dtype=np.int64))
        values = [_array(column) for column in table.columns]
        return row_table(self.columns, values, lines)

    def parse_lines(
        self, lines: Sequence[bytes], start: int, stop: int, line: int, last: bool
    ) -> tuple[pa.Table, int]:
        """Rows one at a time: those that begin at ``start`` or after, and before ``stop``.

        Returns:
            The rows, and how many of the lines they are made of.
        """
        width = len(self.columns)
        rows: list[list[str | None]] = []
        numbers: list[int] = []
        malformed: list[str | None] = []
        at = start
        while at < stop:
            values, problem, used = self._row(lines, at, last)
            if not used:
                break
            if values is not None:
                rows.append([*values[:width], *[None] * (width - len(values))])
                numbers.append(line + at)
                malformed.append(problem)
            at += used
        columns = [pa.array([row[k] for row in rows], pa.large_string()) for k in range(width)]
        table = row_table(
            self.columns,
            columns,
            pa.array(numbers, pa.int64()),
            pa.array(malformed, pa.large_string()),
        )
        return table, at - start

    def _row(
        self, lines: Sequence[bytes], at: int, last: bool
    ) -> tuple[list[str] | None, str | None, int]:
        """(values, what is wrong, number of lines) of the row at a line.

        Values are ``None`` for a blank line; no lines are used when the row may go on after them.
        """
        text, problem = _decode(lines[at])
        if not text.strip(" \r"):
            return None, None, 1
        used = 1
        if '"' not in text:
            values = text.removesuffix("\r").split(self.delimiter)
            if problem is None and "\r" in text.removesuffix("\r"):
                problem = _RETURN
        else:
            values, more, wrong = self._quoted(lines, at, text)
            if wrong == _GOES_ON:
                if not last and len(lines) - at < MAX_LINES_OF_A_ROW:
                    return None, None, 0
                wrong = _OPEN_QUOTE
            if wrong is None:
                used = more
            problem = problem or wrong
            if used > 1 and problem is None:
                problem = _decode(b"\n".join(lines[at : at + used]))[1]
        if problem is None and len(values) != len(self.columns):
            problem = (
                f"has {len(values)} values where the header names {len(self.columns)} columns; "
                f"put quotes around a value that holds {self.delimiter!r}"
            )
        if problem == _NOT_UTF8:
            problem += self._where_escaped(values)
        return [value.replace("\0", "\\0") for value in values], problem, used

    def _quoted(
        self, lines: Sequence[bytes], at: int, text: str
    ) -> tuple[list[str], int, str | None]:
        """Values of a row with quotes, lines it takes, and what is wrong with it, if anything."""
        asked = 0
        stopped: str | None = None

        def feed() -> Iterator[str]:
            nonlocal asked, stopped
            yield text + "\n"
            asked = 1
            for following in lines[at + 1 : at + MAX_LINES_OF_A_ROW]:
                # A whole row within a value: the quote before it was never closed.
                if self._is_plain_row(following):
                    stopped = _OPEN_QUOTE
                    return
                asked += 1
                yield _decode(following)[0] + "\n"
            stopped = _GOES_ON if at + asked >= len(lines) else _OPEN_QUOTE

        try:
            values = next(csv.reader(feed(), delimiter=self.delimiter))
        except csv.Error as error:
            wrong = _RETURN if "new-line" in str(error) else f"cannot be read: {error}"
            return text.split(self.delimiter), 1, wrong
        if not asked:
            return values, 1, None
        # The quote goes on after the line: now every quote must be in its place.
        asked, stopped = 0, None
        try:
            values = next(csv.reader(feed(), delimiter=self.delimiter, strict=True))
        except csv.Error:
            alone = text.replace('"', "").split(self.delimiter)
            return alone, max(asked, 1), stopped or _OPEN_QUOTE
        return values, max(asked, 1), None

    def _is_plain_row(self, line: bytes) -> bool:
        if b'"' in line or line.count(self.delimiter.encode()) != len(self.columns) - 1:
            return False
        values = _decode(line)[0].removesuffix("\r").split(self.delimiter)
        return bool(self._numbers) and all(_NUMBER.fullmatch(values[k]) for k in self._numbers)

    def _where_escaped(self, values: Sequence[str]) -> str:
        for column, value in zip(self.columns, values, strict=False):
            if "\\x" in value:
                return f" (column {column!r}: {value[:60]!r})"
        return ""


_OPEN_QUOTE = "a quote opens and is not closed; close it, or double a quote that belongs to a value"
_GOES_ON = "goes on after the last line"
_RETURN = "a carriage return stands in the middle of the line; end lines with LF"
_NOT_UTF8 = "holds bytes that are not UTF-8 text; save the table as UTF-8"


def _decode(line: bytes) -> tuple[str, str | None]:
    problem = "holds a NUL byte; remove it" if b"\0" in line else None
    try:
        return line.decode(), problem
    except UnicodeDecodeError:
        return line.decode(errors="backslashreplace"), _NOT_UTF8


def _array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
