"""Data sets in the form of Hugging Face, made for a test, and the source that reads them."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from geopak.cli import compose
from geopak.geo.boundaries import Outlines
from geopak.options import options, plain
from geopak.schema.sources.huggingface import HuggingFaceOptions
from geopak.sources.huggingface import HuggingFaceSource
from geopak.sources.publishing import parquet_schema

from .asking import Asking, located

KARACHI, LAHORE, DELHI = (24.8607, 67.0011), (31.5497, 74.3436), (28.6139, 77.209)


def picture(seed: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def rows_of(number: int, first: int = 0) -> list[dict[str, Any]]:
    """Rows with pictures, a third of them in each of three cities."""
    places = (KARACHI, LAHORE, DELHI)
    return [
        {
            "image": {"bytes": picture(k), "path": f"{k}.jpg"},
            "id": f"{k:03d}",
            "latitude": places[k % 3][0] + k / 1e4,
            "longitude": places[k % 3][1],
            "license": "cc-by-4.0",
            "author": "Aisha",
        }
        for k in range(first, first + number)
    ]


SCHEMA_COLUMNS = {
    "id": pa.string(), "latitude": pa.float64(), "longitude": pa.float64(),
    "license": pa.string(), "author": pa.string(),
}  # fmt: skip


def write_parquet(path: Path, rows: list[dict], group: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, parquet_schema(SCHEMA_COLUMNS))
    pq.write_table(table, path, row_group_size=group)
    return path


@functools.cache
def shipped_section() -> dict[str, Any]:
    """``conf/source/huggingface.yaml``."""
    return plain(compose("collect", ["source=huggingface", "source.dataset=x"]))["source"]


def source_of(
    dataset: str | Path, outlines: Outlines | None = None, work: Path | None = None, **more: Any
) -> HuggingFaceSource:
    section = shipped_section() | {"dataset": str(dataset)}
    chosen = options(HuggingFaceOptions, section | more, "source")
    return HuggingFaceSource(chosen, None, outlines, work)


def content(source: HuggingFaceSource, photo: Any) -> bytes:
    url = urlsplit(located(source, photo))
    assert url.scheme == "file"
    return Path(unquote(url.path)).read_bytes()


def own_ids(asked: Asking) -> list[str]:
    return [photo.source_id.rpartition("/")[2] for photo in asked.photos]


def image_folder(folder: Path, number: int, split: str = "train") -> Path:
    """An ImageFolder whose table is JSON Lines, as people write them by hand."""
    inner = folder / split
    inner.mkdir(parents=True)
    lines = []
    for row in rows_of(number):
        name = f"é {row['id']}.jpg"
        (inner / name).write_bytes(row.pop("image")["bytes"])
        lines.append(json.dumps({"file_name": name} | row))
    (inner / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def card_naming(place: str, key: str = "data_files") -> str:
    """The head of a card whose configuration reads files at a place."""
    files = place if key == "data_dir" else [{"split": "train", "path": place}]
    inner = {key: files, "config_name": "default"}
    return f"---\nconfigs:\n- {json.dumps(inner)}\n---\n"
