"""Makes a model's probabilities honest: ``python -m geopak.calibrate ckpt=…``.

Fits temperatures and regions on val and stores them in the checkpoint.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.errors import CheckpointError, PreparedSetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from geopak.calibration import Calibration
    from geopak.data.dataset import PreparedSet
    from geopak.trained import Trained
    from geopak.types import Decoded, ModelOutput

log = logging.getLogger(__name__)

SPLIT = "val"
_DECODED_AT_ONCE = 256


def fit(
    trained: Trained,
    prepared: PreparedSet,
    rows: NDArray[np.int64],
    output: ModelOutput,
    train: Tensor | None,
    block_km: float,
    seed: int,
) -> tuple[Calibration, dict[str, Any]]:
    """Calibrates a model.

    The photos are halved, group by group: temperatures and what is familiar come from one half, and
    the scores that regions are promised by from the other, which has had no part in anything before
    it. The figures before and after are of that other half, too.

    Args:
        trained: the model with its cells.
        prepared: the set.
        rows: (N,) of its val photos.
        output: of the model for these, not calibrated, on the CPU.
        train: (M, D) of :func:`geopak.calibration.seen`, what the model sees in train photos;
            ``None``: the first half of val stands for them.
        block_km: photos within a block of ground so wide resemble each other.
        seed: of the halves.

    Returns:
        The calibration, and what it changes: see :func:`calibrate`.

    Raises:
        PreparedSetError: too few photos to halve.
    """
    import numpy as np
    import torch

    from geopak.calibration import (
        HIGHEST_TEMPERATURE,
        LOWEST_TEMPERATURE,
        NUM_DIRECTIONS,
        Calibration,
        calibrated,
        cell_nll,
        fit_confidence,
        fit_temperature,
        halves,
        ids_fingerprint,
        province_nll,
        seen,
        weights_fingerprint,
    )
    from geopak.conformal import ConformalScores, mass_before
    from geopak.geo.distance import haversine_km
    from geopak.geo.extents import cell_areas_km2
    from geopak.metrics import expected_calibration_error
    from geopak.models.decode import joint_log_prob
    from geopak.report.groups import group_photos
    from geopak.schema.training import DECODING_RULES
    from geopak.selective import Familiarity

    photos = prepared.photos.iloc[rows]
    group = group_photos(photos, block_km).label
    province = photos["province_id"].to_numpy(np.int64, copy=True)
    cell = trained.cells.nearest(photos[["latitude", "longitude"]].to_numpy(float), province)
    first = halves(group, province, seed)
    if first.all() or not first.any():
        raise PreparedSetError(
            f"The {len(rows)} {SPLIT} photos are of {len(np.unique(group))} place: calibration "
            "needs two at least, one for temperatures and one for regions. Prepare a larger set."
        )
    num_provinces = trained.region.num_provinces
    sizes = tuple(np.bincount(trained.cells.province_id, minlength=num_provinces).tolist())
    province_id, cell_id = torch.from_numpy(province), torch.from_numpy(cell)
    half, other = torch.from_numpy(first), torch.from_numpy(~first)

    temperatures = {
        "province": fit_temperature(
            lambda t: province_nll(output.province_logits[half], province_id[half], t)
        ),
        "cell": fit_temperature(
            lambda t: cell_nll(output.cell_log_prob[half], cell_id[half], sizes, t)
        ),
    }
    for name, temperature in temperatures.items():
        if not 2 * LOWEST_TEMPERATURE < temperature < 0.99 * HIGHEST_TEMPERATURE:
            log.warning(
                "warning: the %s temperature, %.3g, is at the end of what is tried: the "
                "distribution %s.", name, temperature,
                "tells nothing of the truth" if temperature > 1 else "is right for every photo",
            )  # fmt: skip
    draft = Calibration(
        province_temperature=temperatures["province"],
        cell_temperature=temperatures["cell"],
        confidence_maps={},
        confidence_km=trained.decoding.confidence_km,
        cells_per_province=sizes,
        cell_area_km2=cell_areas_km2(trained.cells, trained.outlines),
        scores=ConformalScores(np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64)),
        familiarity=Familiarity.fit(
            seen(output)[half] if train is None else train, seen(output)[other], NUM_DIRECTIONS
        ),
        fitted_on={
            "split": SPLIT,
            "ids": ids_fingerprint(photos["id"]),
            "num_photos": {"temperatures": int(first.sum()), "regions": int((~first).sum())},
            "num_groups": {
                "temperatures": len(np.unique(group[first])),
                "regions": len(np.unique(group[~first])),
            },
            "weights": weights_fingerprint(trained.model.state_dict()),
            "seed": seed,
        },
    )
    after = calibrated(output, draft)
    # Whoever predicts may choose any of them.
    decoded = _decoded(trained, after, DECODING_RULES)
    latlon = torch.from_numpy(photos[["latitude", "longitude"]].to_numpy(float, copy=True))
    maps = {}
    for rule, found in decoded.items():
        error_km = haversine_km(found.latlon_deg.cpu().double(), latlon)
        within = error_km <= trained.decoding.confidence_km
        maps[rule] = fit_confidence(found.confidence.cpu()[half], within[half])
    draft = dataclasses.replace(draft, confidence_maps=maps)
    states = {"before": output, "after": after}
    changes: dict[str, Any] = {}
    for state, now in states.items():
        joint = joint_log_prob(now, torch.from_numpy(trained.cells.province_id)).double()
        log_prob = {
            "province": now.province_logits.double().log_softmax(-1)[other],
            "cell": joint[other],
        }
        truth = {"province": province_id[other], "cell": cell_id[other]}
        for name, values in log_prob.items():
            top = values.max(-1)
            ece = expected_calibration_error(
                top.values.exp().numpy(), (top.indices == truth[name]).numpy()
            )
            nll = float(-values.gather(1, truth[name].unsqueeze(1)).mean())
            changes.setdefault(name, {})[state] = {"nll": nll, "ece": ece}
    # The joint probability of the last state: after.
    score = mass_before(joint.exp()[other]).gather(1, cell_id[other].unsqueeze(1)).squeeze(1)
    scores = ConformalScores(score.numpy(), province[~first], group[~first])
    return dataclasses.replace(draft, scores=scores), changes


def _decoded(trained: Trained, output: ModelOutput, rules: Sequence[str]) -> dict[str, Decoded]:
    """Decodes many photos, a batch at a time, into tensors on the CPU."""
    import torch

    from geopak.models.decode import decode
    from geopak.types import Decoded, ModelOutput

    device = trained.model.cell_center_deg.device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(output.gate), _DECODED_AT_ONCE):
            stop = start + _DECODED_AT_ONCE
            batch = {k: v[start:stop].to(device) for k, v in vars(output).items()}
            parts.append(decode(trained.model, ModelOutput(**batch), trained.decoding, rules))
    return {
        rule: Decoded(
            **{
                f.name: torch.cat([getattr(part[rule], f.name).cpu() for part in parts])
                for f in dataclasses.fields(Decoded)
            }
        )
        for rule in rules
    }


def _outputs(
    cfg: DictConfig, trained: Trained, prepared: PreparedSet, rows: NDArray[np.int64], split: str
) -> tuple[NDArray[np.int64], ModelOutput]:
    """Row numbers, ascending, and the model's output for their photos, on the CPU."""
    import numpy as np
    import torch

    from geopak.inference import model_outputs, photo_loader
    from geopak.types import ModelOutput

    parts = list(model_outputs(trained, photo_loader(cfg, trained, prepared, rows, split)))
    found = np.concatenate([numbers for numbers, _ in parts])
    # Batches from shards come in another order than the rows.
    order = torch.from_numpy(np.argsort(found))
    output = ModelOutput(
        **{
            f.name: torch.cat([getattr(part, f.name).cpu() for _, part in parts]).float()[order]
            for f in dataclasses.fields(ModelOutput)
        }
    )
    return found[order.numpy()], output


def calibrate(cfg: DictConfig) -> dict[str, Any]:
    """Calibrates a checkpoint.

    Returns:
        ``checkpoint``: the file written; ``temperatures``; ``changes``: ``province`` and ``cell``
        -> ``before`` and ``after`` -> ``nll`` (nats) and ``ece``; ``photos`` and ``groups`` of each
        half; ``thresholds``: coverage -> probability mass; ``too_few``: coverage -> provinces with
        too few photos for a promise of their own.
    """
    import numpy as np
    import torch

    from geopak.calibration import COVERAGES, seen, store
    from geopak.checkpoint import chosen_checkpoint
    from geopak.conformal import fewest_photos
    from geopak.data.dataset import PreparedSet
    from geopak.data.manifest import split_settings
    from geopak.schema.preparation import SplitSettings
    from geopak.trained import load_trained

    checkpoint = chosen_checkpoint(cfg.ckpt, Path(cfg.paths.outputs) / cfg.name)
    out = Path(cfg.out).expanduser() if cfg.out else checkpoint
    if out.is_dir():
        raise CheckpointError(
            f"{out} is a folder, but a calibrated checkpoint is a file: pass out=FILE.ckpt "
            "(geopak.export format=safetensors makes a folder of it)."
        )
    state = checkpoint.stat() if checkpoint.is_file() else None
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_trained(checkpoint, device, calibration=False)
    prepared = PreparedSet.read(cfg.prepared, cfg.root, trained.region)
    if prepared.cells.fingerprint() != trained.cells.fingerprint():
        raise PreparedSetError(
            f"{cfg.prepared} is not the set that {checkpoint} was trained on: its geocells differ, "
            f"so its {SPLIT} photos may be the model's train photos. Pass prepared=FOLDER of that "
            "set."
        )
    rows, output = _outputs(cfg, trained, prepared, prepared.rows(SPLIT), SPLIT)
    train = None
    # Shards hold train photos as a balanced stream alone.
    if cfg.shards is None:
        drawn = np.random.default_rng(cfg.seed).permutation(prepared.rows("train"))
        chosen = np.sort(drawn[: cfg.train_photos])
        train = seen(_outputs(cfg, trained, prepared, chosen, "train")[1])
    block_km = float(split_settings(cfg.prepared).get("block_km", SplitSettings.block_km))
    calibration, changes = fit(trained, prepared, rows, output, train, block_km, int(cfg.seed))
    store(calibration, checkpoint, out, state)
    per_province = np.bincount(
        calibration.scores.province_id, minlength=trained.region.num_provinces
    )
    return {
        "checkpoint": str(out),
        "temperatures": {
            "province": calibration.province_temperature,
            "cell": calibration.cell_temperature,
        },
        "changes": changes,
        "photos": calibration.fitted_on["num_photos"],
        "groups": calibration.fitted_on["num_groups"],
        "thresholds": {c: calibration.scores.threshold(c) for c in COVERAGES},
        "too_few": {
            c: [
                name
                for name, count in zip(trained.region.names, per_province, strict=True)
                if count < fewest_photos(c)
            ]
            for c in COVERAGES
        },
    }


def print_results(found: dict[str, Any]) -> None:
    """Prints what was fitted and what it is worth."""
    from rich.console import Console
    from rich.table import Table

    photos, groups = found["photos"], found["groups"]
    table = Table(
        title=f"on the {photos['regions']:,} {SPLIT} photos that the temperatures were not fitted "
        "on",
        box=None, pad_edge=False, header_style="bold", title_justify="left",
    )  # fmt: skip
    columns = ("temperature", "nats before", "nats after", "ECE before", "ECE after")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name, change in found["changes"].items():
        before, after = change["before"], change["after"]
        table.add_row(
            name,
            f"{found['temperatures'][name]:.3f}",
            f"{before['nll']:.3f}",
            f"{after['nll']:.3f}",
            f"{before['ece']:.3f}",
            f"{after['ece']:.3f}",
        )
    console = Console()
    console.print(table)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say(
        f"temperatures: {photos['temperatures']:,} photos of {groups['temperatures']:,} places; "
        f"regions: {photos['regions']:,} photos of {groups['regions']:,} places"
    )
    for coverage, threshold in found["thresholds"].items():
        if threshold == float("inf"):
            say(f"warning: too few photos to promise {coverage:.0%}: every cell is in the region")
        if few := found["too_few"][coverage]:
            say(
                f"too few photos to promise {coverage:.0%} per province, all of its cells are in: "
                f"{', '.join(few)}"
            )
    say(f"calibration stored in {found['checkpoint']}")


@entry_point("calibrate")
def main(cfg: DictConfig) -> None:
    print_results(calibrate(cfg))


if __name__ == "__main__":
    main()
