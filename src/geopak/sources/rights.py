"""Which licence a text means that somebody wrote into a photo or a table.

People write licences in many ways, and a condition that is overlooked would permit what the author
forbids. So a text is taken for a licence only if no word of it forbids more than that licence does;
otherwise its licence is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from geopak.sources import licenses

_URL = re.compile(r"(?:https?://)?(?:www\.)?creativecommons\.org/[^\s<>\"')\]]+", re.IGNORECASE)
_GAP = r"[\W_]*"
_CONDITIONS = {
    "nc": rf"non{_GAP}commercial|nc",
    "sa": rf"share{_GAP}alike|sa",
    "nd": rf"no{_GAP}deriv(?:ative)?s?(?:{_GAP}works?)?|nd",
}
# CC BY-SA 4.0, cc_by_nc, Creative Commons Attribution / Share Alike: in any order, between any
# signs.
_NAME = re.compile(
    rf"(?<![a-z])(?:cc|creative{_GAP}commons){_GAP}(?:by|attribution)"
    rf"(?P<conditions>(?:{_GAP}(?:{'|'.join(_CONDITIONS.values())}))*)(?![a-z])"
)
_WORDS = r"licen[cs]ed?|public|version|ver|v|international|unported|generic"
_VERSION = re.compile(
    rf"(?:[\W_]|{_WORDS})*?(?P<version>1\.0|2\.[015]|3\.0|4\.0)(?!\d)"
    rf"|{_GAP}v?{_GAP}(?P<whole>[1-4])(?![\d.]*\d|[a-z])"
)
_PUBLIC = (
    (re.compile(r"(?<![a-z])cc[\s_-]?(?:0|zero)(?![a-z])"), "cc0"),
    (re.compile(r"\bpublic\s+domain\s+mark\b|^pdm(?![a-z])"), "pdm"),
)
_RESERVED = re.compile(rf"all{_GAP}rights{_GAP}reserved")
# What forbids more than a name without that condition says, wherever it stands.
_FORBIDS = {
    "nc": re.compile(
        rf"non{_GAP}comm|(?<![a-z])nc(?![a-z])|(?<![a-z])no(?:{_GAP}\w+){{0,2}}?{_GAP}commerc"
    ),
    "nd": re.compile(rf"no{_GAP}deriv|(?<![a-z])nd(?![a-z])|(?<![a-z])no{_GAP}modif|unmodified"),
    "sa": re.compile(rf"share{_GAP}alike|(?<![a-z])sa(?![a-z])"),
    # Of no licence of Creative Commons.
    "more": re.compile(
        rf"{_RESERVED.pattern}|not{_GAP}licen|unlicen|(?<![a-z])(?:not|except|excluding)(?![a-z])"
        r"|permission|prohibit|forbid|(?:personal|private|educational|editorial|research)\W+use"
    ),
}


def license_of(
    texts: str | Iterable[str | None] | None, otherwise: str | None = None
) -> str | None:
    """The key of the licence that texts name: by address, by key or in words.

    Args:
        texts: one or several of the same photo; what names a licence by its address goes before
            what says it in words.
        otherwise: key of the licence where the texts name none.

    Returns:
        Such as ``cc-by-2.0``; ``None``: no licence of the list is named, or one of the texts
        forbids more than it.
    """
    given = [texts] if isinstance(texts, str) or texts is None else list(texts)
    known = [text.strip().lower() for text in given if text and text.strip()]
    key = _named(known) or otherwise
    return None if key is None or any(forbids_more(text, key) for text in known) else key


def _named(texts: Iterable[str]) -> str | None:
    texts = list(texts)
    for text in texts:
        for url in [text, *_URL.findall(text)]:
            if key := licenses.from_url(url):
                return key
    return next((key for text in texts if (key := _in_words(text))), None)


def _in_words(text: str) -> str | None:
    license = licenses.find(text.replace("_", "-"))
    if license is not None and not license.has_versions:
        return license.key
    if found := _NAME.search(text):
        said = [name for name, word in _CONDITIONS.items() if re.search(word, found["conditions"])]
        key = "-".join(["cc-by", *said])
        if key not in licenses.LICENSES:
            return None
        version = _VERSION.match(text, found.end())
        if version is None:
            return key
        return f"{key}-{version['version'] or version['whole'] + '.0'}"
    for pattern, key in _PUBLIC:
        if pattern.search(text):
            return key
    return "all-rights-reserved" if _RESERVED.search(text) else None


def forbids_more(text: str, key: str) -> bool:
    """Whether any word of a text forbids what a licence permits."""
    text, license = text.lower(), licenses.find(key)
    if license is None or not license.redistribution:
        return False
    conditions = key.split("-")
    return any(
        name not in conditions and words.search(text) is not None
        for name, words in _FORBIDS.items()
    )
