"""From a visitor's photo to an answer, as the page and the API show it."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from geopak.calibration import weights_fingerprint
from geopak.errors import PhotoError
from geopak.geo.distance import haversine_km_array
from geopak.geo.extents import Ground, cell_extents
from geopak.predictor import GeopakPredictor
from geopak.report.maps import province_colors
from geopak.report.prediction_files import (
    Entry,
    Setting,
    joined_ground,
    open_answers,
    plain_grounds,
)
from geopak.report.prediction_map import map_base, page_around, rings
from geopak.results import Answer, PhotoFailure, Prediction
from geopak.retrieval import PhotoIndex
from geopak.web.guard import REFUSED
from geopak.web.photos import Limits, check_photo
from geopak.web.service import Service
from geopak.why import Explanation, explain

_NEIGHBOURS = 6
_NEIGHBOUR_PX = 240
DOWNLOADS = (".csv", ".geojson", ".html")


class Asking:
    """Answers visitors, by one model.

    Args:
        predictor: the model.
        limits: of photos and of time.
        folder: for files of results; each is in a folder of its own within.
        known: train photos to compare with; ``None``: none.
    """

    def __init__(
        self,
        predictor: GeopakPredictor,
        limits: Limits,
        folder: Path,
        known: PhotoIndex | None = None,
    ) -> None:
        self._predictor, self._limits, self._folder, self._known = predictor, limits, folder, known
        self._service = Service(limits)
        trained = predictor.trained
        self.region, self.outlines = trained.region, trained.outlines
        self._grounds: list[Ground] = []
        if predictor.coverage is not None:
            self._grounds = plain_grounds(cell_extents(trained.cells, trained.outlines))
        fingerprint = weights_fingerprint(trained.model.state_dict())
        self._name = f"{trained.path.stem}-{fingerprint[:10]}"
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("geopak.web", "files"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )

    def close(self) -> None:
        """Drops what waits."""
        self._service.close()

    def map_base(self) -> dict[str, Any]:
        """What the page's map draws below an answer."""
        return map_base(self.region, self.outlines)

    def about(self) -> dict[str, Any]:
        """What the model knows, and what is accepted, as JSON has it."""
        trained, limits = self._predictor.trained, self._limits
        return {
            "model": self._name,
            "region": trained.region.title,
            "provinces": list(trained.region.names),
            "cells": trained.cells.num_cells,
            "calibrated": trained.calibration is not None,
            "coverage": self._predictor.coverage,
            "confidence_km": self._predictor.decoding.confidence_km,
            "rule": self._predictor.decoding.rule,
            "limits": {
                "max_mb": limits.max_mb,
                "max_megapixels": limits.max_megapixels,
                "timeout_s": limits.timeout_s,
                "max_waiting": limits.max_waiting,
            },
        }

    async def answer(self, content: bytes) -> Prediction:
        """The answer to a photo's file.

        Raises:
            GeopakError: it is no photo, or there are too many, or it took too long.
        """
        return await self._service.run(self._predict, content)

    async def explanation(self, content: bytes) -> Explanation:
        """Why, for a photo's file.

        Raises:
            GeopakError: as :meth:`answer`.
        """
        return await self._service.run(self._explain, content)

    async def api_answer(self, content: bytes, why: bool) -> dict[str, Any]:
        """The answer as JSON has it.

        Raises:
            GeopakError: as :meth:`answer`.
        """
        record = (await self.answer(content)).to_dict()
        del record["photo"], record["error"]
        if why:
            found = await self.explanation(content)
            record["why"] = {
                "cell_id": found.cell_id,
                "encoders": found.encoders,
                "heat_map_jpeg": base64.b64encode(_jpeg(found.picture())).decode(),
            }
        return record | {"model": self._name}

    async def files(self, photos: Sequence[tuple[str, bytes]]) -> tuple[list[Answer], list[str]]:
        """Answers to many photos, and files that hold them, of each kind in ``DOWNLOADS``.

        Args:
            photos: name and content of each file; a content of ``REFUSED`` and a reason stands for
                a photo that was not let in.

        Raises:
            GeopakError: there are too many, or it took too long.
        """
        return await self._service.run(self._predict_many, photos)

    def _predict(self, content: bytes) -> Prediction:
        check_photo(content, self._limits)
        try:
            return self._predictor.predict(content)
        except PhotoError as error:
            raise PhotoError("The photo is damaged: it cannot be decoded.") from error

    def _explain(self, content: bytes) -> Explanation:
        check_photo(content, self._limits)
        return explain(self._predictor.trained, content)

    def _predict_many(self, photos: Sequence[tuple[str, bytes]]) -> tuple[list[Answer], list[str]]:
        named = _distinct([name for name, _ in photos])
        reasons: dict[int, str] = {}
        for number, (_, content) in enumerate(photos):
            if content.startswith(REFUSED):
                reasons[number] = content.removeprefix(REFUSED).decode(errors="replace")
                continue
            try:
                check_photo(content, self._limits)
            except PhotoError as error:
                reasons[number] = str(error)
        given = [c for number, (_, c) in enumerate(photos) if number not in reasons]
        found = iter(self._predictor.stream(given))
        answers: list[Answer] = []
        for number, name in enumerate(named):
            if number in reasons:
                answers.append(PhotoFailure(name, reasons[number]))
                continue
            answer = next(found)
            if isinstance(answer, PhotoFailure):
                reason = "The photo is damaged: it cannot be decoded."
                answers.append(PhotoFailure(name, reason))
            else:
                answers.append(_renamed(answer, name))
        folder = Path(tempfile.mkdtemp(prefix="results-", dir=self._folder))
        contents = [content for _, content in photos]
        return answers, [str(self._write(folder, kind, answers, contents)) for kind in DOWNLOADS]

    def _write(
        self, folder: Path, kind: str, answers: Sequence[Answer], contents: Sequence[bytes]
    ) -> Path:
        path = folder / f"places{kind}"
        page = ("", "")
        if kind == ".html":
            page = page_around(self.region, self.outlines, self._grounds)
        setting = Setting(self._name, self.region, self._grounds, page)
        entries = [
            Entry(
                answer,
                thumbnail=small(content) if kind == ".html" and answer.error is None else b"",
            )
            for answer, content in zip(answers, contents, strict=True)
        ]
        file = open_answers(path, setting, [str(a.photo) for a in answers])
        file.write(entries)
        file.close(complete=True)
        return path

    def answer_html(self, answer: Prediction | None) -> str:
        """An answer as a part of the page; ``None``: there is none yet."""
        colors = dict(
            zip(self.region.names, province_colors(self.region.num_provinces), strict=True)
        )
        template = self._templates.get_template("answer.html.j2")
        if answer is None:
            return template.render(answer=None)
        drawn: dict[str, Any] = {
            "province": answer.province,
            "lat": answer.lat,
            "lon": answer.lon,
            "confidence_km": answer.confidence_km,
            "hypotheses": [
                {"lat": h.lat, "lon": h.lon, "probability": h.probability, "province": h.province}
                for h in answer.hypotheses
            ],
        }
        if answer.region is not None and self._grounds:
            drawn["ground"] = rings(joined_ground(answer.region, self._grounds))
        likely = sorted(answer.province_probabilities.items(), key=lambda item: -item[1])
        return template.render(
            answer=answer,
            drawn=json.dumps(drawn),
            provinces=[(name, p, colors[name]) for name, p in likely],
            open=False,
        )

    def why_html(self, found: Explanation) -> str:
        """A reason as a part of the page."""
        near = []
        if self._known is not None:
            for photo in self._known.nearest(found.features, _NEIGHBOURS):
                jpeg = small(photo.path.read_bytes()) if photo.path.is_file() else b""
                away_km = float(haversine_km_array(photo.latlon_deg, (found.lat, found.lon)))
                near.append((photo, away_km, base64.b64encode(jpeg).decode()))
        return self._templates.get_template("why.html.j2").render(
            found=found,
            picture=base64.b64encode(_jpeg(found.picture())).decode(),
            near=near,
            names=self.region.names,
        )

    def refusal_html(self, reason: str) -> str:
        """A reason why there is no answer, as a part of the page."""
        text = Markup(
            '<div class="geopak-answer"><div class="geopak-card warn"><p>{}</p></div></div>'
        )
        return str(text.format(reason))

    def many_html(self, answers: Sequence[Answer]) -> str:
        """Answers to many photos as a part of the page."""
        failed = sum(answer.error is not None for answer in answers)
        template = self._templates.get_template("many.html.j2")
        return template.render(answers=answers, failed=failed)

    def api_page(self) -> str:
        """The API's documentation."""
        about = self.about()
        return self._templates.get_template("api.html.j2").render(
            about=about, example=json.dumps(about, indent=2, ensure_ascii=False)
        )


def small(content: bytes) -> bytes:
    """A thumbnail of a photo's file, without its metadata; empty where it cannot be decoded."""
    from geopak.report.page import small_jpeg

    return small_jpeg(io.BytesIO(content), _NEIGHBOUR_PX)


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return file.getvalue()


def _renamed(answer: Prediction, name: str) -> Prediction:
    return Prediction(**{**{key: answer[key] for key in answer}, "photo": name})


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number where one is there already."""
    found: dict[str, None] = {}
    for name in names:
        given, number = name, 2
        while given in found:
            given = f"{Path(name).stem} ({number}){Path(name).suffix}"
            number += 1
        found[given] = None
    return list(found)
