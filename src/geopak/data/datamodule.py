"""The LightningDataModule: balanced, geography-safe augmented batches of a prepared set."""

from __future__ import annotations

import math
import signal
import zlib
from dataclasses import replace
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from geopak.data.augment import Augmenter
from geopak.data.content_hashes import FileContents, content_hashes
from geopak.data.dataset import PhotoDataset, PreparedSet
from geopak.data.feature_store import hash_folder
from geopak.data.features import (
    Encoding,
    FeatureDataset,
    ImageEncoder,
    Pictures,
    cached_features,
)
from geopak.data.sampler import (
    BalancedBatchSampler,
    RandomBatchSampler,
    SequentialBatchSampler,
    batches_per_rank,
    check_quotas,
)
from geopak.data.shards import (
    ShardBatches,
    ShardBatchSampler,
    ShardIndex,
    ShardPhotos,
    ShardRowSampler,
)
from geopak.errors import CheckpointError, ConfigError
from geopak.geo.region import Region
from geopak.schema.loading import LoadingOptions
from geopak.schema.model import CROP
from geopak.types import Batch


class GeopakDataModule(L.LightningDataModule):
    """Serves train and val, never test: only evaluation opens that split.

    Args:
        prepared: the prepared set.
        region: its quotas shape the training batches.
        options: how photos become batches.
        image_size: side of the model's input, pixels.
        world_size: number of processes that share the photos.
        limit_train_batches: batches of an epoch at the most, or a share of them as a float;
            ``None``: all. Not the trainer's, so that sampler, schedule and resuming agree.
        framing: how photos become squares, see :func:`geopak.data.images.load_image`.

    Raises:
        ConfigError: batches, quotas or a limit that cannot be.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        region: Region,
        options: LoadingOptions,
        image_size: int,
        world_size: int = 1,
        limit_train_batches: int | float | None = None,
        framing: str = CROP,
    ) -> None:
        super().__init__()
        limit = limit_train_batches
        if limit is not None and (limit <= 0 or (isinstance(limit, float) and limit > 1)):
            raise ConfigError(
                f"trainer.limit_train_batches={limit} must be a number of batches, at least 1, or "
                "a share above 0 and up to 1.0."
            )
        self.limit_train_batches = limit
        self.world_size = world_size
        self.prepared = prepared
        self.options = options
        self.image_size = image_size
        self.framing = framing
        self.augmenter = Augmenter(image_size, options.augmentation, options.allow_unsafe)
        self.train_rows = prepared.rows("train")
        self.val_rows = prepared.rows("val")
        self.region = region
        if len(self.val_rows) < world_size:
            raise ConfigError(
                f"{len(self.val_rows)} val photos cannot be shared by {world_size} processes: "
                "prepare more of them, or train on fewer devices."
            )
        self.train_province_id = prepared.photos["province_id"].to_numpy(np.int64)[self.train_rows]
        if options.sampling == "balanced":
            self.quotas = check_quotas(region, options.batch_size, self.train_province_id)
        self.index: ShardIndex | None = None
        if options.shards is not None:
            self.index = ShardIndex.read(options.shards)
            self.index.check(prepared, region)
        self.datasets: dict[str, PhotoDataset | FeatureDataset | ShardBatches | ShardPhotos] = {}
        self.encoder: ImageEncoder | None = None
        # Batches of an epoch of the run that this one goes on with.
        self._batches_before: int | None = None
        # And what decided which photos they hold.
        self._draws_before: dict[str, Any] = {}

    def use_features_of(self, encoder: ImageEncoder) -> None:
        """Serves features instead of photos where the options want it: its weights are frozen."""
        self.encoder = encoder

    @property
    def num_batches(self) -> int:
        """Training batches an epoch on every device."""
        o, limit = self.options, self.limit_train_batches
        if o.batches_per_epoch is None:
            whole = max(1, len(self.train_rows) // (o.batch_size * self.world_size))
        else:
            reference = o.reference_batch or o.batch_size
            whole = batches_per_rank(o.batches_per_epoch, reference, o.batch_size, self.world_size)
        if isinstance(limit, float):
            return max(1, int(limit * whole))
        return whole if limit is None else min(limit, whole)

    @property
    def batch_size(self) -> int:
        """Photos a batch and device; may be set before the loaders are made."""
        return self.options.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        if self.options.sampling == "balanced":
            self.quotas = check_quotas(self.region, value, self.train_province_id)
        self.options = replace(self.options, batch_size=value)
        if self.index is not None and self.datasets:
            # Shards are cut into batches where they are read.
            self.datasets.clear()
            self.setup("fit")

    @property
    def smallest_batch_size(self) -> int:
        """The smallest batch with whole quotas; it may be doubled again and again."""
        if self.options.sampling != "balanced":
            return 8
        quotas = [p.batch_quota for p in self.region.provinces]
        return sum(quotas) // math.gcd(*quotas)

    @property
    def serves_features(self) -> bool:
        """Whether batches hold features in place of images; known once it is set up."""
        return any(isinstance(dataset, FeatureDataset) for dataset in self.datasets.values())

    def setup(self, stage: str) -> None:
        if self.datasets:
            return
        train_size = round(self.image_size * self.options.load_margin)
        if self.index is not None:
            o, rank = self.options, self._rank()[0]
            self.datasets["train"] = ShardBatches(
                self.prepared,
                self.index,
                self.quotas,
                train_size,
                o.seed,
                rank,
                o.shard_group,
                self.framing,
            )
            self.datasets["val"] = ShardPhotos(
                self.prepared, self.index, "val", self.image_size, self.framing
            )
            return
        o = self.options
        plain = Pictures(self.image_size)
        views = Pictures(train_size, self.augmenter, o.feature_views, o.feature_draw)
        for split, rows, pictures in (
            ("train", self.train_rows, views),
            ("val", self.val_rows, plain),
        ):
            if self._encodes_once():
                self.datasets[split] = self._feature_dataset(split, rows, pictures)
            else:
                self.datasets[split] = self._dataset(rows, pictures.load_size)

    def _encodes_once(self) -> bool:
        """Whether to train from cached features."""
        if self.encoder is None or self.options.feature_cache == "false":
            return False
        if self.options.feature_cache == "true" or self.trainer is None:
            return True
        num_train, num_val = len(self.train_rows), len(self.val_rows)
        batches = self.num_batches * self._rank()[1] * int(self.trainer.max_epochs or 1)
        uncached = batches * self.options.batch_size
        uncached += num_val * int(self.trainer.max_epochs or 1)
        return self.options.feature_views * num_train + num_val <= uncached

    def _feature_dataset(
        self, split: str, rows: NDArray[np.int64], pictures: Pictures
    ) -> FeatureDataset:
        o = self.options
        dataset = PhotoDataset(self.prepared, pictures.load_size, framing=self.framing)
        features = cached_features(
            self._encoding(),
            dataset,
            rows,
            self._hashes([dataset.paths[row] for row in rows]),
            pictures,
            o.feature_folder,
            o.feature_dtype,
        )
        return FeatureDataset(
            dataset.truth, features, self._view_generator if split == "train" else None
        )

    def _hashes(self, paths: list[str]) -> FileContents:
        """Content hashes: one process of a machine reads the files, the others look them up."""
        store, trainer = hash_folder(self.options.feature_folder), self.trainer
        if trainer is None:
            return content_hashes(paths, store)
        if trainer.local_rank == 0:
            hashes = content_hashes(paths, store)
        trainer.strategy.barrier("photo hashes")
        return hashes if trainer.local_rank == 0 else content_hashes(paths, store)

    def _encoding(self) -> Encoding:
        encoder = cast(ImageEncoder, self.encoder)
        workers, trainer = self.options.num_workers, self.trainer
        if trainer is None:
            return Encoding(encoder, torch.device("cpu"), num_workers=workers)
        return Encoding(
            encoder,
            trainer.strategy.root_device,
            str(trainer.precision),
            trainer.precision_plugin.forward_context,
            workers,
        )

    def _dataset(self, rows: NDArray[np.int64], size: int) -> PhotoDataset:
        choice = self.options.memory_cache
        fits = len(rows) * 3 * size * size <= self.options.memory_cache_gb * 1e9
        cached = choice == "true" or (choice == "auto" and fits)
        return PhotoDataset(
            self.prepared,
            size,
            rows if cached else None,
            num_threads=torch.get_num_threads(),
            framing=self.framing,
        )

    def _rank(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def train_sampler(self, rank: int) -> BalancedBatchSampler | ShardBatchSampler:
        """The sampler of one rank."""
        o = self.options
        if self.index is not None:
            return ShardBatchSampler(self.num_batches)
        if o.sampling == "random":
            return RandomBatchSampler(self.train_rows, o.batch_size, self.num_batches, o.seed, rank)
        return BalancedBatchSampler(
            self.train_rows, self.train_province_id, self.quotas, self.num_batches, o.seed, rank
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        sampler = self.train_sampler(self._rank()[0])
        if self.trainer is not None:
            # Lightning sets the epoch after loader processes have begun to fetch, and a resumed
            # trainer counts its epochs later still; the batches done are known by now.
            sampler.resume(self._batches_done(self.trainer))
        return self._loader("train", sampler)

    def _batches_done(self, trainer: L.Trainer) -> int:
        """Training batches that are done, in epochs as they are now.

        Raises:
            CheckpointError: the run goes on within an epoch of another number of batches.
        """
        epochs: Any = trainer.fit_loop.epoch_progress.current
        done = int(epochs.processed) * self.num_batches
        if epochs.ready == epochs.processed:
            return done
        if self._batches_before not in (None, self.num_batches):
            raise CheckpointError(
                f"This run was interrupted within an epoch of {self._batches_before} batches, now "
                f"an epoch has {self.num_batches}: go on with the same data.batch_size, "
                "data.batches_per_epoch and number of devices."
            )
        for name, before in self._draws_before.items():
            if getattr(self.options, name) != before:
                raise CheckpointError(
                    f"This run was interrupted within an epoch drawn with data.{name}={before}, "
                    f"now it is {getattr(self.options, name)}: its other batches would not be "
                    "those that are left. Go on with the value of before."
                )
        return done + trainer.fit_loop.epoch_loop.batch_progress.current.ready

    @property
    def feature_keys(self) -> dict[str, str]:
        """The key of each split's feature cache, where there is one."""
        caches = {n: d for n, d in self.datasets.items() if isinstance(d, FeatureDataset)}
        return {name: dataset.key for name, dataset in caches.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "batches_per_epoch": self.num_batches,
            "draws": {
                name: getattr(self.options, name) for name in ("batch_size", "sampling", "seed")
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches_before = state_dict["batches_per_epoch"]
        self._draws_before = state_dict.get("draws", {})

    def val_dataloader(self) -> DataLoader[Batch]:
        rank, world_size = self._rank()
        rows = [int(r) for r in self.val_rows]
        # The processes of a sharded model run each layer together, or wait for ever.
        sharded = self.trainer is not None and isinstance(
            self.trainer.strategy, ModelParallelStrategy
        )
        size = self.options.batch_size
        sampler: Sampler[list[int]]
        if self.index is not None:
            sampler = ShardRowSampler(
                self.val_rows, size, rank, world_size, self.options.num_workers, sharded
            )
        else:
            sampler = SequentialBatchSampler(rows, size, rank, world_size, same_number=sharded)
        return self._loader("val", sampler)

    def _loader(self, split: str, sampler: Sampler[Any]) -> DataLoader[Batch]:
        dataset = self.datasets[split]
        in_memory = isinstance(dataset, FeatureDataset) or (
            isinstance(dataset, PhotoDataset) and dataset.cache is not None
        )
        workers = 0 if in_memory else self.options.num_workers
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Whoever begins an epoch draws a number: not from the generator that dropout draws
            # from, or a resumed run, which begins at another time, would draw another dropout.
            generator=torch.Generator().manual_seed(self.options.seed),
            worker_init_fn=heed_no_signal,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        trainer = self.trainer
        if "features" in batch:
            batch["features"] = batch["features"].float()
        elif trainer is not None and trainer.training:
            rank, _ = self._rank()
            generator = self.augmentation_generator(batch["row"], trainer.current_epoch, rank)
            batch["image"] = self.augmenter(batch["image"], generator)
        else:
            batch["image"] = to_float(batch["image"])
        return batch

    def _view_generator(self, row: Tensor) -> torch.Generator:
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        return self.augmentation_generator(row, epoch, self._rank()[0])

    def augmentation_generator(self, row: Tensor, epoch: int, rank: int) -> torch.Generator:
        """Randomness that depends on the seed, the epoch, the rank and the batch's photos alone."""
        drawn = zlib.crc32(row.cpu().numpy().tobytes())
        seed = np.random.SeedSequence([self.options.seed, epoch, rank, drawn])
        return torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))


def heed_no_signal(worker: int) -> None:
    """Lets a loader process outlive signals that are meant for the training.

    Terminals and schedulers send them to every process; the training itself ends its loaders.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

    def end_at_the_next(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # Should the training have ended without a word.
        signal.alarm(300)

    signal.signal(signal.SIGTERM, end_at_the_next)


def to_float(image: Tensor) -> Tensor:
    """(…) uint8 -> float32 in [0, 1]."""
    return image.float() / 255
