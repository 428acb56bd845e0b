"""Where the spots of an AnnData lie, and the library of ``uns['spatial']`` that describes its image."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from hyperst.data.readers.table import in_memory, numbers

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["array_index", "library", "positions"]

_KEYS = ("spatial", "X_spatial")
_COLUMNS = (("pxl_col_in_fullres", "pxl_row_in_fullres"), ("pixel_x", "pixel_y"), ("x", "y"))
_X, _Y = re.compile(r"(?<![a-z])x(?![a-z])|col"), re.compile(r"(?<![a-z])y(?![a-z])|row")
_PARTS = ("images", "scalefactors", "metadata")


def positions(adata: AnnData, path: Path) -> np.ndarray:
    """Spot centres (spot 2) as stored: ``obsm['spatial']``, ``obsm['X_spatial']``, or two columns of ``obs``.

    Raises:
        ValueError: none of them is there, or columns of text or of array positions.
    """
    key = next((key for key in _KEYS if key in adata.obsm), None)
    if key is not None:
        found = _ordered(adata.obsm[key], f"{path}: obsm[{key!r}]")
        if found.ndim != 2 or found.shape[1] < 2:
            raise ValueError(f"{path}: obsm[{key!r}] has shape {found.shape}; need x and y of each spot: (spot, 2)")
        return found[:, :2]
    columns = next((pair for pair in _COLUMNS if set(pair) <= set(adata.obs)), None)
    if columns is None:
        raise ValueError(
            f"{path}: no obsm['spatial'] with spot centres (x, y in pixels of the full-resolution image); "
            f"obsm holds {sorted(adata.obsm) or 'nothing'}, obs no columns x and y"
        )
    found = numbers(in_memory(adata.obs), columns, path)
    where = f"obs {columns[0]} and {columns[1]}"
    if columns == ("x", "y") and _on_array(found):
        raise ValueError(
            f"{path}: {where} are positions on the array (whole numbers, neighbours 1 or 2 apart), not pixels; store the "
            "spot centres in pixels of the full-resolution image in obsm['spatial']"
        )
    warnings.warn(
        f"{path}: no obsm['spatial'], so {where} are taken as pixels of the full-resolution image", stacklevel=3
    )
    return found


def _ordered(stored: Any, where: str) -> np.ndarray:
    """Positions as an array; of a table with named columns x and y by their names, whatever their order.

    Raises:
        ValueError: the names say that the first two columns are y and x, or row and column, in words that are not known.
    """
    if not isinstance(stored, pd.DataFrame):
        return np.asarray(stored)
    named = {str(name).strip().lower(): place for place, name in enumerate(stored.columns)}
    for pair in _COLUMNS:
        if set(pair) <= set(named):
            return stored.iloc[:, [named[name] for name in pair]].to_numpy()
    first, second = ([*named, "", ""])[:2]
    if _Y.search(first) or _X.search(second):
        raise ValueError(
            f"{where} is a table with columns {', '.join(map(str, stored.columns))}, which look like y before x; store an array "
            "of x and y, or call the columns x and y"
        )
    return stored.to_numpy()


def _on_array(found: np.ndarray) -> bool:
    if len(found) < 2 or not np.isfinite(found).all() or (found != np.rint(found)).any():
        return False
    return bool(np.median(cKDTree(found).query(found, k=2)[0][:, 1]) <= 2)


def array_index(adata: AnnData, path: Path) -> np.ndarray | None:
    """Row and column on the array, int64 (spot 2), or None.

    Raises:
        ValueError: text, an empty value beside others, or one place for several spots.
    """
    if not {"array_row", "array_col"} <= set(adata.obs):
        return None
    index = numbers(in_memory(adata.obs), ["array_row", "array_col"], path)
    missing = ~np.isfinite(index).all(axis=1)
    if missing.any() and not missing.all():
        names = ", ".join(adata.obs_names[missing][:3].astype(str)) + (" ..." if missing.sum() > 3 else "")
        raise ValueError(
            f"{path}: array_row or array_col is empty for {int(missing.sum())} of {len(missing)} spots ({names}); fill them in, or "
            "remove both columns, and neighbours follow the positions"
        )
    if missing.all() or (index != np.rint(index)).any():
        return None  # adjusted, fractional positions are no index: the geometry of the coordinates is used
    index = index.astype(np.int64)
    if len(np.unique(index, axis=0)) < len(index):
        raise ValueError(f"{path}: several spots share the same array_row and array_col; keep one section per file")
    return index


def library(adata: AnnData, path: Path) -> dict[str, Any]:
    """The one section described in ``uns['spatial']``, with images, scalefactors and metadata; {} where there is none.

    What other programs leave beside it is passed over: libraries without content, and HEST's or squidpy's flags.

    Raises:
        ValueError: several sections, or content of another form than scverse's.
    """
    spatial = adata.uns.get("spatial")
    if spatial is None:
        return {}
    if not isinstance(spatial, Mapping):
        raise ValueError(
            f"{path}: uns['spatial'] holds {_shown(spatial)} instead of a mapping of sections; delete it, or restore it "
            "from the original file"
        )
    libraries = {str(name): value for name, value in spatial.items() if isinstance(value, Mapping) and _filled(value)}
    if len(libraries) > 1:
        raise ValueError(
            f"{path} holds {len(libraries)} sections ({', '.join(libraries)}) with one coordinate system each; "
            "write one .h5ad per section"
        )
    for name, value in libraries.items():
        for part in _PARTS:
            if not isinstance(value.get(part, {}), Mapping):
                raise ValueError(
                    f"{path}: uns['spatial'][{name!r}][{part!r}] holds {_shown(value[part])} instead of named values; "
                    "restore it from the original file"
                )
        return {**value, **{part: dict(value.get(part, {})) for part in _PARTS}}
    return {}


def _filled(value: Mapping[str, Any]) -> bool:
    """Whether a library says anything: an image, a factor, or metadata."""
    return any(not isinstance(value[part], Mapping) or len(value[part]) > 0 for part in _PARTS if part in value)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 40 else text[:37] + '...'}"
