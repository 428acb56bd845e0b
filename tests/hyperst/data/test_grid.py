"""One wrong array index, or in_tissue written another way, changes nothing silently."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperst.data import check_section, detect_grid, niche_members, read_section
from hyperst.data.grid import contradicting_spots
from hyperst.data.readers.table import yes_or_no
from hyperst.synthetic import write_tissue


def array(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """81 spots 100 px apart, turned by 10 degrees, as (positions, array index)."""
    row, column = np.divmod(np.arange(81), 9)
    if kind == "hexagonal":
        index = np.stack([row, 2 * column + row % 2], axis=1)
        flat = np.stack([50.0 * index[:, 1], 100 * 3**0.5 / 2 * row], axis=1)
    else:
        index, flat = np.stack([row, column], axis=1), np.stack([100.0 * column, 100.0 * row], axis=1)
    turn = np.deg2rad(10)
    return flat @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]), index


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["hexagonal", "square"]),
    wrong=st.lists(st.integers(0, 80), min_size=1, max_size=4, unique=True),
    by=st.sampled_from([-30, -2, -1, 1, 2, 5, 1000]),
    axis=st.integers(0, 1),
)
def test_the_majority_decides_and_the_odd_spots_are_found(kind, wrong, by, axis):
    spots, index = array(kind)
    index[wrong, axis] += by
    assert contradicting_spots(spots, index).tolist() == sorted(wrong)
    grid = detect_grid(spots, index, pitch_um=200.0)
    assert grid.kind == kind
    assert grid.pitch_px == pytest.approx(100, rel=1e-9)
    assert grid.um_per_px == pytest.approx(2, rel=1e-9)


@pytest.mark.parametrize("kind", ["hexagonal", "square"])
def test_jitter_is_no_contradiction(kind):
    spots, index = array(kind)
    jittered = spots + np.random.default_rng(0).uniform(-14, 14, spots.shape)  # at most 0.2 pitches
    assert len(contradicting_spots(jittered, index)) == 0


def test_array_indices_of_other_spots_are_refused():
    spots, index = array("hexagonal")
    with pytest.raises(ValueError, match="do not describe the spot positions"):
        detect_grid(spots, np.random.default_rng(0).permutation(index))


def rewrite(path, change):
    adata = anndata.read_h5ad(path)
    change(adata)
    adata.write_h5ad(path)
    return path


@pytest.fixture
def tissue(tmp_path):
    return write_tissue(tmp_path, 5, patient="P", n_rows=9, n_cols=9)


def test_a_wrong_column_is_named_and_costs_nothing(tissue):
    right = read_section(tissue)
    wanted = niche_members(right).toarray()

    def slip(adata):
        adata.obs.iloc[40, adata.obs.columns.get_loc("array_col")] += 1

    rewrite(tissue, slip)
    with pytest.warns(UserWarning, match=rf"1 of 81 spots \({right.spot_ids[40]}\)"):
        section = read_section(tissue)
    assert section.grid.kind == "hexagonal"
    assert section.grid.pitch_px == pytest.approx(right.grid.pitch_px, rel=1e-3)
    np.testing.assert_array_equal(niche_members(section).toarray(), wanted)
    warned = [finding.message for finding in check_section(tissue) if finding.level == "warning"]
    assert len(warned) == 1
    assert right.spot_ids[40] in warned[0]


WAYS = {
    "int": lambda inside: inside.astype(int),
    "float": lambda inside: inside.astype(float),
    "bool": lambda inside: inside,
    "True": lambda inside: np.where(inside, "True", "False"),
    "1": lambda inside: np.where(inside, "1", "0"),
    "1.0": lambda inside: np.where(inside, "1.0", "0.0"),
    "TRUE": lambda inside: np.where(inside, "TRUE", " false"),
}


@pytest.mark.parametrize("way", WAYS)
def test_in_tissue_is_read_as_it_is_meant(tissue, way):
    inside = np.arange(81) % 9 != 0
    rewrite(tissue, lambda adata: adata.obs.__setitem__("in_tissue", WAYS[way](inside)))
    found = read_section(tissue)
    assert found.spot_ids.tolist() == anndata.read_h5ad(tissue).obs_names[inside].tolist()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0, np.nan, 1.0], "empty for 1 of 3 spots (b)"),
        (["1", "", None], "empty for 2 of 3 spots (b, c)"),
        (["yes", "1", "0"], "'yes' for 1 of 3 spots (a)"),
        ([1, 2, 0.5], "'0.5' or '2.0' for 2 of 3 spots (b, c)"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, values, words):
    column = pd.Series(values)
    with pytest.raises(ValueError, match="in_tissue is ") as caught:
        yes_or_no(column, list("abc"), "in_tissue", tmp_path / "x.h5ad")
    assert words in str(caught.value)
    assert "x.h5ad" in str(caught.value)
    assert "write 1" in str(caught.value)


def test_an_empty_in_tissue_does_not_drop_spots(tissue):
    rewrite(tissue, lambda adata: adata.obs.__setitem__("in_tissue", np.r_[np.nan, np.ones(80)]))
    with pytest.raises(ValueError, match="empty for 1 of 81 spots"):
        read_section(tissue)


def test_selected_of_a_legacy_table(tmp_path):
    ids = [f"{x}x{y}" for y in range(4) for x in range(4)]
    pd.DataFrame(1, index=ids, columns=["A", "B"]).to_csv(tmp_path / "L.tsv", sep="\t")
    x, y = (np.array([int(name.split("x")[k]) for name in ids]) for k in (0, 1))
    table = pd.DataFrame({"x": x, "y": y, "pixel_x": 20.0 + 10 * x, "pixel_y": 20.0 + 10 * y, "selected": "True"})
    table.loc[5, "selected"] = "False"
    table.to_csv(tmp_path / "L_selection.tsv", sep="\t", index=False)
    with pytest.warns(UserWarning, match="1 of 16 spots are not selected"):
        assert read_section(tmp_path / "L.tsv", require_image=False).n_spots == 15
    table.loc[6, "selected"] = None
    table.to_csv(tmp_path / "L_selection.tsv", sep="\t", index=False)
    with pytest.raises(ValueError, match=r"selected is empty for 1 of 16 spots \(2x1\)"):
        read_section(tmp_path / "L.tsv", require_image=False)
