"""Table rows out of a folder of photos, from what the files and those beside them state."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from geopak.data.photo_facts import (
    IMAGE_SUFFIXES,
    Beside,
    Problem,
    believed,
    degrees_text,
    read_facts,
)
from geopak.data.table import COLUMNS
from geopak.errors import PhotoError, TableError

# Stated positions that cannot be believed; a photo that states none is rejected for that later.
_MALFORMED = frozenset({"positions_disagree", "datum_unknown"})


def read_folder(folder: str | Path, root: str | Path) -> pd.DataFrame:
    """Makes table rows out of the photos of a folder and its subfolders.

    Args:
        folder: where to look for image files, relative to the root or to the working folder.
        root: the data root, which must hold ``folder``; ids and paths are relative to it.

    Returns:
        A row per image file in the order of their names, all columns of a photo table as nullable
        text; ``file``, the folder; ``line``, the number of the photo in it from 1; ``malformed``,
        why a file gives no row, else missing. Coordinates are missing where a photo states none;
        see :mod:`geopak.data.photo_facts` for where they are looked for.

    Raises:
        TableError: the folder is missing, outside the root or holds no image file.
    """
    root = Path(root).resolve()
    inside = root / folder
    folder = (inside if inside.is_dir() else Path(folder)).resolve()
    if not folder.is_dir() or not folder.is_relative_to(root):
        raise TableError(
            f"{folder} is not a folder inside the data root {root}. Name a folder inside root, or "
            "set root to a folder that holds all photos."
        )
    files: dict[str, Beside] = {}
    for parent, _, names in os.walk(folder):
        beside = Beside(Path(parent), names)
        for name in names:
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                path = os.path.relpath(os.path.join(parent, name), root)
                files[path.replace(os.sep, "/")] = beside
    if not files:
        raise TableError(f"{folder} holds no image file ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    rows = [_row(root, relative, files[relative]) for relative in sorted(files)]
    frame = pd.DataFrame(rows).reindex(columns=[*COLUMNS, "malformed"]).astype("string")
    frame = frame.mask(frame == "")
    name = folder.relative_to(root).as_posix()
    return frame.assign(
        file=pd.array([name] * len(frame), "string"), line=range(1, len(frame) + 1)
    )[[*COLUMNS, "file", "line", "malformed"]]


def _row(root: Path, relative: str, beside: Beside) -> dict[str, str]:
    written = relative.encode(errors="backslashreplace").decode()
    row = {"id": written, "path": written}
    if written != relative:
        row["malformed"] = f"the file name {written!r} is not UTF-8 text; rename the file"
        return row
    try:
        facts = read_facts(root / relative, beside)
    except PhotoError as error:
        return row | {"malformed": f"{written!r} cannot be opened as an image: {error}"}
    row |= {"width": str(facts.width), "height": str(facts.height)}
    place = believed(facts)
    if not isinstance(place, Problem):
        row["latitude"] = degrees_text(place.latitude)
        row["longitude"] = degrees_text(place.longitude)
        if place.accuracy_km is not None:
            row["accuracy_km"] = str(place.accuracy_km)
    elif place.reason in _MALFORMED:
        row["malformed"] = f"the position of {written!r}: {place.detail}"
    for column, value in (("captured_at", facts.captured_at), ("author", facts.author)):
        if value:
            row[column] = value
    return row
