"""From a checkpoint and a photo to a place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from geopak.build import load_trained
from geopak.data.images import load_image
from geopak.models.decode import DecodingOptions, infer

Photo = str | Path | Image.Image | NDArray[Any]


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
            photos: a path, a PIL image or an array (H, W[, C]), or a list of them.

        Returns:
            A dict per photo: ``province``, ``lat``, ``lon`` (degrees), ``confidence`` (probability
            that the photo was taken within ``confidence_km``), ``province_probabilities`` by name,
            ``hypotheses`` (``lat, lon, probability, province, cell_id, radius_km``, most probable
            first) and ``gate`` (weight of the scene encoder).

        Raises:
            PhotoError: a photo that is missing or unreadable.
        """
        if isinstance(photos, (str, Path, Image.Image, np.ndarray)):
            return self._predict_batch([photos])[0]
        results: list[dict[str, Any]] = []
        for start in range(0, len(photos), self.batch_size):
            results += self._predict_batch(photos[start : start + self.batch_size])
        return results

    @torch.inference_mode()
    def _predict_batch(self, photos: Sequence[Photo]) -> list[dict[str, Any]]:
        trained = self.trained
        size = trained.model.image_size
        image = torch.stack([load_image(photo, size) for photo in photos])
        output, by_rule = infer(trained.model, image, self.decoding)
        decoded = by_rule[self.decoding.rule]
        probabilities = output.province_logits.softmax(-1).tolist()
        names = trained.region.names
        cells = trained.cells
        results = []
        for i, province_probability in enumerate(probabilities):
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
                    decoded.hypothesis_latlon_deg[i].tolist(),
                    decoded.probability[i].tolist(),
                    decoded.cell_id[i].tolist(),
                    strict=True,
                )
                # A province with few cells leaves places unfilled.
                if probability > 0
            ]
            lat, lon = decoded.latlon_deg[i].tolist()
            results.append(
                {
                    "province": names[int(np.argmax(province_probability))],
                    "lat": lat,
                    "lon": lon,
                    "confidence": float(decoded.confidence[i]),
                    "confidence_km": self.decoding.confidence_km,
                    "province_probabilities": dict(zip(names, province_probability, strict=True)),
                    "hypotheses": hypotheses,
                    "gate": float(output.gate[i]),
                }
            )
        return results
