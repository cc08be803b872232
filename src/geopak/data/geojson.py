"""Photo tables as GeoJSON (RFC 7946): a FeatureCollection of points, or a feature per line.

Features are read one at a time, so that neither a large file nor a broken feature is a problem
for the others. Numbers are kept as written, with all their decimals.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from geopak.data.delimited import row_table
from geopak.errors import TableError

SUFFIXES = frozenset({".geojson", ".json", ".geojsonl", ".geojsons", ".ndjson"})
# A feature that is longer than this is taken for broken, not for long.
_LONGEST_FEATURE = 8 << 20
_CHUNK_BYTES = 4 << 20
_ROWS_OF_A_TABLE = 100_000
_DECODER = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
_BLANK = re.compile(r"[\s\x1e]*")  # with the record separator of GeoJSON text sequences
_NEXT_FEATURE = re.compile(
    r'[\n,\x1e]\s*(?=\{\s*"(?:type"\s*:\s*"Feature"|id"|properties"|geometry"))'
)
_IS_FEATURE = re.compile(r'"type"\s*:\s*"Feature"')
_IS_COLLECTION = re.compile(r'"type"\s*:\s*"FeatureCollection"')
_WGS84 = re.compile(r"(CRS:?:?84|EPSG:(?:[\d.]*:)?4326|WGS ?84)$", re.IGNORECASE)


def read_features(path: Path) -> pa.Table:
    """Reads the features of a file.

    Args:
        path: a FeatureCollection, or one Feature per line; plain or compressed with gzip.

    Returns:
        A row per feature, in order: the properties as text (nested ones as JSON), ``latitude`` and
        ``longitude`` of the point (where there is no geometry, the properties of that name),
        ``id`` of the feature if the properties have none; ``line``, the number of the feature from
        1; and ``malformed``, why a feature is no point, else null. What cannot be read up to the
        next feature is one malformed row.

    Raises:
        TableError: the file is missing, empty, no GeoJSON, or not in WGS84 degrees.
    """
    try:
        tables, rows = [], []
        names: dict[str, None] = {}
        count = 0
        for fields, problem in _Features(path):
            count += 1
            rows.append((fields, problem))
            names.update(dict.fromkeys(fields))
            if len(rows) == _ROWS_OF_A_TABLE:
                tables.append(_table(rows, list(names), count))
                rows = []
        if rows:
            tables.append(_table(rows, list(names), count))
    except (OSError, EOFError) as error:
        raise TableError(
            f"{path} cannot be read to its end: {error}. Check that the file is complete."
        ) from error
    if not tables:
        raise TableError(f"{path} has no rows: its list of features is empty.")
    for name in ("line", "malformed"):
        if name in names:
            raise TableError(
                f"{path} has a property {name!r}, a name that is needed to say where a row came "
                "from and what is wrong with it. Rename or remove it."
            )
    return pa.concat_tables(tables, promote_options="default")


def _table(
    rows: Sequence[tuple[dict[str, str | None], str | None]], names: Sequence[str], count: int
) -> pa.Table:
    problems = [problem and _escaped(problem) for _, problem in rows]
    columns = []
    for name in names:
        values = [fields.get(name) for fields, _ in rows]
        try:
            columns.append(pa.array(values, pa.large_string()))
        except UnicodeEncodeError:  # a lone surrogate: a byte that is not UTF-8, or written as \ud…
            for k, value in enumerate(values):
                escaped = value and _escaped(value)
                if escaped != value:
                    values[k] = escaped
                    problems[k] = problems[k] or (
                        f"holds characters that are not UTF-8 text (property {name!r}: "
                        f"{escaped!r}); save the file as UTF-8"
                    )
            columns.append(pa.array(values, pa.large_string()))
    line = pa.array(range(count - len(rows) + 1, count + 1), pa.int64())
    # Property names may hold such characters too.
    safe = [_escaped(name) for name in names]
    return row_table(safe, columns, line, pa.array(problems, pa.large_string()))


def _escaped(text: str) -> str:
    """Without lone surrogates, which have no place in UTF-8."""
    return text.encode(errors="backslashreplace").decode()


class _Features:
    """Iterates over (fields, what is wrong) of the features of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = ""
        self._at = 0
        self._ended = False
        self._keep = False  # all that has been read, to go back to its beginning

    def __iter__(self) -> Iterator[tuple[dict[str, str | None], str | None]]:
        opener = gzip.open if self.path.suffix.lower() == ".gz" else open
        with opener(self.path, "rb") as self._stream:
            self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
            self._more()
            self._skip_blank()
            if not self._text:
                raise TableError(f"{self.path} has no rows; it is empty.")
            if self._text[self._at] != "{":
                raise TableError(self._no_geojson(f"it begins with {self._text[self._at]!r}"))
            self._keep = True
            is_collection = self._enter_collection()
            self._keep = False
            if is_collection:
                yield from self._items(closing="]")
                self._leave_collection()
            else:
                yield from self._items(closing="")

    def _no_geojson(self, why: str) -> str:
        return (
            f"{self.path} is no GeoJSON: {why}. It must be a FeatureCollection of points, or hold "
            "one Feature per line."
        )

    def _more(self) -> bool:
        """Reads on; false at the end of the file."""
        chunk = self._stream.read(_CHUNK_BYTES)
        self._ended = not chunk
        kept = 0 if self._keep else self._at
        self._text = self._text[kept:] + self._decoder.decode(chunk, final=self._ended)
        self._at -= kept
        return not self._ended

    def _skip_blank(self) -> str:
        """The next character that is no blank; empty at the end of the file."""
        while True:
            match = _BLANK.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _value(self) -> Any:
        """The JSON value here.

        Raises:
            ValueError: there is none, or it does not end.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Cut off by the end of what has been read, or broken?
                near_end = len(self._text) - error.pos < 16 or "Unterminated" in error.msg
                if not near_end or len(self._text) - self._at > _LONGEST_FEATURE:
                    raise
                if not self._more():
                    raise
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            else:
                # A number or word may go on.
                if end == len(self._text) and not self._ended and self._more():
                    continue
                self._at = end
                return value

    def _enter_collection(self) -> bool:
        """Goes to the first feature of a collection; false if the file is one feature per line."""
        start = self._at
        why = "it has no list of features"
        self._at += 1
        try:
            while self._skip_blank() not in ("", "}"):
                key = self._value()
                if self._skip_blank() != ":":
                    break
                self._at += 1
                if self._skip_blank() == "[" and key == "features":
                    self._at += 1
                    return True
                value = self._value()
                if key == "type" and value == "Feature":
                    break
                self._check_crs(key, value)
                if self._skip_blank() != ",":
                    break
                self._at += 1
        except ValueError as error:
            if isinstance(error, TableError):
                raise
            why = str(error)
        if not _IS_FEATURE.search(self._text) or _IS_COLLECTION.search(self._text):
            raise TableError(self._no_geojson(why))
        self._at = start
        return False

    def _leave_collection(self) -> None:
        """What follows the features, for the reference system that may stand there."""
        try:
            while self._skip_blank() == ",":
                self._at += 1
                self._skip_blank()
                key = self._value()
                if self._skip_blank() != ":":
                    return
                self._at += 1
                self._skip_blank()
                self._check_crs(key, self._value())
        except ValueError as error:
            if isinstance(error, TableError):
                raise

    def _check_crs(self, key: object, value: object) -> None:
        if key != "crs" or not isinstance(value, dict):
            return
        name = str((value.get("properties") or {}).get("name", ""))
        if name and not _WGS84.search(name):
            raise TableError(
                f"{self.path} is in the reference system {name}, not in WGS84 degrees. Save it in "
                "EPSG:4326 (ogr2ogr -t_srs EPSG:4326)."
            )

    def _items(self, closing: str) -> Iterator[tuple[dict[str, str | None], str | None]]:
        while True:
            following = self._skip_blank()
            if following == "," and closing:
                self._at += 1
                continue
            if following == "" and closing:
                yield {}, "the file ends within its list of features; it is not complete"
                return
            if following in ("", closing):
                self._at += 1
                return
            try:
                feature = self._value()
            except ValueError as error:
                yield {}, f"cannot be read as JSON: {getattr(error, 'msg', error)}"
                if not self._resume():
                    return
                continue
            yield _fields(feature)

    def _resume(self) -> bool:
        """Goes to what looks like the beginning of the next feature."""
        self._at += 1
        while True:
            match = _NEXT_FEATURE.search(self._text, self._at)
            if match:
                self._at = match.end()
                return True
            self._at = max(self._at, len(self._text) - 200)
            if not self._more():
                return False


def _fields(feature: object) -> tuple[dict[str, str | None], str | None]:
    if not isinstance(feature, dict) or feature.get("type", "Feature") != "Feature":
        what = feature.get("type") if isinstance(feature, dict) else feature
        return {}, f"is {str(what)[:60]!r}, not a Feature"
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        return {}, "its properties are no JSON object"
    fields = {str(key).strip(): _text(value) for key, value in properties.items()}
    if fields.get("id") is None and feature.get("id") is not None:
        fields["id"] = _text(feature["id"])
    geometry = feature.get("geometry")
    if geometry is None:
        return fields, None
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind != "Point":
        return fields, f"its geometry is {kind or 'no object'}, not a Point"
    place = geometry.get("coordinates")
    if not isinstance(place, list) or len(place) < 2:
        if place == []:  # an empty point, as RFC 7946 has it
            return {**fields, "longitude": None, "latitude": None}, None
        return fields, "its point has no coordinates [longitude, latitude]"
    return {**fields, "longitude": _text(place[0]), "latitude": _text(place[1])}, None


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False)
