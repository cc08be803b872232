"""Where things lie: the group ``paths`` of every command."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paths:
    """``conf/paths/*.yaml``."""

    home: str
    outputs: str
