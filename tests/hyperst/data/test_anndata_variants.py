"""Forms that an .h5ad file may have: the right positions and counts, or a refusal; never others."""

from __future__ import annotations

import re
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from hyperst.data import read_section

from .section_formats import COUNTS, PIXELS, h5ad, visium


def in_table(columns, values=PIXELS):
    def change(adata):
        adata.obsm["spatial"] = pd.DataFrame(values, index=adata.obs_names, columns=columns)

    return change


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        (["x", "y"], PIXELS),
        (["y", "x"], PIXELS[:, ::-1]),
        (["Y", "X"], PIXELS[:, ::-1]),
        (["pxl_row_in_fullres", "pxl_col_in_fullres"], PIXELS[:, ::-1]),
        (["z", "pixel_y", "pixel_x"], np.c_[np.zeros(9), PIXELS[:, ::-1]]),
        (["spatial1", "spatial2"], PIXELS),
        (["0", "1"], PIXELS),
    ],
)
def test_positions_in_a_table_follow_the_names_of_its_columns(columns, values, tmp_path):
    np.testing.assert_array_equal(read_section(h5ad(tmp_path, in_table(columns, values))).spot_px, PIXELS)


@pytest.mark.parametrize("columns", [["row", "col"], ["centroid_y", "centroid_x"], ["imagerow", "imagecol"]])
def test_names_that_look_exchanged_are_refused(columns, tmp_path):
    with pytest.raises(
        ValueError, match=rf"A\.h5ad: obsm\['spatial'\] is a table with columns {', '.join(columns)}, .* y before x"
    ):
        read_section(h5ad(tmp_path, in_table(columns, PIXELS[:, ::-1])))


def stored_as(convert):
    def change(adata):
        adata.X = convert(COUNTS)

    return change


@pytest.mark.parametrize(
    "convert",
    [
        lambda counts: counts.astype(np.float64),
        lambda counts: counts.astype(np.uint8),
        lambda counts: sparse.csr_matrix(counts.astype(np.uint16)),
        lambda counts: sparse.csc_matrix(counts.astype(np.float32)),
    ],
)
def test_types_of_counts(convert, tmp_path):
    section = read_section(h5ad(tmp_path, stored_as(convert)))
    np.testing.assert_array_equal(section.counts.toarray(), COUNTS)
    np.testing.assert_array_equal(section.library_size, COUNTS.sum(axis=1))


@pytest.mark.parametrize(
    ("convert", "words"),
    [
        (lambda counts: counts > 5, "values of dtype bool"),
        (lambda counts: counts.astype(np.float16), "float16, which rounds counts above 2048"),
        (lambda counts: counts.astype(np.int64) + 2**24, r"31 values above 16777216 \(largest 1\.678e\+07\)"),
        (lambda counts: counts + 1j, "dtype complex128"),
    ],
)
def test_values_that_are_no_counts_or_cannot_be_kept(convert, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        read_section(h5ad(tmp_path, stored_as(convert)))
    assert "A.h5ad" in str(caught.value)
    assert "store the raw integer counts" in str(caught.value)


@pytest.mark.parametrize("where", ["X", "layers/counts", "raw/X"])
@pytest.mark.parametrize(("part", "place", "value"), [("indices", 0, 10**6), ("indices", 0, -1), ("indptr", 3, 10**6)])
def test_a_sparse_matrix_that_points_outside_itself_is_refused(where, part, place, value, tmp_path):
    def change(adata):
        adata.X = sparse.csr_matrix(COUNTS)
        adata.layers["counts"] = adata.X.copy()
        adata.raw = adata.copy()

    path = h5ad(tmp_path, change)
    with h5py.File(path, "r+") as file:
        file[where][part][place] = value
    with pytest.raises(ValueError, match=r"A\.h5ad cannot be read.*(indices|indptr).*copy or download it again"):
        read_section(path)


def test_a_gene_id_that_is_there_twice_in_a_10x_matrix_is_refused(tmp_path):
    folder = visium(tmp_path)
    file = next(folder.rglob("filtered_feature_bc_matrix.h5"))
    with h5py.File(file, "r+") as handle:
        for name in ("id", "name"):
            names = handle[f"matrix/features/{name}"]
            names[1] = names[0]
    with pytest.raises(ValueError, match=r"filtered_feature_bc_matrix\.h5: 1 duplicate gene names"):
        read_section(folder, require_image=False)


@pytest.mark.parametrize("place", ["layers['counts']", "raw"])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_two_places_of_other_counts_are_told(place, form, tmp_path):
    def change(adata):
        other = adata.copy()
        other.X = form(2 * COUNTS.astype(np.float32))
        if place == "raw":
            adata.raw = other
        else:
            adata.layers["counts"] = other.X

    told = re.escape(f"A.h5ad: X and {place} all hold whole numbers, and not the same; X is used")
    with pytest.warns(UserWarning, match=told):
        section = read_section(h5ad(tmp_path, change))
    np.testing.assert_array_equal(section.counts.toarray(), COUNTS)


def test_the_same_counts_twice_say_nothing(tmp_path):
    def change(adata):
        adata.layers["counts"] = sparse.csc_matrix(COUNTS.astype(np.int64))
        adata.raw = adata.copy()

    path = h5ad(tmp_path, change)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        np.testing.assert_array_equal(read_section(path).counts.toarray(), COUNTS)
