"""The downscaled image that comes with a section, for a look at it where the full-resolution image is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hyperst.data.images.pil import to_rgb
from hyperst.data.readers.h5ad import read_anndata
from hyperst.data.sections import Section

__all__ = ["small_image"]


def small_image(section: Section) -> tuple[np.ndarray, float] | None:
    """The largest downscaled image in the section's own files that holds all spots, and its scale; None without one.

    Returns:
        uint8 (h w 3), and its pixels per full-resolution pixel.
    """
    if section.path is None:
        return None
    images = _in_h5ad(section.path) if section.path.suffix == ".h5ad" else _in_folder(section.path / "spatial")
    found = [(pixels, scale) for pixels, scale in images if _holds(pixels, section.spot_px * scale)]
    return max(found, key=lambda pair: pair[1], default=None)


def _holds(pixels: np.ndarray, spots: np.ndarray) -> bool:
    return bool(((spots >= 0) & (spots <= pixels.shape[1::-1])).all())


def _in_h5ad(path: Path) -> Iterator[tuple[np.ndarray, float]]:
    for library in read_anndata(path).uns.get("spatial", {}).values():
        for key, image in library.get("images", {}).items():
            pixels, scale = _as_uint8(np.asarray(image)), _scale(library.get("scalefactors", {}), key)
            if pixels is not None and scale is not None:
                yield pixels, scale


def _in_folder(spatial: Path) -> Iterator[tuple[np.ndarray, float]]:
    factors = spatial / "scalefactors_json.json"
    for key in ("hires", "lowres"):
        file = spatial / f"tissue_{key}_image.png"
        if file.is_file() and factors.is_file():
            scale = _scale(json.loads(factors.read_text(encoding="utf-8")), key)
            if scale is not None:
                with Image.open(file) as image:
                    yield to_rgb(image), scale


def _scale(factors: Any, key: str) -> float | None:
    value = factors.get(f"tissue_{key}_scalef")
    return float(value) if value is not None and 0 < float(value) < np.inf else None


def _as_uint8(image: np.ndarray) -> np.ndarray | None:
    """RGB as uint8 (h w 3); floating point is from 0 to 1, as matplotlib has it. None if it is neither."""
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        return None
    if image.dtype == np.uint8:
        return image[..., :3]
    if np.issubdtype(image.dtype, np.floating) and np.nanmin(image) >= 0 and np.nanmax(image) <= 1:
        return np.rint(255 * image[..., :3]).astype(np.uint8)
    return None
