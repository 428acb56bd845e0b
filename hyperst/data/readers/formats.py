"""Formats of sections: what is read, and what is refused with which remedy. docs/reference/section_formats.md shows it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FORMATS", "Format", "formats_page"]


class Format(NamedTuple):
    """A form in which sections come.

    Attributes:
        key: what its test is called.
        holds: what the file or folder holds.
        read: whether it is read.
        note: how it is read, or what remedies a refused one.
    """

    key: str
    holds: str
    read: bool
    note: str


FORMATS = {
    "AnnData (.h5ad)": (
        Format(
            "h5ad", "counts in `X`, centres in `obsm['spatial']`", True, "as scverse, HEST-1k and this library write it"
        ),
        Format("counts_layer", "values in `X`, counts in `layers['counts']`", True, "the layer, with a warning"),
        Format(
            "other_layer",
            "counts in `layers['raw_counts']` (`count`, `raw`, `umi`, ...)",
            True,
            "the layer, with a warning",
        ),
        Format("empty_x", "no `X`, counts in `layers['counts']`", True, "the layer, with a warning"),
        Format("raw", "values in `X`, counts in `raw`, of the same or of more genes", True, "`raw`, with a warning"),
        Format(
            "fuller_raw", "counts in `X` and, of more genes, in `raw`", True, "`raw`: the total count is over all genes"
        ),
        Format("x_spatial", "centres in `obsm['X_spatial']`", True, "as `obsm['spatial']`"),
        Format(
            "obs_x_y",
            "centres in `obs` x and y, pixel_x and pixel_y, or Space Ranger's columns",
            True,
            "with a warning",
        ),
        Format("leftovers", "`is_single`, empty libraries in `uns['spatial']`", True, "passed over"),
        Format(
            "ensembl",
            "Ensembl ids in `var`, symbols in a column",
            True,
            "symbols decide what is mitochondrial; `--gene-names COLUMN`",
        ),
        Format(
            "ensembl_only",
            "Ensembl ids alone",
            False,
            "to train: add a column of symbols, choose it with `--gene-names`",
        ),
        Format(
            "array_in_obs", "`obs` x and y that are positions on the array", False, "store pixels in `obsm['spatial']`"
        ),
        Format("no_positions", "no positions", False, "store spot centres in pixels in `obsm['spatial']`"),
        Format("no_counts", "normalised values alone", False, "store raw counts in `X`, `layers['counts']` or `raw`"),
        Format(
            "unknown_layer",
            "counts in a layer of an unusual name",
            False,
            "rename the layer to `counts`; the message names it",
        ),
        Format("no_genes", "no genes", False, "write the file again, completely"),
        Format("all_zero", "no count above 0", False, "write the file again, completely"),
        Format("two_libraries", "several sections in `uns['spatial']`", False, "write one .h5ad per section"),
        Format("text_library", "`uns['spatial']` that is text", False, "delete or restore it"),
        Format("list_factors", "scale factors that are a list", False, "restore them from the original file"),
        Format(
            "text_array", "`obs` array_row of text", False, "correct the column; the message names the first such row"
        ),
    ),
    "Space Ranger and GEO": (
        Format("visium", "`filtered_feature_bc_matrix.h5` and `spatial/`", True, "the folder, or the one above `outs`"),
        Format(
            "mtx", "`filtered_feature_bc_matrix/matrix.mtx(.gz)` and `spatial/`", True, "version 2's `genes.tsv` too"
        ),
        Format("raw_matrix", "only `raw_feature_bc_matrix`", True, "the barcodes under tissue, with a warning"),
        Format(
            "geo",
            "one flat folder, names with a prefix (GSM...), .gz",
            True,
            "as one section; its image is named with `--image`",
        ),
        Format("geo_several", "several such sections in one folder", True, "each; or the matrix file of one"),
        Format("hd_bin", "a Visium HD folder `square_016um`", True, "one binning"),
        Format("hd_root", "a Visium HD folder with several binnings", True, "with `--bin-um`, or by the path of one"),
        Format(
            "hd_unchosen", "the same without `--bin-um`", False, "choose one: they are one tissue, not several sections"
        ),
        Format(
            "segmented",
            "`segmented_outputs` of Space Ranger 4",
            True,
            "cells as spots, at the centroids of their outlines",
        ),
        Format("no_scalefactors", "no `scalefactors_json.json`", False, "restore it"),
        Format("text_positions", "text among the positions", False, "correct the column; the message names the row"),
        Format("mtx_mismatch", "a `matrix.mtx` and lists of another one", False, "restore the lists that belong to it"),
        Format("mtx_commas", "commas in `features.tsv`", False, "save it with tabs between the columns"),
        Format(
            "mtx_pattern", "a `matrix.mtx` of kind `pattern`", False, "it holds no counts: export it with its values"
        ),
    ),
    "Tables of legacy Spatial Transcriptomics": (
        Format("table", "counts (.tsv, .txt, .gz) and `NAME_selection.tsv`", True, "spots named `10x12`"),
        Format("text_in_table", "text among the counts", False, "correct the column; the message names row and column"),
        Format("no_selection", "no table of selected spots", False, "put it beside the counts or in `spots`"),
    ),
    "Folders and manifests": (
        Format("cohort", "a folder of sections with README.txt, `._NAME` and other dotfiles", True, "the sections"),
        Format(
            "manifest", "a .csv with columns section, name, patient, image, mpp, kind", True, "only `section` is needed"
        ),
        Format("bad_manifest", "a .csv without a column section", False, "add the column"),
        Format(
            "one_name", "two sections of one name in different folders", True, "called by their folders: A_S3, B_S3"
        ),
    ),
}
"""Every format, by kind. Each has a test that makes such a file and looks at what is read, or at the message."""


def formats_page() -> str:
    """The reference page as Markdown."""
    text = [
        "# Section formats",
        "",
        "What `hyperst train`, `evaluate`, `predict` and `check` read, and what they refuse and how to remedy it. Each row has a",
        "test that makes such a file. [Sections](../explanation/sections.md) says what a section is.",
    ]
    for kind, formats in FORMATS.items():
        text += ["", f"## {kind}", "", "| what it holds | read | how, or the remedy |", "| --- | --- | --- |"]
        text += [f"| {row.holds} | {'yes' if row.read else 'no'} | {row.note} |" for row in formats]
    return "\n".join(text) + "\n"
