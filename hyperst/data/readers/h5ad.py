"""Sections in AnnData files with scverse conventions, including those of HEST-1k."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hyperst.data.readers.anndata_counts import read_counts
from hyperst.data.readers.anndata_spatial import array_index, positions
from hyperst.data.readers.anndata_spatial import library as read_library
from hyperst.data.readers.table import Scale, SpotTable, check_positions, check_unique, empty_counts, yes_or_no

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["MissingFeatures", "read_anndata", "read_h5ad_features", "read_h5ad_table", "um_per_px"]

VISIUM_PITCH_UM, VISIUM_SPOT_UM = 100.0, 55.0
LEGACY_PITCH_UM, LEGACY_SPOT_UM = 200.0, 100.0

_NOTHING = {"", "-", "?", "na", "n/a", "nan", "none", "null", "unknown"}


class MissingFeatures(ValueError, KeyError):
    """Features that a file does not hold; a KeyError to those who look for one, and a ValueError with a plain message."""

    def __str__(self) -> str:
        return str(self.args[0])


def read_anndata(path: Path) -> AnnData:
    """Read an .h5ad file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is cut short, damaged or no AnnData.
    """
    import anndata

    if not path.is_file():
        raise FileNotFoundError(f"section {path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names that are not unique are reported below, as errors
            adata = anndata.read_h5ad(path)
        _check_indices(adata)
        return adata
    except MemoryError:
        raise
    except Exception as error:  # h5py and anndata raise many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as .h5ad: it is cut short, damaged or no AnnData file ({reason}); "
            "copy or download it again and compare its size"
        ) from error


def _check_indices(adata: AnnData) -> None:
    """Raise ValueError where a sparse matrix points outside itself: scipy would read and write memory that is not its own."""
    matrices = {"X": adata.X, **{f"layers[{name!r}]": matrix for name, matrix in adata.layers.items()}}
    if adata.raw is not None:
        matrices["raw"] = adata.raw.X
    for where, matrix in matrices.items():
        if not hasattr(matrix, "indptr"):
            continue
        try:
            matrix.check_format(full_check=True)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def read_h5ad_table(path: Path, name: str, *, counts: bool = True, gene_names: str | None = None) -> SpotTable:
    """Read spots, positions, scale and (unless ``counts`` is False) raw counts of an .h5ad file.

    Args:
        gene_names: column of ``var`` with the genes' names; default the index.

    Raises:
        FileNotFoundError, ValueError: see :func:`hyperst.data.read_section`.
    """
    adata = read_anndata(path)
    library = read_library(adata, path)
    if "in_tissue" in adata.obs:
        adata = adata[yes_or_no(adata.obs["in_tissue"], adata.obs_names.to_numpy(), "in_tissue", path)]
    spot_ids = np.asarray(adata.obs_names, dtype=str)
    check_unique(spot_ids, "spot", path, "make them unique, e.g. adata.obs_names_make_unique()")
    spot_px = check_positions(positions(adata, path), spot_ids, path)
    if counts:
        matrix, genes, symbols = read_counts(adata, path, gene_names)
    else:
        (matrix, genes), symbols = empty_counts(len(spot_ids)), None
    metadata = library.get("metadata", {})
    hest = _hest_metadata(path)
    return SpotTable(
        source=path,
        name=name,
        counts=matrix,
        genes=genes,
        spot_ids=spot_ids,
        spot_px=spot_px,
        array_index=array_index(adata, path),
        patient=_patient(adata, metadata, hest),
        scale=_scale(library, metadata, hest, path),
        small_images=_small_images(library),
        images_to_try=_named_images(path, metadata),
        symbols=symbols,
    )


def read_h5ad_features(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Spot names and ``obsm[key]`` of an .h5ad file as (names (spot,), features float32 (spot width)).

    Raises:
        MissingFeatures: no such key in obsm.
        ValueError: the entry holds no numbers.
    """
    adata = read_anndata(path)
    if key not in adata.obsm:
        held = ", ".join(sorted(adata.obsm)) or "nothing"
        raise MissingFeatures(f"{path}: no features {key!r} in obsm (--feature-key); obsm holds {held}")
    try:
        features = np.asarray(adata.obsm[key], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: obsm[{key!r}] must hold numbers ({error})") from error
    return np.asarray(adata.obs_names, dtype=str), features


def _patient(adata: AnnData, metadata: dict[str, Any], hest: dict[str, Any]) -> str | None:
    for column in ("patient", "individual"):
        if column in adata.obs:
            values = adata.obs[column].dropna().astype(str).unique()
            if len(values) == 1:
                return str(values[0])
    for source in (metadata, hest):
        value = source.get("patient")
        if value is not None and str(value).strip() and str(value).lower() not in {"nan", "none"}:
            return str(value)
    return None


def _scale(library: dict[str, Any], metadata: dict[str, Any], hest: dict[str, Any], path: Path) -> Scale:
    factors = library.get("scalefactors", {})
    scale = Scale(spot_px=_positive(factors.get("spot_diameter_fullres")))
    for value, where in (
        (metadata.get("mpp"), "uns['spatial'] metadata mpp"),
        (factors.get("microns_per_pixel"), "scalefactors microns_per_pixel"),
        (hest.get("pixel_size_um_estimated"), "HEST metadata pixel_size_um_estimated"),
    ):
        if scale.mpp is None and (found := um_per_px(value, f"{path}: {where}")) is not None:
            scale.mpp, scale.mpp_from = found, where
    scale.pitch_um = _positive(metadata.get("spot_pitch_um")) or _positive(hest.get("inter_spot_dist"))
    scale.spot_um = _positive(metadata.get("spot_diameter_um")) or _positive(hest.get("spot_diameter"))
    scale.bin_um = _positive(factors.get("bin_size_um"))
    technology = " ".join(
        str(source.get(key, ""))
        for source in (metadata, hest)
        for key in ("technology", "st_technology", "chemistry_description", "software_version")
    ).lower()
    if scale.bin_um is not None:
        scale.pitch_um = scale.spot_um = scale.bin_um
    elif scale.pitch_um is None and "visium hd" not in technology:
        if any(word in technology for word in ("visium", "spatial 3'", "spaceranger")):
            scale.pitch_um, scale.spot_um, scale.staggered_only = VISIUM_PITCH_UM, VISIUM_SPOT_UM, True
        elif "legacy 1k" in technology:
            scale.pitch_um, scale.spot_um = LEGACY_PITCH_UM, LEGACY_SPOT_UM
    return scale


def um_per_px(value: Any, where: str) -> float | None:
    """``value`` as float, or None where it says nothing; text that is no number is passed over with a warning."""
    number = _number(value)
    if number is None and isinstance(value, str) and value.strip().lower() not in _NOTHING:
        warnings.warn(
            f"{where} is {value[:40]!r}, which is no number, so it is not used; write the um per pixel alone, with a decimal point",
            stacklevel=4,
        )
    return number


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _number(value: Any) -> float | None:
    """``value`` as float; None for what is no number and for NaN, which stands for "not recorded"."""
    try:
        number = float(np.asarray(value).item())
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _small_images(library: dict[str, Any]) -> list[tuple[tuple[int, int], float]]:
    factors = library.get("scalefactors", {})
    found = []
    for key, image in library.get("images", {}).items():
        factor = _positive(factors.get(f"tissue_{key}_scalef"))
        if factor is not None and factor < 0.99 and np.ndim(image) >= 2:
            found.append(((int(np.shape(image)[1]), int(np.shape(image)[0])), factor))
    return found


def _named_images(path: Path, metadata: dict[str, Any]) -> list[Path]:
    names = [str(metadata[key]) for key in ("source_image", "source_image_path") if metadata.get(key)]
    folders = [path.parent, path.parent / "images", path.parent.parent / "images", path.parent.parent / "wsis"]
    return [folder / name for name in names for folder in folders]


def _hest_metadata(path: Path) -> dict[str, Any]:
    """HEST-1k keeps st/ID.h5ad beside metadata/ID.json."""
    file = path.parent.parent / "metadata" / f"{path.stem}.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file}: the metadata of {path.name} is no readable JSON ({error}); restore or remove it"
        ) from error
    return content if isinstance(content, dict) else {}
