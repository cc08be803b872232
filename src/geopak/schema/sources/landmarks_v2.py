"""Options of the source ``landmarks_v2``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from geopak.options import Count, Natural, Positive, Problem, Range


@dataclass(frozen=True)
class LandmarksV2Options:
    """``conf/source/landmarks_v2.yaml``.

    Attributes:
        name: of the source.
        images: ``train.csv`` of the data set.
        labels: ``train_label_to_category.csv``.
        attribution: ``train_attribution.csv``; ``None``: without it.
        ask_files: ask Commons for the licence, author, date and picture address of every photo
            whose landmark lies in the region.
        thumbnail_px: width of the pictures that are asked for, where the photo has as much;
            ``None``: the originals. Needs ``ask_files``.
        pictures: folder with the data set's own pictures (``0/1/2/0123….jpg``) in place of
            downloads; ``None``: none.
        least_accuracy_km: no coordinate of a landmark is taken for more exact than this.
        accuracy_km: of every coordinate; ``None``: as the landmark's size and its coordinate's
            precision say.
        wikidata: look for coordinates there which Commons does not have.
        commons_api: address of Commons' interface.
        wikidata_api: of Wikidata's.
        commons: of Commons' pages.
        titles_per_request: Wikimedia's limit is 50.
        max_lag_s: requests wait while Wikimedia's databases lag behind by more; ``None``: never.
        lag_attempts: pauses for that, before a request is given up.
        contact: address to write to, which Wikimedia's user agent policy asks for.
    """

    name: Literal["landmarks_v2"]
    images: str | None
    labels: str | None
    attribution: str | None = None
    ask_files: bool = True
    # Wikimedia makes pictures of these widths alone.
    thumbnail_px: Literal[250, 330, 500, 960, 1280, 1920, 3840] | None = 960
    pictures: str | None = None
    least_accuracy_km: Positive = 2.0
    accuracy_km: Positive | None = None
    wikidata: bool = True
    commons_api: str = "https://commons.wikimedia.org/w/api.php"
    wikidata_api: str = "https://www.wikidata.org/w/api.php"
    commons: str = "https://commons.wikimedia.org"
    titles_per_request: Annotated[int, Range(least=1, most=50)] = 50
    max_lag_s: Natural | None = 5
    lag_attempts: Count = 10
    contact: str | None = None

    def problems(self) -> Iterator[Problem]:
        """What is well by itself, but cannot work."""
        for key, name in (("images", "train.csv"), ("labels", "train_label_to_category.csv")):
            if not getattr(self, key):
                yield Problem(
                    f"source.{key}",
                    f"source.{key} names no file",
                    f"Give the path of {name}, from https://s3.amazonaws.com/google-landmark/"
                    f"metadata/{name}.",
                )
