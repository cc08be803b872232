"""Photos of a data set in the form of Hugging Face: on its hub, in a folder or in Parquet files.

What is read is what ``datasets`` reads: its builders say which files belong to which split (the
``configs`` of the card, the names of folders and files). Rows are then looked through without their
pictures, and pictures are taken out only of the parts of Parquet files, or the files, in which
there are photos of the region. Nothing is decoded here, and no code of a data set is run.

Forms: https://huggingface.co/docs/datasets/image_dataset (ImageFolder), image_load (the ``Image``
feature: ``{"bytes": …, "path": …}``), https://huggingface.co/docs/hub/datasets-image (Parquet).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import glob
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from geopak.errors import RefusedQueryError, SourceError, nearest_name
from geopak.schema.sources.huggingface import HuggingFaceOptions
from geopak.sources.client import Client
from geopak.sources.records import Answer, Estimate, FoundPhoto, Query, Refused
from geopak.sources.rights import license_of

if TYPE_CHECKING:
    from geopak.geo.boundaries import Outlines

TOKEN = "HF_TOKEN"
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REQUIRED = ("image", "latitude", "longitude")
# Known names of columns, where the configuration says nothing of one.
_SAME_NAME = tuple(f.name for f in dataclasses.fields(FoundPhoto) if f.name != "extra")
_FETCHED_AT_A_TIME = 16
_LARGEST_PHOTO = 200 * 10**6


def require_datasets() -> Any:
    """The library ``datasets``.

    Raises:
        SourceError: it is not installed; says how to.
    """
    try:
        import datasets
    except ImportError as error:
        raise SourceError(
            "Data sets of Hugging Face need the library datasets: pip install 'geopak[hub]' (or "
            "pip install datasets)."
        ) from error
    return datasets


@dataclass(frozen=True)
class _Columns:
    """Which column says what.

    Attributes:
        of: field -> column.
    """

    of: Mapping[str, str]

    @classmethod
    def find(
        cls, wished: Mapping[Any, str | list[str] | None], there: Sequence[str], where: str
    ) -> _Columns:
        """Looks for every field's column.

        Raises:
            SourceError: none holds the picture or a coordinate.
        """
        folded = {name.casefold(): name for name in reversed(list(there))}
        of = {}
        for field in dict.fromkeys((*_REQUIRED, *_SAME_NAME, "id", "source", *wished)):
            names = wished.get(field, field)
            names = [names] if isinstance(names, str) else names or []
            found = next((folded[n.casefold()] for n in names if n.casefold() in folded), None)
            if found is not None:
                of[field] = found
            elif field in _REQUIRED:
                hint = nearest_name(names[0] if names else field, there)
                raise SourceError(
                    f"{where} has no column for {field} ({', '.join(names) or 'none is named'})."
                    f"{hint} It has: {', '.join(there)}. Name it, source.columns.{field}=COLUMN."
                )
        return cls(of)

    def facts(self) -> list[str]:
        """The columns but the picture."""
        image = self.of["image"]
        return list(dict.fromkeys(name for name in self.of.values() if name != image))


@dataclass(frozen=True)
class _Opened:
    """A data set whose files are known.

    Attributes:
        builder: of ``datasets``.
        revision: commit on the hub, or the state of the local files.
        files: per split, addresses or paths of its files; for Parquet alone.
    """

    builder: Any
    revision: str
    files: Mapping[str, Sequence[str]]
    is_parquet: bool


class HuggingFaceSource:
    """The photos of a data set.

    The first query finds the files and pins the revision. Then there is one for every row group of
    a Parquet data set (or for so many rows of it), and for all else one after the other for so many
    rows. Requests to the hub are made, counted and repeated by ``huggingface_hub``, not by the
    collector.

    Args:
        options: which data set, and which of its columns say what.
        region: not needed.
        outlines: pictures are taken out of Parquet files only inside them; ``None``: all.
        work: folder for pictures on their way; ``None``: one that goes with the process.

    Raises:
        SourceError: ``datasets`` is missing, or the name can be none.
    """

    name = "huggingface"
    api_hosts: tuple[str, ...] = ("huggingface.co",)
    photo_hosts: tuple[str, ...] = ()

    def __init__(
        self,
        options: HuggingFaceOptions,
        region: Any = None,
        outlines: Outlines | None = None,
        work: Path | None = None,
    ) -> None:
        require_datasets()
        self._options = options
        self._outlines = outlines
        given = os.path.expanduser(options.dataset)
        self._root, self._patterns = _local(given)
        if self._root is None and not _REPOSITORY.fullmatch(options.dataset):
            raise SourceError(
                f"source.dataset={options.dataset} is neither owner/name of the hub, nor a folder, "
                "nor Parquet files that are there."
            )
        if options.license is not None and license_of(options.license) is None:
            raise SourceError(
                f"source.license={options.license!r} is no known licence. Use a key such as "
                "cc-by-4.0, cc0 or all-rights-reserved."
            )
        # Two local sets of one name must not take each other's ids.
        self._label = options.dataset if self._root is None else _local_label(given)
        told = {
            key: value
            for key, value in dataclasses.asdict(options).items()
            if key not in ("dataset", "cache_mb", "rows_per_query", "revision")
        }
        self._reading = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
        self._opened: dict[str, _Opened] = {}
        self._lock = threading.RLock()
        self._stream: tuple[str, str, int, Iterator[dict[str, Any]]] | None = None
        self._pictures = _Pictures(work, options.cache_mb)

    def start(self) -> Iterator[Query]:
        """One query: which files there are."""
        yield Query(
            "open",
            {
                "dataset": self._label,
                "revision": self._options.revision if self._root is None else self._state(),
                "reading": self._reading,
            },
        )

    async def ask(self, query: Query, client: Client | None = None) -> Answer:
        """Files of the data set, or photos of some of its rows.

        Raises:
            SourceError: there is no such data set, it may not be read, or lacks a column.
            RefusedQueryError: some of it cannot be read.
            httpx.TransportError: the hub gave no answer.
        """
        return await asyncio.to_thread(self._translating, self._answer, query)

    async def locate(self, photo: FoundPhoto, client: Client | None = None) -> str:
        """The ``file:`` address of a picture, which is taken out of the data set.

        Raises:
            RefusedQueryError: the row holds no picture.
            httpx.TransportError: the hub gave no answer.
        """
        return await asyncio.to_thread(self._translating, self._locate, photo)

    def estimate(self, targets: Mapping[str, int]) -> Estimate:
        """What is not known before the data set is opened; there is no price."""
        if self._root is not None:
            return Estimate({}, assumptions=("Files are read on this machine.",))
        return Estimate(
            {"request": (1, 1)},
            assumptions=(
                "The hub is asked for the files of the data set; how many rows they have is known "
                "only then. Reading is free.",
                "Requests to the hub are paced and repeated by huggingface_hub, not by the rate of "
                "the collection.",
            ),
        )

    # --- queries ------------------------------------------------------------------------------

    def _answer(self, query: Query) -> Answer:
        answers: dict[str, Callable[[Mapping[str, Any]], Answer]] = {
            "open": self._answer_open,
            "file": self._answer_file,
            "group": self._answer_group,
            "rows": self._answer_rows,
        }
        return answers[query.kind](query.params)

    def _answer_open(self, params: Mapping[str, Any]) -> Answer:
        revision = self._resolved(params["revision"])
        opened = self._open(revision)
        base = {"dataset": self._label, "revision": revision, "reading": self._reading}
        if opened.is_parquet:
            return Answer(
                more=tuple(
                    Query("file", base | {"split": split, "file": number})
                    for split, files in opened.files.items()
                    for number in range(len(files))
                )
            )
        splits = self._streams(opened)
        return Answer(
            more=tuple(Query("rows", base | {"split": s, "start": 0}) for s in sorted(splits))
        )

    def _answer_file(self, params: Mapping[str, Any]) -> Answer:
        with self._parquet(params) as file:
            groups = file.num_row_groups
        return Answer(
            more=tuple(
                Query("group", dict(params) | {"group": group, "start": 0})
                for group in range(groups)
            )
        )

    def _answer_group(self, params: Mapping[str, Any]) -> Answer:
        start, most = int(params["start"]), self._options.rows_per_query
        with self._parquet(params) as file:
            columns = self._columns(file.schema_arrow.names)
            table = file.read_row_group(int(params["group"]), columns=columns.facts())
        rows = table.slice(start, most).to_pylist()
        place = f"{params['split']}/{params['file']}/{params['group']}"
        return self._answer_of(
            [(f"{place}/{start + k}", row, {"row": start + k}) for k, row in enumerate(rows)],
            columns,
            {key: params[key] for key in ("revision", "split", "file", "group")},
            self._next("group", params, start + most) if start + most < len(table) else (),
        )

    def _answer_rows(self, params: Mapping[str, Any]) -> Answer:
        split, start = str(params["split"]), int(params["start"])
        most = self._options.rows_per_query
        rows = self._stream_rows(str(params["revision"]), split, start, most)
        columns = self._columns(list(rows[0])) if rows else _Columns({})
        listed = []
        for k, row in enumerate(rows):
            where: dict[str, Any] = {"row": start + k}
            path = _picture_path(row[columns.of["image"]])
            if path is not None:
                where["image"] = path
            listed.append((f"{split}/{start + k}", row, where))
        return self._answer_of(
            listed,
            columns,
            {"revision": params["revision"], "split": split},
            self._next("rows", params, start + most) if len(rows) == most else (),
        )

    def _next(self, kind: str, params: Mapping[str, Any], start: int) -> tuple[Query, ...]:
        return (Query(kind, dict(params) | {"start": start}),)

    def _answer_of(
        self,
        rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]],
        columns: _Columns,
        base: Mapping[str, Any],
        more: tuple[Query, ...],
    ) -> Answer:
        """The answer of rows: the place of each, what it says, and where its picture is."""
        photos: list[FoundPhoto] = []
        refused: list[Refused] = []
        for place, row, where in rows:
            found = self._photo(place, row, columns, dict(base) | dict(where))
            if isinstance(found, FoundPhoto):
                photos.append(found)
            else:
                refused.append(found)
        return Answer(tuple(photos), more, tuple(refused), len(rows))

    def _photo(
        self, place: str, row: Mapping[str, Any], columns: _Columns, extra: dict[str, Any]
    ) -> FoundPhoto | Refused:
        def said(field: str) -> Any:
            value = row.get(columns.of[field]) if field in columns.of else None
            return None if value == "" else value

        own = said("id")
        source_id = f"{self._label}/{place if own is None else own}"
        latitude, longitude = said("latitude"), said("longitude")
        if latitude is None or longitude is None:
            return Refused(source_id, "no_coordinate")
        values = _number(latitude), _number(longitude)
        shown = f"{latitude!r}, {longitude!r}"
        if values[0] is None or values[1] is None:
            return Refused(source_id, "coordinate_not_a_number", shown)
        if abs(values[0]) > 90 or abs(values[1]) > 180:
            return Refused(source_id, "coordinate_out_of_range", shown)
        if values == (0.0, 0.0):
            return Refused(source_id, "coordinates_zero", shown)
        if "image" in extra and not self._is_own(str(extra["image"]), str(extra["revision"])):
            return Refused(
                source_id, "picture_elsewhere", f"{extra['image']!r} is no file of the data set"
            )
        license, origin = _text(said("license")), _text(said("source"))
        if origin is not None:
            extra["source"] = origin
        if license is not None and license_of(license) is None:
            extra["license_text"] = license
        accuracy_km = _number(said("accuracy_km"))
        return FoundPhoto(
            source_id=source_id,
            latitude=values[0],
            longitude=values[1],
            accuracy_km=accuracy_km if accuracy_km is not None and accuracy_km >= 0 else None,
            license=license_of(license)
            if license is not None
            else license_of(self._options.license),
            author=_text(said("author")) or self._options.author,
            author_url=_url(said("author_url")),
            page_url=_url(said("page_url")),
            captured_at=_moment(said("captured_at")),
            title=_text(said("title")),
            width=_pixels(said("width")),
            height=_pixels(said("height")),
            album=_text(said("album")),
            extra=extra,
        )

    # --- pictures -----------------------------------------------------------------------------

    def _locate(self, photo: FoundPhoto) -> str:
        extra = photo.extra
        if "image" in extra:
            path = str(extra["image"])
            if not self._is_own(path, str(extra["revision"])):
                raise RefusedQueryError(f"{path!r} is no file of the data set")
            if "://" not in path:
                return Path(os.path.abspath(path)).as_uri()
            key = hashlib.sha256(path.encode()).hexdigest()[:24]
            return self._pictures.one(key, lambda: [(0, self._fetched(path))], 0)
        if "file" in extra:
            key = f"{extra['revision']}-{extra['split']}-{extra['file']}-{extra['group']}"
            return self._pictures.one(key, lambda: self._group_pictures(extra), int(extra["row"]))
        most = self._options.rows_per_query
        start = int(extra["row"]) // most * most
        key = f"{extra['revision']}-{extra['split']}-rows-{start}-{most}"
        return self._pictures.one(
            key, lambda: self._stream_pictures(extra, start, most), int(extra["row"])
        )

    def _group_pictures(self, extra: Mapping[str, Any]) -> Iterator[tuple[int, bytes]]:
        """Rows and pictures of a row group, of those inside the outlines."""
        with self._parquet(extra) as file:
            of = self._columns(file.schema_arrow.names).of
            wanted = [of["latitude"], of["longitude"], of["image"]]
            first = 0
            for batch in file.iter_batches(
                _FETCHED_AT_A_TIME, row_groups=[int(extra["group"])], columns=wanted
            ):
                inside = self._inside(
                    batch.column(of["latitude"]).to_pylist(),
                    batch.column(of["longitude"]).to_pylist(),
                )
                pictures = batch.column(of["image"])
                for k in range(len(batch)):
                    if inside[k]:
                        content = self._content(pictures[k].as_py(), str(extra["revision"]))
                        if content is not None:
                            yield first + k, content
                first += len(batch)

    def _stream_pictures(
        self, extra: Mapping[str, Any], start: int, most: int
    ) -> Iterator[tuple[int, bytes]]:
        rows = self._stream_rows(str(extra["revision"]), str(extra["split"]), start, most)
        of = self._columns(list(rows[0])).of if rows else {}
        for k, row in enumerate(rows):
            content = self._content(row[of["image"]], str(extra["revision"]))
            if content is not None:
                yield start + k, content

    def _content(self, value: Any, revision: str) -> bytes | None:
        """The bytes of a picture, if the row or the data set holds them."""
        if isinstance(value, Mapping) and value.get("bytes") is not None:
            value = value["bytes"]
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
        path = _picture_path(value)
        if path is None:
            return None
        if self._root is not None and "://" not in path and not os.path.isabs(path):
            path = os.path.join(self._root, path)
        return self._fetched(path) if self._is_own(path, revision) else None

    def _fetched(self, path: str) -> bytes:
        with self._file(path) as stream:
            content: bytes = stream.read(_LARGEST_PHOTO + 1)
        if len(content) > _LARGEST_PHOTO:
            raise RefusedQueryError(f"{path!r} has more than {_LARGEST_PHOTO:,} bytes")
        return content

    def _is_own(self, path: str, revision: str) -> bool:
        """Whether a picture's file belongs to the data set.

        A row may name any file of this machine and any address; neither is opened.
        """
        if self._root is None:
            own = f"hf://datasets/{self._options.dataset}@{revision}/"
            return path.startswith(own) and _is_inner(path.removeprefix(own))
        if "://" in path:
            return False
        folders = [self._root]
        snapshots, _ = os.path.split(self._root)
        if os.path.basename(snapshots) == "snapshots":
            # In the hub's cache a data set's files are links into a folder next to it.
            folders.append(os.path.join(os.path.dirname(snapshots), "blobs"))
        real = os.path.realpath(path)
        return any(real.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)

    def _inside(self, latitudes: Sequence[Any], longitudes: Sequence[Any]) -> Sequence[bool]:
        if self._outlines is None:
            return [True] * len(latitudes)
        places = [(_number(a), _number(b)) for a, b in zip(latitudes, longitudes, strict=True)]
        usable = [
            a is not None and b is not None and abs(a) <= 90 and abs(b) <= 180 for a, b in places
        ]
        chosen: Any = [place for place, good in zip(places, usable, strict=True) if good]
        found = iter(self._outlines.province_of(chosen).tolist() if chosen else [])
        return [good and next(found) >= 0 for good in usable]

    # --- the data set -------------------------------------------------------------------------

    def _columns(self, there: Sequence[str]) -> _Columns:
        return _Columns.find(self._options.columns, there, f"The data set {self._label}")

    def _resolved(self, revision: Any) -> str:
        """The commit that a revision stands for; of local files their state."""
        if self._root is not None or _COMMIT.fullmatch(str(revision)):
            return str(revision)
        from huggingface_hub import HfApi

        info = HfApi(token=token_of_hub()).dataset_info(
            self._options.dataset, revision=None if revision is None else str(revision)
        )
        return str(info.sha)

    def _state(self) -> str:
        """A mark of the local files, which changes when one of them does."""
        assert self._root is not None
        digest = hashlib.sha256()
        for path in sorted(self._local_files()):
            state = os.stat(path)
            where = os.path.relpath(path, self._root)
            digest.update(
                f"{where}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="replace")
            )
        return digest.hexdigest()[:16]

    def _local_files(self) -> Iterator[str]:
        if self._patterns is not None:
            yield from self._patterns
            return
        assert self._root is not None
        for parent, folders, names in os.walk(self._root):
            folders.sort()
            for name in names:
                yield os.path.join(parent, name)

    def _open(self, revision: str) -> _Opened:
        with self._lock:
            if revision not in self._opened:
                self._opened[revision] = self._opening(revision)
            return self._opened[revision]

    def _opening(self, revision: str) -> _Opened:
        if self._root is not None and self._state() != revision:
            raise SourceError(
                f"The files of {self._options.dataset} have changed since the collection began "
                "to read them. Put them back, or collect them into another out=FOLDER."
            )
        datasets = require_datasets()
        if self._patterns is None:
            self._check_card(revision)
        chosen: dict[str, Any] = {"token": token_of_hub()}
        if self._root is None:
            path, chosen["revision"] = self._options.dataset, revision
        elif self._patterns is not None:
            path, chosen["data_files"] = "parquet", {"train": self._patterns}
        else:
            path = self._root
        builder = datasets.load_dataset_builder(path, self._options.config, **chosen)
        there = {str(split): list(files) for split, files in builder.config.data_files.items()}
        for path in (path for files in there.values() for path in map(str, files)):
            if self._patterns is None and not self._is_own(path, revision):
                raise self._foreign(path)
        for split in self._options.splits or ():
            if split not in there:
                raise SourceError(
                    f"The data set {self._label} has no split {split!r}."
                    f"{nearest_name(split, there)} It has: {', '.join(there)}."
                )
        wished = self._options.splits or list(there)
        is_parquet = builder.name == "parquet"
        return _Opened(builder, revision, {s: there[s] for s in wished}, is_parquet)

    def _check_card(self, revision: str) -> None:
        """Looks at the files that a card names before ``datasets`` opens any of them.

        A card may name every file of this machine and every address that can be reached from it.

        Raises:
            SourceError: one is not in the data set.
        """
        for name, read in (("README.md", _card_data), (".huggingface.yaml", _yaml)):
            path = self._card_file(name, revision)
            told = read(path) if path is not None else None
            configs = told.get("configs") if isinstance(told, Mapping) else None
            for config in configs if isinstance(configs, list) else ():
                if isinstance(config, Mapping):
                    for place in _texts([config.get("data_files"), config.get("data_dir")]):
                        if not _is_inner(place):
                            raise self._foreign(place)

    def _card_file(self, name: str, revision: str) -> str | None:
        if self._root is not None:
            path = os.path.join(self._root, name)
            return path if os.path.isfile(path) else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            found: str = hf_hub_download(
                self._options.dataset,
                name,
                repo_type="dataset",
                revision=revision,
                token=token_of_hub(),
            )
        except EntryNotFoundError:
            return None
        return found

    def _foreign(self, path: str) -> SourceError:
        return SourceError(
            f"The data set {self._label} names a file that is not its own ({path[:200]!r}); it is "
            "not opened, as it may be private. Take only data sets that hold their files "
            "themselves."
        )

    def _streams(self, opened: _Opened) -> Mapping[str, Any]:
        streams = opened.builder.as_streaming_dataset()
        wished = self._options.splits
        return {s: v for s, v in streams.items() if wished is None or s in wished}

    def _stream_rows(
        self, revision: str, split: str, start: int, most: int
    ) -> list[dict[str, Any]]:
        """Rows of a data set that is no Parquet, without decoding; goes on where it was."""
        with self._lock:
            if self._stream is None or self._stream[:3] != (revision, split, start):
                stream = self._streams(self._open(revision))[split].decode(False)
                self._stream = (revision, split, start, iter(stream.skip(start)))
            going = self._stream[3]
            self._stream = None
            rows = [row for _, row in zip(range(most), going, strict=False)]
            self._stream = (revision, split, start + len(rows), going)
        return rows

    @contextlib.contextmanager
    def _parquet(self, params: Mapping[str, Any]) -> Iterator[Any]:
        import pyarrow.parquet as pq

        opened = self._open(str(params["revision"]))
        files = opened.files.get(str(params["split"]), [])
        number = int(params["file"])
        if number >= len(files):
            raise RefusedQueryError(f"{self._label} has no file {number} of {params['split']}")
        with self._file(files[number]) as stream, pq.ParquetFile(stream) as file:
            yield file

    @contextlib.contextmanager
    def _file(self, path: str) -> Iterator[Any]:
        if "://" not in path:
            with open(path, "rb") as stream:
                yield stream
            return
        from huggingface_hub import HfFileSystem

        with HfFileSystem(token=token_of_hub()).open(path, "rb") as stream:
            yield stream

    def _translating(self, work: Callable[[Any], Any], what: Any) -> Any:
        """Runs some work; errors of the libraries become those that the collector knows."""
        try:
            return work(what)
        except (SourceError, httpx.HTTPError):
            raise
        except Exception as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        name = f"the data set {self._options.dataset}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        told = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        if "OfflineModeIsEnabled" in kinds:
            return SourceError(
                f"{name[0].upper()}{name[1:]} is on the hub, and HF_HUB_OFFLINE forbids to ask it. "
                "Unset HF_HUB_OFFLINE, or name a folder."
            )
        if "RevisionNotFoundError" in kinds or (
            "DatasetNotFoundError" in kinds and "revision" in told.lower()
        ):
            return SourceError(
                f"{name[0].upper()}{name[1:]} has no such revision on the hub: {told} Name a "
                "branch, tag or commit of it, source.revision=NAME."
            )
        if kinds & {"GatedRepoError", "RepositoryNotFoundError", "DatasetNotFoundError"} or (
            status in (401, 403)
        ):
            has = "the token may not see it" if token_of_hub() else f"no token is in {TOKEN}"
            return SourceError(
                f"The hub does not show {name}: there is none of that name, or it is private or "
                f"gated ({has}). Look at its page, accept its terms there, and put a token "
                f"of https://huggingface.co/settings/tokens into {TOKEN}."
            )
        if kinds & {"DatasetsError", "EmptyDatasetError"} or isinstance(
            error, (ValueError, KeyError)
        ):
            kind = type(error).__name__
            return SourceError(f"{name[0].upper()}{name[1:]} cannot be read ({kind}): {told}")
        if isinstance(status, int) and 400 <= status < 500 and status != 429:
            return RefusedQueryError(f"The hub answers {status} for a file of {name}")
        if self._root is not None:
            return RefusedQueryError(f"A file of {name} cannot be read: {told}")
        return httpx.TransportError(f"no answer of the hub for {name} ({type(error).__name__})")


class _Pictures:
    """Pictures on their way from a data set to the collector, in files.

    Args:
        folder: for them; ``None``: one that goes with the process.
        most_mb: most of them, 10⁶ bytes; parts used last stay.
    """

    # So many parts stay whatever their size: the collector may be about to read them.
    _FEWEST = 32

    def __init__(self, folder: Path | None, most_mb: float) -> None:
        self._given = folder
        self._folder: Path | None = None
        self._most = most_mb * 1e6
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}

    def one(self, part: str, pictures: Callable[[], Any], row: int) -> str:
        """The ``file:`` address of a row's picture; all of its part are written at once.

        Raises:
            RefusedQueryError: the row has none.
        """
        with self._lock:
            making = self._making.setdefault(part, threading.Lock())
        with making:
            folder = self._place(part)
            if not folder.is_dir():
                self._write(part, folder, pictures())
            with self._lock:
                # Another part may just have taken its room.
                if part in self._sizes:
                    self._sizes.move_to_end(part)
            path = folder / str(row)
            if not path.is_file():
                raise RefusedQueryError(f"row {row} holds no picture")
            return path.as_uri()

    def _place(self, part: str) -> Path:
        with self._lock:
            if self._folder is None:
                if self._given is None:
                    self._folder = Path(tempfile.mkdtemp(prefix="geopak-"))
                    weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
                else:
                    self._folder = self._given / "pictures"
                    shutil.rmtree(self._folder, ignore_errors=True)
                    self._folder.mkdir(parents=True)
            return self._folder / hashlib.sha256(part.encode()).hexdigest()[:24]

    def _write(self, part: str, folder: Path, pictures: Any) -> None:
        new, size = folder.with_suffix(".new"), 0
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            for row, content in pictures:
                (new / str(row)).write_bytes(content)
                size += len(content)
            new.rename(folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        with self._lock:
            self._sizes[part] = size
            while sum(self._sizes.values()) > self._most and len(self._sizes) > self._FEWEST:
                old, _ = self._sizes.popitem(last=False)
                assert self._folder is not None
                name = hashlib.sha256(old.encode()).hexdigest()[:24]
                shutil.rmtree(self._folder / name, ignore_errors=True)


def token_of_hub() -> str | None:
    """The token of the hub from the environment; ``None``: there is none.

    Raises:
        SourceError: it can be none; does not show it.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise SourceError(
            f"{TOKEN} holds signs that no token has (spaces, line breaks or letters with accents). "
            "Copy it anew from https://huggingface.co/settings/tokens."
        )
    return token or None


def _card_data(path: str) -> Any:
    """The head of a card, as ``datasets`` reads it."""
    from huggingface_hub import DatasetCard

    return DatasetCard.load(path, ignore_metadata_errors=True).data.to_dict()


def _yaml(path: str) -> Any:
    import yaml

    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (Mapping, list)):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _is_inner(path: str) -> bool:
    """Whether a path or pattern stays in the folder that it is relative to."""
    parts = re.split(r"[/\\]", path)
    return not (
        "://" in path
        or "::" in path
        or path.startswith(("/", "\\", "~"))
        or re.match(r"[A-Za-z]:", path)
        or ".." in parts
    )


def _local(given: str) -> tuple[str | None, list[str] | None]:
    """The folder of a local data set and, where Parquet files are named, those."""
    if os.path.isdir(given):
        return os.path.realpath(given), None
    if not given.endswith(".parquet"):
        return None, None
    files = sorted(os.path.realpath(path) for path in glob.glob(given, recursive=True))
    if not files:
        return None, None
    return os.path.commonpath([os.path.dirname(path) for path in files]), files


def _local_label(given: str) -> str:
    real = os.path.realpath(given)
    mark = hashlib.sha256(os.fsencode(real)).hexdigest()[:6]
    base = os.path.basename(real).encode(errors="backslashreplace").decode()
    return f"{base.replace('*', '_')}-{mark}"


def _picture_path(value: Any) -> str | None:
    """Where a picture lies that the row itself does not hold."""
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return None
        value = value.get("path")
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _pixels(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 1 <= number < 1e6 else None


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, (bytes, Mapping, list)):
        return None
    return str(value).strip() or None


def _url(value: Any) -> str | None:
    text = _text(value)
    return text if text and re.match(r"https?://", text) else None


def _moment(value: Any) -> str | None:
    if isinstance(value, (datetime.datetime, datetime.date)):
        return value.isoformat()
    return _text(value)
