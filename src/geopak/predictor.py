"""From a checkpoint and photos to places."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from PIL import Image
from torch import Tensor

from geopak.calibration import (
    answer_score,
    calibrated,
    calibrated_confidence,
    confidence_is_calibrated,
    region_mask,
)
from geopak.checkpoint import chosen_checkpoint
from geopak.conformal import mass_before
from geopak.data.images import Photo, files_of, load_image, name_of, stack_images
from geopak.errors import ConfigError, ExportError, PhotoError
from geopak.model_folder import CONFIG, WEIGHTS, write_model_folder
from geopak.models.decode import decode, joint_log_prob
from geopak.results import Answer, Hypothesis, PhotoFailure, PlaceRegion, Prediction
from geopak.schema.training import DecodingOptions
from geopak.trained import answers_fingerprint, load_trained

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

CARD = "README.md"
MOST_THREADS = 8
# Batches that are decoded or being decoded while the model is at work on another.
_BATCHES_AHEAD = 2

Precision = Literal["auto", "float32", "bfloat16"]


class _Read(NamedTuple):
    """A photo that has been read: its name, and the image or what is wrong with it."""

    photo: str | None
    image: Tensor | PhotoError


class _Inferred(NamedTuple):
    """What the answers of B photos need, on its way to the processor's memory.

    Attributes:
        numbers: (B, F) float64.
        region: (B, N) ids of the cells of each region, most probable first, with -1 for the cells
            that are not in it; ``None``: there are no regions.
        ready: says when both have arrived; ``None``: they have.
    """

    numbers: Tensor
    region: Tensor | None
    ready: torch.cuda.Event | None


class GeopakPredictor(ModelHubMixin, library_name="geopak", tags=["geolocation"]):
    """Predicts where photos were taken, from a checkpoint alone.

    ::

        predictor = GeopakPredictor("best.ckpt")
        predictor.predict("photo.jpg")["lat"]           # one photo
        predictor.predict(["a.jpg", "b.jpg"])           # a list, in its order
        predictor.predict("photos/")                    # a folder with its subfolders: a list
        for answer in predictor.stream(million_paths):  # any iterable, as it goes
            print(answer.error or (answer.photo, answer.lat, answer.lon))
        predictor.save_pretrained("folder")             # with a model card
        GeopakPredictor.from_pretrained("folder")       # or a repository of the Hugging Face Hub

    Args:
        checkpoint_path: a checkpoint of any phase, or a folder of ``save_pretrained``.
        device: ``cpu``, ``cuda``, ``cuda:1``, or the number of a GPU; ``None``: a GPU if there is
            one.
        rule: decoding rule; ``None``: the one that the model was validated with.
        batch_size: photos at a time.
        precision: of the encoders. ``auto``: bfloat16 on a GPU that computes in it, else float32.
            Heads, offsets and distances are always float32: a coordinate of 70 degrees has steps of
            half a degree in bfloat16.
        coverage: of the regions, see ``geopak.conformal``; ``None``: no regions. A checkpoint that
            is not calibrated has none in any case.
        per_province: keep the regions' promise to the photos of each province apart.
        abstain_below: answers of a lower :func:`geopak.calibration.answer_score` are marked as not
            ``answered``; without a calibration that score is the confidence.

    Raises:
        CheckpointError: not a checkpoint of geopak.
        ConfigError: unknown rule or precision, a device that is not there, or a number that cannot
            be.
    """

    def __init__(
        self,
        checkpoint_path: str | Path,
        device: str | int | torch.device | None = None,
        rule: str | None = None,
        batch_size: int = 64,
        precision: Precision = "auto",
        coverage: float | None = 0.9,
        per_province: bool = False,
        abstain_below: float = 0.0,
    ) -> None:
        if not _is_a(batch_size, Integral) or batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be a whole number, at least 1.")
        if coverage is not None and not (_is_a(coverage, Real) and 0 < coverage < 1):
            raise ConfigError(f"coverage={coverage} must be a number between 0 and 1, or None.")
        if not (_is_a(abstain_below, Real) and 0 <= abstain_below <= 1):
            raise ConfigError(f"abstain_below={abstain_below} must be a number from 0 to 1.")
        self.device = _device(device)
        self.bfloat16 = _computes_in_bfloat16(self.device, precision)
        self.trained = load_trained(checkpoint_path, self.device)
        chosen = self.trained.decoding
        if rule is not None:
            chosen = DecodingOptions(**{**vars(chosen), "rule": rule})
        self.decoding = chosen
        self.batch_size = batch_size
        self.coverage = coverage if self.trained.calibration is not None else None
        self.per_province = per_province
        self.abstain_below = abstain_below
        self.calibrated = self.trained.calibration is not None and confidence_is_calibrated(
            self.trained.calibration, chosen.rule, chosen.confidence_km
        )
        self._provinces = [self.trained.region.names[p] for p in self.trained.cells.province_id]
        self._radius_km: list[float] = self.trained.cells.radius_km.tolist()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes ``config.json`` and ``model.safetensors``, see :mod:`geopak.model_folder`."""
        trained = self.trained
        write_model_folder(save_directory, trained.identity, trained.model.state_dict())

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **options: Any,
    ) -> GeopakPredictor:
        """A predictor of a folder, or of what a repository of the Hub holds.

        Raises:
            CheckpointError: not a model of geopak.
        """
        folder = model_id
        if not os.path.isdir(model_id):
            folder = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[CONFIG, WEIGHTS, CARD],
            )
        return cls(folder, **options)

    def generate_model_card(
        self,
        report: str | Path | None = None,
        license: str | None = None,
        photos: pd.DataFrame | None = None,
    ) -> ModelCard:
        """The card that :meth:`save_pretrained` and :meth:`push_to_hub` add.

        Args:
            report: ``report.json`` of the evaluation on test (``model_card_kwargs={"report": …}``);
                ``None``: the one in the run's ``report-test/``, if there is one of this model as
                it is, or the card of the folder that the model was read from.
            license: the model's.
            photos: table of the prepared set, which tells where its photos come from.

        Raises:
            ExportError: no report, or one of another split or model.
        """
        from geopak.report.model_card import model_card, read_report

        trained = self.trained
        before = trained.path / CARD
        if report is None and license is None and photos is None and before.is_file():
            return ModelCard.load(before)
        beside = trained.path.parent.parent / "report-test" / "report.json"
        figures = None if report is None else read_report(report)
        if report is None and trained.path.is_file() and beside.is_file():
            figures = read_report(beside)
        if figures is not None:
            # Reports of earlier versions do not say.
            now = answers_fingerprint(trained)
            if figures["context"].get("fingerprint", now) != now:
                what = f"{report or beside} is of another model than {trained.path}, or of the one"
                what += " that it was before it was calibrated"
                if report is not None:
                    raise ExportError(f"report={what}. Make one: python -m geopak.evaluate ckpt=…")
                log.warning("warning: %s: it is left out of the model card.", what)
                figures = None
        return ModelCard(
            model_card(
                trained.identity,
                trained.region,
                trained.cells,
                trained.calibration,
                figures,
                photos,
                license,
            ),
            ignore_metadata_errors=True,
        )

    # A folder is given by its path too, and its answers are a list.
    @overload
    def predict(self, photos: Photo) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, photos: Sequence[Photo]) -> list[Answer]: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, photos: Iterable[Photo]) -> Iterator[Answer]: ...
    def predict(
        self, photos: Photo | Sequence[Photo] | Iterable[Photo]
    ) -> Prediction | list[Answer] | Iterator[Answer]:
        """Predicts one photo, or each of many.

        Args:
            photos: a photo, which is a path, the bytes of a file, a file open in binary mode, a PIL
                image or an array (H, W[, C]); a list of photos; the path of a folder; or any other
                iterable of photos, but a tensor.

        Returns:
            For one photo its :class:`geopak.results.Prediction`. For a list or folder a list of
            answers in the order given, for another iterable an iterator, see :meth:`stream`: of a
            photo that cannot be read the answer is a :class:`geopak.results.PhotoFailure`.

        Raises:
            PhotoError: the only photo is missing or unreadable, a folder holds none, or what was
                given is neither a photo nor an iterable.
        """
        if isinstance(photos, (str, Path)) and os.path.isdir(photos):
            in_folder = list(self.stream(photos))
            if not in_folder:
                raise PhotoError(f"{photos} holds no image file.")
            return in_folder
        if _is_photo(photos):
            photo, image = self._read(photos)
            if isinstance(image, PhotoError):
                raise image
            return self._answers(self._infer(image.unsqueeze(0)), [photo])[0]
        if isinstance(photos, Tensor) or not isinstance(photos, Iterable):
            raise _no_photo(photos)
        answers = self.stream(photos)  # type: ignore[arg-type]
        return list(answers) if isinstance(photos, Sequence) else answers

    def stream(self, photos: Iterable[Photo] | str | Path) -> Iterator[Answer]:
        """Answers one after another, in the order of the photos, in memory that does not grow.

        The next batches are decoded by threads while the model is at work. Photos are taken from
        the iterable no more than three batches before their answer.

        Args:
            photos: any iterable of photos, or the path of a folder.

        Yields:
            One answer per photo: a :class:`geopak.results.Prediction`, or a
            :class:`geopak.results.PhotoFailure` where it cannot be read.

        Raises:
            PhotoError: the path is of no folder.
        """
        if isinstance(photos, (str, Path)):
            if not os.path.isdir(photos):
                raise PhotoError(
                    f"{photos} is no folder: of one photo predict() gives the answer, of several "
                    "stream() takes a list or any iterable."
                )
            photos = files_of(photos)
        waiting: tuple[list[_Read], _Inferred | None] | None = None
        for batch in self._batches(photos):
            images = [read.image for read in batch if isinstance(read.image, Tensor)]
            size = self.trained.model.image_size
            inferred = self._infer(stack_images(images, len(images), size)) if images else None
            # A GPU begins the next batch before anyone waits for the results of this one.
            if waiting is not None:
                yield from self._finished(*waiting)
            waiting = batch, inferred
            if self.device.type != "cuda":
                yield from self._finished(*waiting)
                waiting = None
        if waiting is not None:
            yield from self._finished(*waiting)

    def _finished(self, batch: Sequence[_Read], inferred: _Inferred | None) -> Iterator[Answer]:
        """Answers of a batch, failures in their places."""
        good = [read.photo for read in batch if isinstance(read.image, Tensor)]
        answers = iter(() if inferred is None else self._answers(inferred, good))
        for photo, image in batch:
            if isinstance(image, PhotoError):
                yield PhotoFailure(photo, str(image))
            else:
                yield next(answers)

    def _batches(self, photos: Iterable[Photo]) -> Iterator[list[_Read]]:
        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:

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
            return _Read(name, _no_photo(photo))
        if isinstance(photo, (bytearray, memoryview)):
            photo = bytes(photo)
        try:
            model = self.trained.model
            return _Read(name, load_image(photo, model.image_size, model.framing))
        except PhotoError as error:
            return _Read(name, error)
        except Exception as error:  # decoders raise whatever a broken file causes
            what = f"{type(error).__name__}: {error}"
            return _Read(name, PhotoError(f"Cannot read the photo {name_of(photo)}: {what}."))

    @torch.inference_mode()
    def _infer(self, image: Tensor) -> _Inferred:
        """(B, 3, S, S) uint8 -> all that the answers need; a GPU may still be at work on it."""
        model, calibration = self.trained.model, self.trained.calibration
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            image = image.pin_memory()
        image = image.to(self.device, non_blocking=on_gpu)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            features = model.embed(image.float() / 255, model.fused_encoders)
        output = model.heads(features.float())
        if calibration is not None:
            output = calibrated(output, calibration)
        decoded = decode(model, output, self.decoding)[self.decoding.rule]
        confidence = decoded.confidence
        if calibration is not None:
            rule, confidence_km = self.decoding.rule, self.decoding.confidence_km
            confidence = calibrated_confidence(confidence, calibration, rule, confidence_km)
        region, area = None, torch.zeros_like(confidence)
        if calibration is not None and self.coverage is not None:
            score = mass_before(joint_log_prob(output, model.cell_province_id).exp())
            inside = region_mask(score, calibration, self.coverage, self.per_province)
            area = inside.double() @ torch.from_numpy(calibration.cell_area_km2).to(self.device)
            order = score.argsort(dim=-1, stable=True)
            region = order.where(inside.gather(1, order), -1)
        # One tensor, because every transfer from a GPU takes its time.
        parts = (
            decoded.latlon_deg,
            confidence.unsqueeze(-1),
            output.gate.unsqueeze(-1),
            answer_score(output, confidence, calibration).unsqueeze(-1),
            area.unsqueeze(-1),
            output.province_logits.softmax(-1),
            decoded.cell_id,
            decoded.probability,
            decoded.hypothesis_latlon_deg.flatten(1),
        )
        numbers = torch.cat([part.double() for part in parts], dim=1)
        if not on_gpu:
            return _Inferred(numbers, region, None)
        numbers = numbers.to("cpu", non_blocking=True)
        region = None if region is None else region.to("cpu", non_blocking=True)
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(self.device))
        return _Inferred(numbers, region, ready)

    def _answers(self, inferred: _Inferred, photos: Sequence[str | None]) -> list[Prediction]:
        if inferred.ready is not None:
            inferred.ready.synchronize()
        regions: list[tuple[int, ...]] | None = None
        if inferred.region is not None:
            regions = [tuple(row[row >= 0].tolist()) for row in inferred.region.numpy()]
        return [
            self._answer(photo, row, None if regions is None else regions[k])
            for k, (photo, row) in enumerate(zip(photos, inferred.numbers.tolist(), strict=True))
        ]

    def _answer(
        self, photo: str | None, row: Sequence[float], cell_ids: tuple[int, ...] | None
    ) -> Prediction:
        names = self.trained.region.names
        lat, lon, confidence, gate, score, area_km2 = row[:6]
        probabilities = row[6 : 6 + len(names)]
        rest = row[6 + len(names) :]
        num = len(rest) // 4
        cells, weights, places = rest[:num], rest[num : 2 * num], rest[2 * num :]
        region = None
        if cell_ids is not None and self.coverage is not None:
            region = PlaceRegion(self.coverage, area_km2, cell_ids)
        return Prediction(
            photo=photo,
            province=names[max(range(len(names)), key=probabilities.__getitem__)],
            lat=lat,
            lon=lon,
            confidence=confidence,
            confidence_km=self.decoding.confidence_km,
            calibrated=self.calibrated,
            province_probabilities=dict(zip(names, probabilities, strict=True)),
            hypotheses=tuple(
                Hypothesis(
                    lat=places[2 * k],
                    lon=places[2 * k + 1],
                    probability=weights[k],
                    province=self._provinces[int(cells[k])],
                    cell_id=int(cells[k]),
                    radius_km=self._radius_km[int(cells[k])],
                )
                for k in range(num)
                # A province with few cells leaves places unfilled.
                if weights[k] > 0
            ),
            region=region,
            gate=gate,
            answer_score=score,
            answered=score >= self.abstain_below,
        )


def predictor_of(cfg: DictConfig) -> GeopakPredictor:
    """The predictor that a command's options ask for.

    Args:
        cfg: ``ckpt``, or ``name`` and ``paths.outputs`` where that is null; ``device, rule,
            batch_size, precision, coverage, per_province, abstain_below``.

    Raises:
        GeopakError: no such checkpoint, or options that cannot be, see :class:`GeopakPredictor`.
    """
    return GeopakPredictor(
        chosen_checkpoint(cfg.ckpt, Path(cfg.paths.outputs) / cfg.name),
        device=cfg.device,
        rule=cfg.rule,
        batch_size=cfg.batch_size,
        precision=cfg.precision,
        coverage=cfg.coverage,
        per_province=cfg.per_province,
        abstain_below=cfg.abstain_below,
    )


def _is_photo(source: object) -> bool:
    """Whether something is one photo, rather than many."""
    one = (str, Path, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    return isinstance(source, one) or hasattr(source, "read")


def _no_photo(thing: object) -> PhotoError:
    kind = type(thing).__name__
    return PhotoError(f"A {kind} is no photo: give a path, bytes, an image or an array.")


def _is_a(value: object, kind: type) -> bool:
    """``isinstance`` of the abstract numbers, NumPy's among them, unknown to type checkers."""
    return isinstance(value, kind)


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
