"""What Wikimedia's interfaces say: pages in parts, busy answers, claims, dates and licences.

Requests go one after the other and with ``maxlag``, as Wikimedia's etiquette asks
(https://www.mediawiki.org/wiki/API:Etiquette), and name an address to write to.
"""

from __future__ import annotations

import asyncio
import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from geopak.errors import RefusedQueryError, SourceError
from geopak.schema.sources.landmarks_v2 import LandmarksV2Options
from geopak.sources import rights
from geopak.sources.answers import Patience
from geopak.sources.client import Client

_BUSY = ("maxlag", "ratelimited", "readonly", "internal_api_error_DBQueryError")
_DATE = re.compile(r"\s*(\d{4})(?:-(\d\d)-(\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?))?)?")


def license_of(*texts: str | None, otherwise: str | None = None) -> str | None:
    """The key of a licence by its address or its name on Commons; the first that tells one."""
    key = rights.license_of(texts)
    said = [text.strip() for text in texts if text]
    if key is None and any(text.lower().startswith("public domain") for text in said):
        # Commons has many reasons for it (the author's death, a government's work), and one name.
        key = "pdm"
        return None if any(rights.forbids_more(text, key) for text in said) else key
    return key or rights.license_of(texts, otherwise)


def plain_text(markup: str) -> str:
    """HTML, as Commons has authors in, without its tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


def captured_at(text: str) -> str | None:
    """ISO 8601 of a date at the beginning of a text, as exact as it is given."""
    found = _DATE.match(plain_text(text))
    if not found:
        return None
    year, month, day, time = found.groups()
    from datetime import datetime

    try:
        if not month:
            return year if 1826 <= int(year) <= 2100 else None
        iso = f"{year}-{month}-{day}" + (f"T{time}" if time else "")
        datetime.fromisoformat(iso)
    except ValueError:
        return None
    return iso


def best_claim(claims: Sequence[Mapping[str, Any]]) -> Any:
    """The value of the claim with the highest rank; ``None``: there is none with a value."""
    ranked = {"preferred": 0, "normal": 1}
    known = [
        claim
        for claim in claims
        if claim.get("rank", "normal") in ranked
        and claim.get("mainsnak", {}).get("snaktype") == "value"
    ]
    if not known:
        return None
    best = min(known, key=lambda claim: ranked[claim.get("rank", "normal")])
    return best["mainsnak"].get("datavalue", {}).get("value")


# Between requests that were refused because databases lag behind.
_PAUSE_S = 5.0


def number(value: Any, otherwise: float = 0.0) -> float:
    """A finite number, or another one in place of what is none."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return otherwise
    return found if math.isfinite(found) else otherwise


class Wikimedia:
    """The action interfaces of Commons and Wikidata, asked one request after the other.

    Args:
        options: addresses, an address to write to, and how long a lag is waited for.
    """

    def __init__(self, options: LandmarksV2Options) -> None:
        self._options = options
        self._in_series = asyncio.Lock()
        self._patience = Patience()

    async def pages(
        self, client: Client, kind: str, titles: Sequence[str], asked: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Pages by the titles that they were asked for by, all parts of the answer together.

        Titles come back in the wiki's own spelling (``normalized``), and as the pages that they
        lead on to (``redirects``). An answer that is too long goes on in another (``continue``).
        """
        if any("|" in title for title in titles):
            titles = [title for title in titles if "|" not in title]
        base = {"action": "query", "titles": "|".join(titles), "redirects": 1, **asked}
        spelled: dict[str, str] = {}
        pages: dict[str, dict[str, Any]] = {}
        further: Mapping[str, Any] = {}
        for _ in range(1000):
            params = {**base, **further}
            answer = await self.answer(client, self._options.commons_api, kind, params)
            query = answer.get("query") or {}
            for change in (*query.get("normalized", ()), *query.get("redirects", ())):
                spelled[change["from"]] = change["to"]
            for page in query.get("pages", ()):
                known = pages.setdefault(page.get("title", ""), {})
                for key, value in page.items():
                    # A list may be given in parts.
                    both = isinstance(value, list) and isinstance(known.get(key), list)
                    known[key] = known[key] + value if both else value
            further = answer.get("continue") or {}
            if not further:
                break
        found = {}
        for title in titles:
            name = title
            for _ in range(4):
                if name in pages:
                    found[title] = pages[name]
                    break
                name = spelled.get(name, "")
        return found

    async def answer(
        self, client: Client, api: str, kind: str, params: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """One answer of the action interface; waits while the databases lag behind.

        Raises:
            RefusedQueryError: Wikimedia says that something is wrong with the request.
            SourceError: there is no address to write to, or it lags all the time.
            UnavailableError: it lags for so long that the query must wait.
        """
        options = self._options
        if not options.contact:
            raise SourceError(
                "Wikimedia's user agent policy asks for an address to write to, and there is none. "
                "Set contact=me@example.org (or the address of a page); see "
                "https://foundation.wikimedia.org/wiki/Policy:User-Agent_policy."
            )
        asked = {"format": "json", "formatversion": 2, **params}
        if options.max_lag_s is not None:
            asked["maxlag"] = options.max_lag_s
        for attempt in range(options.lag_attempts + 1):
            async with self._in_series:
                answer = await client.get_json(api, asked, kind=kind)
                if not isinstance(answer, Mapping):
                    raise RefusedQueryError(f"{urlsplit(api).netloc} sent no object for {kind}.")
                error = answer.get("error")
                if not error:
                    self._patience.good()
                    return answer
                code = str(error.get("code"))
                if code not in _BUSY:
                    raise RefusedQueryError(
                        f"{urlsplit(api).netloc} refuses a request for {kind}: {code}, "
                        f"{str(error.get('info', ''))[:300]}"
                    )
                if attempt < options.lag_attempts:
                    # The place in the series is kept: the others would be refused as well.
                    await asyncio.sleep(min(max(number(error.get("lag")), _PAUSE_S), 60.0))
        raise self._patience.odd(
            f"{urlsplit(api).netloc} was too busy {options.lag_attempts + 1} times ({code}). Start "
            "again later: what was answered is kept."
        )
