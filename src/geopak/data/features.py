"""What frozen encoders say of every photo, computed once and kept.

Frozen encoders give the same features for the same picture, so that a phase which trains heads
alone needs each picture encoded once. Train photos are encoded in several geography-safe augmented
views, of which a batch draws one per photo; photos to be measured on are encoded as they are.

The key of a cache is a hash of all that its values depend on: the encoders' weights, the code and
library versions that make pixels, sizes and augmentation, and the bytes of every photo.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from geopak.data.augment import Augmenter
from geopak.data.content_hashes import FileContents, file_state
from geopak.data.dataset import PhotoDataset, Truth
from geopak.data.feature_store import (
    Claim,
    FeatureStore,
    known_caches,
    readable_size,
    release_all,
)
from geopak.data.partitions import progress_bar
from geopak.errors import PhotoError
from geopak.types import Batch

log = logging.getLogger(__name__)

# Photos that are loaded, encoded in all views, and written together.
CHUNK_PHOTOS = 128
# Photos that one process loads at a time.
_PIECE_PHOTOS = 32
# Whatever may change a pixel or a feature: own modules by their text, libraries by their version.
_MODULES = (
    "geopak.data.images", "geopak.data.dataset", "geopak.data.augment", "geopak.data.features",
)  # fmt: skip
_LIBRARIES = ("torch", "torchvision", "simplejpeg", "pillow", "numpy", "timm", "open_clip_torch")


class ImageEncoder(Protocol):
    """What a cache needs to know of a :class:`geopak.models.geolocator.Geolocator`."""

    @property
    def feature_dim(self) -> int:
        """Length of the features."""

    def embed(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, feature_dim)."""

    def encoder_fingerprint(self) -> str:
        """Names weights and shape of the encoders."""

    def to(self, device: torch.device) -> Any:
        """Moves the encoders."""


@dataclass(frozen=True)
class Encoding:
    """An encoder, and where and how it computes.

    Attributes:
        encoder: frozen.
        device: that it runs on.
        precision: name of the arithmetic, part of the key.
        context: entered around each forward pass, for automatic mixed precision.
        num_workers: processes that load photos.
    """

    encoder: ImageEncoder
    device: torch.device
    precision: str = "32-true"
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    num_workers: int = 0


@dataclass(frozen=True)
class Pictures:
    """The pictures of a photo that are encoded.

    Attributes:
        load_size: side of the square that the photo is loaded as, pixels.
        augmenter: makes views of it; ``None``: it is encoded as loaded.
        views: pictures per photo.
        draw: another number draws other views.
    """

    load_size: int
    augmenter: Augmenter | None = None
    views: int = 1
    draw: int = 0

    def describe(self) -> dict[str, Any]:
        """All that the pictures depend on beside the photo, as plain containers."""
        a = self.augmenter
        views = {"count": self.views, "draw": self.draw, "size": a.size, **a.settings} if a else {}
        return {"load_size": self.load_size, "augmented": views}

    def of(self, image: Tensor, chunk: int) -> Iterator[Tensor]:
        """The views of a chunk of photos, one after the other.

        Args:
            image: (B, 3, S, S) uint8.
            chunk: its number, from which and ``draw`` the views follow.

        Yields:
            (B, 3, ·, ·) float32 in [0, 1], ``views`` times.
        """
        if self.augmenter is None:
            yield image.float() / 255
            return
        for view in range(self.views):
            drawn = np.random.SeedSequence([self.draw, view, chunk]).generate_state(1, np.uint64)
            yield self.augmenter(image, torch.Generator().manual_seed(int(drawn[0] >> 1)))


@dataclass(frozen=True)
class CachedFeatures:
    """Features of some photos of a set.

    Attributes:
        values: (U, V, D) of U distinct photos in V views, mapped from disk.
        position: (N,) for every row of the photo table its place in ``values``, -1 where none.
        key: of the cache.
    """

    values: Tensor
    position: Tensor
    key: str


def are_known(folder: str | Path, fingerprint: str) -> bool:
    """Whether a cache in the folder holds features of the encoders of a fingerprint."""
    return any(about.get("encoders") == fingerprint for about in known_caches(folder))


def cached_features(
    encoding: Encoding,
    dataset: PhotoDataset,
    rows: NDArray[np.int64],
    contents: FileContents,
    pictures: Pictures,
    folder: str | Path,
    dtype: str,
) -> CachedFeatures:
    """Features of the given photos, encoded where they are not in the cache yet.

    Several processes may call this at once, on one machine or on several that share the folder:
    they divide the work and return when all of it is done.

    Args:
        encoding: the encoder and its device.
        dataset: loads the photos, at ``pictures.load_size``.
        rows: (N,) of the photos.
        contents: (N,) of each photo's file.
        pictures: what of a photo is encoded.
        folder: of the caches.
        dtype: of the values on disk.

    Raises:
        FeatureCacheError: no room, or values that ``dtype`` cannot hold.
        PhotoError: a photo that cannot be read, or that changed meanwhile.
    """
    distinct, first, place = np.unique(
        np.asarray(contents.sha256, dtype="S64"), return_index=True, return_inverse=True
    )
    about = {
        "encoders": encoding.encoder.encoder_fingerprint(),
        "precision": encoding.precision,
        "device": encoding.device.type,
        "matmul": torch.get_float32_matmul_precision(),
        "pictures": pictures.describe() | {"framing": dataset.framing},
        "photos": hashlib.sha256(distinct.tobytes()).hexdigest(),
        "dtype": dtype,
        "code": _code_sha256(),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
    }
    text = json.dumps(about, sort_keys=True)
    store = FeatureStore(
        folder,
        hashlib.sha256(text.encode()).hexdigest()[:24],
        num_rows=len(distinct),
        dim=pictures.views * encoding.encoder.feature_dim,
        dtype=dtype,
        chunk_rows=CHUNK_PHOTOS,
        about=json.loads(text),
    )
    if not store.complete:
        state = [contents.state[i] for i in first]
        _encode_missing(store, encoding, dataset, rows[first], state, pictures)
    store.close_making()
    position = torch.full((len(dataset),), -1, dtype=torch.long)
    position[torch.from_numpy(rows)] = torch.from_numpy(place.astype(np.int64))
    values = store.open().view(len(distinct), pictures.views, encoding.encoder.feature_dim)
    return CachedFeatures(values, position, store.folder.name)


def _encode_missing(
    store: FeatureStore,
    encoding: Encoding,
    dataset: PhotoDataset,
    rows: NDArray[np.int64],
    state: Sequence[str],
    pictures: Pictures,
) -> None:
    """Encodes what no other process is encoding, until everything is there."""
    encoding.encoder.to(encoding.device)
    began, encoded = time.perf_counter(), 0
    log.info(
        "encoding %s photos in %d view%s (%s, %s)",
        f"{store.num_rows:,}", pictures.views, "" if pictures.views == 1 else "s",
        readable_size(store.num_bytes), store.folder,
    )  # fmt: skip
    with progress_bar() as progress:
        shown = progress.add_task("encoding photos", total=store.num_rows)
        while not store.complete:
            claims = store.claim_missing()
            first = next(claims, None)
            if first is None:
                # All that is missing is in the hands of others.
                store.wait()
                continue
            taken: deque[Claim] = deque([first])
            loader = DataLoader(
                dataset,
                batch_size=None,
                sampler=_ClaimedRows(store, rows, taken, claims),
                num_workers=encoding.num_workers,
                pin_memory=encoding.device.type == "cuda",
            )
            pieces: list[Tensor] = []
            try:
                for batch in loader:
                    pieces.append(batch["image"].to(encoding.device, non_blocking=True))
                    chunk = taken[0].chunk
                    photos = range(store.num_rows)[store.rows_of(chunk)]
                    if sum(map(len, pieces)) < len(photos):
                        continue
                    features = _encode(encoding, pictures, torch.cat(pieces), chunk)
                    _check_unchanged(dataset, rows[photos], [state[i] for i in photos])
                    with taken.popleft():
                        store.write(chunk, features)
                    pieces = []
                    encoded += len(photos)
                    done = int(store.done().sum()) * store.chunk_rows
                    progress.update(shown, completed=min(done, store.num_rows))
            finally:
                release_all(taken)
    seconds = time.perf_counter() - began
    log.info("encoded %s photos in %.0f s", f"{encoded:,}", seconds)


def _check_unchanged(dataset: PhotoDataset, rows: NDArray[np.int64], state: Sequence[str]) -> None:
    """Raises a PhotoError if a file is no longer what it was when it was hashed."""
    for row, before in zip(rows, state, strict=True):
        if file_state(dataset.paths[row]) != before:
            raise PhotoError(
                f"The photo {dataset.paths[row]} changed while its features were made. Start "
                "again; what is finished is kept."
            )


@torch.inference_mode()
def _encode(encoding: Encoding, pictures: Pictures, image: Tensor, chunk: int) -> Tensor:
    """(B, 3, S, S) uint8 -> (B, V × D) float32."""
    features = []
    for picture in pictures.of(image, chunk):
        with encoding.context():
            features.append(encoding.encoder.embed(picture).float())
    return torch.cat(features, dim=-1)


class _ClaimedRows:
    """Lists of row numbers: the pieces of one chunk after the other, each claimed when it is due.

    A loader that reads ahead must not claim much more than it needs, lest others stand idle.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: NDArray[np.int64],
        taken: deque[Claim],
        claims: Iterator[Claim],
    ) -> None:
        self.store, self.rows, self.taken, self.claims = store, rows, taken, claims

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._pieces(self.taken[0])
        for claim in self.claims:
            self.taken.append(claim)
            yield from self._pieces(claim)

    def _pieces(self, claim: Claim) -> Iterator[list[int]]:
        rows = self.rows[self.store.rows_of(claim.chunk)]
        for start in range(0, len(rows), _PIECE_PHOTOS):
            yield rows[start : start + _PIECE_PHOTOS].tolist()


def _code_sha256() -> str:
    digest = hashlib.sha256()
    for name in _MODULES:
        digest.update(Path(str(importlib.import_module(name).__file__)).read_bytes())
    return digest.hexdigest()


class FeatureDataset(Dataset[Batch]):
    """Batches of cached features: like :class:`PhotoDataset`, without pictures.

    Args:
        truth: of all photos.
        features: of those that will be asked for.
        generator: from a batch's rows to the randomness that draws a view of every photo;
            ``None``: the only view.
    """

    def __init__(
        self,
        truth: Truth,
        features: CachedFeatures,
        generator: Callable[[Tensor], torch.Generator] | None = None,
    ) -> None:
        self.truth = truth
        self.position = features.position
        self.key = features.key
        self.num_views = features.values.shape[1]
        self.values = features.values.flatten(0, 1)
        self.generator = generator

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        row = torch.as_tensor(rows, dtype=torch.long)
        place = self.position[row]
        if (place < 0).any():
            raise IndexError(f"Rows {row[place < 0].tolist()} are not in the feature cache.")
        place = place * self.num_views
        if self.generator is not None and self.num_views > 1:
            place += torch.randint(self.num_views, place.shape, generator=self.generator(row))
        batch = self.truth.batch(row)
        batch["features"] = self.values.index_select(0, place)
        return batch
