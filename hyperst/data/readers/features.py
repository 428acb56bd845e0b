"""Files of precomputed image features: HDF5 of HEST, TRIDENT or CLAM, one row per patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hyperst.data.feature_rows import MappedTable
from hyperst.data.feature_source import FeatureSource

__all__ = ["SUFFIXES", "PatchFeatures", "find_features", "obsm_keys", "read_patch_features"]

SUFFIXES = (".h5", ".hdf5")

_FEATURES, _BARCODES = ("features", "embeddings"), ("barcode", "barcodes")


@dataclass(frozen=True)
class PatchFeatures:
    """Features of patches, and what says where a patch lies.

    Attributes:
        path: the file.
        values: float32 (patch width), memory-mapped where the file holds such numbers in one piece.
        barcodes: str (patch,), or None.
        centres: float64 (patch 2), x, y in pixels of the full-resolution image, or None.
        side_px: side of a patch in those pixels; given with ``centres``.
        source: what the file says of the encoder.
        corners: float64 (patch 2), x, y of the top left corners, or None.
        slide_name: what the slide is called, or None.
        slide_px: width and height of its full-resolution image, or None.
    """

    path: Path
    values: np.ndarray | MappedTable
    barcodes: np.ndarray | None
    centres: np.ndarray | None
    side_px: float | None
    source: FeatureSource
    corners: np.ndarray | None
    slide_name: str | None
    slide_px: tuple[int, int] | None


def read_patch_features(path: str | Path) -> PatchFeatures:
    """Read a file with ``features`` or ``embeddings`` (patch width), and ``barcode`` (patch), ``coords`` (patch 2), or both.

    ``coords`` are the top left corners of the patches in full-resolution pixels (x, y). The side of a patch there is the
    attribute ``patch_size_level0`` of ``coords`` (TRIDENT), or ``patch_size`` times ``downsample`` (CLAM). Its attributes
    ``level0_width``, ``level0_height`` and ``name`` tell the slide, and so does ``name`` of the features. Values that are not
    finite are kept: only those of a spot matter.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds something else.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"features file {path} does not exist")
    try:
        with h5py.File(path) as file:
            arrays = {name: node for name, node in file.items() if isinstance(node, h5py.Dataset)}
            name = _one_of(_FEATURES, arrays, path)
            values = _mapped(path, arrays[name]) or np.asarray(arrays[name][()])
            source = FeatureSource.of_attributes(arrays[name].attrs)
            own_attributes = dict(arrays[name].attrs)
            found = [each for each in _BARCODES if each in arrays]
            barcodes = arrays[found[0]].asstr()[()].reshape(-1) if found else None
            coords = np.asarray(arrays["coords"][()]) if "coords" in arrays else None
            attributes = {**file.attrs, **arrays["coords"].attrs} if coords is not None else {}
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"features file {path} cannot be read: it is cut short, damaged or no HDF5 file of features ({error}); "
            "write it again"
        ) from error
    if isinstance(values, np.ndarray):
        values = values[0] if values.ndim == 3 and len(values) == 1 else values
        if values.ndim != 2 or 0 in values.shape or not np.issubdtype(values.dtype, np.floating):
            raise ValueError(
                f"{path}: {name} is {values.dtype} of shape {values.shape}; need numbers (patch, width), one row per patch"
            )
        values = values.astype(np.float32)
    n_patches = values.shape[0]
    for what, array in (("barcode", barcodes), ("coords", coords)):
        if array is not None and len(array) != n_patches:
            raise ValueError(
                f"{path}: {name} has {n_patches} rows and {what} {len(array)}; they must be of the same patches"
            )
    centres, side = (None, None) if coords is None else _centres(coords, attributes, path, needed=barcodes is None)
    if barcodes is None and centres is None:
        raise ValueError(
            f"{path}: neither barcode nor coords say which patch is whose; it holds {', '.join(sorted(arrays))}"
        )
    if barcodes is None and centres is not None:
        _, first = np.unique(centres, axis=0, return_index=True)
        if len(first) < len(centres):
            x, y = centres[np.setdiff1d(np.arange(len(centres)), first)[0]]
            raise ValueError(
                f"{path}: {len(centres) - len(first)} patches lie where others do, the first around x {x:g}, y {y:g}; keep one row "
                "for each place, or give barcodes"
            )
    slide_name = _text(own_attributes, "name") or _text(attributes, "name")
    slide = _number(attributes, "level0_width"), _number(attributes, "level0_height")
    slide_px = None if slide[0] is None or slide[1] is None else (round(slide[0]), round(slide[1]))
    return PatchFeatures(path, values, barcodes, centres, side, source, coords, slide_name, slide_px)


def _mapped(path: Path, array: Any) -> MappedTable | None:
    """The array where it lies in the file; None where it is in chunks, compressed, of other numbers, or of another shape."""
    offset = array.id.get_offset()
    if array.ndim != 2 or 0 in array.shape or array.dtype != np.dtype("<f4") or offset is None:
        return None
    if path.stat().st_size < offset + array.nbytes:
        raise OSError("its numbers end early")
    return MappedTable(path, offset, array.shape)


def find_features(place: str | Path, name: str) -> Path:
    """The file of section ``name``: ``place`` itself, or ``NAME.h5`` in the folder ``place``.

    Raises:
        FileNotFoundError: neither is there.
    """
    place = Path(place)
    if place.is_file():
        return place
    if not place.is_dir():
        raise FileNotFoundError(f"features {place} is neither a file nor a folder")
    looked = [place / f"{name}{suffix}" for suffix in SUFFIXES]
    for file in looked:
        if file.is_file():
            return file
    raise FileNotFoundError(f"no features of section {name}: looked for {', '.join(map(str, looked))}")


def obsm_keys(path: Path) -> list[str]:
    """Names of the ``obsm`` entries of an .h5ad file, sorted.

    Raises:
        ValueError: the file is damaged.
    """
    import h5py

    try:
        with h5py.File(path) as file:
            return sorted(file["obsm"]) if "obsm" in file else []
    except (OSError, RuntimeError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as .h5ad ({error}); copy or download it again") from error


def _one_of(wanted: Sequence[str], arrays: dict[str, Any], path: Path) -> str:
    found = [name for name in wanted if name in arrays]
    if len(found) != 1:
        held = ", ".join(sorted(arrays)) or "no array"
        need = f"both {' and '.join(found)}: remove one" if found else f"no {' or '.join(wanted)}; it holds {held}"
        raise ValueError(f"{path}: {need}")
    return found[0]


def _centres(
    coords: np.ndarray, attributes: dict[str, Any], path: Path, *, needed: bool
) -> tuple[np.ndarray | None, float | None]:
    """Centres and side of the patches; None where the side is unknown and not ``needed``."""
    if coords.ndim != 2 or coords.shape[1] != 2 or not np.isfinite(coords.astype(np.float64)).all():
        raise ValueError(
            f"{path}: coords of shape {coords.shape} must be finite (patch, 2): x and y of the top left corner"
        )
    side = _side(attributes)
    if side is None and needed:
        known = ", ".join(sorted(map(str, attributes))) or "none"
        raise ValueError(
            f"{path}: there is no barcode, and coords do not say how large a patch is: need its attribute patch_size_level0, "
            f"the side of a patch in full-resolution pixels (attributes found: {known})"
        )
    return (None, None) if side is None else (coords.astype(np.float64) + side / 2, side)


def _side(attributes: dict[str, Any]) -> float | None:
    if (side := _number(attributes, "patch_size_level0")) is not None:
        return side
    size, downsample = _number(attributes, "patch_size"), _number(attributes, "downsample")
    return None if size is None or downsample is None else size * downsample


def _number(attributes: dict[str, Any], name: str) -> float | None:
    """A positive number, also where it is repeated for each axis."""
    try:
        values = np.unique(np.asarray(attributes[name], dtype=np.float64))
    except (KeyError, TypeError, ValueError):
        return None
    return float(values[0]) if len(values) == 1 and np.isfinite(values[0]) and values[0] > 0 else None


def _text(attributes: dict[str, Any], name: str) -> str | None:
    value = attributes.get(name)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return str(value) if isinstance(value, str) and value else None
