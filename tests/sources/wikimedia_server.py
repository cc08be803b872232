"""Stands in for the interfaces of Wikimedia Commons and Wikidata, and for the host of pictures.

As documented on mediawiki.org (API:Query, Extension:GeoData, API:Imageinfo, Wikibase/API,
Manual:Maxlag parameter): 50 titles or items a request, titles normalised, redirects followed,
missing pages told, answers in parts, errors with status 200.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.sources.stand_in import Reply, Request, StandIn, as_jpeg, as_json, jpeg

WIDTHS = (20, 40, 60, 120, 250, 330, 500, 960, 1280, 1920, 3840)


@dataclass
class Wiki:
    """What the wikis hold.

    Attributes:
        categories: by title: ``coordinates``, ``item``; neither for one without.
        redirects: of titles.
        items: of Wikidata: claims by property.
        merged: items that are another one now.
        files: of Commons by title: ``width``, ``height``, ``extmetadata``, ``mime``.
        part: coordinates of so many pages are given in an answer.
        lag: answers of a lag before the next one that is given.
    """

    categories: dict[str, dict[str, Any]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    merged: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    part: int = 500
    lag: int = 0


def point(lat: float, lon: float, dim: Any = 1000, globe: str = "earth") -> dict[str, Any]:
    """A coordinate as GeoData gives it."""
    return {"lat": lat, "lon": lon, "primary": True, "globe": globe, "dim": dim, "type": "landmark"}


def p625(
    lat: float, lon: float, precision: float | None = 0.0001, rank: str = "normal",
    globe: str = "http://www.wikidata.org/entity/Q2",
) -> dict[str, Any]:  # fmt: skip
    """A claim of a coordinate as Wikibase gives it."""
    value = {
        "latitude": lat, "longitude": lon, "altitude": None, "precision": precision, "globe": globe,
    }  # fmt: skip
    snak = {"snaktype": "value", "property": "P625"}
    return {
        "mainsnak": {**snak, "datavalue": {"value": value, "type": "globecoordinate"}},
        "type": "statement", "rank": rank,
    }  # fmt: skip


def p301(item: str) -> dict[str, Any]:
    """A claim of a category's main topic."""
    value = {"entity-type": "item", "numeric-id": int(item[1:]), "id": item}
    snak = {"snaktype": "value", "property": "P301"}
    return {
        "mainsnak": {**snak, "datavalue": {"value": value, "type": "wikibase-entityid"}},
        "type": "statement", "rank": "normal",
    }  # fmt: skip


def unknown_value(name: str) -> dict[str, Any]:
    """A claim that says that the value is not known."""
    snak = {"snaktype": "somevalue", "property": name}
    return {"mainsnak": snak, "type": "statement", "rank": "preferred"}


def _error(code: str, info: str, **more: Any) -> Reply:
    headers = {"Retry-After": "5"} if code == "maxlag" else {}
    return as_json({"error": {"code": code, "info": info, **more}}, headers=headers)


class WikimediaServer(StandIn):
    """Both interfaces under ``/commons/w/api.php`` and ``/wikidata/w/api.php``."""

    def __init__(self, wiki: Wiki) -> None:
        super().__init__()
        self.wiki = wiki

    def respond(self, request: Request) -> Reply:
        """An answer as Wikimedia gives it."""
        if request.path.startswith("/commons/upload/"):
            return self._picture(request)
        if not request.path.endswith("/w/api.php"):
            return as_json({}, 404)
        agent = request.headers.get("user-agent", "")
        if "@" not in agent and "http" not in agent:
            return Reply(b"Please set a user-agent and respect our robot policy", 403)
        asked = request.query
        if asked.get("format") != "json" or asked.get("formatversion") != "2":
            return Reply(b"<html>the interface's help</html>", content_type="text/html")
        if "maxlag" in asked and self.wiki.lag > 0:
            self.wiki.lag -= 1
            return _error("maxlag", "Waiting for db1: 0.01 seconds lagged.", lag=0.01)
        if request.path.startswith("/wikidata"):
            return self._entities(asked)
        return self._query(asked)

    def _query(self, asked: Mapping[str, str]) -> Reply:
        titles = asked["titles"].split("|")
        if asked.get("action") != "query":
            return _error("badvalue", f"Unrecognized value for parameter action: {asked}")
        if len(titles) > 50:
            return _error("toomanyvalues", "Too many values supplied for parameter titles.")
        normalized, redirects, found = [], [], []
        for title in titles:
            space, _, name = title.replace("_", " ").strip().partition(":")
            name = f"{space}:{name[:1].upper()}{name[1:]}"
            if name != title:
                normalized.append({"fromencoded": False, "from": title, "to": name})
            if name in self.wiki.redirects and "redirects" in asked:
                redirects.append({"from": name, "to": self.wiki.redirects[name]})
                name = self.wiki.redirects[name]
            if name not in found:
                found.append(name)
        answer: dict[str, Any] = {"batchcomplete": True}
        if "imageinfo" in asked["prop"]:
            pages = [self._file(name, asked) for name in found]
        else:
            # Pages are given in every part, their coordinates in one.
            first = int(asked.get("cocontinue", "0|0").split("|")[0])
            limit = min(self.wiki.part, 500 if asked.get("colimit") == "max" else 10)
            pages = [
                self._category(name, asked, first <= k < first + limit)
                for k, name in enumerate(found)
            ]
            if first + limit < len(found):
                del answer["batchcomplete"]
                answer["continue"] = {"cocontinue": f"{first + limit}|0", "continue": "||pageprops"}
        answer["query"] = {"pages": pages}
        if normalized:
            answer["query"]["normalized"] = normalized
        if redirects:
            answer["query"]["redirects"] = redirects
        return as_json(answer)

    def _category(self, name: str, asked: Mapping[str, str], with_place: bool) -> dict[str, Any]:
        page = self.wiki.categories.get(name)
        if page is None:
            return {"ns": 14, "title": name, "missing": True}
        out: dict[str, Any] = {"pageid": abs(hash(name)), "ns": 14, "title": name}
        if with_place and "coordinates" in page:
            wanted = {"lat", "lon", "primary", *asked.get("coprop", "globe").split("|")}
            out["coordinates"] = [
                {key: value for key, value in place.items() if key in wanted}
                for place in page["coordinates"]
            ]
        if page.get("item") and "pageprops" in asked["prop"]:
            out["pageprops"] = {"wikibase_item": page["item"]}
        return out

    def _file(self, name: str, asked: Mapping[str, str]) -> dict[str, Any]:
        file = self.wiki.files.get(name)
        if file is None:
            return {"ns": 6, "title": name, "missing": True, "imagerepository": ""}
        path = quote(name.removeprefix("File:").replace(" ", "_"))
        width, height = file["width"], file["height"]
        info: dict[str, Any] = {
            "size": 1000,
            "width": width,
            "height": height,
            "url": f"{self.url}/commons/upload/{path}",
            "descriptionurl": f"https://commons.wikimedia.org/wiki/File:{path}",
            "mime": file.get("mime", "image/jpeg"),
            "extmetadata": {
                key: {"value": value, "source": "commons-desc-page"}
                for key, value in file.get("extmetadata", {}).items()
                if key in asked["iiextmetadatafilter"].split("|")
            },
        }
        if "iiurlwidth" in asked:
            wanted = min(int(asked["iiurlwidth"]), width)
            info["thumbwidth"], info["thumbheight"] = wanted, round(height * wanted / width)
            info["thumburl"] = (
                info["url"]
                if wanted == width
                else f"{self.url}/commons/upload/thumb/{path}/{wanted}px-{path}"
            )
        return {"pageid": 1, "ns": 6, "title": name, "imageinfo": [info]}

    def _picture(self, request: Request) -> Reply:
        name = request.path.removeprefix("/commons/upload/")
        wanted = None
        if name.startswith("thumb/"):
            _, name, small = name.split("/")
            wanted = int(small.partition("px-")[0])
            if wanted not in WIDTHS:
                return Reply(b"Use a standard width", 429)
        file = self.wiki.files.get("File:" + name.replace("_", " "))
        if file is None:
            return Reply(b"<html>404</html>", 404, content_type="text/html")
        width = wanted or file["width"]
        height = round(file["height"] * width / file["width"])
        return as_jpeg(jpeg(width, height, seed=len(name) + sum(name.encode())))

    def _entities(self, asked: Mapping[str, str]) -> Reply:
        items = asked["ids"].split("|")
        if asked.get("action") != "wbgetentities":
            return _error("badvalue", "Unrecognized value for parameter action.")
        if len(items) > 50:
            return _error("toomanyvalues", "Too many values supplied for parameter ids.")
        entities = {}
        for item in items:
            target = self.wiki.merged.get(item, item)
            if target not in self.wiki.items:
                entities[item] = {"id": item, "missing": ""}
                continue
            entity: dict[str, Any] = {
                "type": "item", "id": target, "claims": self.wiki.items[target],
            }  # fmt: skip
            if target != item:
                entity["redirects"] = {"from": item, "to": target}
            entities[item] = entity
        return as_json({"entities": entities, "success": 1})
