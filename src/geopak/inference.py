"""A trained model over the photos of a prepared set, each once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from geopak.data import features
from geopak.data.content_hashes import content_hashes
from geopak.data.dataset import PhotoDataset, PreparedSet
from geopak.data.feature_store import hash_folder
from geopak.data.sampler import SequentialBatchSampler
from geopak.data.shards import ShardIndex, ShardPhotos, ShardRowSampler
from geopak.errors import FeatureCacheError
from geopak.trained import Trained
from geopak.types import Batch, ModelOutput

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def photo_loader(
    cfg: DictConfig,
    trained: Trained,
    prepared: PreparedSet,
    rows: NDArray[np.int64],
    split: str,
) -> DataLoader[Batch]:
    """Photos, or their cached features, in batches: each of the rows once.

    Photos come from shards if there are any; features take their place where others of the same
    encoders are in the cache already, so that the heads of a sweep share one encoding.

    Args:
        cfg: ``shards, feature_cache, feature_folder, batch_size, num_workers``.
        trained: the model.
        prepared: the set.
        rows: of the photos.
        split: that they are of.

    Raises:
        GeopakError: shards of another set, or a feature cache that cannot be used.
    """
    model, choice = trained.model, str(cfg.feature_cache).lower()
    if cfg.shards is not None:
        index = ShardIndex.read(str(cfg.shards))
        index.check(prepared, trained.region)
        return DataLoader(
            ShardPhotos(prepared, index, split, model.image_size, model.framing),
            batch_size=None,
            sampler=ShardRowSampler(rows, cfg.batch_size, num_workers=cfg.num_workers),
            num_workers=cfg.num_workers,
        )
    sampler = SequentialBatchSampler(rows.tolist(), cfg.batch_size)
    photos = PhotoDataset(prepared, model.image_size, framing=model.framing)
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


def model_outputs(
    trained: Trained, loader: DataLoader[Batch]
) -> Iterator[tuple[NDArray[np.int64], ModelOutput]]:
    """What the model says of every batch, without any calibration.

    Args:
        trained: the model.
        loader: of photos or features, see :func:`photo_loader`.

    Yields:
        (B,) row numbers, and the output on the model's device.
    """
    model = trained.model
    device = model.cell_center_deg.device
    for batch in loader:
        # Closed before the batch is handed out: the mode must not leak into the caller's code.
        with torch.inference_mode():
            if "features" in batch:
                output = model.heads(batch["features"].to(device).float())
            else:
                output = model(batch["image"].to(device).float() / 255)
        yield batch["row"].numpy(), output
