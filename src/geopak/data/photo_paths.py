"""Paths of photos: relative to the data root, inside it, and of a file that is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# A folder in which fewer files are looked for is not listed as a whole.
_WORTH_LISTING = 32

# What is wrong with a path: reason and detail, in the order of the codes from 1.
_ABSOLUTE, _LEAVES, _NO_NAME, _LINK, _MISSING = range(1, 6)
_PROBLEMS = {
    _ABSOLUTE: ("path_outside_root", "{!r} is absolute; make it relative to root"),
    _LEAVES: ("path_outside_root", "{!r} leaves the data root"),
    _NO_NAME: ("file_missing", "{!r} is not a file name"),
    _LINK: ("path_outside_root", "{!r} is a link that leaves the data root"),
    _MISSING: ("file_missing", "there is no file {!r} under the data root"),
}


class ResolvedPaths:
    """Paths of a table, checked against the data root.

    Folders that hold many of the files are listed once; a file is looked for by itself only where
    that does not find it. Links are followed, and may not leave the root.

    Args:
        paths: (N,) text without missing values.
        root: folder that holds all photos.

    Attributes:
        normal: (N,) text; the paths without ``.``, ``..`` and doubled slashes.
    """

    def __init__(self, paths: pd.Series, root: str | Path) -> None:
        self._paths = paths
        self._root = os.path.realpath(root)
        array = pa.array(paths.astype("string"), pa.large_string())
        normal = _normal(array)
        self._code = np.zeros(len(array), np.int8)
        self._mark(_LEAVES, pc.match_substring_regex(normal, r"^\.\.(/|$)"))
        self._mark(_NO_NAME, pc.match_substring(array, "\0"))
        self._mark(_ABSOLUTE, pc.match_substring_regex(array, r"^([/\\]|[A-Za-z]:)"))
        self._inside: dict[str, bool] = {}
        self._look(normal)
        self.normal = pd.Series(pd.array(normal, dtype="string"), paths.index)

    def problems(self) -> Iterator[tuple[str, NDArray[np.bool_], pd.Series]]:
        """Yields reason, (N,) which paths it holds against, and what to say of each of those."""
        for code, (reason, text) in _PROBLEMS.items():
            rows = self._code == code
            if rows.any():
                yield reason, rows, self._paths[rows].map(lambda p, t=text: _say(t, p))

    def _mark(self, code: int, rows: pa.Array) -> None:
        self._code[rows.to_numpy(zero_copy_only=False)] = code

    def _look(self, normal: pa.Array) -> None:
        """Marks links that leave the root, and files that are not there."""
        open_rows = np.flatnonzero(self._code == 0)
        names = normal.take(pa.array(open_rows))
        encoded = pc.replace_substring_regex(names, r"/?[^/]*$", "").dictionary_encode()
        folder_id = encoded.indices.to_numpy()
        folders = encoded.dictionary.to_pylist()
        rows_of = np.bincount(folder_id, minlength=len(folders))
        inside = np.array([self._is_inside(os.path.join(self._root, f)) for f in folders], bool)
        found: list[str] = []
        for folder, count, is_inside in zip(folders, rows_of.tolist(), inside, strict=True):
            if is_inside and count >= _WORTH_LISTING:
                found += _plain_files(self._root, folder)
        listed = pc.is_in(names, value_set=_utf8_only(found))
        self._code[open_rows[~inside[folder_id]]] = _LINK
        alone = ~listed.to_numpy(zero_copy_only=False) & inside[folder_id]
        for k in np.flatnonzero(alone):
            self._code[open_rows[k]] = self._look_for(names[k].as_py())

    def _look_for(self, path: str) -> int:
        full = os.path.join(self._root, path)
        is_file = os.path.isfile(full)
        if os.path.islink(full) and not self._is_inside(os.path.dirname(os.path.realpath(full))):
            return _LINK
        return 0 if is_file else _MISSING

    def _is_inside(self, folder: str) -> bool:
        if folder not in self._inside:
            real = os.path.realpath(folder)
            within = self._root.rstrip(os.sep) + os.sep
            self._inside[folder] = real == self._root or real.startswith(within)
        return self._inside[folder]


def _normal(paths: pa.Array) -> pa.Array:
    """What ``os.path.normpath`` makes of relative paths."""
    normal = pc.replace_substring_regex(paths, "/{2,}", "/")
    normal = pc.replace_substring_regex(normal, r"^(\./)+", "")
    normal = pc.replace_substring_regex(normal, r"(/\.)+(/|$)", r"\2")
    normal = pc.replace_substring_regex(normal, "([^/])/$", r"\1")
    # Those that go up, and those that were all dots.
    special = pc.match_substring_regex(normal, r"(^|/)\.\.(/|$)|^\.?$")
    rows = np.flatnonzero(special.to_numpy(zero_copy_only=False))
    if not len(rows):
        return normal
    written = [os.path.normpath(path).replace(os.sep, "/") for path in paths.take(rows).to_pylist()]
    mask = np.zeros(len(paths), bool)
    mask[rows] = True
    return pc.replace_with_mask(normal, pa.array(mask), pa.array(written, pa.large_string()))


def _plain_files(root: str, folder: str) -> list[str]:
    """Paths of the files in a folder that are no links; none if it cannot be listed."""
    before = f"{folder}/" if folder else ""
    try:
        with os.scandir(os.path.join(root, folder)) as entries:
            names = [e.name for e in entries if e.is_file(follow_symlinks=False)]
    except (OSError, ValueError):
        return []
    return [before + name for name in names]


def _utf8_only(names: list[str]) -> pa.Array:
    """As an array, without names that are not UTF-8: no table can hold one."""
    try:
        return pa.array(names, pa.large_string())
    except UnicodeEncodeError:
        return pa.array([n for n in names if _is_utf8(os.fsencode(n))], pa.large_string())


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _say(text: str, path: str) -> str:
    hint = "; write folders with /" if text is _PROBLEMS[_MISSING][1] and "\\" in path else ""
    return text.format(path) + hint
