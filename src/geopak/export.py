"""Takes a trained model elsewhere: ``python -m geopak.export ckpt=… format=onnx|safetensors``."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.errors import ExportError, PreparedSetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geopak.data.dataset import PreparedSet
    from geopak.predictor import GeopakPredictor

log = logging.getLogger(__name__)

_PARTIAL = ".partial"


def export(cfg: DictConfig) -> dict[str, Any]:
    """Exports a checkpoint and compares the export with it.

    Returns:
        ``path``; ``bytes``; ``format``; ``precision``; ``differences``: output -> largest
        difference from the checkpoint's answers on random photos (for float32); ``num_photos`` and
        ``num_tied``, see :class:`geopak.exporting.comparing.Differences`; ``cost``: what smaller
        numbers cost, see :func:`geopak.exporting.comparing.cost`, and ``cost_on``, the photos.

    Raises:
        ExportError: the export answers otherwise than the checkpoint; no file is left then.
    """
    from geopak.checkpoint import find_latest
    from geopak.predictor import GeopakPredictor

    checkpoint = Path(cfg.ckpt or find_latest(Path(cfg.paths.outputs) / cfg.name)).expanduser()
    predictor = GeopakPredictor(
        checkpoint,
        device="cpu",
        rule=cfg.rule,
        batch_size=16,
        precision="float32",
        coverage=cfg.coverage,
        per_province=bool(cfg.per_province),
    )
    prepared = _prepared(cfg, predictor)
    if cfg.format == "safetensors":
        return _export_safetensors(cfg, checkpoint, predictor, prepared)
    return _export_onnx(cfg, checkpoint, predictor, prepared)


def _export_onnx(
    cfg: DictConfig, checkpoint: Path, predictor: GeopakPredictor, prepared: PreparedSet | None
) -> dict[str, Any]:
    from geopak.exporting.comparing import Session, compare, cost, random_photos
    from geopak.exporting.onnx_model import write_onnx

    name = "model.onnx" if cfg.precision == "float32" else f"model-{cfg.precision}.onnx"
    out = Path(cfg.out).expanduser() if cfg.out else checkpoint.parent.parent / "export" / name
    if out.is_dir():
        raise ExportError(f"out={out} is a folder: format=onnx writes a file, out={out / name}.")
    _make_folder(out.parent, out)
    partial = out.with_name(f"{out.name}{_PARTIAL}")
    size = predictor.trained.model.image_size
    random = random_photos(int(cfg.check_photos), size, int(cfg.seed))
    found: dict[str, Any] = {"format": cfg.format, "precision": cfg.precision}
    try:
        log.info("writing the graph: a minute or two")
        write_onnx(
            predictor.trained,
            partial,
            predictor.decoding,
            predictor.coverage,
            predictor.per_province,
            cfg.precision,
        )
        session = Session(partial)
        if cfg.precision == "float32":
            found |= _checked(compare(session, predictor, random))
        elif prepared is None:
            found |= {"cost": cost(session, predictor, random, None), "cost_on": "random"}
        else:
            photos, truth_deg = _val_photos(cfg, prepared)
            found |= {"cost": cost(session, predictor, photos, truth_deg), "cost_on": "val"}
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return found | {"path": str(out), "bytes": out.stat().st_size}


def _export_safetensors(
    cfg: DictConfig, checkpoint: Path, predictor: GeopakPredictor, prepared: PreparedSet | None
) -> dict[str, Any]:
    from geopak.data.atomic import replaced_folder
    from geopak.exporting.comparing import compare_answers, random_photos
    from geopak.model_folder import CONFIG, WEIGHTS
    from geopak.predictor import CARD, GeopakPredictor

    out = Path(cfg.out).expanduser() if cfg.out else checkpoint.parent.parent / "export" / "model"
    if out.is_dir() and (other := {p.name for p in out.iterdir()} - {CONFIG, WEIGHTS, CARD}):
        raise ExportError(
            f"out={out} holds other files ({', '.join(sorted(other)[:3])}): choose a folder of its "
            "own."
        )
    card = predictor.generate_model_card(
        cfg.report, cfg.license, None if prepared is None else prepared.photos
    )
    if out.is_file():
        raise ExportError(f"out={out} is a file: format=safetensors writes a folder.")
    _make_folder(out.parent, out)
    photos = random_photos(int(cfg.check_photos), predictor.trained.model.image_size, int(cfg.seed))
    with replaced_folder(out) as folder:
        # First: where there is a card, no other is made, nor its warnings said again.
        card.save(folder / CARD)
        predictor.save_pretrained(folder)
        back = GeopakPredictor.from_pretrained(
            folder, device="cpu", precision="float32", coverage=cfg.coverage,
            per_province=bool(cfg.per_province),
        )  # fmt: skip
        differences = compare_answers(predictor.predict(photos), back.predict(photos))
        checked = _checked(differences)
    size = sum(p.stat().st_size for p in out.iterdir())
    found = {"format": cfg.format, "precision": cfg.precision, "path": str(out), "bytes": size}
    return found | checked


def _make_folder(folder: Path, out: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"out={out} cannot be written: {error.strerror} ({error.filename})."
        ) from error


def _checked(found: Any) -> dict[str, Any]:
    """The differences as results, once they are known to be small."""
    from geopak.exporting.comparing import TOLERANCE

    if not found.worst <= TOLERANCE:
        name = max(found.largest, key=found.largest.__getitem__)
        raise ExportError(
            f"The export answers otherwise than the checkpoint: {name} differs by "
            f"{found.worst:.2g} on random photos, allowed are {TOLERANCE:g}. Nothing is written."
        )
    return {
        "differences": found.largest,
        "num_photos": found.num_photos,
        "num_tied": found.num_tied,
    }


def _prepared(cfg: DictConfig, predictor: GeopakPredictor) -> PreparedSet | None:
    if cfg.prepared is None:
        return None
    from geopak.data.dataset import PreparedSet

    prepared = PreparedSet.read(cfg.prepared, cfg.root, predictor.trained.region)
    if prepared.cells.fingerprint() != predictor.trained.cells.fingerprint():
        raise PreparedSetError(
            f"{cfg.prepared} is not the set that {predictor.trained.path} was trained on: its "
            "geocells differ. Pass prepared=FOLDER of that set."
        )
    return prepared


def _val_photos(cfg: DictConfig, prepared: PreparedSet) -> tuple[list[Path], NDArray[np.float64]]:
    """Val photos drawn at random, and where they were taken."""
    import numpy as np

    rows = np.random.default_rng(cfg.seed).permutation(prepared.rows("val"))[: cfg.val_photos]
    photos = prepared.photos.iloc[np.sort(rows)]
    files = [prepared.root / path for path in photos["path"]]
    return files, photos[["latitude", "longitude"]].to_numpy(float)


def print_results(found: dict[str, Any]) -> None:
    """Prints what was written and how it compares with the checkpoint."""
    from rich.console import Console

    def say(text: str) -> None:
        Console().print(text, highlight=False, soft_wrap=True)

    say(f"{found['path']}: {found['bytes'] / 1e6:,.1f} MB, {found['format']}, {found['precision']}")
    if differences := found.get("differences"):
        worst = max(differences.values())
        say(f"largest difference from the checkpoint: {worst:.2g} ({found['num_photos']} answers)")
        for name, value in differences.items():
            say(f"  {name}: {value:.2g}")
        if found["num_tied"]:
            say(f"  in {found['num_tied']} answers hypotheses tied: their places were not compared")
    if cost := found.get("cost"):
        on = "val photos" if found["cost_on"] == "val" else "random photos, which tell no accuracy"
        say(f"what {found['precision']} costs, on {cost['num_photos']:,} {on}:")
        say(
            f"  same province {cost['same_province']:.1%}, same cell {cost['same_cell']:.1%}; "
            f"answers move by {cost['moved_median_km']:.3g} km (median), "
            f"{cost['moved_p95_km']:.3g} km "
            f"(95%); confidence by {cost['confidence_change']:.2g}"
        )
        if "median_km_before" in cost:
            say(
                f"  median error {cost['median_km_before']:.1f} km before, "
                f"{cost['median_km_after']:.1f} km after; within 25 km "
                f"{cost['within_25km_before']:.1%} before, {cost['within_25km_after']:.1%} after"
            )
        else:
            say("  prepared=FOLDER root=FOLDER measures it on val photos")


@entry_point("export")
def main(cfg: DictConfig) -> None:
    print_results(export(cfg))


if __name__ == "__main__":
    main()
