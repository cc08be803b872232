"""XMP, the metadata that programs for photos write into a file or into a ``.xmp`` beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_PREFIXES = {
    "http://ns.adobe.com/exif/1.0/": "exif",
    "http://cipa.jp/exif/1.0/": "exifEX",
    "http://ns.adobe.com/xap/1.0/": "xmp",
    "http://ns.adobe.com/xap/1.0/rights/": "xmpRights",
    "http://ns.adobe.com/photoshop/1.0/": "photoshop",
    "http://purl.org/dc/elements/1.1/": "dc",
    "http://creativecommons.org/ns#": "cc",
    "http://web.resource.org/cc/": "cc",
}
# A coordinate as the XMP specification writes it (part 2, GPSCoordinate): degrees, minutes and
# either seconds or a fraction of minutes, and a letter. Decimal degrees are no such thing, but are
# met with.
_COORDINATE = re.compile(
    r"(?P<sign>[+-]?)(?P<d>\d{1,3}(?:\.\d+)?)"
    r"(?:,(?P<m>\d{1,2}(?:\.\d+)?)(?:,(?P<s>\d{1,2}(?:\.\d+)?))?)?\s*(?P<letter>[NSEW]?)"
)


def xmp_properties(content: bytes) -> dict[str, list[str]]:
    """The values of a packet's properties, by names such as ``exif:GPSLatitude``.

    Only what is said of the photo itself: not of the photos that it was made from, nor of its
    history. Entities and document types are refused (by defusedxml), so that no file can make the
    reader swell or read others.

    Args:
        content: the packet, or a whole ``.xmp`` file.

    Raises:
        ValueError: it is not XML, or has a document type.
    """
    import xml.etree.ElementTree

    from defusedxml import ElementTree

    try:
        root = ElementTree.fromstring(content.strip(b"\0 \r\n\t"), forbid_dtd=True)
    except (xml.etree.ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"broken XMP ({type(error).__name__})") from error
    values: dict[str, list[str]] = {}
    for rdf in [root] if root.tag == f"{{{_RDF}}}RDF" else root.iter(f"{{{_RDF}}}RDF"):
        for described in rdf.findall(f"{{{_RDF}}}Description"):
            for name, text in _properties(described):
                if text.strip():
                    values.setdefault(name, []).append(text.strip())
    return values


def _properties(described: Element) -> Iterator[tuple[str, str]]:
    for key, text in described.attrib.items():
        if name := _name(key):
            yield name, text
    for child in described:
        name = _name(child.tag)
        if not name:
            continue
        resource = child.get(f"{{{_RDF}}}resource")
        items = child.findall(f"*/{{{_RDF}}}li")
        for value in (resource or child.text, *(item.text for item in items)):
            if value:
                yield name, value


def _name(tag: str) -> str | None:
    namespace, _, local = tag[1:].partition("}")
    return f"{_PREFIXES[namespace]}:{local}" if namespace in _PREFIXES else None


def xmp_degrees(text: str, letters: str) -> float | None:
    """Degrees of a coordinate of XMP; ``None``: it is none.

    Args:
        text: ``24,51.5N``, ``24,51,30N`` or decimal degrees.
        letters: positive and negative: ``NS`` or ``EW``.
    """
    found = _COORDINATE.fullmatch(text.strip().upper())
    if not found or (found["letter"] and found["letter"] not in letters):
        return None
    minutes, seconds = float(found["m"] or 0), float(found["s"] or 0)
    if minutes > 60 or seconds > 60:
        return None
    value = float(found["d"]) + minutes / 60 + seconds / 3600
    is_negative = (found["letter"] == letters[1]) != (found["sign"] == "-")
    return -value if is_negative else value


def xmp_number(text: str) -> float | None:
    """A number or a fraction (``21/10``); ``None``: it is neither."""
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        return None
