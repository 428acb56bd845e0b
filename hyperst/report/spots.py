"""Spots on an image, read from what `hyperst predict` and `hyperst evaluate` write."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hyperst.data.placement import BACKGROUND
from hyperst.doubt import HALF_WIDTH, doubt_words
from hyperst.nearest import DISTANCES, ROWS
from hyperst.validation import reason_of

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["SpotMap", "jpeg_base64", "read_prediction", "read_spot_map"]

_JPEG_QUALITY = 82


@dataclass(frozen=True)
class SpotMap:
    """Expression of the spots of one image.

    Attributes:
        name: of the section or image. title: with what it is.
        units: of both expressions. genes, spot_ids: str (gene,), (spot,).
        positions: float32 (spot 2), x, y in full-resolution pixels.
        predicted, measured: float32 (spot gene); measured is None where nothing was.
        picture: JPEG of the tissue as a data URI, None without an image; its sides are ``extent`` (x, y) in full-resolution pixels.
        picture_px: width of a pixel of the picture, in full-resolution pixels; None without a picture.
        um_per_px: None where unknown.
        diameter_px: of a spot.
        tissue_fraction: float32 (spot,), or None.
        n_background, n_damaged: spots on background and beside damaged tiles; None where it is not recorded.
        facts: what else the file says of itself.
        checkpoint: SHA-256 of the weights that predicted; None where it is not recorded.
        half_widths: float64 (gene,), of the intervals; applicability: float32 (spot,); None where they are not recorded.
        doubt: what both say of the slide, in words.
        nearest: rows int32 (spot k) of the nearest training spots, and distances float32 (spot k); None where not recorded.
    """

    name: str
    title: str
    units: str
    genes: list[str]
    spot_ids: list[str]
    positions: np.ndarray
    predicted: np.ndarray
    measured: np.ndarray | None
    picture: str | None
    extent: tuple[float, float]
    picture_px: float | None
    um_per_px: float | None
    diameter_px: float
    tissue_fraction: np.ndarray | None
    n_background: int | None
    n_damaged: int | None
    facts: dict[str, str]
    checkpoint: str | None
    half_widths: np.ndarray | None
    applicability: np.ndarray | None
    doubt: tuple[str, ...]
    nearest: tuple[np.ndarray, np.ndarray] | None


def read_prediction(path: str | Path, genes: Sequence[str]) -> AnnData:
    """Read a prediction of a run whose genes are ``genes``; expressions are float32 (spot gene), and not sparse.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no prediction, or one of other genes, or holds numbers that are not finite.
    """
    import anndata

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give an .h5ad that `hyperst predict` has written")
    try:
        stored = anndata.read_h5ad(path)
    except Exception as error:  # what a damaged file raises depends on where the damage is
        raise ValueError(f"{path} is no readable .h5ad: {reason_of(error)}") from error
    facts = stored.uns.get("hyperst", {})
    if str(facts.get("content")).startswith("pseudo-bulk"):
        raise ValueError(
            f"{path} holds the means of a cohort's slides, no spots; leave it out, and give the slides' own .h5ad"
        )
    if not {"units", "content"} <= facts.keys() or "spatial" not in stored.obsm or not stored.n_obs:
        raise ValueError(
            f"{path} is no prediction (no units in uns['hyperst'], or no spots); give an .h5ad that `hyperst predict` has written"
        )
    unknown = sorted(set(stored.var_names) - set(genes))
    if unknown:
        raise ValueError(
            f"{path} is no prediction of this run: it has {unknown[0]}, which is none of the run's {len(genes)} genes"
        )
    stored.X = _finite(stored.X, path)
    if "measured" in stored.layers:
        stored.layers["measured"] = _finite(stored.layers["measured"], path)
    return stored


def read_spot_map(path: str | Path, genes: Sequence[str]) -> SpotMap:
    """The map of a prediction; arguments and errors: see :func:`read_prediction`."""
    path = Path(path)
    stored = read_prediction(path, genes)
    facts = stored.uns["hyperst"]
    positions = np.asarray(stored.obsm["spatial"], dtype=np.float32)
    measured = stored.layers.get("measured")
    name, entry = next(iter(stored.uns.get("spatial", {}).items()), (path.stem, None))
    picture, extent = _picture(entry, positions)
    tissue = stored.obs.get("tissue_fraction")
    damaged = stored.obs.get("on_damaged_tile")
    widths, applicability = stored.var.get(HALF_WIDTH), stored.obs.get("applicability")
    scale = facts.get("um_per_px")
    if entry is not None:
        diameter = float(entry["scalefactors"]["spot_diameter_fullres"])
    else:
        diameter = float(np.ptp(positions, axis=0).max()) / max(10.0, 2 * np.sqrt(len(positions)))
    return SpotMap(
        name=str(name),
        title=f"{name}: predicted and measured"
        if measured is not None
        else f"{name}: predicted only, nothing was measured",
        units=str(facts["units"]),
        genes=list(map(str, stored.var_names)),
        spot_ids=list(map(str, stored.obs_names)),
        positions=positions,
        predicted=np.asarray(stored.X),
        measured=None if measured is None else np.asarray(measured),
        picture=picture,
        extent=extent,
        picture_px=None if entry is None else 1 / float(entry["scalefactors"]["tissue_hires_scalef"]),
        um_per_px=None if scale is None else float(scale),
        diameter_px=diameter,
        tissue_fraction=None if tissue is None else np.asarray(tissue, dtype=np.float32),
        n_background=None if tissue is None else int((np.asarray(tissue) < BACKGROUND).sum()),
        n_damaged=None if damaged is None else int(np.asarray(damaged).sum()),
        facts={str(key): str(value) for key, value in facts.items()},
        checkpoint=None if facts.get("checkpoint") is None else str(facts["checkpoint"]),
        half_widths=None if widths is None else np.asarray(widths, dtype=np.float64),
        applicability=None if applicability is None else np.asarray(applicability, dtype=np.float32),
        doubt=tuple(doubt_words(facts, with_intervals=widths is not None)),
        nearest=(np.asarray(stored.obsm[ROWS]), np.asarray(stored.obsm[DISTANCES])) if ROWS in stored.obsm else None,
    )


def _finite(values: Any, path: Path) -> np.ndarray:
    found = np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"{path} holds numbers that are not finite; predict again")
    return found


def _picture(entry: Any, positions: np.ndarray) -> tuple[str | None, tuple[float, float]]:
    """The thumbnail as a data URI and the size of the full-resolution image, or of the spots where there is none."""
    if entry is None:
        right, bottom = positions.max(axis=0) + np.maximum(positions.min(axis=0), 1)
        return None, (float(right), float(bottom))
    pixels = np.asarray(entry["images"]["hires"])
    if pixels.dtype != np.uint8:
        pixels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    scale = float(entry["scalefactors"]["tissue_hires_scalef"])
    data = jpeg_base64(pixels[..., :3])
    return f"data:image/jpeg;base64,{data}", (pixels.shape[1] / scale, pixels.shape[0] / scale)


def jpeg_base64(pixels: np.ndarray, quality: int = _JPEG_QUALITY) -> str:
    """RGB uint8 (h w 3) as JPEG, as text."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="JPEG", quality=quality)
    return base64.b64encode(content.getvalue()).decode("ascii")
