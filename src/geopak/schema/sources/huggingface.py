"""Options of the source of photos ``huggingface``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from geopak.options import Count, Positive

# What a row may say; all but the picture and the coordinate may be missing.
Field = Literal[
    "image", "latitude", "longitude", "id", "license", "author", "author_url", "page_url",
    "captured_at", "title", "accuracy_km", "width", "height", "album", "source",
]  # fmt: skip


@dataclass(frozen=True)
class HuggingFaceOptions:
    """``conf/source/huggingface.yaml``.

    Attributes:
        name: of the source.
        dataset: ``owner/name`` on the hub, a folder, or Parquet files (``FOLDER/*.parquet``).
        config: of a data set that has several; ``None``: its default.
        splits: that are read; ``None``: all.
        revision: branch, tag or commit on the hub; ``None``: the newest when it is first asked.
        columns: what a row says -> columns that may hold it, the first that is there.
        license: of rows that name none.
        author: of rows that name none.
        rows_per_query: rows that are looked through at a time.
        cache_mb: pictures that are taken out of the data set and wait to be copied, 10⁶ bytes.
    """

    name: Literal["huggingface"]
    dataset: str
    config: str | None = None
    splits: list[str] | None = None
    revision: str | None = None
    columns: Mapping[Field, str | list[str] | None] = field(default_factory=dict)
    license: str | None = None
    author: str | None = None
    rows_per_query: Count = 1000
    cache_mb: Positive = 4000.0
