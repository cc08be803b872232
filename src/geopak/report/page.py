"""A report as a page: what it consists of, and its rendering as one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import jinja2
from PIL import Image

from geopak.data.images import upright_rgb


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row.

    Attributes:
        columns: headings.
        rows: as many texts each as there are columns.
        strong: numbers of the rows to set in bold.
        faint: numbers of the rows that stand apart.
        words: numbers of the columns that hold words, not numbers; the first always does.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: Sequence[int] = ()
    faint: Sequence[int] = ()
    words: Sequence[int] = ()


def small_jpeg(file: Path | BinaryIO, side_px: int, formats: Sequence[str] | None = None) -> bytes:
    """A photo as a small JPEG, upright and without its metadata.

    Args:
        file: of the photo, or its path.
        side_px: longest side.
        formats: of Pillow that may be opened; ``None``: all.

    Returns:
        The encoded JPEG; empty where the file cannot be decoded.
    """
    try:
        with Image.open(file, formats=None if formats is None else tuple(formats)) as image:
            image.draft("RGB", (side_px, side_px))
            # As the model sees it, with 16 bits a pixel or without a ground, too.
            small = upright_rgb(image)
            small.thumbnail((side_px, side_px))
            content = io.BytesIO()
            # Pillow would keep a comment.
            small.info.clear()
            small.save(content, "JPEG", quality=75)
    except Exception:  # decoders raise whatever a broken file causes
        return b""
    return content.getvalue()


@dataclass(frozen=True)
class Thumbnail:
    """A small picture with a line below.

    Attributes:
        jpeg: the picture, an encoded JPEG; empty where there is none to show.
        caption: the line below.
    """

    jpeg: bytes
    caption: str

    @property
    def base64(self) -> str:
        return base64.b64encode(self.jpeg).decode()


@dataclass(frozen=True)
class Gallery:
    """Small pictures in a row, under a title."""

    title: str
    thumbnails: Sequence[Thumbnail]


@dataclass(frozen=True)
class Section:
    """A part of the page: heading, paragraphs, points, table, figure with caption, galleries."""

    title: str
    paragraphs: Sequence[str] = ()
    points: Sequence[str] = ()
    table: Table | None = None
    figure: str | None = None
    caption: str = ""
    galleries: Sequence[Gallery] = ()


@dataclass(frozen=True)
class Page:
    """Everything that a template shows."""

    title: str
    subtitle: str
    tiles: Sequence[tuple[str, str, str]]
    sections: Sequence[Section] = field(default_factory=list)


def write_page(
    page: Page, folder: Path, formats: Sequence[str] = ("html", "md"), stem: str = "report"
) -> None:
    """Writes ``<stem>.html`` and ``<stem>.md`` into the folder that holds the page's figures.

    Args:
        page: what to show; figures are names of PNG files in ``folder``.
        folder: where to write.
        formats: the HTML page embeds all figures; the Markdown page links to them and leaves
            galleries out.
        stem: of the files' names.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("geopak.report", "templates"),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    images = {
        section.figure: base64.b64encode((folder / section.figure).read_bytes()).decode()
        for section in page.sections
        if section.figure
    }
    for suffix in formats:
        text = environment.get_template(f"report.{suffix}.j2").render(page=page, images=images)
        (folder / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
