"""Files of a data set, on the hub or on this machine: which are its own, and what is in them.

A card or a row may name every file of this machine and every address that can be reached from it;
none is opened that is not the data set's own.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from geopak.errors import RefusedQueryError, SourceError
from geopak.sources.hub_access import token_of_hub

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LARGEST_PHOTO = 200 * 10**6


class DataSetFiles:
    """The files of one data set.

    Args:
        dataset: ``owner/name`` on the hub, a folder, or Parquet files (a path or pattern).

    Attributes:
        label: names the data set in identifiers of photos.
        root: folder of a data set of this machine.
        patterns: where Parquet files are named, those.

    Raises:
        SourceError: the name can be none.
    """

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset
        given = os.path.expanduser(dataset)
        self.root, self.patterns = _local(given)
        if self.root is None and not _REPOSITORY.fullmatch(dataset):
            raise SourceError(
                f"source.dataset={dataset} is neither owner/name of the hub, nor a folder, "
                "nor Parquet files that are there."
            )
        # Two local sets of one name must not take each other's ids.
        self.label = dataset if self.root is None else _local_label(given)

    def is_own(self, path: str, revision: str) -> bool:
        """Whether a picture's file belongs to the data set.

        A row may name any file of this machine and any address; neither is opened.
        """
        if self.root is None:
            own = f"hf://datasets/{self.dataset}@{revision}/"
            return path.startswith(own) and _is_inner(path.removeprefix(own))
        if "://" in path:
            return False
        folders = [self.root]
        snapshots, _ = os.path.split(self.root)
        if os.path.basename(snapshots) == "snapshots":
            # In the hub's cache a data set's files are links into a folder next to it.
            folders.append(os.path.join(os.path.dirname(snapshots), "blobs"))
        real = os.path.realpath(path)
        return any(real.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[Any]:
        """One of them, open to read."""
        if "://" not in path:
            with open(path, "rb") as stream:
                yield stream
            return
        from huggingface_hub import HfFileSystem

        with HfFileSystem(token=token_of_hub()).open(path, "rb") as stream:
            yield stream

    def fetched(self, path: str) -> bytes:
        """All bytes of a picture's file.

        Raises:
            RefusedQueryError: it has more than a photo has.
        """
        with self.opened(path) as stream:
            content: bytes = stream.read(_LARGEST_PHOTO + 1)
        if len(content) > _LARGEST_PHOTO:
            raise RefusedQueryError(f"{path!r} has more than {_LARGEST_PHOTO:,} bytes")
        return content

    def content(self, value: Any, revision: str) -> bytes | None:
        """The bytes of a picture, if the row or the data set holds them."""
        if isinstance(value, Mapping) and value.get("bytes") is not None:
            value = value["bytes"]
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
        path = picture_path(value)
        if path is None:
            return None
        if self.root is not None and "://" not in path and not os.path.isabs(path):
            path = os.path.join(self.root, path)
        return self.fetched(path) if self.is_own(path, revision) else None

    def state(self) -> str:
        """A mark of the local files, which changes when one of them does."""
        assert self.root is not None
        digest = hashlib.sha256()
        for path in sorted(self._local_files()):
            state = os.stat(path)
            where = os.path.relpath(path, self.root)
            digest.update(
                f"{where}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="replace")
            )
        return digest.hexdigest()[:16]

    def _local_files(self) -> Iterator[str]:
        if self.patterns is not None:
            yield from self.patterns
            return
        assert self.root is not None
        for parent, folders, names in os.walk(self.root):
            folders.sort()
            for name in names:
                yield os.path.join(parent, name)

    def check_card(self, revision: str) -> None:
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
                            raise self.foreign(place)

    def _card_file(self, name: str, revision: str) -> str | None:
        if self.root is not None:
            path = os.path.join(self.root, name)
            return path if os.path.isfile(path) else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            found: str = hf_hub_download(
                self.dataset,
                name,
                repo_type="dataset",
                revision=revision,
                token=token_of_hub(),
            )
        except EntryNotFoundError:
            return None
        return found

    def foreign(self, path: str) -> SourceError:
        """The error that a file is named which is not the data set's."""
        return SourceError(
            f"The data set {self.label} names a file that is not its own ({path[:200]!r}); it is "
            "not opened, as it may be private. Take only data sets that hold their files "
            "themselves."
        )


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


def picture_path(value: Any) -> str | None:
    """Where a picture lies that the row itself does not hold."""
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return None
        value = value.get("path")
    return value if isinstance(value, str) and value else None
