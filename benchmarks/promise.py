"""Do regions hold as often as they promise: ``python -m benchmarks.promise CHECKPOINT --root …``.

One evaluation tells of one draw of photos. Here the val and test photos of the set that a
calibrated model was trained on are halved anew many times, group by group; the regions are promised
by one half and measured on the other. For every coverage it prints the mean of what was measured,
and in how many halvings that lay in the range that the report calls kept, which is to be 95%;
beside it the same with a range that takes photos for independent. The temperatures stay those of
the checkpoint: a promise holds whatever they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.abstain import infer
from geopak.calibration import COVERAGES, calibrated, halves
from geopak.conformal import conformal_threshold, effective_photos, mass_before, promised_range
from geopak.data.dataset import PreparedSet
from geopak.data.images import load_image
from geopak.data.manifest import split_settings
from geopak.errors import CheckpointError
from geopak.models.decode import joint_log_prob
from geopak.report.groups import group_photos
from geopak.schema.preparation import SplitSettings
from geopak.trained import load_trained


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", help="calibrated")
    parser.add_argument("--root", type=Path, required=True, help="photos, with prepared/ in it")
    parser.add_argument("--halvings", type=int, default=200)
    args = parser.parse_args()
    trained = load_trained(args.checkpoint)
    if trained.calibration is None:
        raise CheckpointError(f"{args.checkpoint} is not calibrated: python -m geopak.calibrate")
    prepared = PreparedSet.read(args.root / "prepared", args.root, trained.region)
    rows = np.sort(np.concatenate([prepared.rows("val"), prepared.rows("test")]))
    photos = prepared.photos.iloc[rows]
    province = photos["province_id"].to_numpy(np.int64)
    latlon_deg = photos[["latitude", "longitude"]].to_numpy(float)
    cell = torch.from_numpy(trained.cells.nearest(latlon_deg, province)).unsqueeze(1)
    size, framing = trained.model.image_size, trained.model.framing
    images = [load_image(args.root / path, size, framing) for path in photos["path"]]
    raw = infer(trained, images)
    output = calibrated(raw, trained.calibration)
    joint = joint_log_prob(output, trained.model.cell_province_id).double().exp()
    score = mass_before(joint).gather(1, cell).squeeze(1).numpy()
    settings = split_settings(args.root / "prepared")
    block_km = float(settings.get("block_km", SplitSettings.block_km))
    group = group_photos(photos, block_km).label
    print(f"{len(rows)} photos of {len(np.unique(group))} groups, halved {args.halvings} times")
    print("| promised | measured, mean | in the range if kept | in that of independent photos |")
    print("| ---: | ---: | ---: | ---: |")
    sides = [halves(group, province, seed) for seed in range(args.halvings)]
    for coverage in COVERAGES:
        measured, kept, naive = [], [], []
        for first in sides:
            cut = conformal_threshold(score[first], coverage)
            known, covered = score[first] <= cut, score[~first] <= cut
            share = covered.mean()
            low, high = promised_range(
                coverage,
                len(known),
                len(covered),
                effective_calibration=effective_photos(known, group[first]),
                effective_new=effective_photos(covered, group[~first]),
            )
            measured.append(share)
            kept.append(low <= share <= high)
            low, high = promised_range(coverage, len(known), len(covered))
            naive.append(low <= share <= high)
        figures = (np.mean(measured), np.mean(kept), np.mean(naive))
        print(f"| {coverage:.0%} | {figures[0]:.1%} | {figures[1]:.1%} | {figures[2]:.1%} |")


if __name__ == "__main__":
    main()
