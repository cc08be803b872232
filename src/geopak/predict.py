"""Tells where photos were taken: ``python -m geopak.predict images=photo.jpg map=out.png``."""

from __future__ import annotations

import glob
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from geopak.cli import entry_point
from geopak.errors import ConfigError, PhotoError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def find_photos(images: str | int | ListConfig | list[str | int]) -> list[Path]:
    """Files named by a path, a folder, a glob pattern, or a list of them, in a stable order.

    Raises:
        PhotoError: one of them names no file.
    """
    found: list[Path] = []
    for entry in images if isinstance(images, (list, ListConfig)) else [images]:
        # A name of digits alone arrives as a number.
        path = Path(str(entry)).expanduser()
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True))
        if not matches:
            raise PhotoError(f"images={entry}: no photo there.")
        found += matches
    return found


def print_results(photos: list[Path], results: list[dict[str, Any]]) -> None:
    """Prints a table, and for a single photo its hypotheses as well."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table()
    for column in ("photo", "province", "latitude", "longitude", "confidence"):
        table.add_column(column, overflow="fold")
    for photo, result in zip(photos, results, strict=True):
        table.add_row(
            str(photo),
            f"{result['province']} {result['province_probabilities'][result['province']]:.0%}",
            f"{result['lat']:.4f}",
            f"{result['lon']:.4f}",
            f"{result['confidence']:.0%} within {result['confidence_km']:g} km",
        )
    console.print(table)
    if len(results) == 1:
        for rank, h in enumerate(results[0]["hypotheses"], start=1):
            console.print(
                f"{rank:3d}. {h['probability']:4.0%}  {h['lat']:8.4f}, {h['lon']:8.4f}  "
                f"{h['province']} (cell {h['cell_id']}, radius {h['radius_km']:.1f} km)"
            )


def predict(cfg: DictConfig) -> list[dict[str, Any]]:
    """Predicts, prints, and draws or writes what was asked for."""
    photos = find_photos(cfg.images)
    if cfg.map and len(photos) > 1:
        raise ConfigError(f"map= draws one photo, images= names {len(photos)}.")

    from geopak.checkpoint import find_latest
    from geopak.predictor import GeopakPredictor

    checkpoint = cfg.ckpt or find_latest(Path(cfg.paths.outputs) / cfg.name)
    predictor = GeopakPredictor(checkpoint, cfg.device, cfg.rule, cfg.batch_size)
    results = predictor.predict(photos)
    print_results(photos, results)
    if cfg.out:
        rows = [{"photo": str(p), **r} for p, r in zip(photos, results, strict=True)]
        Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
        Path(cfg.out).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if cfg.map:
        from geopak.report.figures import draw_prediction

        Path(cfg.map).parent.mkdir(parents=True, exist_ok=True)
        trained = predictor.trained
        draw_prediction(cfg.map, results[0], trained.region, trained.outlines, photos[0])
    return results


@entry_point("predict")
def main(cfg: DictConfig) -> None:
    predict(cfg)


if __name__ == "__main__":
    main()
