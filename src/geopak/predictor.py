"""From a checkpoint and a photo to a place."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from geopak.build import load_trained
from geopak.data.images import Photo, load_image, stack_images
from geopak.models.decode import infer
from geopak.schema.training import DecodingOptions

_MOST_THREADS = 8


class GeopakPredictor:
    """Predicts where photos were taken, from a checkpoint alone.

    Args:
        checkpoint_path: of any phase.
        device: ``cpu``, ``cuda``, …; ``None``: a GPU if there is one.
        rule: decoding rule; ``None``: the one that the model was validated with.
        batch_size: photos at a time.

    Raises:
        CheckpointError: not a checkpoint of geopak.
        ConfigError: unknown rule.
    """

    def __init__(
        self,
        checkpoint_path: str | Path,
        device: str | torch.device | None = None,
        rule: str | None = None,
        batch_size: int = 64,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.trained = load_trained(checkpoint_path, self.device)
        chosen = self.trained.decoding
        if rule is not None:
            chosen = DecodingOptions(**{**vars(chosen), "rule": rule})
        self.decoding = chosen
        self.batch_size = batch_size

    @overload
    def predict(self, photos: Photo) -> dict[str, Any]: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, photos: Sequence[Photo]) -> list[dict[str, Any]]: ...
    def predict(self, photos: Photo | Sequence[Photo]) -> dict[str, Any] | list[dict[str, Any]]:
        """Predicts one photo, or each of a list.

        Args:
            photos: a path, the bytes of a file, a file open in binary mode, a PIL image or an array
                (H, W[, C]), or a list of them.

        Returns:
            A dict per photo: ``province``, ``lat``, ``lon`` (degrees), ``confidence`` (probability
            that the photo was taken within ``confidence_km``), ``province_probabilities`` by name,
            ``hypotheses`` (``lat, lon, probability, province, cell_id, radius_km``, most probable
            first) and ``gate`` (weight of the scene encoder).

        Raises:
            PhotoError: a photo that is missing or unreadable.
        """
        if not isinstance(photos, Sequence) or isinstance(photos, (str, bytes)):
            image = load_image(photos, self.trained.model.image_size)
            return self._predict_batch(image.unsqueeze(0))[0]
        results: list[dict[str, Any]] = []
        for image in self._batches(photos):
            results += self._predict_batch(image)
        return results

    def _batches(self, photos: Sequence[Photo]) -> Iterator[Tensor]:
        """(B, 3, size, size) uint8, the next batch decoded while the model is at work on one."""
        size = self.trained.model.image_size
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:

            def load(photo: Photo) -> Future[Tensor] | Tensor:
                # An open image or file has a position and may be in the list twice.
                if isinstance(photo, (str, Path, bytes, np.ndarray)):
                    return pool.submit(load_image, photo, size)
                return load_image(photo, size)

            def stacked(images: Sequence[Future[Tensor] | Tensor]) -> Tensor:
                ready = (i.result() if isinstance(i, Future) else i for i in images)
                return stack_images(ready, len(images), size)

            waiting: deque[list[Future[Tensor] | Tensor]] = deque()
            try:
                for start in range(0, len(photos), self.batch_size):
                    waiting.append([load(p) for p in photos[start : start + self.batch_size]])
                    if len(waiting) > 1:
                        yield stacked(waiting.popleft())
                while waiting:
                    yield stacked(waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def _predict_batch(self, image: Tensor) -> list[dict[str, Any]]:
        trained = self.trained
        output, by_rule = infer(trained.model, image, self.decoding)
        decoded = by_rule[self.decoding.rule]
        # Whole tensors at a time: from a GPU every transfer waits for all that goes before.
        columns = zip(
            decoded.latlon_deg.tolist(),
            decoded.confidence.tolist(),
            decoded.hypothesis_latlon_deg.tolist(),
            decoded.probability.tolist(),
            decoded.cell_id.tolist(),
            output.province_logits.softmax(-1).tolist(),
            output.gate.tolist(),
            strict=True,
        )
        return [self._result(*row) for row in columns]

    def _result(
        self,
        latlon_deg: list[float],
        confidence: float,
        hypothesis_latlon_deg: list[list[float]],
        hypothesis_probability: list[float],
        cell_ids: list[int],
        province_probability: list[float],
        gate: float,
    ) -> dict[str, Any]:
        names, cells = self.trained.region.names, self.trained.cells
        hypotheses = [
            {
                "lat": lat,
                "lon": lon,
                "probability": probability,
                "province": names[cells.province_id[cell]],
                "cell_id": cell,
                "radius_km": float(cells.radius_km[cell]),
            }
            for (lat, lon), probability, cell in zip(
                hypothesis_latlon_deg, hypothesis_probability, cell_ids, strict=True
            )
            # A province with few cells leaves places unfilled.
            if probability > 0
        ]
        return {
            "province": names[int(np.argmax(province_probability))],
            "lat": latlon_deg[0],
            "lon": latlon_deg[1],
            "confidence": confidence,
            "confidence_km": self.decoding.confidence_km,
            "province_probabilities": dict(zip(names, province_probability, strict=True)),
            "hypotheses": hypotheses,
            "gate": gate,
        }
