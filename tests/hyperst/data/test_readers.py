"""Space Ranger folders, Visium HD bins and files of other programs are read as their makers documented them."""

from __future__ import annotations

import shutil

import anndata
import h5py
import numpy as np
import pytest

from hyperst.data import find_sections, niche_members, read_section, readers
from hyperst.data.readers import Reader, reader_of
from hyperst.synthetic import write_tissue


@pytest.fixture
def spaceranger(real_data, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(real_data / "fixtures" / "spaceranger_v1", tmp_path / "sample1")


def test_spaceranger_v1(spaceranger):
    section = read_section(spaceranger, require_image=False)
    assert (section.name, section.n_spots, len(section.genes)) == ("sample1", 100, 100)
    assert section.grid.kind == "hexagonal"
    assert section.grid.um_per_px == pytest.approx(100 / section.grid.pitch_px)
    with h5py.File(spaceranger / "filtered_feature_bc_matrix.h5") as file:
        assert section.counts.sum() == file["matrix/data"][:].sum()
    # 100 scattered spots: the few that do touch lie one pitch apart
    spot, neighbour = niche_members(section).nonzero()
    apart = np.linalg.norm(section.spot_px[spot] - section.spot_px[neighbour], axis=1)[spot != neighbour]
    assert len(apart) > 0
    np.testing.assert_allclose(apart, section.grid.pitch_px, rtol=0.02)


def test_the_small_image_of_spaceranger_is_no_full_resolution_image(spaceranger):
    with pytest.raises(ValueError, match=r"hires|outside"):
        read_section(spaceranger, image=spaceranger / "spatial" / "tissue_hires_image.png")


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda root: (root / "spatial" / "tissue_positions_list.csv").unlink(), FileNotFoundError, "positions"),
        (lambda root: (root / "spatial" / "scalefactors_json.json").write_text("{"), ValueError, "scalefactors"),
        (
            lambda root: (root / "filtered_feature_bc_matrix.h5").write_bytes(b"HDF"),
            ValueError,
            "filtered_feature_bc_matrix",
        ),
        (
            lambda root: (root / "spatial" / "tissue_positions_list.csv").write_text("AAA-1,1,0,0,5,5\n"),
            ValueError,
            "different samples",
        ),
    ],
)
def test_a_damaged_spaceranger_folder_is_named(spaceranger, damage, error, words):
    damage(spaceranger)
    with pytest.raises(error, match=words):
        read_section(spaceranger, require_image=False)


def test_visium_hd_bins(real_data):
    folder = real_data / "fixtures" / "visium_hd"
    with pytest.warns(UserWarning, match="no position"):
        section = read_section(folder / "binned_outputs" / "square_016um", require_image=False)
    assert (section.name, section.grid.kind) == ("visium_hd_square_016um", "square")
    assert section.grid.pitch_um == 16
    assert section.spot_diameter_px == pytest.approx(section.grid.pitch_px, rel=0.01)
    for root in (folder, folder / "binned_outputs"):
        assert [path.name for path in find_sections(root, bin_um=8)] == ["square_008um"]
        with pytest.raises(ValueError, match="choose one: --bin-um 8 or 16"):
            find_sections(root)


def test_normalised_values_are_refused_and_counts_elsewhere_found(real_data, tmp_path):
    source = real_data / "fixtures" / "squidpy" / "test_data.h5ad"
    with pytest.raises(ValueError, match="raw counts"):
        read_section(source, require_image=False)
    adata = anndata.read_h5ad(source)
    adata.layers["counts"] = np.random.default_rng(0).poisson(2.0, adata.shape).astype(np.float32)
    adata.write_h5ad(tmp_path / "with_counts.h5ad")
    section = read_section(tmp_path / "with_counts.h5ad", require_image=False)
    assert section.counts.sum() == adata.layers["counts"].sum()
    assert section.grid.kind == "hexagonal"


def test_hest_layout(tmp_path):
    """st/NAME.h5ad and wsis/NAME.tif, as HEST-1k is laid out; sections are found by their folder."""
    from PIL import Image

    from hyperst.synthetic import write_tissue

    source = write_tissue(tmp_path / "made", 1, name="TENX1", n_rows=5, n_cols=5)
    (tmp_path / "hest" / "st").mkdir(parents=True)
    (tmp_path / "hest" / "wsis").mkdir()
    shutil.copy(source, tmp_path / "hest" / "st" / "TENX1.h5ad")
    Image.open(source.parent / "images" / "TENX1.png").save(tmp_path / "hest" / "wsis" / "TENX1.tif")
    (found,) = find_sections(tmp_path / "hest")
    section = read_section(found)
    assert section.image_path == tmp_path / "hest" / "wsis" / "TENX1.tif"
    assert section.n_spots == 25


def test_another_reader_is_one_entry(tmp_path, monkeypatch):
    path = tmp_path / "S.points"
    path.write_text("x y", encoding="utf-8")
    with pytest.raises(ValueError, match=r"need a Space Ranger folder, .h5ad, or counts"):
        reader_of(path)
    mine = Reader("points", lambda path: path.suffix == ".points", lambda path: path.stem, lambda *given: given)
    monkeypatch.setattr(readers, "READERS", (*readers.READERS, mine))
    assert reader_of(path) is mine
    with pytest.raises(FileNotFoundError, match=r"nothing\.h5ad does not exist"):
        reader_of(tmp_path / "nothing.h5ad")


def test_an_empty_array_index_beside_others_names_its_spot(tmp_path):
    path = write_tissue(tmp_path, seed=0, n_rows=4, n_cols=4)
    adata = anndata.read_h5ad(path)
    column = adata.obs["array_col"].astype(float)
    column.iloc[3] = np.nan
    adata.obs["array_col"] = column
    adata.write_h5ad(path)
    with pytest.raises(
        ValueError, match=rf"array_row or array_col is empty for 1 of 16 spots \({adata.obs_names[3]}\)"
    ):
        read_section(path)
