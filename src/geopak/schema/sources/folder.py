"""Options of the source of photos ``folder``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from geopak.errors import ConfigError
from geopak.options import Count, NotNegative

Origin = Literal["exif", "xmp", "xmp_file", "takeout_camera", "takeout"]


@dataclass(frozen=True)
class FolderOptions:
    """``conf/source/folder.yaml``.

    Attributes:
        name: of the source.
        root: folder whose photos, and those of its subfolders, are collected.
        label: what the ids of its photos begin with; ``None``: the folder's name and a mark of
            where it lies, so that two folders of one name stay apart.
        origins: where a photo's position is believed from, the first before the others.
        max_disagreement_km: a photo whose believed positions are farther apart is refused;
            ``None``: the first is taken.
        album: photos of a subfolder belong together, or none do.
        max_album_photos: a folder with more is a store, no album.
        author: of photos that name none.
        license: of photos that name none.
        hidden: files and folders whose names begin with a dot are read too.
        photos_per_query: of one folder, that are looked through at a time.
    """

    name: Literal["folder"]
    root: str
    label: str | None = None
    origins: tuple[Origin, ...] = ("exif", "xmp", "xmp_file", "takeout_camera", "takeout")
    max_disagreement_km: NotNegative | None = 1.0
    album: Literal["folder", "none"] = "folder"
    max_album_photos: Count = 300
    author: str | None = None
    license: str | None = None
    hidden: bool = False
    photos_per_query: Count = 1000

    def __post_init__(self) -> None:
        if not self.origins or len(set(self.origins)) < len(self.origins):
            raise ConfigError(
                f"origins={list(self.origins)} must name at least one origin, each once. "
                "Known: exif, xmp, xmp_file, takeout_camera, takeout."
            )
        if self.label is not None and not self.label.strip("/ "):
            raise ConfigError("label is empty. Name the collection, or leave it out.")
