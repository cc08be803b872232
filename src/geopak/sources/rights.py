"""Which licence a text means that somebody wrote into a photo or a table."""

from __future__ import annotations

import re
from collections.abc import Iterable

from geopak.sources import licenses

_URL = re.compile(r"(?:https?://)?(?:www\.)?creativecommons\.org/[^\s<>\"')\]]+", re.IGNORECASE)
# CC BY-SA 4.0, cc-by-nc-2.0, Creative Commons Attribution-ShareAlike 3.0
_NAME = re.compile(
    r"\b(?:cc|creative\s*commons)[\s_:-]*"
    r"(?P<by>by|attribution)"
    r"(?P<nc>[\s_-]*(?:nc|non-?commercial))?"
    r"(?:[\s_-]*(?:(?P<sa>sa|share-?alike)|(?P<nd>nd|no-?deriv(?:ative)?s?)))?"
    r"(?![a-z])(?:[\s_-]*(?P<version>\d\.\d))?",
    re.IGNORECASE,
)
_PUBLIC = (
    (re.compile(r"\bcc[\s_-]?(?:0|zero)\b", re.IGNORECASE), "cc0"),
    (re.compile(r"\bpublic\s+domain\s+mark\b|^pdm$", re.IGNORECASE), "pdm"),
    (re.compile(r"\ball\s+rights\s+reserved\b", re.IGNORECASE), "all-rights-reserved"),
)


def license_of(texts: str | Iterable[str | None] | None) -> str | None:
    """The key of the licence that texts name: by address, by key or in words.

    Args:
        texts: one or several; what names a licence by its address goes before what says it in
            words.

    Returns:
        Such as ``cc-by-2.0``; ``None``: no licence of the list is named.
    """
    given = [texts] if isinstance(texts, str) or texts is None else list(texts)
    known = [text.strip() for text in given if text and text.strip()]
    for text in known:
        for url in [text, *_URL.findall(text)]:
            if key := licenses.from_url(url):
                return key
    for text in known:
        key = text.lower().replace("_", "-")
        if licenses.find(key) is not None:
            return key
        if found := _in_words(text):
            return found
    return None


def _in_words(text: str) -> str | None:
    if found := _NAME.search(text):
        parts = ["cc-by", *(part for part in ("nc", "sa", "nd") if found[part])]
        return "-".join([*parts, *([found["version"]] if found["version"] else [])])
    return next((key for pattern, key in _PUBLIC if pattern.search(text)), None)
