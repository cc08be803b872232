"""Photo files with positions in every form, for tests of what is read from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

GPS = ExifTags.GPS


def exif(
    latitude: float | None = None,
    longitude: float | None = None,
    *,
    gps: dict[int, Any] | None = None,
    details: dict[int, Any] | None = None,
    base: dict[int, Any] | None = None,
) -> Image.Exif:
    """EXIF data with a position to a hundredth of a second of arc, and any further tags."""
    made = Image.Exif()
    made.update(base or {})
    made.get_ifd(ExifTags.IFD.Exif).update(details or {})
    ifd = made.get_ifd(ExifTags.IFD.GPSInfo)
    for tag, value, letters in (
        (GPS.GPSLatitude, latitude, "NS"),
        (GPS.GPSLongitude, longitude, "EW"),
    ):
        if value is not None:
            ifd[tag - 1] = letters[value < 0]
            degrees, rest = divmod(abs(value), 1)
            minutes, rest = divmod(rest * 60, 1)
            ifd[tag] = (degrees, minutes, rest * 60)
    ifd.update(gps or {})
    return made


def packet(
    attributes: dict[str, str] | None = None, elements: str = "", wrapped: bool = True
) -> bytes:
    """An XMP packet whose description has attributes and elements."""
    told = " ".join(f'{name}="{value}"' for name, value in (attributes or {}).items())
    body = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/"
 xmlns:exifEX="http://cipa.jp/exif/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:cc="http://creativecommons.org/ns#"
 xmlns:xmpRights="http://ns.adobe.com/xap/1.0/rights/"
 xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" {told}>{elements}</rdf:Description>
</rdf:RDF></x:xmpmeta>"""
    if wrapped:
        begin = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        body = f'{begin}{body}<?xpacket end="w"?>'
    return body.encode()


def write_photo(
    path: Path, made: Image.Exif | None = None, xmp: bytes | None = None, seed: int = 0
) -> Path:
    """An image file of the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (40, 30), (seed * 53 % 256, seed * 97 % 256, seed * 31 % 256))
    more: dict[str, Any] = {} if made is None else {"exif": made}
    if xmp is not None and path.suffix == ".png":
        more["pnginfo"] = PngImagePlugin.PngInfo()
        more["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif xmp is not None and path.suffix == ".tif":
        more["tiffinfo"] = {700: xmp}
    elif xmp is not None:
        more["xmp"] = xmp
    picture.save(path, **more)
    return path


def takeout(
    title: str = "IMG.jpg",
    camera: tuple[float, float] = (0.0, 0.0),
    assigned: tuple[float, float] = (0.0, 0.0),
    **more: Any,
) -> str:
    """The JSON that Google Takeout puts beside a photo."""

    def place(latlon: tuple[float, float]) -> dict[str, float]:
        spans = {"altitude": 0.0, "latitudeSpan": 0.0, "longitudeSpan": 0.0}
        return {"latitude": latlon[0], "longitude": latlon[1], **spans}

    content = {
        "title": title,
        "description": "",
        "imageViews": "2",
        "creationTime": {"timestamp": "1600598769", "formatted": "Sep 20, 2020"},
        "photoTakenTime": {"timestamp": "1600596727", "formatted": "Sep 20, 2020, 10:12:07 AM UTC"},
        "geoData": place(assigned),
        "geoDataExif": place(camera),
        "url": "https://photos.google.com/photo/AF1",
    }
    return json.dumps(content | more)
