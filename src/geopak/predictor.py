"""From a checkpoint and photos to places."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from geopak.build import load_trained
from geopak.data.images import Photo, files_of, load_image, name_of, stack_images
from geopak.errors import ConfigError, PhotoError
from geopak.models.decode import decode
from geopak.results import Answer, Hypothesis, PhotoFailure, Prediction
from geopak.schema.training import DecodingOptions

_MOST_THREADS = 8
# Batches that are decoded or being decoded while the model is at work on another.
_BATCHES_AHEAD = 2

Precision = Literal["auto", "float32", "bfloat16"]


class _Read(NamedTuple):
    """A photo that has been read: its name, and the image or what is wrong with it."""

    photo: str | None
    image: Tensor | PhotoError


class GeopakPredictor:
    """Predicts where photos were taken, from a checkpoint alone.

    ::

        predictor = GeopakPredictor("best.ckpt")
        predictor.predict("photo.jpg")["lat"]           # one photo
        predictor.predict(["a.jpg", "b.jpg"])           # a list, in its order
        predictor.predict("photos/")                    # a folder with its subfolders: a list
        for answer in predictor.stream(million_paths):  # any iterable, as it goes
            print(answer.error or (answer.photo, answer.lat, answer.lon))

    Args:
        checkpoint_path: of any phase.
        device: ``cpu``, ``cuda``, ``cuda:1``, or the number of a GPU; ``None``: a GPU if there is
            one.
        rule: decoding rule; ``None``: the one that the model was validated with.
        batch_size: photos at a time.
        precision: of the encoders. ``auto``: bfloat16 on a GPU that computes in it, else float32.
            Heads, offsets and distances are always float32: a coordinate of 70 degrees has steps of
            half a degree in bfloat16.

    Raises:
        CheckpointError: not a checkpoint of geopak.
        ConfigError: unknown rule or precision, or a device that is not there.
    """

    def __init__(
        self,
        checkpoint_path: str | Path,
        device: str | int | torch.device | None = None,
        rule: str | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1.")
        self.device = _device(device)
        self.bfloat16 = _computes_in_bfloat16(self.device, precision)
        self.trained = load_trained(checkpoint_path, self.device)
        chosen = self.trained.decoding
        if rule is not None:
            chosen = DecodingOptions(**{**vars(chosen), "rule": rule})
        self.decoding = chosen
        self.batch_size = batch_size

    # A folder is given by its path too, and its answers are a list.
    @overload
    def predict(self, photos: Photo) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, photos: Sequence[Photo]) -> list[Answer]: ...
    @overload
    def predict(self, photos: Iterable[Photo]) -> Iterator[Answer]: ...
    def predict(
        self, photos: Photo | Sequence[Photo] | Iterable[Photo]
    ) -> Prediction | list[Answer] | Iterator[Answer]:
        """Predicts one photo, or each of many.

        Args:
            photos: a photo, which is a path, the bytes of a file, a file open in binary mode, a PIL
                image or an array (H, W[, C]); a list of photos; the path of a folder; or any other
                iterable of photos.

        Returns:
            For one photo its :class:`geopak.results.Prediction`. For a list or folder a list of
            answers in the order given, for another iterable an iterator, see :meth:`stream`: of a
            photo that cannot be read the answer is a :class:`geopak.results.PhotoFailure`.

        Raises:
            PhotoError: the only photo is missing or unreadable, or a folder holds none.
        """
        if isinstance(photos, (str, Path)) and os.path.isdir(photos):
            answers = list(self.stream(photos))
            if not answers:
                raise PhotoError(f"{photos} holds no image file.")
            return answers
        if _is_photo(photos):
            photo, image = self._read(photos)
            if isinstance(image, PhotoError):
                raise image
            return self._answers(self._infer(image.unsqueeze(0)), [photo])[0]
        if isinstance(photos, Sequence):
            return list(self.stream(photos))
        return self.stream(photos)

    def stream(self, photos: Iterable[Photo] | str | Path) -> Iterator[Answer]:
        """Answers one after another, in the order of the photos, in memory that does not grow.

        The next batches are decoded by threads while the model is at work. Photos are taken from
        the iterable no more than three batches before their answer.

        Args:
            photos: any iterable of photos, or the path of a folder.

        Yields:
            One answer per photo: a :class:`geopak.results.Prediction`, or a
            :class:`geopak.results.PhotoFailure` where it cannot be read.
        """
        if isinstance(photos, (str, Path)):
            photos = files_of(photos)
        waiting: tuple[list[_Read], Tensor | None] | None = None
        for batch in self._batches(photos):
            images = [read.image for read in batch if isinstance(read.image, Tensor)]
            size = self.trained.model.image_size
            packed = self._infer(stack_images(images, len(images), size)) if images else None
            # A GPU begins the next batch before anyone waits for the results of this one.
            if waiting is not None:
                yield from self._finished(*waiting)
            waiting = batch, packed
            if self.device.type != "cuda":
                yield from self._finished(*waiting)
                waiting = None
        if waiting is not None:
            yield from self._finished(*waiting)

    def _finished(self, batch: Sequence[_Read], packed: Tensor | None) -> Iterator[Answer]:
        """Answers of a batch, failures in their places."""
        good = [read.photo for read in batch if isinstance(read.image, Tensor)]
        answers = iter(() if packed is None else self._answers(packed, good))
        for photo, image in batch:
            if isinstance(image, PhotoError):
                yield PhotoFailure(photo, str(image))
            else:
                yield next(answers)

    def _batches(self, photos: Iterable[Photo]) -> Iterator[list[_Read]]:
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:

            def begin(photo: Photo) -> Future[_Read] | _Read:
                # An open image or file has a position and may be in the list twice.
                if isinstance(photo, (str, Path, bytes, np.ndarray)):
                    return pool.submit(self._read, photo)
                return self._read(photo)

            def taken(number: int) -> list[_Read]:
                begun = (ahead.popleft() for _ in range(number))
                return [one.result() if isinstance(one, Future) else one for one in begun]

            ahead: deque[Future[_Read] | _Read] = deque()
            try:
                for photo in photos:
                    ahead.append(begin(photo))
                    if len(ahead) >= _BATCHES_AHEAD * self.batch_size:
                        yield taken(self.batch_size)
                while ahead:
                    yield taken(min(self.batch_size, len(ahead)))
            finally:
                pool.shutdown(cancel_futures=True)

    def _read(self, photo: Any) -> _Read:
        """The photo's name, and its image or what is wrong with it."""
        name = str(photo) if isinstance(photo, (str, Path)) else None
        if not _is_photo(photo):
            kind = type(photo).__name__
            return _Read(name, PhotoError(f"A {kind} is no photo: give a path, bytes or an image."))
        try:
            return _Read(name, load_image(photo, self.trained.model.image_size))
        except PhotoError as error:
            return _Read(name, error)
        except Exception as error:  # decoders raise whatever a broken file causes
            what = f"{type(error).__name__}: {error}"
            return _Read(name, PhotoError(f"Cannot read the photo {name_of(photo)}: {what}."))

    @torch.inference_mode()
    def _infer(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 -> (B, F) float64, all that the answers need, still on the device.

        One tensor, because from a GPU every transfer waits for all that goes before.
        """
        model = self.trained.model
        if self.device.type == "cuda":
            image = image.pin_memory().to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            features = model.embed(image.float() / 255, model.fused_encoders)
        output = model.heads(features.float())
        decoded = decode(model, output, self.decoding)[self.decoding.rule]
        parts = (
            decoded.latlon_deg,
            decoded.confidence.unsqueeze(-1),
            output.gate.unsqueeze(-1),
            output.province_logits.softmax(-1),
            decoded.cell_id,
            decoded.probability,
            decoded.hypothesis_latlon_deg.flatten(1),
        )
        return torch.cat([part.double() for part in parts], dim=1)

    def _answers(self, packed: Tensor, photos: Sequence[str | None]) -> list[Prediction]:
        names, cells = self.trained.region.names, self.trained.cells
        num_provinces = len(names)
        answers = []
        for photo, row in zip(photos, packed.tolist(), strict=True):
            lat, lon, confidence, gate = row[:4]
            province_probability = row[4 : 4 + num_provinces]
            rest = row[4 + num_provinces :]
            num = len(rest) // 4
            places = rest[2 * num :]
            hypotheses = tuple(
                Hypothesis(
                    lat=places[2 * k],
                    lon=places[2 * k + 1],
                    probability=rest[num + k],
                    province=names[cells.province_id[int(rest[k])]],
                    cell_id=int(rest[k]),
                    radius_km=float(cells.radius_km[int(rest[k])]),
                )
                for k in range(num)
                # A province with few cells leaves places unfilled.
                if rest[num + k] > 0
            )
            best = max(range(num_provinces), key=province_probability.__getitem__)
            answers.append(
                Prediction(
                    photo=photo,
                    province=names[best],
                    lat=lat,
                    lon=lon,
                    confidence=confidence,
                    confidence_km=self.decoding.confidence_km,
                    calibrated=False,
                    province_probabilities=dict(zip(names, province_probability, strict=True)),
                    hypotheses=hypotheses,
                    region=None,
                    gate=gate,
                )
            )
        return answers


def _is_photo(source: object) -> bool:
    """Whether something is one photo, rather than many."""
    one = (str, Path, bytes, Image.Image, np.ndarray)
    return isinstance(source, one) or hasattr(source, "read")


def _device(wanted: str | int | torch.device | None) -> torch.device:
    """The device, once it is known to work.

    Raises:
        ConfigError: it is not there, or no device.
    """
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device={wanted}: {reason} device=cpu needs no GPU.") from error
    return device


def _computes_in_bfloat16(device: torch.device, precision: str) -> bool:
    if precision not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"precision={precision!r} must be one of auto, float32, bfloat16.")
    if precision != "auto":
        return precision == "bfloat16"
    # Older GPUs emulate it, processors without matrix units are slower in it.
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
