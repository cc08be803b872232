"""Options of the source ``yfcc100m``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from geopak.options import Count, Natural, Problem, Range


@dataclass(frozen=True)
class Yfcc100mOptions:
    """``conf/source/yfcc100m.yaml``.

    Attributes:
        name: of the source.
        files: the metadata dump: paths, patterns (``dump/yfcc100m_dataset-*.bz2``) or http(s)
            addresses, bzip2 or plain text.
        part_mb: so much of a file is read by a query, as it lies (compressed); a killed run loses
            the parts that it was at.
        threads: parts that are decoded at a time; ``None``: one per core.
        skip_damaged: go on behind data that cannot be read, instead of stopping there.
        size: of the pictures: as in the dump (500 pixels), 640, 1024, or the original.
        pictures: address that pictures lie under; ``None``: each where the dump says.
        min_accuracy: Flickr's level, 1 (the world) to 16 (the street); photos below it are left.
        retries: attempts to go on with a file that breaks off while it is read from the network.
    """

    name: Literal["yfcc100m"]
    files: str | list[str] | None
    part_mb: Annotated[float, Range(above=0, most=1024)] = 16.0
    threads: Count | None = None
    skip_damaged: bool = False
    size: Literal["500", "640", "1024", "original"] | Literal[500, 640, 1024] = "500"
    pictures: str | None = "https://live.staticflickr.com"
    min_accuracy: Annotated[int, Range(least=1, most=16)] = 1
    retries: Natural = 5

    @property
    def paths(self) -> tuple[str, ...]:
        """``files`` as a list."""
        return (self.files,) if isinstance(self.files, str) else tuple(self.files or ())

    def problems(self) -> Iterator[Problem]:
        """What is well by itself, but cannot work."""
        if not self.paths:
            yield Problem(
                "source.files",
                "source.files names no file of the YFCC100M metadata",
                "Give the dump's path, a pattern of its parts or an address: "
                "source.files=yfcc100m_dataset.bz2. See docs/sources/yfcc100m.md for where it is.",
            )
