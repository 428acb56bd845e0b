"""The benchmark of the alignment: every way of using it trains and is scored, and a bank gives the negatives that it should."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="hyperst's training needs the extra st")
from benchmarks import alignment
from hyperst.data import attach_features, read_section
from hyperst.model import Alignment, AlignmentConfig
from hyperst.synthetic import write_tissue
from hyperst_kernels import contrastive_loss


def _section(folder, seed):
    """A small section, with what the counts say of each spot, blurred, for its features."""
    section = read_section(write_tissue(folder, seed, n_rows=8, n_cols=8, n_genes=30))
    random = np.random.default_rng(seed)
    counts = section.counts.toarray()
    features = (np.log1p(counts) + random.normal(0, 0.3, counts.shape)).astype(np.float32)
    path = folder / f"{section.name}.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["barcode"] = features, [str(name) for name in section.spot_ids]
    return attach_features(section, path)


def test_every_way_is_scored_beside_its_own_training_without(tmp_path):
    ways = {
        "bank": alignment.Way(bank=20),
        "masked, rising": alignment.Way(mask=True, schedule="rising"),
        "first, pretrained": alignment.Way(schedule="first", pretrained=1),
        "half": alignment.Way(share=0.5, batch=16),
    }
    table = alignment.try_ways([_section(tmp_path, seed) for seed in (1, 2)], ways, [0], n_genes=20)
    rows = {"none, batch 32, share 1", "none, batch 16, share 0.5", *ways}
    assert set(table["row"]) == rows
    assert set(table["fold"]) == {"S1", "S2"}
    assert np.isfinite(table["value"]).all()
    assert not table.duplicated(["fold", "seed", "row", "metric"]).any()
    retrieval = table[table["metric"] == "retrieval"]
    assert set(retrieval["row"]) == set(ways)
    assert retrieval["value"].between(0, 1).all()
    # features that tell the counts teach: better than chance by far
    assert table[(table["metric"] == "pcc")]["value"].mean() > 0.2
    shown = alignment.compared(table, ways)
    assert all(f"| {row} |" in shown for row in rows)


def test_a_bank_gives_earlier_spots_as_negatives_and_forgets_the_oldest():
    torch.manual_seed(0)
    lift = Alignment(AlignmentConfig(), 8)
    bank = alignment.Bank(6)
    steps = [{name: torch.randn(4, 8) for name in ("image_spot", "gene_spot")} for _ in range(3)]
    found = [float(bank.loss(step, lift).detach()) for step in steps]

    c, scale = lift.lift.curvature.detach(), lift.logit_scale.detach()
    for number, step in enumerate(steps):
        expected = 0.0
        for query, key in (("image_spot", "gene_spot"), ("gene_spot", "image_spot")):
            earlier = [steps[before][key] for before in range(number - 1, -1, -1)]
            keys = torch.cat([step[key], *earlier])[: 4 + 6]
            expected += 0.5 * float(contrastive_loss(step[query], keys, c, scale, directions="rows"))
        assert found[number] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("way", "epoch", "expected"),
    [
        (None, 3, (0.0, 1.0)),
        (alignment.Way(), 0, (0.2, 1.0)),
        (alignment.Way(schedule="rising"), 5, (0.1, 1.0)),
        (alignment.Way(schedule="rising"), 30, (0.2, 1.0)),
        (alignment.Way(schedule="first"), 9, (0.2, 0.0)),
        (alignment.Way(schedule="first"), 10, (0.0, 1.0)),
    ],
)
def test_schedules(way, epoch, expected):
    assert alignment._weights(way, epoch) == pytest.approx(expected)
