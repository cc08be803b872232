"""A data set in the form of Hugging Face, as ``datasets`` opens it: splits, Parquet files, rows.

Its builders say which files belong to which split (the ``configs`` of the card, the names of
folders and files). Nothing is decoded, and no code of a data set is run.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geopak.errors import RefusedQueryError, SourceError, nearest_name
from geopak.schema.sources.huggingface import HuggingFaceOptions
from geopak.sources.hub_access import require_datasets, token_of_hub
from geopak.sources.hub_files import DataSetFiles

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class OpenedSet:
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


class DataSet:
    """A data set, opened at a revision when it is first asked for.

    Args:
        options: which splits and configuration.
        files: of the data set.
    """

    def __init__(self, options: HuggingFaceOptions, files: DataSetFiles) -> None:
        self._options = options
        self._files = files
        self._opened: dict[str, OpenedSet] = {}
        self._lock = threading.RLock()
        self._stream: tuple[str, str, int, Iterator[dict[str, Any]]] | None = None

    def resolved(self, revision: Any) -> str:
        """The commit that a revision stands for; of local files their state."""
        if self._files.root is not None or _COMMIT.fullmatch(str(revision)):
            return str(revision)
        from huggingface_hub import HfApi

        info = HfApi(token=token_of_hub()).dataset_info(
            self._options.dataset, revision=None if revision is None else str(revision)
        )
        return str(info.sha)

    def open(self, revision: str) -> OpenedSet:
        """The data set at a revision.

        Raises:
            SourceError: its files have changed, are not its own, or a split is not there.
        """
        with self._lock:
            if revision not in self._opened:
                self._opened[revision] = self._opening(revision)
            return self._opened[revision]

    def _opening(self, revision: str) -> OpenedSet:
        if self._files.root is not None and self._files.state() != revision:
            raise SourceError(
                f"The files of {self._options.dataset} have changed since the collection began "
                "to read them. Put them back, or collect them into another out=FOLDER."
            )
        datasets = require_datasets()
        if self._files.patterns is None:
            self._files.check_card(revision)
        chosen: dict[str, Any] = {"token": token_of_hub()}
        if self._files.root is None:
            path, chosen["revision"] = self._options.dataset, revision
        elif self._files.patterns is not None:
            path, chosen["data_files"] = "parquet", {"train": self._files.patterns}
        else:
            path = self._files.root
        builder = datasets.load_dataset_builder(path, self._options.config, **chosen)
        there = {str(split): list(files) for split, files in builder.config.data_files.items()}
        for path in (path for files in there.values() for path in map(str, files)):
            if self._files.patterns is None and not self._files.is_own(path, revision):
                raise self._files.foreign(path)
        for split in self._options.splits or ():
            if split not in there:
                raise SourceError(
                    f"The data set {self._files.label} has no split {split!r}."
                    f"{nearest_name(split, there)} It has: {', '.join(there)}."
                )
        wished = self._options.splits or list(there)
        is_parquet = builder.name == "parquet"
        return OpenedSet(builder, revision, {s: there[s] for s in wished}, is_parquet)

    def streams(self, opened: OpenedSet) -> Mapping[str, Any]:
        """Streams of rows by split, of those that are wanted."""
        streams = opened.builder.as_streaming_dataset()
        wished = self._options.splits
        return {s: v for s, v in streams.items() if wished is None or s in wished}

    def stream_rows(self, revision: str, split: str, start: int, most: int) -> list[dict[str, Any]]:
        """Rows of a data set that is no Parquet, without decoding; goes on where it was."""
        with self._lock:
            if self._stream is None or self._stream[:3] != (revision, split, start):
                stream = self.streams(self.open(revision))[split].decode(False)
                self._stream = (revision, split, start, iter(stream.skip(start)))
            going = self._stream[3]
            self._stream = None
            rows = [row for _, row in zip(range(most), going, strict=False)]
            self._stream = (revision, split, start + len(rows), going)
        return rows

    @contextlib.contextmanager
    def parquet(self, params: Mapping[str, Any]) -> Iterator[Any]:
        """A Parquet file by ``revision``, ``split`` and ``file``, its number there.

        Raises:
            RefusedQueryError: there are not so many files.
        """
        import pyarrow.parquet as pq

        opened = self.open(str(params["revision"]))
        files = opened.files.get(str(params["split"]), [])
        number = int(params["file"])
        if number >= len(files):
            raise RefusedQueryError(
                f"{self._files.label} has no file {number} of {params['split']}"
            )
        with self._files.opened(files[number]) as stream, pq.ParquetFile(stream) as file:
            yield file
