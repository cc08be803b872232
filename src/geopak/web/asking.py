"""From a visitor's photo to an answer, as the page and the API show it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from geopak.calibration import weights_fingerprint
from geopak.errors import GeopakError, PhotoError
from geopak.geo.extents import Ground, cell_extents
from geopak.predictor import GeopakPredictor
from geopak.report.maps import province_colors
from geopak.report.prediction_files import open_answers
from geopak.report.prediction_map import map_base, page_around, rings
from geopak.report.prediction_records import Entry, Setting, joined_ground, plain_grounds
from geopak.results import Answer, PhotoFailure, Prediction
from geopak.retrieval import KnownPhoto, PhotoIndex
from geopak.web.guard import REFUSED
from geopak.web.photos import Limits, check_photo
from geopak.web.service import Proceed, Service
from geopak.why import NUM_NEIGHBOURS, Explanation, explain

_SMALL_PX = 240
DOWNLOADS = (".csv", ".geojson", ".html")


@dataclass(frozen=True, eq=False)
class Reason:
    """Why a photo was placed where it was.

    Attributes:
        found: the heat map and the weights of the encoders.
        near: the train photos that look most alike, each with a thumbnail, empty where its file is
            gone; ``None``: there are none to compare with.
    """

    found: Explanation
    near: Sequence[tuple[KnownPhoto, bytes]] | None


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
            "nearest_train_photos": self._known is not None,
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

    async def reason(self, content: bytes) -> Reason:
        """Why, for a photo's file.

        Raises:
            GeopakError: as :meth:`answer`.
        """
        return (await self._service.run(self._answer_with_reason, content))[1]

    async def api_answer(self, content: bytes, why: bool) -> dict[str, Any]:
        """The answer as JSON has it.

        Raises:
            GeopakError: as :meth:`answer`.
        """
        if not why:
            answer, reason = await self.answer(content), None
        else:
            answer, reason = await self._service.run(self._answer_with_reason, content)
        record = answer.to_dict()
        del record["photo"], record["error"]
        if reason is not None:
            record["why"] = {
                "cell_id": reason.found.cell_id,
                "encoders": reason.found.encoders,
                "heat_map_jpeg": _text(_jpeg(reason.found.picture())),
                "nearest_train_photos": reason.near
                and [
                    {
                        "province": self.region.names[photo.province_id],
                        "similarity": photo.similarity,
                        "away_km": photo.away_km,
                        "photo_jpeg": _text(jpeg),
                    }
                    for photo, jpeg in reason.near
                ],
            }
        return record | {"model": self._name}

    async def files(self, photos: Sequence[Path]) -> tuple[list[Answer], list[str]]:
        """Answers to many photos, and files that hold them, of each kind in ``DOWNLOADS``.

        Args:
            photos: uploaded files; one that holds ``REFUSED`` and a reason stands for a photo that
                was not let in.

        Raises:
            GeopakError: there are too many, in number or in line, or it took too long.
        """
        most = self._limits.max_photos
        if len(photos) > most:
            raise PhotoError(
                f"These are {len(photos):,} photos, at most {most:,} at once are allowed. "
                "None was looked at: please take some out."
            )
        return await self._service.run(self._predict_many, photos)

    def _predict(self, proceed: Proceed, content: bytes) -> Prediction:
        proceed()
        check_photo(content, self._limits)
        try:
            return self._predictor.predict(content)
        except PhotoError as error:
            raise PhotoError("The photo is damaged: it cannot be decoded.") from error

    def _answer_with_reason(self, proceed: Proceed, content: bytes) -> tuple[Prediction, Reason]:
        answer = self._predict(proceed, content)
        found = explain(self._predictor.trained, content, proceed=proceed)
        if self._known is None:
            return answer, Reason(found, None)
        place = (answer.lat, answer.lon)
        near = self._known.nearest(found.features, NUM_NEIGHBOURS, place)
        return answer, Reason(found, [(photo, _small_of(photo.path)) for photo in near])

    def _predict_many(
        self, proceed: Proceed, photos: Sequence[Path]
    ) -> tuple[list[Answer], list[str]]:
        reasons: dict[int, str] = {}

        def good() -> Iterator[bytes]:
            # One after another: all of them may be more than fits into memory.
            for number, path in enumerate(photos):
                proceed()
                try:
                    content = path.read_bytes()
                    if content.startswith(REFUSED):
                        reason = content.removeprefix(REFUSED).decode(errors="replace")
                        raise PhotoError(reason)
                    check_photo(content, self._limits)
                except OSError:
                    reasons[number] = "The photo has been deleted. Please give it again."
                except PhotoError as error:
                    reasons[number] = str(error)
                else:
                    yield content

        found = list(self._predictor.stream(good()))
        answers: list[Answer] = []
        for number, name in enumerate(_distinct([path.name for path in photos])):
            answer = None if number in reasons else found.pop(0)
            if answer is None:
                answers.append(PhotoFailure(name, reasons[number]))
            elif isinstance(answer, PhotoFailure):
                reason = "The photo is damaged: it cannot be decoded."
                answers.append(PhotoFailure(name, reason))
            else:
                answers.append(_renamed(answer, name))
        folder = Path(tempfile.mkdtemp(prefix="results-", dir=self._folder))
        files = []
        for kind in DOWNLOADS:
            proceed()
            files.append(str(self._write(folder, kind, answers, photos)))
        return answers, files

    def _write(
        self, folder: Path, kind: str, answers: Sequence[Answer], photos: Sequence[Path]
    ) -> Path:
        path = folder / f"places{kind}"
        page = ("", "")
        if kind == ".html":
            page = page_around(self.region, self.outlines, self._grounds)
        setting = Setting(self._name, self.region, self._grounds, page)
        entries = [
            Entry(
                answer,
                thumbnail=_small_of(photo) if kind == ".html" and answer.error is None else b"",
            )
            for answer, photo in zip(answers, photos, strict=True)
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

    def why_html(self, reason: Reason) -> str:
        """A reason as a part of the page."""
        return self._templates.get_template("why.html.j2").render(
            found=reason.found,
            picture=_text(_jpeg(reason.found.picture())),
            near=[(photo, _text(jpeg)) for photo, jpeg in reason.near or ()],
            names=self.region.names,
        )

    def no_reason_html(self, reason: str) -> str:
        """Why there is no reason, as a part of the page."""
        text = Markup('<div class="geopak-answer"><p class="note">Why there? {}</p></div>')
        return str(text.format(reason))

    async def located(self, path: str | None) -> tuple[str, str]:
        """What the page shows of an uploaded photo: its place; and of reasons nothing as yet.

        Those that are shown are of the photo before.
        """
        if path is None:
            return self.answer_html(None), ""
        try:
            return self.answer_html(await self.answer(Path(path).read_bytes())), ""
        except OSError:
            return self.refusal_html("The photo has been deleted. Please give it again."), ""
        except GeopakError as error:
            return self.refusal_html(str(error)), ""

    async def explained(self, path: str | None) -> str:
        """What the page shows of the reasons, or why there are none."""
        if path is None:
            return ""
        try:
            reason = await self.reason(Path(path).read_bytes())
            return await asyncio.to_thread(self.why_html, reason)
        except (OSError, PhotoError):
            # Beside it the page says already what is amiss with the photo.
            return ""
        except GeopakError as error:
            return self.no_reason_html(str(error))

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
        # All are by one model.
        within_km = self._predictor.decoding.confidence_km if failed < len(answers) else None
        return template.render(answers=answers, failed=failed, within_km=within_km)

    def api_page(self, address: str) -> str:
        """The API's documentation.

        Args:
            address: that the page is asked for by, without a slash at its end.
        """
        about = self.about()
        return self._templates.get_template("api.html.j2").render(
            about=about,
            example=json.dumps(about, indent=2, ensure_ascii=False),
            address=address,
        )


def _small_of(path: Path) -> bytes:
    """A thumbnail of a file, without its metadata; empty where it cannot be read."""
    from geopak.report.page import small_jpeg

    try:
        return small_jpeg(io.BytesIO(path.read_bytes()), _SMALL_PX)
    except OSError:
        return b""


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


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
