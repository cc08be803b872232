"""What sources do with answers that they do not understand."""

from __future__ import annotations

import os
import re

from geopak.errors import SourceError
from geopak.sources.http_errors import UnavailableError

# Several queries are asked at a time, and all of them may meet the same fault once.
_MOST_IN_A_ROW = 20
# Of a server that has not given one good answer.
_MOST_AT_FIRST = 3


class Patience:
    """Tells an odd answer now and then from a server that gives no other.

    One may be a fault of a moment: its query is asked again. Many in a row, with none between them
    that is good, end the collection: nothing else would come.
    """

    def __init__(self) -> None:
        self._in_a_row = 0
        self._begun = False

    def good(self) -> None:
        """Notes an answer that can be used."""
        self._in_a_row, self._begun = 0, True

    def odd(self, message: str) -> Exception:
        """Notes one that cannot.

        Args:
            message: what is odd about it.

        Returns:
            What to raise: an ``UnavailableError``, which costs the query an attempt, or a
            :class:`SourceError`, which ends the collection.
        """
        self._in_a_row += 1
        if self._in_a_row >= (_MOST_IN_A_ROW if self._begun else _MOST_AT_FIRST):
            return SourceError(f"{message} That was so {self._in_a_row} times in a row.")
        return UnavailableError(message)


def key_of(variable: str, missing: str) -> str:
    """A key from the environment.

    Args:
        variable: that holds it.
        missing: message where there is none.

    Raises:
        SourceError: there is none, or it can be none; does not show it.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise SourceError(missing)
    if not re.fullmatch("[!-~]+", key):
        raise SourceError(
            f"{variable} holds signs that no key has (spaces, line breaks or letters with "
            "accents). Copy it anew."
        )
    return key


def shown(value: object, key_variable: str, most: int = 200) -> str:
    """The beginning of a value, as it may stand in a message or the ledger.

    Args:
        value: of an answer, which may hold the request and so the key.
        key_variable: environment variable of the key.
        most: characters.
    """
    from geopak.sources.redaction import Redaction

    redact = Redaction()
    redact.learn({"": os.environ.get(key_variable, "").strip()})
    # Before it is cut: half a key is one too many.
    return redact(value if isinstance(value, str) else repr(value))[:most]
