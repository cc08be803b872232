"""Indoors or outdoors? ResNet-50 of Places365 and the public list of which of its classes is which.

Zhou et al., Places: A 10 Million Image Database for Scene Recognition (2018).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import timm
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transform

from geopak.errors import CheckpointError, ConfigError
from geopak.models.encoders import Encoder
from geopak.models.weight_files import read_weights
from geopak.schema.preparation import IndoorSettings

NUM_CLASSES = 365
# Of the validation of the published training.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SHORTER_SIDE_PX, _CROP_PX = 256, 224
_INDOOR, _OUTDOOR = "1", "2"
# Equal for any batch and device, as far as a threshold can tell.
_DECIMALS = 4


class IndoorClassifier(Encoder):
    """The scene classifier as a judge of indoors.

    Args:
        indoor: (365,) bool, which classes are indoor.
    """

    indoor: Tensor

    def __init__(self, indoor: Tensor) -> None:
        super().__init__(_MEAN, _STD, {"architecture": "resnet50"})
        self.network = timm.create_model("resnet50", pretrained=False, num_classes=NUM_CLASSES)
        self.network.to(memory_format=torch.channels_last)
        self.register_buffer("indoor", indoor, persistent=False)
        self.batch_size = IndoorSettings.batch_size
        self._fingerprint = "untrained"

    @classmethod
    def load(cls, settings: IndoorSettings) -> IndoorClassifier:
        """From the two files of the settings, on their device and ready to judge.

        Raises:
            CheckpointError: weights that are missing, unreadable or of another network.
            ConfigError: a list of classes that is missing or is another, or no such device.
        """
        if settings.checkpoint is None or settings.categories is None:
            raise ConfigError("The indoor filter needs indoor.checkpoint and indoor.categories.")
        model = cls(read_categories(settings.categories))
        try:
            state = read_weights(settings.checkpoint)
        except CheckpointError as error:
            raise CheckpointError(
                f"indoor.checkpoint: {error} It is resnet50_places365.pth.tar of the Places365 "
                "project; indoor.checkpoint=null indoor.categories=null goes without the filter."
            ) from error
        model.load_pretrained(state, f"indoor.checkpoint={settings.checkpoint}")
        content = hashlib.sha256(Path(settings.categories).read_bytes())
        with open(settings.checkpoint, "rb") as file:
            content.update(hashlib.file_digest(file, "sha256").digest())
        model._fingerprint = content.hexdigest()
        model.batch_size = settings.batch_size
        name = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model.to(torch.device(name))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"indoor.device={name} cannot be used ({reason}). indoor.device=cpu always can."
            ) from error
        return model.eval()

    def __repr__(self) -> str:
        # Names everything that the scores depend on, so that they can be kept under it.
        return f"IndoorClassifier({self._fingerprint})"

    def encode(self, normalised: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> (B, 365) logits."""
        logits: Tensor = self.network(normalised.contiguous(memory_format=torch.channels_last))
        return logits

    def body(self) -> nn.Module:
        return self.network

    @torch.inference_mode()
    def probability(self, image: Tensor) -> Tensor:
        """How probably photos were taken indoors: the sum over the indoor classes.

        Args:
            image: (B, 3, 224, 224) uint8, on any device.

        Returns:
            (B,) float32 on the CPU.
        """
        scaled = image.to(self.mean.device, non_blocking=True).float() / 255
        return self(scaled).softmax(-1)[:, self.indoor].sum(-1).cpu()


def read_categories(path: str | Path) -> Tensor:
    """Which classes of Places365 are indoor.

    Args:
        path: lines such as ``/a/airfield 2`` in the order of the classes; 1 is indoor, 2 outdoor.

    Returns:
        (365,) bool.

    Raises:
        ConfigError: no such file, or a line that does not belong into it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(
            f"indoor.categories={path} cannot be read ({reason}). It is IO_places365.txt of the "
            "Places365 project."
        ) from error
    lines = [line.split() for line in text.splitlines() if line.strip()]
    for number, fields in enumerate(lines, 1):
        if len(fields) != 2 or not fields[0].startswith("/") or not fields[1].isdecimal():
            raise ConfigError(
                f"indoor.categories={path} line {number}: {' '.join(fields)!r} is not a class and "
                "a number, such as '/a/airfield 2'."
            )
        if fields[1] not in (_INDOOR, _OUTDOOR):
            other = (
                " This is the list of class numbers; the one of indoor and outdoor is "
                "IO_places365.txt."
                if fields[1] == str(number - 1)
                else ""
            )
            raise ConfigError(
                f"indoor.categories={path} line {number}: {fields[1]} is neither 1 (indoor) nor 2 "
                f"(outdoor).{other}"
            )
    names = [fields[0] for fields in lines]
    if len(set(names)) != NUM_CLASSES or len(names) != NUM_CLASSES:
        raise ConfigError(
            f"indoor.categories={path} has {len(set(names))} classes in {len(names)} lines instead "
            f"of the {NUM_CLASSES} of Places365. Download IO_places365.txt again."
        )
    return torch.tensor([fields[1] == _INDOOR for fields in lines])


def indoor_scores(paths: Sequence[str], classifier: IndoorClassifier) -> pd.DataFrame:
    """Scores photos; one function over any part of them.

    It is to run in the process that holds the model (one local worker); photos are decoded by
    threads beside it.

    Args:
        paths: photo files.
        classifier: as loaded.

    Returns:
        ``indoor_probability`` per path, in order; missing for what does not decode.
    """
    scores: list[float] = []
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        for batch in _batches(threads.map(_decode, paths), classifier.batch_size):
            good = [image for image in batch if image is not None]
            found = iter(classifier.probability(torch.stack(good)).tolist() if good else [])
            scores += [
                math.nan if image is None else round(next(found), _DECIMALS) for image in batch
            ]
    return pd.DataFrame({"indoor_probability": pd.Series(scores, dtype="float64")})


def _batches(images: Iterator[Tensor | None], size: int) -> Iterator[list[Tensor | None]]:
    batch: list[Tensor | None] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _decode(path: str) -> Tensor | None:
    """(3, 224, 224) uint8: upright, shorter side 256, centre; ``None`` for what is no photo."""
    try:
        with Image.open(path) as image:
            # A coarser decoding where the photo is much larger; twice the size keeps the detail.
            image.draft("RGB", (2 * _SHORTER_SIDE_PX, 2 * _SHORTER_SIDE_PX))
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # decoders raise whatever a broken file causes
        return None
    small = transform.resize(upright, [_SHORTER_SIDE_PX], antialias=True)
    return transform.pil_to_tensor(transform.center_crop(small, [_CROP_PX, _CROP_PX]))
