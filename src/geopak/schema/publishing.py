"""The configuration of ``python -m geopak.publish``: what may be in it, and what goes together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from geopak.options import Count, Positive, Problem
from geopak.schema.commands import Columns
from geopak.schema.paths import Paths

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class PublishConfig:
    """``conf/publish.yaml``, which explains each key."""

    paths: Paths
    columns: Columns
    root: str
    table: str
    to: str
    format: Literal["imagefolder", "parquet"]
    title: str | None
    splits: list[str] | None
    licenses: list[str] | None
    restricted: bool
    link: bool
    shard_mb: Positive
    rows_per_group: Count
    repo: str | None
    push: bool
    private: bool

    def problems(self) -> Iterator[Problem]:
        """Everything that is well by itself, but not together."""
        if self.push and self.repo is None:
            yield Problem(
                "push", "push=true needs the name of a data set on the hub", "Set repo=OWNER/NAME."
            )
        if self.repo is not None and not _REPOSITORY.fullmatch(self.repo):
            yield Problem("repo", f"repo={self.repo!r} is no OWNER/NAME of a data set on the hub")
        if self.link and self.format == "parquet":
            yield Problem(
                "link", "link=true is for format=imagefolder: Parquet files hold the photos' bytes"
            )
