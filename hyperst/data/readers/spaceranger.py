"""Space Ranger outputs: Visium (v1 and v2 positions), Visium HD bins and segmented cells, and the flat copies of GEO."""

from __future__ import annotations

import gzip
import io
import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from hyperst.data.readers.h5ad import VISIUM_PITCH_UM, VISIUM_SPOT_UM, _positive, um_per_px
from hyperst.data.readers.segmented import cell_positions
from hyperst.data.readers.spaceranger_files import (
    POSITIONS,
    OutputFiles,
    bins_of,
    choose_bin,
    is_spaceranger,
    outputs_in,
    spaceranger_name,
)
from hyperst.data.readers.table import (
    Scale,
    SpotTable,
    check_counts,
    check_positions,
    check_unique,
    empty_counts,
    numbers,
    yes_or_no,
)
from hyperst.data.readers.tenx import read_matrix
from hyperst.files import is_hidden

__all__ = ["is_spaceranger", "read_spaceranger_table", "spaceranger_name"]

_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


def read_spaceranger_table(path: Path, name: str, *, counts: bool = True, gene_names: str | None = None) -> SpotTable:
    """Read spots under tissue, positions, scale and raw counts of one Space Ranger output.

    The counts are ``filtered_feature_bc_matrix.h5``, or ``matrix.mtx`` with its lists; of segmented cells
    ``filtered_feature_cell_matrix.h5`` with their outlines. Positions and ``scalefactors_json.json`` lie in ``spatial/``, or,
    as on GEO, beside the matrix; names may have a prefix, and end in .gz. Where there is only the raw matrix, its barcodes
    under tissue are the filtered ones. Spots with in_tissue 0 are left out.

    Args:
        path: the folder, or the matrix of one section among several in a folder.
        gene_names: "name" (default): a symbol that several genes share is written SYMBOL_ID; or "id".

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, several sections in the folder, or matrix and positions have no barcode in common.
    """
    files = _one(path)
    factors_file = files.find(("scalefactors_json.json",))
    if factors_file is None:
        raise FileNotFoundError(
            f"{files.root}: no scalefactors_json.json in spatial/; it is part of Space Ranger's output"
        )
    scale, factors = _scale(factors_file)
    if files.raw:
        warnings.warn(
            f"{files.root}: there is only the raw matrix {files.matrix.name}, so its barcodes under tissue are read",
            stacklevel=2,
        )
    if files.cells:
        return _segmented(files, name, scale, factors, counts, gene_names)
    positions, source = _positions(files)
    under = positions.index[positions["in_tissue"]].to_numpy(dtype=str)
    symbols = None
    if counts:
        matrix, genes, symbols, barcodes = read_matrix(files.matrix, files.prefix, gene_names)
        check_unique(barcodes, "spot", files.matrix, "restore the matrix of Space Ranger")
        present = np.isin(barcodes, positions.index.to_numpy(dtype=str))
        if not present.any():
            raise ValueError(
                f"{files.root}: no barcode of {files.matrix.name} is in {source}; matrix and positions are of different "
                "samples"
            )
        if not present.all():
            warnings.warn(
                f"{files.root}: {int((~present).sum())} of {len(present)} barcodes have no position and are left out",
                stacklevel=2,
            )
        keep = np.isin(barcodes, under)
        matrix, barcodes = check_counts(matrix[keep], f"{files.root}: {files.matrix.name}"), barcodes[keep]
    else:
        barcodes = under
        matrix, genes = empty_counts(len(barcodes))
    here = positions.loc[barcodes]
    return SpotTable(
        source=path if path.is_file() else files.root,
        name=name,
        counts=matrix,
        genes=genes,
        spot_ids=barcodes,
        spot_px=check_positions(here[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(), barcodes, files.root),
        array_index=here[["array_row", "array_col"]].to_numpy(dtype=np.int64),
        scale=scale,
        small_images=_small_images(files, factors),
        symbols=symbols,
    )


def _one(path: Path) -> OutputFiles:
    """The files of the one section that ``path`` names."""
    found = outputs_in(path)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{path} holds {len(found)} sections ({', '.join(place.sample for place in found)}); name the matrix of one, "
            f"such as {found[0].matrix.name}"
        )
    if bins_of(path):
        return _one(choose_bin(path, None))
    if path.is_dir() and (inside := sorted(file for file in path.glob("*.h5ad") if not is_hidden(file))):
        raise ValueError(
            f"{path} is a folder of {len(inside)} .h5ad files, where one section is needed: name one, such as {inside[0]}, or "
            "for several a manifest (a .csv with the column section)"
        )
    raise FileNotFoundError(
        f"{path}: no filtered_feature_bc_matrix (.h5, or a folder with matrix.mtx) with spatial/ in this folder; give the "
        "folder that Space Ranger left"
    )


def _segmented(
    files: OutputFiles, name: str, scale: Scale, factors: dict[str, Any], counts: bool, gene_names: str | None
) -> SpotTable:
    """A section of cells: each a spot at the centroid of its outline, on no grid."""
    symbols = None
    if counts:
        matrix, genes, symbols, barcodes = read_matrix(files.matrix, files.prefix, gene_names)
        check_unique(barcodes, "cell", files.matrix, "restore the matrix of Space Ranger")
        known, spot_px, diameter = cell_positions(files.root, barcodes)
        keep = np.isin(barcodes, known)
        if not keep.all():
            warnings.warn(
                f"{files.root}: {int((~keep).sum())} of {len(keep)} cells have no outline and are left out",
                stacklevel=3,
            )
        matrix = check_counts(matrix[keep], f"{files.root}: {files.matrix.name}")
    else:
        known, spot_px, diameter = cell_positions(files.root, None)
        matrix, genes = empty_counts(len(known))
    return SpotTable(
        source=files.root,
        name=name,
        counts=matrix,
        genes=genes,
        spot_ids=known,
        spot_px=check_positions(spot_px, known, files.root),
        scale=Scale(mpp=scale.mpp, mpp_from=scale.mpp_from, spot_px=diameter),
        small_images=_small_images(files, factors),
        symbols=symbols,
    )


def _positions(files: OutputFiles) -> tuple[pd.DataFrame, Path]:
    """Positions indexed by barcode, as numbers, and their file. v1 lists have no header, v2 has one, HD is parquet."""
    file = files.find(POSITIONS)
    if file is None:
        raise FileNotFoundError(
            f"{files.root}: no spot positions; looked for {', '.join(POSITIONS)} in spatial/ and here"
        )
    try:
        if file.suffix == ".parquet":
            table = pd.read_parquet(file)
        else:
            encoding = "utf-8-sig"  # what a spreadsheet has saved begins with a mark, and may have quotation marks
            with (
                gzip.open(file, "rt", encoding=encoding)
                if file.suffix == ".gz"
                else file.open(encoding=encoding) as stream
            ):
                headed = stream.readline().lstrip('"').startswith("barcode")
            table = pd.read_csv(
                file, header=0 if headed else None, names=None if headed else _COLUMNS, encoding=encoding
            )
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8; restore the file of Space Ranger") from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise ValueError(
            f"{file} is no readable table of {', '.join(_COLUMNS)}; restore the file of Space Ranger"
        ) from error
    if missing := [name for name in _COLUMNS if name not in table]:
        held = ", ".join(map(str, table.columns))[:200]
        raise ValueError(
            f"{file}: no column {', '.join(missing)}; its columns are {held}; restore the file of Space Ranger, with commas "
            "between the columns"
        )
    table = table[_COLUMNS].set_index("barcode")
    table.index = table.index.astype(str)
    check_unique(table.index.to_numpy(dtype=str), "spot", file, "restore the positions file of Space Ranger")
    values = pd.DataFrame(numbers(table, _COLUMNS[2:], file), index=table.index, columns=_COLUMNS[2:])
    if values[_COLUMNS[2:4]].isna().any(axis=None):
        raise ValueError(f"{file}: an empty cell in array_row or array_col; restore it")
    values["in_tissue"] = yes_or_no(table["in_tissue"], table.index.to_numpy(dtype=str), "in_tissue", file)
    return values, file


def _scale(file: Path) -> tuple[Scale, dict[str, Any]]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
            factors = json.load(stream)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{file} is no readable JSON ({error}); restore it") from error
    if not isinstance(factors, dict):
        raise ValueError(f"{file} holds {type(factors).__name__} instead of named scale factors; restore it")
    scale = Scale(spot_px=_positive(factors.get("spot_diameter_fullres")))
    scale.mpp = um_per_px(factors.get("microns_per_pixel"), f"{file}: microns_per_pixel")
    scale.mpp_from = "scalefactors microns_per_pixel"
    scale.bin_um = _positive(factors.get("bin_size_um"))
    if scale.bin_um is not None:
        scale.pitch_um = scale.spot_um = scale.bin_um
    else:
        scale.pitch_um, scale.spot_um, scale.staggered_only = VISIUM_PITCH_UM, VISIUM_SPOT_UM, True
    return scale, factors


def _small_images(files: OutputFiles, factors: dict[str, Any]) -> list[tuple[tuple[int, int], float]]:
    found = []
    for kind in ("hires", "lowres"):
        file, factor = files.find((f"tissue_{kind}_image.png",)), _positive(factors.get(f"tissue_{kind}_scalef"))
        if file is not None and factor is not None:
            try:
                content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
                with Image.open(io.BytesIO(content)) as image:
                    found.append((image.size, factor))
            except (OSError, EOFError, zlib.error, ValueError, Image.DecompressionBombError) as error:
                raise ValueError(f"{file} is no readable image ({error}); restore or remove it") from error
    return found
