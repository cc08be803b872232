"""Table rows out of a folder of photos, from the EXIF data of the files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd
from PIL import ExifTags, Image

from geopak.data.exif import degrees_of_gps, exif_text
from geopak.data.images import IMAGE_SUFFIXES
from geopak.data.table import COLUMNS
from geopak.errors import TableError


def read_folder(folder: str | Path, root: str | Path) -> pd.DataFrame:
    """Makes table rows out of the photos of a folder and its subfolders.

    Args:
        folder: where to look for image files, relative to the root or to the working folder.
        root: the data root, which must hold ``folder``; ids and paths are relative to it.

    Returns:
        A row per image file in the order of their names, all columns of a photo table as nullable
        text; ``file``, the folder; ``line``, the number of the photo in it from 1; ``malformed``,
        why a file gives no row, else missing. Coordinates are missing where a photo has no GPS.

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
    files = sorted(
        os.path.relpath(os.path.join(parent, name), root).replace(os.sep, "/")
        for parent, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    )
    if not files:
        raise TableError(f"{folder} holds no image file ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    rows = [_row(root, relative) for relative in files]
    frame = pd.DataFrame(rows).reindex(columns=[*COLUMNS, "malformed"]).astype("string")
    frame = frame.mask(frame == "")
    name = folder.relative_to(root).as_posix()
    return frame.assign(
        file=pd.array([name] * len(frame), "string"), line=range(1, len(frame) + 1)
    )[[*COLUMNS, "file", "line", "malformed"]]


def _row(root: Path, relative: str) -> dict[str, str]:
    written = relative.encode(errors="backslashreplace").decode()
    row = {"id": written, "path": written}
    if written != relative:
        row["malformed"] = f"the file name {written!r} is not UTF-8 text; rename the file"
        return row
    try:
        return row | _exif_fields(root / relative)
    except Exception as error:  # decoders raise whatever a broken file causes
        kind = str(error).partition(" '")[0] or type(error).__name__
        return row | {"malformed": f"{written!r} cannot be opened as an image: {kind}"}


def _exif_fields(file: Path) -> dict[str, str]:
    """Coordinates, time, author and size that an image file states; what it lacks is left out."""
    with Image.open(file) as image:
        fields = {"width": str(image.width), "height": str(image.height)}
        exif = image.getexif()
        gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
        taken = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
        author = exif.get(ExifTags.Base.Artist)
    for name, degrees in degrees_of_gps(gps).items():
        # Whole degrees or minutes must not look more precise than they are.
        fields[name] = f"{degrees:.7f}".rstrip("0").rstrip(".")
    if taken:
        # 2021:05:03 10:11:12 -> 2021-05-03 10:11:12
        fields["captured_at"] = re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", exif_text(taken))
    if author:
        fields["author"] = exif_text(author)
    return fields
