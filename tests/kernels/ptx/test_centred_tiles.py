"""A batch that has collapsed, on executed PTX: near the reference, and nothing found wrong."""

from __future__ import annotations

from hyperst_kernels.gpu.contrastive import inputs
from tests.kernels.ptx.launch import running
from tests.kernels.triton import test_centred_tiles as tiles


def test_a_batch_that_has_collapsed(monkeypatch):
    """A tile of rows and two of keys, all three in part."""
    monkeypatch.setattr(inputs, "CENTRED_FROM", 0)
    queries, keys = (tiles.cluster(n, 17, seed, 1.0, 1e-3).float() for seed, n in enumerate((40, 70)))
    with running() as run:
        tiles.assert_right(queries, keys, 1.0, "rows")
    assert not run.findings
    assert {"_mark", "_centred_log_sum_exps", "_centred_gradients"} <= {launched.name for launched in run.launches}
