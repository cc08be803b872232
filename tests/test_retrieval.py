"""The nearest train photo against a loop over all of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from geopak.data.dataset import PhotoDataset, PreparedSet
from geopak.models.geolocator import Geolocator
from geopak.retrieval import descriptors, most_similar, nearest_train_photos
from geopak.schema.model import FRAMINGS


def naive_descriptor(features: list[float], first: int) -> list[float]:
    """Each part at length 1, then the whole."""
    out = []
    for part in (features[:first], features[first:]):
        length = math.sqrt(sum(x * x for x in part))
        out += [x / length for x in part]
    length = math.sqrt(sum(x * x for x in out))
    return [x / length for x in out]


def test_every_encoder_counts_the_same_whatever_its_length() -> None:
    features = torch.randn(6, 7)
    features[:, 3:] *= 100
    found = descriptors(features, (3, 4))
    for row, values in zip(found.tolist(), features.tolist(), strict=True):
        assert row == pytest.approx(naive_descriptor(values, 3), abs=1e-6)
    torch.testing.assert_close(found[:, :3].norm(dim=-1), torch.full((6,), math.sqrt(0.5)))


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_the_most_similar_is_that_of_a_double_loop(chunk_rows: int) -> None:
    query, known = (descriptors(torch.randn(n, 9), (4, 5)) for n in (10, 23))
    index, similarity = most_similar(query, known, chunk_rows)
    for i, q in enumerate(query.tolist()):
        cosines = [sum(a * b for a, b in zip(q, k, strict=True)) for k in known.tolist()]
        assert int(index[i]) == max(range(23), key=lambda j: cosines[j])
        assert float(similarity[i]) == pytest.approx(max(cosines), abs=1e-5)


@pytest.mark.parametrize("framing", FRAMINGS)
@torch.no_grad()
def test_nearest_train_photos_are_those_of_a_loop_over_the_pictures(
    model: Geolocator,
    prepared: PreparedSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    framing: str,
) -> None:
    monkeypatch.setattr(model, "framing", framing)
    rows, train = prepared.rows("test"), prepared.rows("train")
    found = nearest_train_photos(model.eval(), prepared, rows, tmp_path)
    photos = PhotoDataset(prepared, model.image_size, framing=framing)

    def described(row: int) -> list[float]:
        features = model.embed(photos[[row]]["image"].float() / 255)[0].tolist()
        return naive_descriptor(features, model.semantic.dim)

    known = np.array([described(r) for r in train])
    for i, row in enumerate(rows):
        cosines = known @ np.array(described(row))
        assert found.similarity[i] == pytest.approx(cosines.max(), abs=1e-4)
        chosen = prepared.photos.iloc[train[cosines.argmax()]]
        assert found.latlon_deg[i].tolist() == [chosen["latitude"], chosen["longitude"]]
        assert found.province_id[i] == chosen["province_id"]


def test_a_train_photo_finds_itself(
    model: Geolocator, prepared: PreparedSet, tmp_path: Path
) -> None:
    train = prepared.rows("train")
    found = nearest_train_photos(model.eval(), prepared, train, tmp_path)
    truth = prepared.photos.iloc[train][["latitude", "longitude"]].to_numpy(float)
    np.testing.assert_array_equal(found.latlon_deg, truth)
