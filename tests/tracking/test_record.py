"""What is kept of a validation pass, against loops over its photos."""

from __future__ import annotations

import numpy as np
import torch

from geopak.tracking.record import CellUsage, columns_of_batch, record_of
from geopak.types import Batch, Decoded, ModelOutput

NUM_CELLS, NUM_PROVINCES, NUM_HYPOTHESES = 6, 3, 2


def batch_of(rows: list[int], seed: int) -> tuple[Batch, ModelOutput, Decoded]:
    draw = torch.Generator().manual_seed(seed)
    n = len(rows)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=draw)

    batch = Batch(
        latlon_deg=30 + uniform(n, 2),
        province_id=integers(NUM_PROVINCES, n),
        cell_id=integers(NUM_CELLS, n),
        row=torch.tensor(rows),
    )
    output = ModelOutput(
        uniform(n, NUM_PROVINCES), uniform(n, NUM_CELLS), uniform(n, 4), uniform(n), uniform(n, 2),
        uniform(n, 6),
    )  # fmt: skip
    decoded = Decoded(
        30 + uniform(n, 2),
        integers(NUM_CELLS, n, NUM_HYPOTHESES),
        30 + uniform(n, NUM_HYPOTHESES, 2),
        uniform(n, NUM_HYPOTHESES),
        uniform(n),
    )
    return batch, output, decoded


def test_a_record_has_every_photo_once_in_the_order_of_the_table() -> None:
    # A loader may give a photo twice, to fill its last batch.
    first, second = batch_of([7, 2, 9], seed=0), batch_of([4, 7], seed=1)
    record = record_of([columns_of_batch(*first), columns_of_batch(*second)])
    assert record.row.tolist() == [2, 4, 7, 9]
    for row, (batch, output, decoded), place in ((2, first, 1), (4, second, 0), (7, first, 0)):
        at = record.row.tolist().index(row)
        np.testing.assert_allclose(record.latlon_deg[at], batch["latlon_deg"][place])
        np.testing.assert_allclose(record.predicted_latlon_deg[at], decoded.latlon_deg[place])
        assert record.predicted_province_id[at] == output.province_logits[place].argmax()
        assert record.hypothesis_cell_id[at].tolist() == decoded.cell_id[place].tolist()
        np.testing.assert_allclose(record.gate[at], output.gate[place])
    north_south = 111.19 * np.abs(record.latlon_deg - record.predicted_latlon_deg)[:, 0]
    assert (record.error_km >= north_south - 0.1).all()


def test_cell_usage_counts_as_a_loop_over_photos_would() -> None:
    record = record_of([columns_of_batch(*batch_of(list(range(5)), seed=3))])
    usage = CellUsage.of(record, NUM_CELLS)
    firsts = [cells[0] for cells in record.hypothesis_cell_id.tolist()]
    true = record.cell_id.tolist()
    for cell in range(NUM_CELLS):
        assert usage.predictions[cell] == firsts.count(cell)
        assert usage.true_photos[cell] == true.count(cell)
    assert usage.num_predicted == len(set(firsts))
    assert usage.share_predicted == len(set(firsts)) / NUM_CELLS
    never = set(true) - set(firsts)
    assert usage.share_never_predicted == len(never) / len(set(true))
    assert never
