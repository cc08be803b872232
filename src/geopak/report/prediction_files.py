"""Answers of a predictor in a file, written as they come, so that a run that was ended goes on.

Formats of text hold one record per line between a beginning and an end. After every write the file
is whole: the next records take the place of its end. Of a file that was cut in the middle of a
write the whole records are kept. Parquet knows no such thing: its rows wait in parts beside it.

A record names the model and the state of the photo's file, so that what has changed since is asked
again.
"""

from __future__ import annotations

import contextlib
import csv
import html
import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol
from xml.etree import ElementTree

import shapely
from shapely.geometry import Polygon, mapping

from geopak.errors import GeopakError
from geopak.geo.region import Region
from geopak.report.prediction_records import (
    DECIMALS,
    Entry,
    Known,
    Setting,
    joined_ground,
    record_of,
    written,
)
from geopak.results import Prediction
from geopak.schema.commands import ANSWER_FORMATS

_PART_ROWS, _PART_SECONDS = 5_000, 60.0
# Of text, written at once where an earlier file is taken over.
_MOST_BYTES = 1 << 20


class AnswerFile(Protocol):
    """A file that answers are written to.

    Attributes:
        done: what it holds already, by the photos' names, see :func:`written`.
    """

    done: dict[str, Known]

    def write(self, entries: Sequence[Entry]) -> None:
        """Adds answers; they are in the file, or in its parts, when this returns.

        Raises:
            GeopakError: the disk is full, or no longer to be written. What was written is kept.
        """

    def close(self, complete: bool) -> None:
        """Ends the work; ``complete``: no more answers will come.

        Raises:
            GeopakError: as for :meth:`write`.
        """


def open_answers(
    path: str | Path,
    setting: Setting,
    photos: Mapping[str, str] | Iterable[str],
    overwrite: bool = False,
) -> AnswerFile:
    """Opens a file for answers, with those that it holds already.

    Args:
        path: its suffix chooses the format, of :data:`geopak.schema.commands.ANSWER_FORMATS`; none:
            JSON.
        setting: of the answers.
        photos: names of all photos that are to be in the file -> :func:`file_state`, or the names
            alone where no files are behind them; answers for others, and for what a photo's file
            was before, are taken out.
        overwrite: begin anew, whatever is there.

    Raises:
        GeopakError: unknown format; a file that is not of this kind, or holds answers of another
            model or other options; it cannot be written; or another run is writing it.
    """
    path = Path(path)
    suffix = path.suffix.lower() or ".json"
    if suffix != ".parquet" and suffix not in _TEXT:
        raise GeopakError(f"out={path}: unknown format. Known: {', '.join(ANSWER_FORMATS)}.")
    states = photos if isinstance(photos, Mapping) else dict.fromkeys(photos, "")
    wanted = {written(photo): state for photo, state in states.items()}
    with _telling(path, ""):
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".parquet":
            return _ParquetFile(path, setting, wanted, overwrite)
        return _TextFile(path, _TEXT[suffix](setting), wanted, overwrite)


@contextmanager
def _telling(path: Path, remedy: str) -> Iterator[None]:
    """Tells of what keeps a file from being written as an error of the user's."""
    try:
        yield
    except OSError as error:
        raise GeopakError(f"Cannot write out={path}: {error.strerror or error}.{remedy}") from error


_GO_ON = " What was written before is kept: make room, and the same command goes on from there."


def _lock(number: int, path: Path) -> None:
    """Makes sure that nobody else writes a file, until its descriptor is closed.

    Raises:
        GeopakError: another run does.
    """
    try:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _written_by_another(path) from error
    except (ImportError, OSError):
        return  # no such locks on this system, or this disk


def _written_by_another(path: Path) -> GeopakError:
    return GeopakError(
        f"out={path} is being written by another run: wait for it, or choose another out=."
    )


def _names(path: Path, number: int) -> bool:
    """Whether a path still names the file of a descriptor."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except FileNotFoundError:
        return False


def _foreign(path: Path, what: str) -> GeopakError:
    return GeopakError(
        f"out={path} is there already and {what}. Choose another out=, or pass overwrite=true to "
        "replace it."
    )


class _Format:
    """How a format of text begins, ends, and holds an answer in a line."""

    start, separator, end = "", "", ""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def line(self, entry: Entry) -> str:
        """The answer, in one line without a line break."""
        raise NotImplementedError

    def identify(self, line: str) -> Known:
        """What a line says of its photo.

        Raises:
            ValueError: it is no whole record.
        """
        raise NotImplementedError


class _Json(_Format):
    """An array of objects."""

    start, separator, end = "[\n", ",\n", "\n]\n"

    def line(self, entry: Entry) -> str:
        return json.dumps(record_of(entry, self.setting.model))

    def identify(self, line: str) -> Known:
        return Known.of(json.loads(line))


class _JsonLines(_Json):
    """An object per line."""

    start, separator, end = "", "\n", "\n"


class _Csv(_Format):
    """A row per photo; lists as JSON text."""

    separator, end = "\n", "\n"
    _FIRST: ClassVar = (
        "photo", "error", "province", "lat", "lon", "confidence", "confidence_km", "calibrated",
        "answer_score", "answered", "region_coverage", "region_area_km2", "region_cell_ids", "gate",
    )  # fmt: skip
    _LAST: ClassVar = (
        "hypotheses", "gps_lat", "gps_lon", "gps_error_km", "gps_in_region", "photo_state", "model"
    )  # fmt: skip

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        probabilities = [f"probability_{p.key}" for p in setting.region.provinces]
        self.columns = [*self._FIRST, *probabilities, *self._LAST]
        self.start = self._row(self.columns) + "\n"

    @staticmethod
    def _row(values: Iterable[object]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(values)
        return text.getvalue()

    def line(self, entry: Entry) -> str:
        record = record_of(entry, self.setting.model)
        record |= {f"gps_{key}": value for key, value in record.get("gps", {}).items()}
        if isinstance(entry.answer, Prediction):
            record |= {f"region_{key}": v for key, v in (record["region"] or {}).items()}
            for province in self.setting.region.provinces:
                probability = record["province_probabilities"][province.name]
                record[f"probability_{province.key}"] = probability
        return self._row(_cell(record.get(column)) for column in self.columns)

    def identify(self, line: str) -> Known:
        row = next(csv.reader([line], strict=True), [])
        return Known.of(dict(zip(self.columns, row, strict=True)))


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, (list, dict)) else value


class _GeoJson(_Format):
    """A FeatureCollection (RFC 7946): a point per photo, and where it has one its region."""

    start = '{"type": "FeatureCollection", "features": [\n'
    separator, end = ",\n", "\n]}\n"

    def line(self, entry: Entry) -> str:
        record = record_of(entry, self.setting.model)
        answer = entry.answer
        if not isinstance(answer, Prediction):
            return json.dumps(_feature(None, record | {"kind": "failure"}))
        point = {"type": "Point", "coordinates": _lonlat(answer.lon, answer.lat)}
        features = [_feature(point, record | {"kind": "prediction"})]
        if answer.region is not None and self.setting.grounds:
            ground = joined_ground(answer.region, self.setting.grounds)
            named = {"photo": record["photo"], "kind": "region", **record["region"]}
            del named["cell_ids"]
            area = mapping(shapely.set_precision(ground, 10**-DECIMALS))
            features.append(_feature(area, named))
        return ", ".join(json.dumps(feature) for feature in features)

    def identify(self, line: str) -> Known:
        return Known.of(json.loads(f"[{line}]")[0]["properties"])


def _feature(geometry: Any, properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _lonlat(lon: float, lat: float) -> list[float]:
    return [round((lon + 180) % 360 - 180, DECIMALS), round(lat, DECIMALS)]


class _Kml(_Format):
    """A folder per photo: the place, the hypotheses (hidden at first) and the region."""

    start = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<kml xmlns="http://www.opengis.net/kml/2.2"><Document><name>geopak predictions</name>'
        '<Style id="place"><IconStyle><color>ff2b50f0</color></IconStyle></Style>'
        '<Style id="hypothesis"><IconStyle><color>b0b5782a</color><scale>0.6</scale></IconStyle>'
        '</Style><Style id="region"><LineStyle><color>ffb5782a</color></LineStyle>'
        "<PolyStyle><color>40b5782a</color></PolyStyle></Style>\n"
    )
    separator, end = "\n", "\n</Document></kml>\n"

    def line(self, entry: Entry) -> str:
        record, answer = record_of(entry, self.setting.model), entry.answer
        name = _tag("name", record["photo"])
        data = {key: record[key] for key in ("photo", "photo_state", "model")}
        if not isinstance(answer, Prediction):
            data["error"] = record["error"]
            failed = name + _tag("description", record["error"]) + _extended(data)
            return f"<Folder>{name}<Placemark>{failed}</Placemark></Folder>"
        told = (
            f"{answer.province} {answer.province_probabilities[answer.province]:.0%}, "
            f"{answer.confidence:.0%} within {answer.confidence_km:g} km"
        )
        if not answer.answered:
            told += "; below abstain_below: do not rely on it"
        for key in (
            "province", "confidence", "confidence_km", "calibrated", "answer_score", "answered"
        ):  # fmt: skip
            data[key] = record[key]
        data |= {f"gps_{key}": v for key, v in record.get("gps", {}).items() if v is not None}
        inside = _tag("styleUrl", "#place") + _extended(data) + _point(answer.lon, answer.lat)
        parts = [f"<Placemark>{name}{_tag('description', told)}{inside}</Placemark>"]
        for rank, h in enumerate(answer.hypotheses, start=1):
            label = _tag("name", f"{rank}. {h.probability:.1%} {h.province}, cell {h.cell_id}")
            shown = _tag("visibility", "0") + _tag("styleUrl", "#hypothesis")
            parts.append(f"<Placemark>{label}{shown}{_point(h.lon, h.lat)}</Placemark>")
        if answer.region is not None and self.setting.grounds:
            region = answer.region
            label = _tag("name", f"{region.coverage:.0%} region, {region.area_km2:,.0f} km²")
            ground = joined_ground(region, self.setting.grounds)
            shown = _tag("visibility", "0") + _tag("styleUrl", "#region")
            area = "".join(_kml_polygon(part) for part in shapely.get_parts(ground))
            body = f"{label}{shown}<MultiGeometry>{area}</MultiGeometry>"
            parts.append(f"<Placemark>{body}</Placemark>")
        return f"<Folder>{name}{''.join(parts)}</Folder>"

    def identify(self, line: str) -> Known:
        try:
            folder = ElementTree.fromstring(line)
        except ElementTree.ParseError as error:
            raise ValueError(str(error)) from error
        return Known.of({str(d.get("name")): d.findtext("value", "") for d in folder.iter("Data")})


def _tag(name: str, text: object) -> str:
    return f"<{name}>{html.escape(str(text))}</{name}>"


def _extended(data: dict[str, Any]) -> str:
    values = (
        f'<Data name="{html.escape(key)}">{_tag("value", _cell(value))}</Data>'
        for key, value in data.items()
    )
    return f"<ExtendedData>{''.join(values)}</ExtendedData>"


def _point(lon: float, lat: float) -> str:
    east, north = _lonlat(lon, lat)
    return f"<Point><coordinates>{east},{north}</coordinates></Point>"


def _kml_polygon(polygon: Polygon) -> str:
    def ring(kind: str, coordinates: Any) -> str:
        text = " ".join(f"{x:.{DECIMALS}f},{y:.{DECIMALS}f}" for x, y in coordinates)
        inside = f"<LinearRing><coordinates>{text}</coordinates></LinearRing>"
        return f"<{kind}>{inside}</{kind}>"

    holes = "".join(ring("innerBoundaryIs", hole.coords) for hole in polygon.interiors)
    return f"<Polygon>{ring('outerBoundaryIs', polygon.exterior.coords)}{holes}</Polygon>"


class _Html(_Format):
    """A page that draws its records by itself, see :mod:`geopak.report.prediction_map`."""

    separator, end = "\n", ""
    _OPEN, _CLOSE = '<script type="application/json" class="photo">', "</script>"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.start, self.end = setting.page

    def line(self, entry: Entry) -> str:
        from geopak.report.prediction_map import page_record

        text = json.dumps(page_record(entry, record_of(entry, self.setting.model)))
        # Nothing in it may end the element.
        return self._OPEN + text.replace("<", "\\u003c") + self._CLOSE

    def identify(self, line: str) -> Known:
        if not (line.startswith(self._OPEN) and line.endswith(self._CLOSE)):
            raise ValueError("no record")
        return Known.of(json.loads(line.removeprefix(self._OPEN).removesuffix(self._CLOSE)))


_TEXT: dict[str, type[_Format]] = {
    ".csv": _Csv,
    ".json": _Json,
    ".jsonl": _JsonLines,
    ".geojson": _GeoJson,
    ".kml": _Kml,
    ".html": _Html,
}


class _TextFile:
    """A file of text that is whole after every write."""

    def __init__(self, path: Path, form: _Format, wanted: Mapping[str, str], overwrite: bool):
        self.path, self._form = path, form
        self.done: dict[str, Known] = {}
        self._at, self._empty, self._broken = 0, True, False
        # What is there stays until all that is kept of it lies beside it.
        unfinished = path.with_name(f"{path.name}.partial")
        with ExitStack() as before:
            if path.is_file():
                _lock(before.enter_context(path.open("rb")).fileno(), path)
            # Not emptied before it is known to be nobody's. Without a buffer: what could not be
            # written must not be tried again later.
            file = os.fdopen(os.open(unfinished, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
            is_own = False
            try:
                _lock(file.fileno(), path)
                if not _names(unfinished, file.fileno()):
                    raise _written_by_another(path)  # which has just put it in its place
                is_own = True
                file.truncate(0)
                self._file = file
                self._put(form.start.encode())
                self._append(() if overwrite else self._kept(wanted))
                os.replace(unfinished, path)
            except BaseException:
                file.close()
                if is_own:
                    unfinished.unlink(missing_ok=True)
                raise

    def _kept(self, wanted: Mapping[str, str]) -> Iterator[str]:
        """Lines of the file of an earlier run, each for a photo that is still as it was.

        Raises:
            GeopakError: it is another file, or its answers are of another model.
        """
        if not self.path.is_file() or not self.path.stat().st_size:
            return
        start = self._form.start.encode()
        separator = self._form.separator.rstrip("\n")
        with self.path.open("rb") as file:
            if file.read(len(start)) != start:
                raise _foreign(self.path, "holds something else, or answers of another model")
            for number, raw in enumerate(file):
                if not raw.endswith(b"\n"):
                    return  # cut off, even where what is left could be read
                line = raw.decode(errors="replace").rstrip("\n").removesuffix(separator)
                try:
                    known = self._form.identify(line)
                except (ValueError, KeyError, IndexError, TypeError, AttributeError):
                    if number == 0 and not start:
                        raise _foreign(self.path, "holds something else") from None
                    return  # the end
                if known.model != self._form.setting.model:
                    raise _foreign(self.path, "holds answers of another model or other options")
                if wanted.get(known.photo) == known.state and known.photo not in self.done:
                    self.done[known.photo] = known
                    yield line

    def _put(self, content: bytes) -> None:
        """Writes at the end of the records, which is then after this."""
        self._file.seek(self._at)
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._at += len(content)

    def _append(self, lines: Iterable[str]) -> None:
        """Puts lines, and the end after them, in the place of the end.

        Raises:
            OSError: not all could be written; the file is then as it was, where that is possible.
        """
        at, empty, end = self._at, self._empty, self._form.end.encode()
        waiting = bytearray()
        try:
            for line in lines:
                waiting += (("" if self._empty else self._form.separator) + line).encode()
                self._empty = False
                if len(waiting) > _MOST_BYTES:
                    self._put(bytes(waiting))
                    waiting.clear()
            # In one piece, so that hardly anything can come between.
            self._put(bytes(waiting) + end)
            self._at -= len(end)
        except OSError:
            self._broken = True
            with contextlib.suppress(OSError):
                self._file.truncate(at)
                self._at, self._empty = at, empty
                self._put(end)
            raise

    def write(self, entries: Sequence[Entry]) -> None:
        if entries and not self._broken:
            with _telling(self.path, _GO_ON):
                self._append(self._form.line(entry) for entry in entries)

    def close(self, complete: bool) -> None:
        self._file.close()


class _ParquetFile:
    """Rows in parts beside the file, which they become when all are there."""

    def __init__(
        self, path: Path, setting: Setting, wanted: Mapping[str, str], overwrite: bool
    ) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self._parquet, self._pa = parquet, pa
        self.path, self._setting, self._wanted = path, setting, wanted
        self._schema = _schema(pa, setting.region)
        self._parts = path.with_name(f".{path.name}.parts")
        self._broken = False
        is_new = not self._parts.is_dir()
        self._parts.mkdir(exist_ok=True)
        self._folder = os.open(self._parts, os.O_RDONLY)
        try:
            _lock(self._folder, path)
            if overwrite:
                for part in self._parts.iterdir():
                    part.unlink()
                path.unlink(missing_ok=True)
            self.done: dict[str, Known] = {}
            for source in self._sources():
                # Later parts hold what was asked again.
                self.done |= {known.photo: known for known in self._known(source)}
        except BaseException:
            os.close(self._folder)
            if is_new:
                self._parts.rmdir()
            raise
        self._waiting: list[dict[str, Any]] = []
        self._since = time.monotonic()

    def _sources(self) -> list[Path]:
        whole = [self.path] if self.path.is_file() else []
        return [*whole, *sorted(self._parts.glob("part-*.parquet"))]

    def _known(self, source: Path) -> Iterator[Known]:
        """Photos of a table that are still wanted and as they were.

        Raises:
            GeopakError: it is another table, or its answers are of another model.
        """
        columns = ["photo", "error", "answered", "gps", "photo_state", "model"]
        try:
            with self._parquet.ParquetFile(source) as file:
                if not set(columns) <= set(file.schema_arrow.names):
                    raise _foreign(self.path, f"holds something else ({source.name})")
                for batch in file.iter_batches(_PART_ROWS, columns=columns):
                    for known in map(Known.of, batch.to_pylist()):
                        if known.model != self._setting.model:
                            raise _foreign(
                                self.path, "holds answers of another model or other options"
                            )
                        if self._wanted.get(known.photo) == known.state:
                            yield known
        except (OSError, self._pa.ArrowException, KeyError, TypeError, AttributeError) as error:
            raise _foreign(self.path, f"is no table of answers ({source.name})") from error

    def write(self, entries: Sequence[Entry]) -> None:
        if self._broken:
            return
        self._waiting += (record_of(entry, self._setting.model) for entry in entries)
        is_due = time.monotonic() - self._since > _PART_SECONDS
        if len(self._waiting) >= _PART_ROWS or (is_due and self._waiting):
            self._write_part()

    def _write_part(self) -> None:
        # Numbers go on where the last run ended.
        last = max((int(p.stem[5:]) for p in self._parts.glob("part-*.parquet")), default=-1)
        part = self._parts / f"part-{last + 1:06d}.parquet"
        unfinished = part.with_suffix(".partial")
        table = self._pa.Table.from_pylist(self._waiting, self._schema)
        try:
            with _telling(self.path, _GO_ON):
                self._parquet.write_table(table, unfinished)
                os.replace(unfinished, part)
        except GeopakError:
            self._broken = True
            unfinished.unlink(missing_ok=True)
            raise
        self._waiting = []
        self._since = time.monotonic()

    def close(self, complete: bool) -> None:
        try:
            if self._waiting and not self._broken:
                self._write_part()
            if complete:
                with _telling(self.path, _GO_ON):
                    self._put_together()
        finally:
            os.close(self._folder)

    def _put_together(self) -> None:
        unfinished = self.path.with_name(f"{self.path.name}.partial")
        held: set[str] = set()
        try:
            with self._parquet.ParquetWriter(unfinished, self._schema) as writer:
                for source in self._sources():
                    for batch in self._parquet.ParquetFile(source).iter_batches(_PART_ROWS):
                        names = batch.column("photo").to_pylist()
                        states = batch.column("photo_state").to_pylist()
                        # A run that was ended while it put the parts together left them twice.
                        keep = [
                            self._is_wanted(name, state) and name not in held
                            for name, state in zip(names, states, strict=True)
                        ]
                        batch = batch.filter(self._pa.array(keep, self._pa.bool_()))
                        held |= set(batch.column("photo").to_pylist())
                        writer.write_batch(batch.cast(self._schema))
            os.replace(unfinished, self.path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        shutil.rmtree(self._parts, ignore_errors=True)

    def _is_wanted(self, photo: str, state: str) -> bool:
        return self._wanted.get(photo) == state


def _schema(pa: Any, region: Region) -> Any:
    number, text, truth = pa.float64(), pa.string(), pa.bool_()
    hypothesis = pa.struct(
        [
            ("lat", number), ("lon", number), ("probability", number), ("province", text),
            ("cell_id", pa.int64()), ("radius_km", number),
        ]
    )  # fmt: skip
    place_region = pa.struct(
        [("coverage", number), ("area_km2", number), ("cell_ids", pa.list_(pa.int64()))]
    )
    by_province = pa.struct([(name, number) for name in region.names])
    gps = pa.struct([("lat", number), ("lon", number), ("error_km", number), ("in_region", truth)])
    return pa.schema(
        [
            ("photo", text), ("error", text), ("province", text), ("lat", number), ("lon", number),
            ("confidence", number), ("confidence_km", number), ("calibrated", truth),
            ("answer_score", number), ("answered", truth), ("region", place_region),
            ("gate", number), ("province_probabilities", by_province),
            ("hypotheses", pa.list_(hypothesis)), ("gps", gps), ("photo_state", text),
            ("model", text),
        ]
    )  # fmt: skip
