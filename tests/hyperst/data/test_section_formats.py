"""Every format of the reference page: the counts, positions, scale and image that must be read, or what the message says."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hyperst.cli import app
from hyperst.data import distinct_names, list_sections, select_genes
from hyperst.data.readers.formats import FORMATS, formats_page

from .section_formats import BARCODES, COUNTS, GENES, IDS, MADE, PIXELS, REFUSED

ALL = {row.key: row for rows in FORMATS.values() for row in rows}
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "section_formats.md"
BIN_UM = {"hd_root": 16}


def read_all(path, key):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sources = distinct_names(list_sections(path, bin_um=BIN_UM.get(key)))
        return [source.read() for source in sources]


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == formats_page(), "run: python docs/reference/generate.py"
    assert set(ALL) == set(MADE)
    assert {key for key, row in ALL.items() if not row.read} == set(REFUSED)


@pytest.mark.parametrize("key", [key for key, row in ALL.items() if row.read])
def test_what_is_read(key, tmp_path):
    names = {"one_name": ["P1_A", "P2_A"], "geo_several": ["GSM1_A", "GSM2_B"]}
    names |= {"hd_bin": ["A_square_016um"], "hd_root": ["A_square_016um"], "segmented": ["A_segmented_outputs"]}
    sections = read_all(MADE[key](tmp_path), key)
    assert [section.name for section in sections] == names.get(key, ["A"])
    for section in sections:
        np.testing.assert_array_equal(section.counts.toarray(), COUNTS)
        np.testing.assert_array_equal(section.library_size, COUNTS.sum(axis=1))
        np.testing.assert_allclose(section.spot_px, PIXELS, rtol=1e-12)
        assert list(section.genes) == (IDS if key == "ensembl" else GENES)
        assert section.image_path is not None
        if key in {"h5ad", "manifest"}:
            assert section.grid.um_per_px == 2.0
        if key == "segmented":
            assert section.grid.um_per_px == 0.5
            assert section.spot_diameter_px == pytest.approx(2 * np.sqrt(64 / np.pi))
            assert list(section.spot_ids[:2]) == ["cellid_000000001-1", "cellid_000000002-1"]
        elif key in {"cohort", "table"}:
            assert list(section.spot_ids[:2]) == ["A_1x1", "A_2x1"]
        else:
            assert list(section.spot_ids) == BARCODES
    if key == "manifest":
        assert sections[0].patient == "P1"
        assert sections[0].image_path.name == "X17.tif"


@pytest.mark.parametrize("key", list(REFUSED))
def test_what_is_refused(key, tmp_path):
    path = MADE[key](tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        select_genes(read_all(path, key), 2)
    for words in REFUSED[key]:
        assert words in str(caught.value), str(caught.value)
    if key != "ensembl_only":  # a section can be checked, and predicted, whatever its genes are called
        result = CliRunner().invoke(app, ["check", str(path)])
        assert result.exit_code == 1
        assert isinstance(result.exception, SystemExit)
        assert REFUSED[key][0] in result.output + result.stderr


@pytest.mark.parametrize(
    "key", ["counts_layer", "other_layer", "empty_x", "raw", "fuller_raw", "obs_x_y", "raw_matrix"]
)
def test_a_choice_that_the_reader_made_is_said(key, tmp_path):
    path = MADE[key](tmp_path)
    with pytest.warns(UserWarning, match=r"is used|are taken|are read"):
        list_sections(path)[0].read()


def test_spots_beside_the_tissue_leave_raw_too(tmp_path):
    """The rows of raw follow the spots that are kept."""
    from .section_formats import h5ad, in_raw

    def change(adata):
        adata.obs["in_tissue"] = [0, *[1] * 8]
        return in_raw(adata)

    with pytest.warns(UserWarning, match="raw is used"):
        section = list_sections(h5ad(tmp_path, change))[0].read()
    np.testing.assert_array_equal(section.counts.toarray(), COUNTS[1:])


@pytest.mark.parametrize(("column", "expected"), [(None, IDS), ("gene_symbols", GENES)])
def test_gene_names_choose_a_column(column, expected, tmp_path):
    section = list_sections(MADE["ensembl"](tmp_path))[0].read(gene_names=column)
    assert list(section.genes) == expected
    chosen = select_genes([section], 2)
    assert set(chosen) == {expected[0], expected[3]}  # neither mitochondrial nor ribosomal, whatever the names are


def test_gene_names_that_repeat_or_are_empty_keep_their_id(tmp_path):
    from .section_formats import h5ad

    def change(adata):
        adata.var["symbol"] = ["ACTB", "ACTB", "", np.nan]

    section = list_sections(h5ad(tmp_path, change))[0].read(gene_names="symbol")
    assert list(section.genes) == ["ACTB", "ACTB_MT-CO1", "RPL3", "VIM"]


@pytest.mark.parametrize(
    ("key", "words"), [("h5ad", "var holds nothing"), ("visium", "name and id"), ("table", "leave it out")]
)
def test_no_such_column(key, words, tmp_path):
    path = MADE[key](tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        list_sections(path)[0].read(gene_names="nope")
    assert "--gene-names" in str(caught.value)


def test_space_ranger_by_id(tmp_path):
    section = list_sections(MADE["visium"](tmp_path))[0].read(gene_names="id")
    assert list(section.genes) == IDS
    assert list(section.symbols) == GENES


def test_a_bin_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"none of 2 um.*--bin-um 8 or 16"):
        list_sections(MADE["hd_root"](tmp_path), bin_um=2)


def test_one_geo_section_by_its_matrix(tmp_path):
    folder = MADE["geo_several"](tmp_path)
    with pytest.warns(UserWarning, match="twice"):
        (source,) = list_sections([folder / "GSM2_B_matrix.mtx.gz", folder / "GSM2_B_matrix.mtx.gz"])
    section = source.read()
    assert section.name == "GSM2_B"
    assert section.image_path == folder / "GSM2_B.tif"
