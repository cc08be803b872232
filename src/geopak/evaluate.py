"""Measures a checkpoint on a split it never saw: ``python -m geopak.evaluate ckpt=…``.

The only command that opens the test split.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.errors import PreparedSetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch.utils.data import DataLoader

    from geopak.calibration import Calibration
    from geopak.data.dataset import PreparedSet
    from geopak.report.evaluation import Evaluation
    from geopak.retrieval import NearestPhotos
    from geopak.trained import Trained
    from geopak.types import Batch

log = logging.getLogger(__name__)


def run_model(
    trained: Trained,
    prepared: PreparedSet,
    rows: NDArray[np.int64],
    loader: DataLoader[Batch],
    *,
    block_km: float,
    doubts: Sequence[str] = (),
    abstain_below: float | None = None,
) -> Evaluation:
    """Predicts every photo by every decoding rule, end to end.

    Args:
        trained: the model with its own cells, and its calibration if it has one.
        prepared: photos and their truth.
        rows: of the photos.
        loader: gives each of them once, in any order.
        block_km: photos within a block of ground so wide resemble each other.
        doubts: why the regions' promise may not hold for these photos.
        abstain_below: see :class:`geopak.report.evaluation.Evaluation`.
    """
    import numpy as np
    import torch

    from geopak.calibration import (
        COVERAGES,
        answer_score,
        calibrated,
        calibrated_confidence,
        region_mask,
    )
    from geopak.conformal import mass_before
    from geopak.geo.distance import haversine_km_array
    from geopak.inference import model_outputs
    from geopak.models.decode import cell_rank, compared_rules, decode, joint_log_prob
    from geopak.report.certainty import Claims, MeasuredRegions, PhotoRegions
    from geopak.report.evaluation import Evaluation
    from geopak.report.groups import group_photos

    model, cells, calibration = trained.model, trained.cells, trained.calibration
    rules = compared_rules(trained.decoding.rule)
    device = model.cell_center_deg.device
    photos = prepared.photos.iloc[rows]
    latlon = photos[["latitude", "longitude"]].to_numpy(float)
    province_id = photos["province_id"].to_numpy(np.int64)
    # The model's own cells: those of the set are the same, or it was asked for another set.
    cell_id = cells.nearest(latlon, province_id)
    place = np.full(len(prepared.photos), -1)
    place[rows] = np.arange(len(rows))
    promises = [(c, per_province) for per_province in (False, True) for c in COVERAGES]
    parts: list[dict[str, torch.Tensor]] = []
    places: list[NDArray[np.int64]] = []
    with torch.inference_mode():
        for row, raw in model_outputs(trained, loader):
            places.append(place[row])
            true_cell = torch.from_numpy(cell_id[places[-1]]).to(device)
            output = raw if calibration is None else calibrated(raw, calibration)
            decoded = decode(model, output, trained.decoding, rules)
            main = decoded[trained.decoding.rule]
            confidence = main.confidence
            if calibration is not None:
                confidence = calibrated_confidence(
                    confidence, calibration, trained.decoding.rule, trained.decoding.confidence_km
                )
            joint = joint_log_prob(output, model.cell_province_id).exp()
            found = {f"rule/{rule}": d.latlon_deg for rule, d in decoded.items()} | {
                "province_prob": output.province_logits.softmax(-1),
                "cell_rank": cell_rank(output, model.cell_province_id, true_cell),
                "top_cell_prob": joint.amax(-1),
                "confidence": confidence,
                "answer_score": answer_score(output, confidence, calibration),
                "teacher_forced": model.locate(output.fused, true_cell),
                "hypothesis": main.hypothesis_latlon_deg,
                "probability": main.probability,
                "gate": output.gate,
            }
            if calibration is not None:
                plain = decode(model, raw, trained.decoding)[trained.decoding.rule]
                found |= {
                    "before/province_prob": raw.province_logits.softmax(-1),
                    "before/cell_rank": cell_rank(raw, model.cell_province_id, true_cell),
                    "before/cell": joint_log_prob(raw, model.cell_province_id).exp().amax(-1),
                    "before/confidence": plain.confidence,
                    "before/latlon": plain.latlon_deg,
                }
                area_km2 = torch.from_numpy(calibration.cell_area_km2).to(device)
                score = mass_before(joint)
                for coverage, per_province in promises:
                    inside = region_mask(score, calibration, coverage, per_province)
                    name = f"region/{coverage}/{per_province}"
                    found[f"{name}/covered"] = inside.gather(1, true_cell.unsqueeze(1)).squeeze(1)
                    found[f"{name}/cells"] = inside.sum(-1)
                    found[f"{name}/km2"] = inside.double() @ area_km2
            parts.append(found)
    # Batches from shards come in another order than the rows.
    order = np.argsort(np.concatenate(places))
    found_all = {
        name: torch.cat([p[name] for p in parts]).cpu().double().numpy()[order] for name in parts[0]
    }
    uncalibrated = regions = None
    if calibration is not None:
        before = found_all["before/province_prob"]
        error_km = haversine_km_array(found_all["before/latlon"], latlon)
        uncalibrated = Claims(
            province=before.max(1),
            province_right=before.argmax(1) == province_id,
            cell=found_all["before/cell"],
            cell_right=found_all["before/cell_rank"] == 0,
            confidence=found_all["before/confidence"],
            within=error_km <= trained.decoding.confidence_km,
        )
        regions = MeasuredRegions(
            [
                PhotoRegions(
                    coverage,
                    per_province,
                    found_all[f"region/{coverage}/{per_province}/covered"].astype(bool),
                    found_all[f"region/{coverage}/{per_province}/cells"].astype(np.int64),
                    found_all[f"region/{coverage}/{per_province}/km2"],
                )
                for coverage, per_province in promises
            ],
            calibration.scores,
            float(calibration.cell_area_km2.sum()),
            doubts,
        )
    return Evaluation(
        id=photos["id"].astype(str).to_list(),
        path=photos["path"].to_list(),
        latlon_deg=latlon,
        province_id=province_id,
        cell_id=cell_id,
        urban=cells.urban[cell_id],
        predicted_latlon_deg={rule: found_all[f"rule/{rule}"] for rule in rules},
        rule=trained.decoding.rule,
        province_prob=found_all["province_prob"],
        cell_rank=found_all["cell_rank"].astype(np.int64),
        top_cell_prob=found_all["top_cell_prob"],
        confidence=found_all["confidence"],
        confidence_km=trained.decoding.confidence_km,
        teacher_forced_latlon_deg=found_all["teacher_forced"],
        hypothesis_latlon_deg=found_all["hypothesis"],
        hypothesis_probability=found_all["probability"],
        gate=found_all["gate"],
        answer_score=found_all["answer_score"],
        uncalibrated=uncalibrated,
        regions=regions,
        abstain_below=abstain_below,
        groups=group_photos(photos, block_km),
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

    from geopak.checkpoint import chosen_checkpoint
    from geopak.data.dataset import PreparedSet
    from geopak.data.manifest import split_settings
    from geopak.inference import photo_loader
    from geopak.report.evaluation import write_report
    from geopak.schema.preparation import SplitSettings
    from geopak.trained import answers_fingerprint, load_trained

    checkpoint = chosen_checkpoint(cfg.ckpt, Path(cfg.paths.outputs) / cfg.name)
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
    settings = split_settings(cfg.prepared)
    if same_set and trained.calibration is not None:
        check_calibration(trained.calibration, prepared, checkpoint)
    evaluation = run_model(
        trained,
        prepared,
        rows,
        photo_loader(cfg, trained, prepared, rows, cfg.split),
        block_km=float(settings.get("block_km", SplitSettings.block_km)),
        doubts=doubts(cfg.split, same_set, settings.get("method")),
        abstain_below=cfg.abstain_below,
    )
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
        "calibration": _calibration_in_words(trained),
        "fingerprint": answers_fingerprint(trained),
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


def check_calibration(calibration: Calibration, prepared: PreparedSet, checkpoint: Path) -> None:
    """Makes sure that the model was calibrated on what are the set's val photos now.

    Raises:
        PreparedSetError: it was not, so that photos of another split may be among them.
    """
    from geopak.calibration import ids_fingerprint

    split = calibration.fitted_on["split"]
    now = prepared.photos["id"][prepared.photos["split"] == split]
    if ids_fingerprint(now) != calibration.fitted_on["ids"]:
        raise PreparedSetError(
            f"{checkpoint} was calibrated on other photos than the {split} photos of this set: "
            "photos of another split may have been among them. Calibrate it again: "
            f"python -m geopak.calibrate ckpt={checkpoint}"
        )


def doubts(split: str, same_set: bool, method: str | None) -> list[str]:
    """Why photos may not be exchangeable with those that a model was calibrated on.

    Args:
        split: of the photos.
        same_set: they are of the set that the model was trained on.
        method: how that was split; ``None``: not known.

    Returns:
        Sentences; none where nothing speaks against it.
    """
    if not same_set:
        return [
            "These photos are of another prepared set than the calibration's, so nothing is "
            "promised for them: the coverage is what was measured."
        ]
    if split == "val":
        return [
            "These are the val photos that the model was calibrated on: the coverage here is no "
            "measure of the promise."
        ]
    if split == "train":
        return [
            "The model has learned these photos by heart and was calibrated on photos that it had "
            "not seen: the coverage here is no measure of the promise."
        ]
    if method == "spatial_blocks":
        return [
            "Whole blocks of ground were held out (split=spatial_blocks): test photos show ground "
            "where neither training nor calibration has been, so photos of test and val are not "
            "exchangeable, only their blocks are, and of these there are few. The promise is not "
            "guaranteed here: the coverage is what was measured."
        ]
    if method is None:
        return ["How this set was split is not known, so neither is whether the promise holds."]
    return []


def _calibration_in_words(trained: Trained) -> str:
    if trained.calibration is None:
        return "none: python -m geopak.calibrate"
    found = trained.calibration
    return (
        f"temperatures {found.province_temperature:.3g} (province) and "
        f"{found.cell_temperature:.3g} (cells)"
    )


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

    from geopak.report.certainty import verdict_in_words

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
    for promise in report.get("regions", {"promises": {}})["promises"].values():
        if not promise["per_province"]:
            part = promise["overall"]
            verdict = verdict_in_words(part, report["regions"]["doubts"])
            console.print(
                f"region of {promise['coverage']:.0%}: holds {part['covered']['value']:.1%}, "
                f"{verdict}; median {part['area_km2']['median']:,.0f} km²",
                highlight=False,
                soft_wrap=True,
            )
    console.print(context["leaks"], highlight=False, soft_wrap=True)


@entry_point("evaluate")
def main(cfg: DictConfig) -> None:
    print_results(evaluate(cfg))


if __name__ == "__main__":
    main()
