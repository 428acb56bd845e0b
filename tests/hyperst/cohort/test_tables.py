"""The pseudo-bulk of a cohort: a mean to the bit, of predictions that are never in memory whole."""

from __future__ import annotations

import tracemalloc

import anndata
import numpy as np
import pandas as pd
import pytest

from hyperst.cohort import Cohort, Options, SlideResult, pseudo_bulk
from hyperst.cohort.slides import Slide
from hyperst.data import SectionSource
from hyperst.doubt import HALF_WIDTH
from hyperst.files import write_h5ad_atomic

from ..test_cli import call


def stored_slide(folder, values, var=None, **facts):
    adata = anndata.AnnData(values, var=None if var is None else pd.DataFrame(var, index=["0"]))
    adata.uns["hyperst"] = {"units": "any", "tissue_mm2": 2.0, **facts}
    name = f"slide{len(values)}"
    path = write_h5ad_atomic(adata, folder / f"{name}.h5ad")
    return Slide(SectionSource(path, name=name), Options(), path, "run", "identity")


@pytest.mark.parametrize("n_genes", [1, 7])
@pytest.mark.parametrize("rows", [3, 100, 1001, 5000])
def test_the_mean_by_blocks_has_the_bits_of_the_mean_of_all(tmp_path, monkeypatch, rows, n_genes):
    monkeypatch.setattr("hyperst.cohort.tables._NUMBERS", rows * n_genes)
    random = np.random.default_rng(0)
    # far from zero, where another order of a sum shows
    made = [random.normal(1e3, 1, (n_spots, n_genes)).astype(np.float32) for n_spots in (1, 1000, 1001)]
    bulk = pseudo_bulk([stored_slide(tmp_path, values) for values in made])
    np.testing.assert_array_equal(bulk.X, [values.mean(axis=0, dtype=np.float64).astype(np.float32) for values in made])
    assert bulk.X.dtype == np.float32
    assert list(bulk.obs["n_spots"]) == [1, 1000, 1001]
    assert list(bulk.obs["tissue_mm2"]) == [2.0] * 3


def test_of_genes_and_run_the_pseudo_bulk_says_what_all_slides_say(tmp_path):
    """No half-width of single spots, and no figures that an older prediction had not, or had others."""
    slides = [
        stored_slide(tmp_path, np.ones((n_spots, 1), np.float32), {HALF_WIDTH: [0.5], **var}, run=run, best_epoch=3)
        for n_spots, run, var in (
            (1, "a", {"held_out_pcc": [np.nan], "held_out_mse": [0.1], "held_out_pcc_null": [0.2]}),
            (2, "b", {"held_out_pcc": [np.nan], "held_out_mse": [0.3]}),
        )
    ]
    bulk = pseudo_bulk(slides)
    assert list(bulk.var) == ["held_out_pcc"]
    assert {"units", "best_epoch"} < set(bulk.uns["hyperst"])
    assert "run" not in bulk.uns["hyperst"]
    assert set(pseudo_bulk(slides[:1]).var) == {"held_out_pcc", "held_out_mse", "held_out_pcc_null"}


def test_slides_that_are_unlike_can_be_left_out(tmp_path):
    unlike, like, unknown = (
        stored_slide(tmp_path, np.ones((n_spots, 1), np.float32), **facts)
        for n_spots, facts in enumerate(
            ({"unlike_share": 0.9, "unlike_slide": True}, {"unlike_share": 0.1, "unlike_slide": False}, {}), start=1
        )
    )
    path = write_h5ad_atomic(pseudo_bulk([unlike, like]), tmp_path / "bulk.h5ad")
    bulk = anndata.read_h5ad(path)
    assert list(bulk[~bulk.obs["unlike_slide"]].obs_names) == ["slide2"]
    assert list(bulk.obs["unlike_share"]) == [0.9, 0.1]
    some = anndata.read_h5ad(write_h5ad_atomic(pseudo_bulk([unlike, unknown]), path)).obs["unlike_slide"]
    assert some.iloc[0]
    assert pd.isna(some.iloc[1])
    assert "unlike_slide" not in pseudo_bulk([unknown]).obs


def test_the_command_names_slides_that_are_unlike(tmp_path, monkeypatch):
    """Kept ones too, of which it says nothing else; where none is, it says nothing."""
    (tmp_path / "A.h5ad").touch()
    (tmp_path / "slides.csv").write_text("section\nA.h5ad\n")
    results = [
        SlideResult(name, "kept", 5, unlike_slide=unlike)
        for name, unlike in zip("ABCD", (True, False, None, True), strict=True)
    ]
    said = []
    for some in (results, results[1:3]):
        monkeypatch.setattr("hyperst.cohort.predict_cohort", lambda *_, some=some, **__: Cohort(some, tmp_path))
        result = call("predict", tmp_path, tmp_path / "slides.csv", "-o", tmp_path)
        assert result.exit_code == 0, result.output
        said.append(result.output)
    assert "2 of them unlike the training tissue" in said[0]
    assert said[0].rstrip().endswith("(unlike_slide in cohort.csv): A, D")
    assert "unlike" not in said[1]


def test_memory_does_not_grow_with_spots_times_genes(tmp_path, monkeypatch):
    n_genes = 500
    monkeypatch.setattr("hyperst.cohort.tables._NUMBERS", 256 * n_genes)

    def peak(n_spots):
        slide = stored_slide(tmp_path, np.ones((n_spots, n_genes), dtype=np.float32))
        tracemalloc.start()
        pseudo_bulk([slide])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)  # what is imported
    assert peak(8000) - peak(2000) < 0.1 * 6000 * n_genes * 4
