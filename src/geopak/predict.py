"""Tells where photos were taken: ``python -m geopak.predict images=photo.jpg map=out.png``."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import time
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from geopak.cli import entry_point
from geopak.errors import CheckpointError, ConfigError, PhotoError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from geopak.geo.extents import Ground
    from geopak.predictor import GeopakPredictor
    from geopak.report.prediction_files import AnswerFile
    from geopak.report.prediction_records import Entry, Known
    from geopak.results import Answer

log = logging.getLogger(__name__)

# So many answers are printed one by one.
MOST_PRINTED = 20
# Written at the latest when so many answers, or seconds, have come together.
_WRITE_AT, _WRITE_SECONDS = 64, 1.0
# With thumbnails a page of more photos than this takes a browser's memory.
_MANY_FOR_A_PAGE = 20_000


def find_photos(images: str | int | ListConfig | list[str | int]) -> list[str]:
    """Files named by a path, a folder, a glob pattern, or a list of them, in a stable order.

    A file that is named twice is there once.

    Raises:
        PhotoError: one of them names no file.
    """
    from geopak.data.images import files_of

    found: dict[str, None] = {}
    for entry in images if isinstance(images, (list, ListConfig)) else [images]:
        # A name of digits alone arrives as a number.
        path = Path(str(entry)).expanduser()
        if path.is_dir():
            matches = [str(file) for file in files_of(path)]
        elif path.is_file():
            matches = [str(path)]
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            matches = [str(Path(p)) for p in matches if not os.path.isdir(p)]
        if not matches:
            raise PhotoError(f"images={entry}: no photo there.")
        found |= dict.fromkeys(matches)
    return list(found)


@dataclass
class Outcome:
    """What a run of the command came to.

    What is counted is counted over all photos, those of an earlier run's file among them.

    Attributes:
        num_photos: asked for.
        num_known: of them in the file of an earlier run already.
        answers: the first few of this run, in their order.
        first_failure: what is wrong with the first photo of this run that could not be read.
        num_failed: photos that could not be read.
        num_declined: answers below ``abstain_below``.
        num_uncalibrated: answers of this run whose confidence was not fitted to be true.
        gps_error_km: of every photo with GPS that has an answer.
        gps_in_region: of every such photo whose answer has a region.
        coverage: of these regions.
    """

    num_photos: int
    num_known: int = 0
    answers: list[Answer] = field(default_factory=list)
    first_failure: str | None = None
    num_failed: int = 0
    num_declined: int = 0
    num_uncalibrated: int = 0
    gps_error_km: list[float] = field(default_factory=list)
    gps_in_region: list[bool] = field(default_factory=list)
    coverage: float | None = None

    def add(self, entry: Entry) -> None:
        """Counts an answer."""
        answer = entry.answer
        if len(self.answers) < MOST_PRINTED:
            self.answers.append(answer)
        if answer.error is not None:
            self.num_failed += 1
            self.first_failure = self.first_failure or answer.error
        else:
            self.num_declined += not answer.answered
            self.num_uncalibrated += not answer.calibrated
        self._compare(entry)

    def add_known(self, known: Known) -> None:
        """Counts an answer of an earlier run."""
        self.num_known += 1
        self.num_failed += known.failed
        self.num_declined += known.declined
        self._compare(known)

    def _compare(self, answer: Entry | Known) -> None:
        if answer.gps_error_km is not None:
            self.gps_error_km.append(answer.gps_error_km)
        if answer.gps_in_region is not None:
            self.gps_in_region.append(answer.gps_in_region)


def print_outcome(outcome: Outcome) -> None:
    """Prints a table of the first answers, for a single photo its hypotheses, and what is amiss."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from geopak.report.prediction_records import written

    console = Console()
    table = Table()
    for column in ("photo", "province", "latitude", "longitude", "confidence"):
        table.add_column(column, overflow="fold")
    for answer in outcome.answers:
        # A name may hold anything, what looks like markup among it.
        photo = escape(written(answer.photo))
        if answer.error is not None:
            table.add_row(photo, "–", "", "", "cannot be read")
            continue
        sure = f"{answer.confidence:.0%} within {answer.confidence_km:g} km"
        table.add_row(
            photo,
            f"{answer.province} {answer.province_probabilities[answer.province]:.0%}",
            f"{answer.lat:.4f}",
            f"{answer.lon:.4f}",
            sure if answer.answered else f"{sure}: too low",
        )
    if outcome.answers:
        console.print(table)
    done = outcome.num_photos - outcome.num_known
    if done > len(outcome.answers):
        console.print(f"… and {done - len(outcome.answers):,} more")
    if outcome.num_photos == 1 and outcome.answers and outcome.answers[0].error is None:
        _print_one(console, outcome.answers[0])
    if outcome.num_failed:
        first = f"; the first: {outcome.first_failure}" if outcome.first_failure else ""
        console.print(
            f"{outcome.num_failed:,} of {outcome.num_photos:,} photos could not be read{first}",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
    if outcome.num_declined:
        console.print(f"{outcome.num_declined:,} answers are below abstain_below")
    if outcome.num_uncalibrated:
        console.print(
            "Not calibrated: the confidence may be too high or too low, and there is no region. "
            "python -m geopak.calibrate mends both.",
            soft_wrap=True,
        )
    if outcome.gps_error_km:
        console.print(_gps_line(outcome), highlight=False, soft_wrap=True)


def _print_one(console: Any, answer: Any) -> None:
    for rank, h in enumerate(answer.hypotheses, start=1):
        console.print(
            f"{rank:3d}. {h.probability:4.0%}  {h.lat:8.4f}, {h.lon:8.4f}  "
            f"{h.province} (cell {h.cell_id}, radius {h.radius_km:.1f} km)"
        )
    if answer.region is not None:
        region = answer.region
        cells = f"{len(region.cell_ids)} cells, {region.area_km2:,.0f} km²"
        console.print(f"{region.coverage:.0%} region: {cells}")


def _gps_line(outcome: Outcome) -> str:
    import numpy as np

    error = np.array(outcome.gps_error_km)
    photos = "1 photo" if len(error) == 1 else f"{len(error):,} photos"
    text = (
        f"against the GPS of {photos}: median {np.median(error):.1f} km, mean "
        f"{error.mean():.1f} km, {np.mean(error <= 25):.0%} within 25 km"
    )
    if outcome.gps_in_region:
        inside = np.mean(outcome.gps_in_region)
        text += f"; {inside:.0%} inside their {outcome.coverage:.0%} region"
    return text


def predict(cfg: DictConfig) -> Outcome:
    """Predicts, writes what was asked for as it goes, and prints.

    Raises:
        GeopakError: no photo, no checkpoint, a file that cannot be written; or a
            :class:`geopak.errors.PhotoError` if no photo at all could be read.
    """
    photos = find_photos(cfg.images)
    for key in ("map", "why"):
        if cfg[key] and len(photos) > 1:
            raise ConfigError(f"{key}= draws one photo, images= names {len(photos)}.")
        if cfg[key]:
            from geopak.why import check_picture

            check_picture(key, cfg[key])

    from geopak.predictor import predictor_of

    predictor = predictor_of(cfg)
    outcome = Outcome(len(photos), coverage=predictor.coverage)
    file, states = None, {}
    if cfg.out:
        from geopak.report.prediction_records import file_state, written

        states = {photo: file_state(photo) for photo in photos}
        file = open_file(cfg, predictor, states)
        for known in file.done.values():
            outcome.add_known(known)
        photos = [photo for photo in photos if written(photo) not in file.done]
        if outcome.num_known:
            log.info(
                "%s: %s photos are in it already, %s are left",
                cfg.out, f"{outcome.num_known:,}", f"{len(photos):,}",
            )  # fmt: skip
    _work(cfg, predictor, photos, states, file, outcome)
    print_outcome(outcome)
    if outcome.num_failed == outcome.num_photos:
        raise PhotoError(outcome.first_failure or f"None of the photos of {cfg.images} can be read")
    if cfg.map:
        _draw(cfg, predictor, find_photos(cfg.images)[0], outcome)
    if cfg.why:
        _explain(cfg, predictor, find_photos(cfg.images)[0], outcome)
    if cfg.out:
        log.info("written: %s", cfg.out)
    return outcome


def _work(
    cfg: DictConfig,
    predictor: GeopakPredictor,
    photos: Sequence[str],
    states: Mapping[str, str],
    file: AnswerFile | None,
    outcome: Outcome,
) -> None:
    """Predicts all photos; what is done is in the file however this ends."""
    from geopak.data.partitions import progress_bar

    waiting: list[Entry] = []
    since = time.monotonic()
    complete = False
    bar = progress_bar()
    bar.disable = not cfg.progress_bar or len(photos) < 2
    with bar:
        shown = bar.add_task("predicting", total=len(photos))
        try:
            for entry in _entries(cfg, predictor, photos, states):
                outcome.add(entry)
                bar.advance(shown)
                if file is None:
                    continue
                waiting.append(entry)
                if len(waiting) >= _WRITE_AT or time.monotonic() - since > _WRITE_SECONDS:
                    due, waiting, since = waiting, [], time.monotonic()
                    file.write(due)
            complete = True
        finally:
            if file is not None:
                try:
                    file.write(waiting)
                finally:
                    file.close(complete)


def _entries(
    cfg: DictConfig, predictor: GeopakPredictor, photos: Sequence[str], states: Mapping[str, str]
) -> Iterator[Entry]:
    """Answers in the order of the photos, with GPS and thumbnail where they are asked for.

    Thumbnails are made by threads from the moment that a photo is taken up, so that they keep the
    model waiting no more than its own decoding does.
    """
    from concurrent.futures import ThreadPoolExecutor

    from geopak.predictor import MOST_THREADS
    from geopak.report.page import small_jpeg
    from geopak.report.prediction_records import Entry

    draws = bool(cfg.out) and Path(cfg.out).suffix.lower() == ".html" and cfg.thumbnail_px > 0
    place = GpsComparison(predictor) if cfg.gps else None
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        thumbnails: deque[Future[bytes]] = deque()

        def taken_up() -> Iterator[str]:
            for photo in photos:
                if draws:
                    thumbnails.append(pool.submit(small_jpeg, Path(photo), int(cfg.thumbnail_px)))
                yield photo

        try:
            for answer in predictor.stream(taken_up()):
                thumbnail = thumbnails.popleft().result() if draws else b""
                state = states.get(str(answer.photo), "")
                if place is None or answer.error is not None:
                    yield Entry(answer, thumbnail=thumbnail, state=state)
                else:
                    yield Entry(answer, *place.of(answer), thumbnail=thumbnail, state=state)
        finally:
            pool.shutdown(cancel_futures=True)


class GpsComparison:
    """Compares answers with the place that photos state themselves."""

    def __init__(self, predictor: GeopakPredictor) -> None:
        self._trained = predictor.trained

    def of(
        self, answer: Mapping[str, Any]
    ) -> tuple[tuple[float, float] | None, float | None, bool | None]:
        """GPS of the photo, kilometres from there to the answer, and whether its region holds it.

        The three are ``None`` where the photo states no place; the last also where the answer has
        no region. A place outside of all provinces is in no region.
        """
        from geopak.data.photo_facts import Problem, believed, read_facts
        from geopak.geo.distance import haversine_km_array

        try:
            place = believed(read_facts(Path(answer["photo"])))
        except PhotoError:
            return None, None, None
        if isinstance(place, Problem):
            return None, None, None
        gps = (place.latitude, place.longitude)
        error_km = float(haversine_km_array(gps, (answer["lat"], answer["lon"])))
        if answer["region"] is None:
            return gps, error_km, None
        province = self._trained.outlines.province_of([gps])
        if province[0] < 0:
            return gps, error_km, False
        cell = int(self._trained.cells.nearest([gps], province)[0])
        return gps, error_km, cell in answer["region"].cell_ids


def open_file(cfg: DictConfig, predictor: GeopakPredictor, photos: Mapping[str, str]) -> AnswerFile:
    """The file that answers go to, with those of an earlier run.

    Args:
        cfg: of the command.
        predictor: that answers.
        photos: names -> :func:`geopak.report.prediction_records.file_state`.

    Raises:
        GeopakError: it cannot be written, or is of something else.
    """
    from geopak.report import prediction_records as records
    from geopak.report.prediction_files import open_answers

    suffix = Path(cfg.out).suffix.lower()
    trained = predictor.trained
    grounds: list[Ground] = []
    if predictor.coverage is not None and suffix in (".geojson", ".kml", ".html"):
        from geopak.geo.extents import cell_extents

        grounds = records.plain_grounds(cell_extents(trained.cells, trained.outlines))
    page = ("", "")
    if suffix == ".html":
        from geopak.report.prediction_map import page_around

        page = page_around(trained.region, trained.outlines, grounds)
        if len(photos) > _MANY_FOR_A_PAGE and cfg.thumbnail_px:
            log.warning(
                "warning: a page of %s photos takes a browser's memory. out=….parquet and "
                "out=….geojson hold any number; thumbnail_px=0 makes the page smaller.",
                f"{len(photos):,}",
            )
    setting = records.Setting(identity(cfg, predictor), trained.region, grounds, page)
    return open_answers(cfg.out, setting, photos, bool(cfg.overwrite))


def identity(cfg: DictConfig, predictor: GeopakPredictor) -> str:
    """Names the checkpoint and all options that answers depend on.

    Raises:
        CheckpointError: the checkpoint is gone.
    """
    from geopak.model_folder import CONFIG, WEIGHTS

    path = predictor.trained.path
    try:
        if path.is_dir():
            digests = [_digest(path / name) for name in (CONFIG, WEIGHTS)]
            return f"{path.name}-{_short(digests, cfg, predictor)}"
        with zipfile.ZipFile(path) as archive:
            # Its checksums stand for its content, which takes seconds to read.
            parts = [(i.filename.partition("/")[2], i.CRC, i.file_size) for i in archive.infolist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read any more: {error}.") from error
    return f"{path.stem}-{_short(parts, cfg, predictor)}"


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _short(parts: object, cfg: DictConfig, predictor: GeopakPredictor) -> str:
    """Stands for the content of a checkpoint and all options that answers depend on."""
    chosen = (
        parts, vars(predictor.decoding), predictor.bfloat16, predictor.coverage,
        predictor.per_province, predictor.abstain_below, bool(cfg.gps),
    )  # fmt: skip
    return hashlib.sha256(repr(chosen).encode()).hexdigest()[:10]


def _draw(cfg: DictConfig, predictor: GeopakPredictor, photo: str, outcome: Outcome) -> None:
    """The picture of ``map=``, of an answer that an earlier run may have written."""
    from geopak.report.prediction_figure import draw_prediction

    answer = outcome.answers[0] if outcome.answers else predictor.predict(photo)
    trained = predictor.trained
    try:
        draw_prediction(cfg.map, answer, trained.region, trained.outlines, photo)
    except OSError as error:
        raise ConfigError(f"map={cfg.map} cannot be written: {error.strerror or error}.") from error
    log.info("written: %s", cfg.map)


def _explain(cfg: DictConfig, predictor: GeopakPredictor, photo: str, outcome: Outcome) -> None:
    """The picture of ``why=``, with the most similar train photos of ``prepared=``."""
    from geopak.retrieval import PhotoIndex
    from geopak.why import NUM_NEIGHBOURS, draw_explanation, explain

    trained = predictor.trained
    found = explain(trained, photo)
    if found.encoders:
        weights = ", ".join(f"{name} {share:.0%}" for name, share in found.encoders.items())
        log.info("weights of the encoders: %s", weights)
    near = []
    if cfg.prepared is not None:
        answer = outcome.answers[0] if outcome.answers else predictor.predict(photo)
        known = PhotoIndex.of_folder(
            trained.model, trained.region, cfg.prepared, cfg.root, cfg.feature_folder
        )
        place = (answer["lat"], answer["lon"])
        for one in known.nearest(found.features, NUM_NEIGHBOURS, place):
            near.append((trained.region.names[one.province_id], one))
            log.info("%.2f alike, %s km away: %s", one.similarity, f"{one.away_km:,.0f}", one.path)
    name = trained.region.names[int(trained.cells.province_id[found.cell_id])]
    draw_explanation(cfg.why, found, f"{name}, {found.lat:.3f}, {found.lon:.3f}", near)
    log.info("written: %s", cfg.why)


@entry_point("predict")
def main(cfg: DictConfig) -> None:
    predict(cfg)


if __name__ == "__main__":
    main()
