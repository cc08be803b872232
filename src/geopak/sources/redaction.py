"""Keys are taken out of every text that is shown or kept."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, quote_plus


class Redaction:
    """Takes secrets out of texts."""

    def __init__(self) -> None:
        self._secrets: set[str] = set()

    def learn(self, *sections: Mapping[str, str] | None) -> None:
        """Remembers values that no text may show, in the forms that they have in URLs too."""
        for section in sections:
            for value in (section or {}).values():
                # 'Bearer' and the like stand before a key.
                for part in {value, *value.split()}:
                    if len(part) >= 4 and part.lower() not in ("bearer", "basic", "token"):
                        self._secrets |= {part, quote(part, safe=""), quote_plus(part)}
                        self._secrets.add(part.replace("/", "\\/"))

    def __call__(self, text: str) -> str:
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def start_of(self, body: bytes | bytearray, length: int) -> str:
        """The beginning of an answer as text. What is cut off before could be half a key."""
        return self(bytes(body[: 20 * length + 2000]).decode("utf-8", "replace"))[:length]
