"""How a request can fail: for a moment, for good, or for all of its kind."""

from __future__ import annotations

import httpx

from geopak.errors import RefusedQueryError, SourceError


class UnavailableError(httpx.HTTPError):
    """A server that gave no usable answer in all attempts.

    Attributes:
        status: of the last answer; ``None``: there was none.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class TooLargeError(SourceError):
    """A file that is larger than is wanted."""


class DeniedError(SourceError):
    """401 or 403: nothing of this kind will be answered.

    Attributes:
        status: of the answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class RefusedStatusError(RefusedQueryError):
    """Another final status, such as 404.

    Attributes:
        status: of the answer.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class TryAgainError(Exception):
    """An attempt that failed in a way that the next one need not."""

    def __init__(
        self,
        text: str,
        status: int | None = None,
        wait_s: float | None = None,
        answered: bool = True,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.wait_s = wait_s
        self.answered = answered
