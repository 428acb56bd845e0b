"""Space Ranger output folders: Visium (v1 and v2 positions) and Visium HD bins."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import sparse

from hyperst.data.readers.h5ad import VISIUM_PITCH_UM, VISIUM_SPOT_UM, _number, _positive
from hyperst.data.readers.table import (
    Scale,
    SpotTable,
    check_counts,
    check_positions,
    check_unique,
    empty_counts,
    yes_or_no,
)
from hyperst.files import is_hidden

__all__ = ["is_spaceranger", "read_spaceranger_table", "spaceranger_name"]

_MATRIX = "filtered_feature_bc_matrix.h5"
_POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


def is_spaceranger(folder: Path) -> bool:
    """Whether ``folder`` (or its ``outs``) holds the output of Space Ranger."""
    return _root(folder) is not None


def spaceranger_name(folder: Path) -> str:
    """Name of the section: the sample's folder, with the bin size for Visium HD."""
    root = (_root(folder) or folder).resolve()
    parts = [root.name] if root.name != "outs" else []
    sample = root.parent
    while sample.name in {"outs", "binned_outputs"}:
        sample = sample.parent
    if not parts:
        return sample.name
    return f"{sample.name}_{parts[0]}" if root.parent.name == "binned_outputs" else parts[0]


def read_spaceranger_table(folder: Path, name: str, *, counts: bool = True) -> SpotTable:
    """Read spots under tissue, positions, scale and raw counts of a Space Ranger folder.

    The folder holds ``filtered_feature_bc_matrix.h5`` (a prefix is allowed) and ``spatial/`` with the positions and
    ``scalefactors_json.json``. A gene symbol that several genes share is written SYMBOL_ID. Spots with in_tissue 0 are
    left out.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or matrix and positions have no barcode in common.
    """
    root = _root(folder)
    if root is None:
        bins = sorted(path.name for path in folder.glob("**/square_*um") if _root(path))
        hint = f"; choose one of its binned folders: {', '.join(bins)}" if bins else ""
        raise FileNotFoundError(f"{folder}: no {_MATRIX} and spatial/ in this folder{hint}")
    spatial = root / "spatial"
    positions = _positions(spatial)
    scale, factors = _scale(spatial / "scalefactors_json.json")
    check_unique(positions.index.to_numpy(dtype=str), "spot", spatial, "restore the positions file of Space Ranger")
    positions["in_tissue"] = yes_or_no(
        positions["in_tissue"], positions.index.to_numpy(dtype=str), "in_tissue", spatial
    )
    if counts:
        matrix, genes, barcodes = _matrix(_matrix_file(root))
        check_unique(barcodes, "spot", _matrix_file(root), "restore the matrix of Space Ranger")
        present = np.isin(barcodes, positions.index.to_numpy(dtype=str))
        if not present.any():
            raise ValueError(
                f"{root}: no barcode of {_MATRIX} is in {spatial}; matrix and positions are of different samples"
            )
        if not present.all():
            warnings.warn(
                f"{root}: {int((~present).sum())} of {len(present)} barcodes have no position and are left out",
                stacklevel=2,
            )
        keep = present.copy()
        keep[present] = positions.loc[barcodes[present], "in_tissue"]
        matrix, barcodes = check_counts(matrix[keep], f"{root}: {_MATRIX}"), barcodes[keep]
    else:
        barcodes = positions.index[positions["in_tissue"]].to_numpy(dtype=str)
        matrix, genes = empty_counts(len(barcodes))
    here = positions.loc[barcodes]
    return SpotTable(
        source=root,
        name=name,
        counts=matrix,
        genes=genes,
        spot_ids=barcodes,
        spot_px=check_positions(here[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(), barcodes, root),
        array_index=here[["array_row", "array_col"]].to_numpy(dtype=np.int64),
        scale=scale,
        small_images=_small_images(spatial, factors),
    )


def _root(folder: Path) -> Path | None:
    for candidate in (folder, folder / "outs"):
        if (candidate / "spatial").is_dir() and _matrices(candidate):
            return candidate
    return None


def _matrix_file(root: Path) -> Path:
    return min(_matrices(root), key=lambda path: len(path.name))


def _matrices(root: Path) -> list[Path]:
    return [path for path in sorted(root.glob(f"*{_MATRIX}")) if not is_hidden(path)]


def _positions(spatial: Path) -> pd.DataFrame:
    """Positions indexed by barcode. v1 lists have no header, v2 has one, HD is parquet."""
    for name in _POSITIONS:
        file = spatial / name
        if not file.is_file():
            continue
        try:
            if file.suffix == ".parquet":
                table = pd.read_parquet(file)
            else:
                headed = file.open(encoding="utf-8").readline().startswith("barcode")
                table = pd.read_csv(file, header=0 if headed else None, names=None if headed else _COLUMNS)
            return table[_COLUMNS].set_index("barcode")
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{file} is no readable table of {', '.join(_COLUMNS)} ({error}); restore it") from error
    raise FileNotFoundError(f"{spatial}: no spot positions; looked for {', '.join(_POSITIONS)}")


def _scale(file: Path) -> tuple[Scale, dict[str, float]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; it is part of Space Ranger's output")
    try:
        factors = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no readable JSON ({error}); restore it") from error
    scale = Scale(spot_px=_positive(factors.get("spot_diameter_fullres")))
    scale.mpp = _number(factors.get("microns_per_pixel"))
    scale.mpp_from = "scalefactors microns_per_pixel"
    scale.bin_um = _positive(factors.get("bin_size_um"))
    if scale.bin_um is not None:
        scale.pitch_um = scale.spot_um = scale.bin_um
    else:
        scale.pitch_um, scale.spot_um, scale.staggered_only = VISIUM_PITCH_UM, VISIUM_SPOT_UM, True
    return scale, factors


def _small_images(spatial: Path, factors: dict[str, float]) -> list[tuple[tuple[int, int], float]]:
    found = []
    for kind in ("hires", "lowres"):
        file, factor = spatial / f"tissue_{kind}_image.png", _positive(factors.get(f"tissue_{kind}_scalef"))
        if file.is_file() and factor is not None:
            with Image.open(file) as image:
                found.append((image.size, factor))
    return found


def _matrix(file: Path) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    """(counts (spot gene), genes, barcodes) of a 10x HDF5 matrix; only features of type "Gene Expression"."""
    import h5py

    try:
        with h5py.File(file) as handle:
            group = handle["matrix"]
            n_features, n_barcodes = (int(size) for size in group["shape"][:])
            matrix = sparse.csr_array(
                (group["data"][:], group["indices"][:], group["indptr"][:]), shape=(n_barcodes, n_features)
            )
            features = group["features"]
            names, ids, kinds = (features[key][:].astype(str) for key in ("name", "id", "feature_type"))
            barcodes = group["barcodes"][:].astype(str)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{file} cannot be read: it is cut short, damaged or no 10x matrix ({error}); copy or download it again"
        ) from error
    wanted = np.flatnonzero(kinds == "Gene Expression")
    matrix, names, ids = matrix[:, wanted], names[wanted], ids[wanted]
    _, inverse, times = np.unique(names, return_inverse=True, return_counts=True)
    shared = times[inverse] > 1
    genes = np.where(shared, np.char.add(np.char.add(names.astype(str), "_"), ids.astype(str)), names).astype(str)
    return matrix, genes, barcodes
