"""Errors that a user can mend: each message says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GeopakError(ValueError):
    """Base of every error caused by input (file, row, key, option), not by a defect of geopak.

    The command-line programs print its message without a traceback and exit with status 2.
    """


class ConfigError(GeopakError):
    """A configuration key or value, or a combination of them, that cannot work."""


class RegionError(GeopakError):
    """A region definition, boundary file or province name that cannot be used."""


class TableError(GeopakError):
    """A photo table that cannot be read as one."""


class PhotoError(GeopakError):
    """An image file that is missing, unreadable or outside the data root."""


class PreparedSetError(GeopakError):
    """A prepared set (split table, cells) that is missing, broken or does not fit the request."""


class ComparisonError(GeopakError):
    """Runs that cannot be compared: unfinished, not evaluated, or of other photos or regions."""


class SweepError(GeopakError):
    """A sweep or study that cannot be begun, continued or reported."""


class TrialPrunedError(Exception):
    """Ends a run of a study that others do better than.

    Args:
        score: its best validation value; ``None``: it has none.
        checkpoint: of that value.
        epochs: done.
    """

    def __init__(self, score: float | None, checkpoint: str | None, epochs: int) -> None:
        super().__init__(f"others were better at this epoch; its best was {score}")
        self.score = score
        self.checkpoint = checkpoint
        self.epochs = epochs


class SourceError(GeopakError):
    """A source of photos that cannot be asked, or whose files cannot be read."""


class RefusedQueryError(SourceError):
    """One query that a source refuses for good; others may well be answered."""


class QuotaSpentError(SourceError):
    """A day's requests of a kind are used up.

    Args:
        kind: of request.
        until: when there are new ones, in the form that is shown.
    """

    def __init__(self, kind: str, until: str) -> None:
        super().__init__(f"The quota of {kind!r} requests is used up until {until}.")
        self.kind = kind
        self.until = until


class FeatureCacheError(GeopakError):
    """A feature cache that cannot be made or used: no room, no access, or values it cannot hold."""


class CheckpointError(GeopakError):
    """A checkpoint that is missing, unsafe, or of another region, phase or model."""


class ExportError(GeopakError):
    """An export that cannot be made, or that answers otherwise than the model does."""


class TrainingError(GeopakError):
    """A training that cannot go on: its loss or gradient is no longer a finite number."""


class StoppedBySignalError(SystemExit):
    """A signal has ended a training in good order; holds the status that its process ends with."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """A hint such as ``" Did you mean 'Sindh'?"``, or an empty string when nothing is close."""
    matches = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
