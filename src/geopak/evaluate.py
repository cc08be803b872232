"""Measures a checkpoint on a split it never saw: ``python -m geopak.evaluate ckpt=…``.

The only command that opens the test split.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.errors import FeatureCacheError, PreparedSetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch.utils.data import DataLoader

    from geopak.build import Trained
    from geopak.data.dataset import PreparedSet
    from geopak.report.evaluation import Evaluation
    from geopak.retrieval import NearestPhotos
    from geopak.types import Batch

log = logging.getLogger(__name__)


def photo_loader(
    cfg: DictConfig, trained: Trained, prepared: PreparedSet, rows: NDArray[np.int64]
) -> DataLoader[Batch]:
    """Photos, or their cached features, in batches: each of the rows once.

    Photos come from shards if there are any; features take their place where others of the same
    encoders are in the cache already, so that the heads of a sweep share one encoding.

    Raises:
        GeopakError: shards of another set, or a feature cache that cannot be used.
    """
    from torch.utils.data import DataLoader

    from geopak.data import features
    from geopak.data.content_hashes import content_hashes
    from geopak.data.dataset import PhotoDataset
    from geopak.data.feature_store import hash_folder
    from geopak.data.sampler import SequentialBatchSampler
    from geopak.data.shards import ShardIndex, ShardPhotos, ShardRowSampler

    model, choice = trained.model, str(cfg.feature_cache).lower()
    if cfg.shards is not None:
        index = ShardIndex.read(str(cfg.shards))
        index.check(prepared, trained.region)
        return DataLoader(
            ShardPhotos(prepared, index, cfg.split, model.image_size),
            batch_size=None,
            sampler=ShardRowSampler(rows, cfg.batch_size, num_workers=cfg.num_workers),
            num_workers=cfg.num_workers,
        )
    sampler = SequentialBatchSampler(rows.tolist(), cfg.batch_size)
    photos = PhotoDataset(prepared, model.image_size)
    fingerprint = model.encoder_fingerprint() if choice == "auto" else ""
    if choice == "true" or features.are_known(cfg.feature_folder, fingerprint):
        try:
            cached = features.cached_features(
                features.Encoding(model, model.cell_center_deg.device, num_workers=cfg.num_workers),
                photos,
                rows,
                content_hashes([photos.paths[r] for r in rows], hash_folder(cfg.feature_folder)),
                features.Pictures(model.image_size),
                cfg.feature_folder,
                "float32",
            )
            dataset = features.FeatureDataset(photos.truth, cached)
            return DataLoader(dataset, batch_size=None, sampler=sampler)
        except FeatureCacheError as error:
            if choice == "true":
                raise
            log.warning("measuring on the photos themselves: %s", error)
    return DataLoader(photos, batch_size=None, sampler=sampler, num_workers=cfg.num_workers)


def run_model(
    trained: Trained,
    prepared: PreparedSet,
    rows: NDArray[np.int64],
    loader: DataLoader[Batch],
) -> Evaluation:
    """Predicts every photo by every decoding rule, end to end.

    Args:
        trained: the model with its own cells.
        prepared: photos and their truth.
        rows: of the photos.
        loader: gives each of them once, in any order.
    """
    import numpy as np
    import torch

    from geopak.models.decode import cell_rank, compared_rules, decode
    from geopak.report.evaluation import Evaluation
    from geopak.report.groups import group_photos

    model, cells = trained.model, trained.cells
    rules = compared_rules(trained.decoding.rule)
    device = model.cell_center_deg.device
    photos = prepared.photos.iloc[rows]
    latlon = photos[["latitude", "longitude"]].to_numpy(float)
    province_id = photos["province_id"].to_numpy(np.int64)
    # The model's own cells: those of the set are the same, or it was asked for another set.
    cell_id = cells.nearest(latlon, province_id)
    place = np.full(len(prepared.photos), -1)
    place[rows] = np.arange(len(rows))
    parts: list[dict[str, torch.Tensor]] = []
    places: list[NDArray[np.int64]] = []
    with torch.inference_mode():
        for batch in loader:
            places.append(place[batch["row"].numpy()])
            true_cell = torch.from_numpy(cell_id[places[-1]]).to(device)
            if "features" in batch:
                output = model.heads(batch["features"].to(device).float())
            else:
                output = model(batch["image"].to(device).float() / 255)
            decoded = decode(model, output, trained.decoding, rules)
            main = decoded[trained.decoding.rule]
            parts.append(
                {f"rule/{rule}": d.latlon_deg for rule, d in decoded.items()}
                | {
                    "province_prob": output.province_logits.softmax(-1),
                    "cell_rank": cell_rank(output, model.cell_province_id, true_cell),
                    "confidence": main.confidence,
                    "teacher_forced": model.locate(output.fused, true_cell),
                    "hypothesis": main.hypothesis_latlon_deg,
                    "probability": main.probability,
                    "gate": output.gate,
                }
            )
    # Batches from shards come in another order than the rows.
    order = np.argsort(np.concatenate(places))
    found = {
        name: torch.cat([p[name] for p in parts]).cpu().double().numpy()[order] for name in parts[0]
    }
    return Evaluation(
        id=photos["id"].astype(str).to_list(),
        path=photos["path"].to_list(),
        latlon_deg=latlon,
        province_id=province_id,
        cell_id=cell_id,
        urban=cells.urban[cell_id],
        predicted_latlon_deg={rule: found[f"rule/{rule}"] for rule in rules},
        rule=trained.decoding.rule,
        province_prob=found["province_prob"],
        cell_rank=found["cell_rank"].astype(np.int64),
        confidence=found["confidence"],
        confidence_km=trained.decoding.confidence_km,
        teacher_forced_latlon_deg=found["teacher_forced"],
        hypothesis_latlon_deg=found["hypothesis"],
        hypothesis_probability=found["probability"],
        gate=found["gate"],
        groups=group_photos(photos),
    )


def look_up(
    cfg: DictConfig, trained: Trained, prepared: PreparedSet, rows: NDArray[np.int64]
) -> NearestPhotos:
    """Each photo's most similar train photo, for the baseline of ``retrieval=true``."""
    from geopak.retrieval import nearest_train_photos

    return nearest_train_photos(
        trained.model, prepared, rows, cfg.feature_folder, int(cfg.num_workers)
    )


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluates, writes the report folder, and returns the content of ``report.json``."""
    import torch

    from geopak.build import load_trained
    from geopak.checkpoint import find_latest
    from geopak.data.dataset import PreparedSet
    from geopak.report.evaluation import write_report

    checkpoint = Path(cfg.ckpt or find_latest(Path(cfg.paths.outputs) / cfg.name))
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_trained(checkpoint, device)
    prepared = PreparedSet.read(cfg.prepared, cfg.root, trained.region)
    same_set = prepared.cells.fingerprint() == trained.cells.fingerprint()
    if not same_set and not cfg.other_set:
        raise PreparedSetError(
            f"{cfg.prepared} is not the set that {checkpoint} was trained on: its geocells differ, "
            "so its test photos may be the model's train photos. Pass prepared=FOLDER of that set, "
            "or other_set=true if no photo of this set was trained on."
        )
    rows = prepared.rows(cfg.split)
    loader = photo_loader(cfg, trained, prepared, rows)
    evaluation = run_model(trained, prepared, rows, loader)
    if cfg.retrieval:
        nearest = look_up(cfg, trained, prepared, rows)
        evaluation = dataclasses.replace(evaluation, nearest=nearest)
    folder = Path(cfg.out) if cfg.out else checkpoint.parent.parent / f"report-{cfg.split}"
    context = {
        "checkpoint": checkpoint.name,
        "run": checkpoint.parent.parent.name,
        "phase": f"{trained.phase['index']} ({trained.phase['title']})",
        "model": trained.config["model"]["name"],
        "region": trained.region.title,
        "split": cfg.split,
        "same set as training": same_set,
        "leaks": _leaks(prepared, cfg.split, same_set),
    } | imported_context(trained)
    report = write_report(
        folder,
        evaluation,
        trained.region,
        trained.outlines,
        trained.cells,
        context,
        prepared.root,
        num_resamples=cfg.bootstrap_resamples,
        seed=cfg.seed,
        config=trained.config,
    )
    log.info("report: %s", folder / "report.html")
    return report


def imported_context(trained: Trained) -> dict[str, Any]:
    """What a report says of a model that was imported; see :mod:`geopak.import_geopak`."""
    facts = trained.config.get("imported")
    if facts is None:
        return {}
    counts = "" if facts["counts"] else ", photos per cell unknown: baselines by cell mean little"
    return {"imported from": f"{facts['checkpoint']} ({facts['checkpoint_sha256'][:12]}){counts}"}


def _leaks(prepared: PreparedSet, split: str, same_set: bool) -> str:
    """What train shows of the split's photos, in a line."""
    from geopak.data.leaks import leak_report

    if not same_set:
        return "leaks: unknown, the model was trained on photos of another set"
    if split == "train":
        return "leaks: these are the photos that the model was trained on"
    return leak_report(prepared.photos, held_out=(split,)).headline()


def print_results(report: Mapping[str, Any]) -> None:
    """Prints the main figures beside the baselines', and what they are worth."""
    from rich.console import Console
    from rich.table import Table

    context = report["context"]
    table = Table(
        title=f"end to end on {report['num_photos']:,} {context['split']} photos",
        box=None, pad_edge=False, header_style="bold", title_justify="left",
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    for column in ("median km", "mean km", "within 25 km", "province macro accuracy"):
        table.add_column(column, justify="right")
    rows = {"model": report["end_to_end"]}
    rows |= {
        f"baseline: {name.replace('_', ' ')}": baseline
        for name, baseline in report["baselines"].items()
    }
    for name, values in rows.items():
        accuracy = values.get("province_macro_acc")
        table.add_row(
            name,
            f"{values['median_km']['value']:.1f}",
            f"{values['mean_km']['value']:.1f}",
            f"{values['within_25km']['value']:.1%}",
            "" if accuracy is None else f"{accuracy['value']:.1%}",
        )
    console = Console()
    console.print(table)
    console.print(context["leaks"], highlight=False, soft_wrap=True)


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    print_results(evaluate(cfg))


if __name__ == "__main__":
    main()
