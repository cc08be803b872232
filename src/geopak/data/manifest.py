"""The manifest of a prepared set: which inputs, settings and versions made it, and what is in it.

Two people have the same set when its ``set_id`` is the same; where it differs, the manifests say
what does.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import geopak
from geopak.errors import PreparedSetError

FILE_NAME = "manifest.json"
# Libraries whose version may change what a step computes.
_LIBRARIES = ("numpy", "scipy", "pandas", "pyarrow", "shapely", "pyproj", "hdbscan", "pillow")
_CHUNK_BYTES = 1 << 22


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def table_sha256(table: pd.DataFrame, columns: Sequence[str]) -> str:
    """Hexadecimal SHA-256 of the values of a table's columns, in the order of the rows.

    Depends on the values alone, not on the file format or a library's version: numbers count as
    little-endian 64-bit, text as UTF-8, each text preceded by its length; a missing text differs
    from an empty one.

    Args:
        table: holds the columns.
        columns: names, in the order in which they are hashed.
    """
    digest = hashlib.sha256()
    for column in columns:
        values = table[column]
        digest.update(f"{column}\0".encode())
        if pd.api.types.is_bool_dtype(values) or pd.api.types.is_integer_dtype(values):
            digest.update(values.to_numpy(np.int64).astype("<i8").tobytes())
        elif pd.api.types.is_float_dtype(values):
            digest.update(values.to_numpy(np.float64).astype("<f8").tobytes())
        else:
            texts = [b"" if t is pd.NA or t is None else str(t).encode() for t in values]
            missing = values.isna().to_numpy()
            lengths = np.array([len(t) for t in texts], "<i8")
            lengths[missing] = -1
            digest.update(lengths.tobytes())
            digest.update(b"".join(texts))
    return digest.hexdigest()


def photo_files_sha256(paths: pd.Series, sha256: pd.Series) -> str:
    """Hexadecimal SHA-256 of all photo files together: of their paths and contents, by path.

    Args:
        paths: (N,) relative to the data root.
        sha256: (N,) hexadecimal hash of each file.
    """
    table = pd.DataFrame({"path": paths.to_numpy(object), "sha256": sha256.to_numpy(object)})
    table = table.drop_duplicates().sort_values(["path", "sha256"], kind="stable")
    return table_sha256(table, ("path", "sha256"))


def make_manifest(
    *,
    region: Mapping[str, Any],
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    content: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest, but for the hashes of the files that are yet to be written.

    Args:
        region: the region with all its settings, as ``Region.to_dict`` gives it.
        config: settings of every step, and the seed.
        inputs: hashes of what was read.
        content: hashes of what the set consists of; the ``set_id`` is made of these alone.

    Returns:
        Plain containers.
    """
    return {
        "set_id": hashlib.sha256(_canonical(content).encode()).hexdigest()[:16],
        "geopak": geopak.__version__,
        "content": dict(content),
        "inputs": dict(inputs),
        "config": dict(config),
        "region": dict(region),
        "made_with": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _LIBRARIES},
        },
    }


def write_manifest(manifest: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Adds the hash of every file in a folder and writes ``manifest.json`` beside them.

    Returns:
        The manifest as written.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != FILE_NAME)
    whole = {**manifest, "files": {name: file_sha256(folder / name) for name in names}}
    text = json.dumps(whole, indent=2, ensure_ascii=False)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")
    return whole


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Reads the manifest of a prepared set.

    Raises:
        PreparedSetError: there is none, or it is broken.
    """
    path = Path(folder) / FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PreparedSetError(
            f"No {FILE_NAME} in {folder}: it is no prepared set, or one of an older version. Make "
            "one: python -m geopak.prepare"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PreparedSetError(f"{path} cannot be read: {error}. Prepare the set again.") from error
    needed = {"content": dict, "files": dict, "config": dict, "region": dict, "set_id": str}
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), kind) for key, kind in needed.items()
    ):
        raise PreparedSetError(f"{path} is no manifest of a prepared set. Prepare it again.")
    return content


def split_settings(folder: str | Path) -> dict[str, Any]:
    """How a prepared set was split: ``method``, ``block_km``, …; empty where nothing says so."""
    try:
        settings = read_manifest(folder)["config"].get("split")
    except PreparedSetError:
        return {}
    return dict(settings) if isinstance(settings, Mapping) else {}


def changed_files(manifest: Mapping[str, Any], folder: str | Path) -> list[str]:
    """Names of the set's files that are missing or no longer what the manifest says."""
    folder = Path(folder)
    return [
        name
        for name, sha256 in manifest["files"].items()
        if not (folder / name).is_file() or file_sha256(folder / name) != sha256
    ]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """In words, what differs between two sets: content first, then inputs, settings, versions."""
    lines = []
    for section in ("content", "inputs", "config", "region", "geopak", "made_with"):
        first = dict(_flat(one.get(section), section))
        second = dict(_flat(other.get(section), section))
        for key in sorted(first.keys() | second.keys()):
            a, b = first.get(key, "nothing"), second.get(key, "nothing")
            if a != b:
                lines.append(f"{key}: {a} here, {b} there")
    return lines


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flat(part, f"{key}.{name}")
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for position, item in enumerate(value):
            # Provinces and files are better known by their name than by their position.
            name = item.get("key") or item.get("file") if isinstance(item, Mapping) else None
            yield from _flat(item, f"{key}.{name or position}")
    else:
        yield key, value


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
