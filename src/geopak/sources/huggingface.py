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
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from geopak.errors import RefusedQueryError, SourceError
from geopak.schema.sources.huggingface import HuggingFaceOptions
from geopak.sources.client import Client
from geopak.sources.hub_access import require_datasets, translated
from geopak.sources.hub_dataset import DataSet
from geopak.sources.hub_files import DataSetFiles, picture_path
from geopak.sources.hub_rows import Columns, RowReader, number
from geopak.sources.picture_store import PictureStore
from geopak.sources.records import Answer, Estimate, FoundPhoto, Query, Refused
from geopak.sources.rights import license_of

if TYPE_CHECKING:
    from geopak.geo.boundaries import Outlines

_FETCHED_AT_A_TIME = 16


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
        self._files = DataSetFiles(options.dataset)
        if options.license is not None and license_of(options.license) is None:
            raise SourceError(
                f"source.license={options.license!r} is no known licence. Use a key such as "
                "cc-by-4.0, cc0 or all-rights-reserved."
            )
        told = {
            key: value
            for key, value in dataclasses.asdict(options).items()
            if key not in ("dataset", "cache_mb", "rows_per_query", "revision")
        }
        self._reading = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
        self._set = DataSet(options, self._files)
        self._rows = RowReader(options, self._files)
        self._pictures = PictureStore(work, options.cache_mb)

    def start(self) -> Iterator[Query]:
        """One query: which files there are."""
        is_local = self._files.root is not None
        revision = self._files.state() if is_local else self._options.revision
        yield Query(
            "open",
            {"dataset": self._files.label, "revision": revision, "reading": self._reading},
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
        if self._files.root is not None:
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
        revision = self._set.resolved(params["revision"])
        opened = self._set.open(revision)
        base = {"dataset": self._files.label, "revision": revision, "reading": self._reading}
        if opened.is_parquet:
            return Answer(
                more=tuple(
                    Query("file", base | {"split": split, "file": number})
                    for split, files in opened.files.items()
                    for number in range(len(files))
                )
            )
        splits = self._set.streams(opened)
        return Answer(
            more=tuple(Query("rows", base | {"split": s, "start": 0}) for s in sorted(splits))
        )

    def _answer_file(self, params: Mapping[str, Any]) -> Answer:
        with self._set.parquet(params) as file:
            groups = file.num_row_groups
        return Answer(
            more=tuple(
                Query("group", dict(params) | {"group": group, "start": 0})
                for group in range(groups)
            )
        )

    def _answer_group(self, params: Mapping[str, Any]) -> Answer:
        start, most = int(params["start"]), self._options.rows_per_query
        with self._set.parquet(params) as file:
            columns = self._rows.columns(file.schema_arrow.names)
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
        rows = self._set.stream_rows(str(params["revision"]), split, start, most)
        columns = self._rows.columns(list(rows[0])) if rows else Columns({})
        listed = []
        for k, row in enumerate(rows):
            where: dict[str, Any] = {"row": start + k}
            path = picture_path(row[columns.of["image"]])
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
        columns: Columns,
        base: Mapping[str, Any],
        more: tuple[Query, ...],
    ) -> Answer:
        """The answer of rows: the place of each, what it says, and where its picture is."""
        photos: list[FoundPhoto] = []
        refused: list[Refused] = []
        for place, row, where in rows:
            found = self._rows.photo(place, row, columns, dict(base) | dict(where))
            if isinstance(found, FoundPhoto):
                photos.append(found)
            else:
                refused.append(found)
        return Answer(tuple(photos), more, tuple(refused), len(rows))

    # --- pictures -----------------------------------------------------------------------------

    def _locate(self, photo: FoundPhoto) -> str:
        extra = photo.extra
        if "image" in extra:
            path = str(extra["image"])
            if not self._files.is_own(path, str(extra["revision"])):
                raise RefusedQueryError(f"{path!r} is no file of the data set")
            if "://" not in path:
                return Path(os.path.abspath(path)).as_uri()
            key = hashlib.sha256(path.encode()).hexdigest()[:24]
            return self._pictures.one(key, lambda: [(0, self._files.fetched(path))], 0)
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
        with self._set.parquet(extra) as file:
            of = self._rows.columns(file.schema_arrow.names).of
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
                        content = self._files.content(pictures[k].as_py(), str(extra["revision"]))
                        if content is not None:
                            yield first + k, content
                first += len(batch)

    def _stream_pictures(
        self, extra: Mapping[str, Any], start: int, most: int
    ) -> Iterator[tuple[int, bytes]]:
        rows = self._set.stream_rows(str(extra["revision"]), str(extra["split"]), start, most)
        of = self._rows.columns(list(rows[0])).of if rows else {}
        for k, row in enumerate(rows):
            content = self._files.content(row[of["image"]], str(extra["revision"]))
            if content is not None:
                yield start + k, content

    def _inside(self, latitudes: Sequence[Any], longitudes: Sequence[Any]) -> Sequence[bool]:
        if self._outlines is None:
            return [True] * len(latitudes)
        places = [(number(a), number(b)) for a, b in zip(latitudes, longitudes, strict=True)]
        usable = [
            a is not None and b is not None and abs(a) <= 90 and abs(b) <= 180 for a, b in places
        ]
        chosen: Any = [place for place, good in zip(places, usable, strict=True) if good]
        found = iter(self._outlines.province_of(chosen).tolist() if chosen else [])
        return [good and next(found) >= 0 for good in usable]

    def _translating(self, work: Callable[[Any], Any], what: Any) -> Any:
        """Runs some work; errors of the libraries become those that the collector knows."""
        try:
            return work(what)
        except (SourceError, httpx.HTTPError):
            raise
        except Exception as error:
            raise translated(error, self._options.dataset, self._files.root is not None) from error
