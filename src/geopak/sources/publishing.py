"""Photos and their table as a data set of Hugging Face, in a folder or on the hub.

The forms are those of https://huggingface.co/docs/datasets/image_dataset: an ImageFolder (photos
with a ``metadata`` file beside them that names each in ``file_name``), or Parquet files whose
column ``image`` holds the bytes (the ``Image`` feature). The metadata of an ImageFolder is Parquet
too: in CSV the types are guessed per split, and a column that is empty or all digits in one of them
keeps ``datasets`` from loading the set; JSON Lines turn dates into timestamps.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from geopak import __version__
from geopak.data import coordinates
from geopak.data.atomic import replaced_folder, whole_file
from geopak.data.ingest import read_sources, read_split_table
from geopak.data.photo_paths import ResolvedPaths
from geopak.errors import ConfigError, SourceError, nearest_name
from geopak.schema.publishing import PublishConfig
from geopak.sources import licenses
from geopak.sources.hub_access import TOKEN, require_datasets, token_of_hub
from geopak.sources.publishing_card import Contents, card
from geopak.sources.rights import license_of

# Columns of a published set beside the picture, with their types; one that no photo fills is left
# out.
COLUMNS: dict[str, pa.DataType] = {
    "id": pa.string(),
    "latitude": pa.float64(),
    "longitude": pa.float64(),
    "province": pa.string(),
    "source": pa.string(),
    "license": pa.string(),
    "license_url": pa.string(),
    "author": pa.string(),
    "author_url": pa.string(),
    "captured_at": pa.string(),
    "url": pa.string(),
    "title": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "album": pa.string(),
    "accuracy_km": pa.float64(),
    "changes": pa.string(),
}
INDEX = "publication.json"
_ALWAYS = ("id", "latitude", "longitude", "license")
# What Pillow opens them by; a JPEG of several pictures (MPO) it opens as JPEG.
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")
_ENDINGS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif"}
_SPLIT = re.compile(r"\w+")
_PER_FOLDER = 1000


@dataclass(frozen=True)
class _Photo:
    """A photo that is published.

    Attributes:
        row: its columns.
        split: that it belongs to.
        path: of its file.
        name: of its file in the data set: made of what it holds.
        size: bytes.
    """

    row: Mapping[str, Any]
    split: str
    path: Path
    name: str
    size: int


def publish(config: PublishConfig) -> dict[str, Any]:
    """Writes a data set, and puts it on the hub where that is wished.

    Returns:
        ``splits`` and ``left_out`` (numbers of photos), ``to``, ``left_out_file``, ``url``.

    Raises:
        GeopakError: a table, photo, folder or name that cannot be used; names it and the remedy.
    """
    require_datasets()
    try:
        return _published(config)
    except (OSError, pa.ArrowException) as error:
        where = getattr(error, "filename", None)
        told = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise SourceError(
            f"{'A file' if where is None else where} cannot be read or written ({told}). Look at "
            f"root={config.root}, table={config.table} and to={config.to}; {config.to} is written "
            "as a whole or not at all."
        ) from None


def _published(config: PublishConfig) -> dict[str, Any]:
    if config.push and token_of_hub() is None:
        raise SourceError(
            f"push=true needs a token of the hub in the environment variable {TOKEN}: make one "
            "that may write at https://huggingface.co/settings/tokens."
        )
    for key in config.licenses or ():
        if key != licenses.UNKNOWN and licenses.find(key) is None:
            known = (*licenses.LICENSES, licenses.UNKNOWN)
            raise ConfigError(
                f"licenses: {key!r} is no licence.{nearest_name(key, known)} "
                f"Known: {', '.join(known)}."
            )
    to = Path(config.to).expanduser()
    _check_place(to, config)
    frame = _read(config)
    photos, left_out = _chosen(frame, config)
    if not photos:
        reasons = Counter(reason for _, reason, _ in left_out)
        told = ", ".join(f"{reason} {number:,}" for reason, number in reasons.most_common())
        raise SourceError(
            f"No photo of {config.table} can be published ({told}). Photos without a licence that "
            "permits it need restricted=true; see docs/sources/huggingface.md."
        )
    columns = _columns(photos)
    contents = Contents.of(
        config.title or to.name,
        config.format,
        [(photo.split, photo.row, photo.size) for photo in photos],
        Counter(reason for _, reason, _ in left_out),
        config.restricted,
        columns,
        config.repo or to.name,
    )
    with replaced_folder(to) as new:
        write = _write_image_folder if config.format == "imagefolder" else _write_parquet
        write(new, photos, columns, config)
        (new / "README.md").write_text(card(contents), encoding="utf-8")
        record = {
            "format": config.format, "splits": contents.splits, "left_out": contents.left_out,
            "geopak": __version__,
        }  # fmt: skip
        (new / INDEX).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    listed = to.with_name(f"{to.name}.left_out.csv")
    _write_left_out(listed, left_out)
    return {
        "splits": contents.splits,
        "left_out": contents.left_out,
        "to": str(to),
        "left_out_file": str(listed),
        "url": _push(to, config) if config.push else None,
    }


def _check_place(to: Path, config: PublishConfig) -> None:
    """The folder is replaced as a whole: it must be new, empty or an earlier data set."""
    for key, path in (("root", config.root), ("table", config.table)):
        if Path(path).resolve().is_relative_to(to.resolve()):
            raise ConfigError(
                f"to={to} holds {key}={path}; it would be replaced. Choose a folder of its own."
            )
    if to.exists() and (not to.is_dir() or (any(to.iterdir()) and not (to / INDEX).is_file())):
        raise SourceError(
            f"{to} exists and is no data set that geopak has written; it is not replaced. Choose "
            "another to=FOLDER."
        )


def _read(config: PublishConfig) -> pd.DataFrame:
    """The table with ``id, path, latitude, longitude, split`` and whatever else it has."""
    path = Path(config.table)
    aliases: Any = config.columns
    is_split = (
        path.suffix == ".parquet" and path.is_file() and ("split" in pq.read_schema(path).names)
    )
    if is_split:
        frame = read_split_table(path, aliases)
    else:
        frame = read_sources([path], [], config.root, aliases)
    if "path" not in frame:
        raise SourceError(
            f"{path} has no column 'path': it must name the photos, relative to root."
        )
    if "split" not in frame:
        frame["split"] = "train"
    return frame.reset_index(drop=True)


_LeftOut = tuple[str, str, str]


def _chosen(frame: pd.DataFrame, config: PublishConfig) -> tuple[list[_Photo], list[_LeftOut]]:
    """Photos that are published, and id, reason and detail of the others."""
    reasons: dict[int, tuple[str, str]] = {}

    def leave_out(rows: Any, reason: str, detail: Any = "") -> None:
        for k in np.flatnonzero(np.asarray(rows, bool)):
            told = detail.loc[k] if isinstance(detail, pd.Series) else detail
            reasons.setdefault(int(k), (reason, str(told)))

    if "malformed" in frame:
        leave_out(frame["malformed"].notna(), "malformed_row", frame["malformed"])
    for column in ("id", "path"):
        leave_out(frame[column].isna(), f"missing_{column}")
    latlon = {axis: _degrees(frame[axis]) for axis in ("latitude", "longitude")}
    bad = (np.abs(latlon["latitude"]) <= 90) & (np.abs(latlon["longitude"]) <= 180)
    leave_out(~bad, "no_coordinate")
    ids = frame["id"].astype("string")
    leave_out(ids.duplicated() & ids.notna(), "duplicate_id")
    split = frame["split"].astype("string").fillna("")
    for name in split.unique():
        if name and not _SPLIT.fullmatch(name):
            raise SourceError(
                f"{config.table}: the split {name!r} is no name that a data set may have (letters, "
                "digits and _). Rename it."
            )
    leave_out(split == "", "no_split")
    if config.splits is not None:
        for name in config.splits:
            if name not in set(split):
                raise ConfigError(
                    f"splits: {config.table} has no split {name!r}. It has: "
                    f"{', '.join(sorted(set(split) - {''}))}."
                )
        leave_out(~split.isin(config.splits), "other_split", split)
    changes = _column(frame, "changes").tolist()
    keys = [license_of(_text(value)) for value in _column(frame, "license")]
    for k, key in enumerate(keys):
        if reason := _license_problem(key, _text(changes[k]), config):
            reasons.setdefault(
                k, (reason, _text(frame.at[k, "license"]) or "" if key is None else key)
            )
    open_rows = [k for k in range(len(frame)) if k not in reasons]
    resolved = ResolvedPaths(frame.loc[open_rows, "path"].astype("string"), config.root)
    for reason, rows, told in resolved.problems():
        for k, text in zip(np.asarray(open_rows)[rows], told, strict=True):
            reasons[int(k)] = (reason, text)
    photos = []
    for k in open_rows:
        if k in reasons:
            continue
        path = Path(config.root, resolved.normal.loc[k])
        found = _looked_at(path)
        if isinstance(found, str):
            reasons[k] = ("unreadable", found)
            continue
        ending, width, height, digest, size = found
        row: dict[str, Any] = {column: _text(value) for column, value in _others(frame, k)}
        row |= {
            "id": str(ids[k]),
            "latitude": float(latlon["latitude"][k]),
            "longitude": float(latlon["longitude"][k]),
            "license": keys[k] or row.get("license"),
            "license_url": licenses.url_of(keys[k]) or row.get("license_url"),
            "accuracy_km": _float(row.get("accuracy_km")),
            "width": width,
            "height": height,
        }
        photos.append(_Photo(row, str(split[k]), path, digest[:20] + ending, size))
    listed = [(_text(frame.at[k, "id"]) or f"row {k + 1}", *reasons[k]) for k in sorted(reasons)]
    assert len(photos) + len(listed) == len(frame), "a row was lost or counted twice"
    return photos, listed


def _license_problem(key: str | None, changes: str | None, config: PublishConfig) -> str | None:
    license = licenses.find(key)
    if config.licenses is not None and not licenses.allowed(key, config.licenses):
        return "license_not_chosen"
    if config.restricted:
        return None
    if license is None:
        return "license_unknown"
    if not license.redistribution:
        return "license_forbids"
    return "license_forbids_changes" if changes and not license.derivatives else None


def _looked_at(path: Path) -> tuple[str, int, int, str, int] | str:
    """Ending, width, height, SHA-256 and size of a photo's file, or why it is none."""
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(path, formats=_FORMATS) as image:
            ending, (width, height) = _ENDINGS[str(image.format)], image.size
    except Exception as error:  # decoders raise whatever a broken file causes
        return type(error).__name__
    return ending, width, height, hashlib.sha256(content).hexdigest(), len(content)


def _columns(photos: Sequence[_Photo]) -> dict[str, pa.DataType]:
    return {
        name: kind
        for name, kind in COLUMNS.items()
        if name in _ALWAYS or any(photo.row.get(name) is not None for photo in photos)
    }


def _by_split(photos: Sequence[_Photo]) -> Iterator[tuple[str, list[_Photo]]]:
    for split in dict.fromkeys(photo.split for photo in photos):
        yield split, [photo for photo in photos if photo.split == split]


def _write_image_folder(
    new: Path, photos: Sequence[_Photo], columns: Mapping[str, pa.DataType], config: PublishConfig
) -> None:
    for split, members in _by_split(photos):
        folder, names = new / "data" / split, []
        for k, photo in enumerate(members):
            name = f"{k // _PER_FOLDER:04d}/{photo.name}"
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                _put(photo.path, target, config.link)
            names.append(name)
        table = pa.table({"file_name": pa.array(names, pa.string())})
        for name, kind in columns.items():
            values = [photo.row.get(name) for photo in members]
            table = table.append_column(name, pa.array(values, kind))
        pq.write_table(table, folder / "metadata.parquet", row_group_size=10_000)


def _put(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(os.path.realpath(source), target)
            return
        except OSError:
            # Another file system, or one without links.
            pass
    shutil.copyfile(source, target)


def _write_parquet(
    new: Path, photos: Sequence[_Photo], columns: Mapping[str, pa.DataType], config: PublishConfig
) -> None:
    schema = parquet_schema(columns)
    (new / "data").mkdir()
    for split, members in _by_split(photos):
        shards = _shards(members, config.shard_mb * 1e6)
        for number, shard in enumerate(shards):
            path = new / "data" / f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
            with pq.ParquetWriter(path, schema, compression={"image.bytes": "none"}) as writer:
                for start in range(0, len(shard), config.rows_per_group):
                    group = shard[start : start + config.rows_per_group]
                    rows = [
                        {
                            "image": {"bytes": photo.path.read_bytes(), "path": photo.name},
                            **{name: photo.row.get(name) for name in columns},
                        }
                        for photo in group
                    ]
                    writer.write_table(pa.Table.from_pylist(rows, schema))


def parquet_schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of Parquet files whose column ``image`` is known to be one to ``datasets``."""
    datasets = require_datasets()
    features = datasets.Features(
        {"image": datasets.Image()}
        | {
            name: datasets.Value(str(kind).replace("double", "float64"))
            for name, kind in columns.items()
        }
    )
    schema: pa.Schema = features.arrow_schema
    return schema


def _shards(photos: Sequence[_Photo], most_bytes: float) -> list[list[_Photo]]:
    shards: list[list[_Photo]] = [[]]
    size = 0
    for photo in photos:
        if shards[-1] and size + photo.size > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append(photo)
        size += photo.size
    return shards


def _write_left_out(path: Path, left_out: Sequence[_LeftOut]) -> None:
    if not left_out:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "reason", "detail"))
        writer.writerows(left_out)


def _push(to: Path, config: PublishConfig) -> str:
    """Puts the folder on the hub in one commit; files of an earlier one that are no more go.

    Raises:
        SourceError: the hub refuses; never with the token in it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    assert config.repo is not None
    try:
        api = HfApi(token=token_of_hub())
        url = api.create_repo(
            config.repo, repo_type="dataset", private=config.private, exist_ok=True
        )
        api.upload_folder(
            repo_id=config.repo,
            folder_path=to,
            repo_type="dataset",
            commit_message="Photos by geopak.publish",
            delete_patterns=["data/**"],
        )
    except OfflineModeIsEnabled:
        raise SourceError(
            "push=true, but HF_HUB_OFFLINE forbids it. Unset HF_HUB_OFFLINE."
        ) from None
    except Exception as error:
        # Of the hub's client, or of what it sends by, which it has changed before.
        packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if not isinstance(error, OSError) and not packages & {"huggingface_hub", "httpx", "httpx2"}:
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        kind = f"status {status}" if status else type(error).__name__
        raise SourceError(
            f"The hub did not take {config.repo} ({kind}). {to} is complete: look whether the hub "
            f"can be reached and the token in {TOKEN} may write there, and give the command again."
        ) from None
    return str(url)


def _degrees(values: pd.Series) -> Any:
    if pd.api.types.is_numeric_dtype(values.dtype):
        return values.to_numpy(float)
    return coordinates.degrees(values.astype("string"))


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    if name not in frame:
        frame[name] = pd.Series(pd.NA, frame.index, dtype="string")
    return frame[name]


def _others(frame: pd.DataFrame, k: int) -> Iterator[tuple[str, Any]]:
    known = ("id", "latitude", "longitude", "width", "height")
    return ((name, frame.at[k, name]) for name in COLUMNS if name in frame and name not in known)


def _text(value: Any) -> str | None:
    return None if value is None or pd.isna(value) else str(value).strip() or None


def _float(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and np.isfinite(value) else None
