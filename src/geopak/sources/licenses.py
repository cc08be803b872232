"""Licences of photos: one list of keys, whatever a source calls them.

A key is the licence's name in lower case, with the version where it is known: ``cc-by-2.0``.
Addresses and conditions are those of creativecommons.org and rightsstatements.org.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class License:
    """What a licence is and asks for.

    Attributes:
        key: without a version.
        name: as written under a photo; a version is put behind it.
        url: of the text, ``{version}`` and all; ``None``: there is none.
        version: the usual one, where the source gives none.
        attribution: the author must be named.
        redistribution: the photo itself may be passed on, under the licence's conditions.
        commercial: also for money.
        derivatives: changed photos may be passed on (a blurred or smaller one is changed).
    """

    key: str
    name: str
    url: str | None = None
    version: str | None = None
    attribution: bool = True
    redistribution: bool = True
    commercial: bool = True
    derivatives: bool = True

    @property
    def has_versions(self) -> bool:
        """Whether there are several texts of it, one per version."""
        return self.version is not None


def _cc(part: str) -> License:
    return License(
        f"cc-{part}",
        f"CC {part.upper()}",
        f"https://creativecommons.org/licenses/{part}/{{version}}/",
        "4.0",
        commercial="nc" not in part,
        derivatives="nd" not in part,
    )


LICENSES: dict[str, License] = {
    license.key: license
    for license in (
        License(
            "cc0", "CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/",
            attribution=False,
        ),
        License(
            "pdm", "Public Domain Mark 1.0", "https://creativecommons.org/publicdomain/mark/1.0/",
            attribution=False,
        ),
        License(
            "us-gov", "United States Government Work", "https://www.usa.gov/government-copyright",
            attribution=False,
        ),
        *(_cc(part) for part in ("by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd")),
        License(
            "all-rights-reserved", "All rights reserved", redistribution=False, commercial=False,
            derivatives=False,
        ),
        License(
            "google-places", "Google Maps Platform Terms",
            "https://cloud.google.com/maps-platform/terms", redistribution=False,
            commercial=False, derivatives=False,
        ),
    )
}  # fmt: skip
# What is asked for when the configuration names none: photos that may be passed on.
OPEN = tuple(key for key, license in LICENSES.items() if license.redistribution)
UNKNOWN = "unknown"
_CC_URL = re.compile(r"^/licenses/(by(?:-nc)?(?:-sa|-nd)?)(?:/(\d\.\d))?(?:/|$)")


def base_key(key: str) -> str:
    """A key without its version: ``cc-by`` of ``cc-by-2.0``."""
    return re.sub(r"-\d+(\.\d+)*$", "", key)


def find(key: str | None) -> License | None:
    """The licence of a key, with or without a version; ``None``: not known."""
    return None if key is None else LICENSES.get(base_key(key))


def from_url(url: str | None) -> str | None:
    """The key of a licence by the address of its text.

    Args:
        url: with or without ``http(s):``, ``deed`` pages and translations too.

    Returns:
        Such as ``cc-by-2.0``; ``None`` for an address of none of the licences.
    """
    if not url:
        return None
    text = url.strip()
    try:
        parts = urlsplit(text if "//" in text else f"//{text}")
    except ValueError:
        return None
    host = (parts.hostname or "").removeprefix("www.")
    path = parts.path.lower()
    if host == "creativecommons.org":
        if path.startswith("/publicdomain/zero"):
            return "cc0"
        if path.startswith(("/publicdomain/mark", "/licenses/publicdomain")):
            return "pdm"
        found = _CC_URL.match(path)
        if found:
            # Licences of version 1.0 had the parts in another order, and the same meaning.
            return f"cc-{found[1]}" + (f"-{found[2]}" if found[2] else "")
        if path.startswith("/licenses/by-nd-nc"):
            return "cc-by-nc-nd-1.0"
    if host == "usa.gov":
        return "us-gov"
    return None


def url_of(key: str | None) -> str | None:
    """The address of a licence's text; the usual version where the key has none."""
    license = find(key)
    if license is None or license.url is None or key is None:
        return None
    version = key.removeprefix(license.key).removeprefix("-") or license.version
    return license.url.format(version=version)


def name_of(key: str | None) -> str:
    """The licence's name as it is written under a photo."""
    license = find(key)
    if license is None or key is None:
        return "unknown licence" if key is None else key
    version = key.removeprefix(license.key).removeprefix("-")
    return f"{license.name} {version}" if version and license.has_versions else license.name


def allowed(key: str | None, chosen: Iterable[str] | None) -> bool:
    """Whether a photo's licence is among the chosen ones.

    Args:
        key: of the photo.
        chosen: keys; one without a version stands for all versions, ``unknown`` for photos whose
            licence is not told. ``None``: all are.
    """
    if chosen is None:
        return True
    if key is None or find(key) is None:
        return UNKNOWN in chosen
    return key in chosen or base_key(key) in chosen
