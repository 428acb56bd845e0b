"""Predictions as SpatialData: spots, their table, and the image as a pyramid, which napari-spatialdata and Vitessce open."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hyperst.data.images import DamagedTiles, SlideImage, open_image
from hyperst.export.spots import Spots, spots_of
from hyperst.files import atomic_folder

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["require_spatialdata", "write_spatialdata"]

_LONGEST_SIDE = 16384  # of the finest resolution: 800 MB before compression
_CHUNK = 1024
_SMALLEST = 512  # no coarser resolution than one whose longest side is that, or less


def require_spatialdata() -> None:
    """Raise ImportError, with the remedy, where the extra `spatialdata` is missing."""
    try:
        import spatialdata  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "a .zarr of SpatialData needs spatialdata, which is not installed: pip install 'hyperst-kernels[spatialdata]'"
        ) from error


def write_spatialdata(
    adata: AnnData, path: str | Path, *, image: str | Path | None = None, skip_damaged: bool = False
) -> Path:
    """Write a prediction as a SpatialData folder, atomically: shapes "spots", table "table", image "image".

    All lie in the coordinate system "global", pixels of the full-resolution image. The image is read part by part; its finest
    resolution is at most 16384 px long, each other one half of that before. Arguments and errors: see
    :func:`hyperst.export.write_export`.
    """
    require_spatialdata()
    import dask
    from spatialdata import SpatialData

    spots = spots_of(adata)
    path = Path(path)
    damaged = DamagedTiles() if skip_damaged else None
    with _quiet(), atomic_folder(path) as temporary, _picture(spots, image, damaged) as picture:
        images = {} if picture is None else {"image": picture}
        data = SpatialData(images=images, shapes={"spots": _shapes(adata, spots)}, tables={"table": _table(adata)})
        with dask.config.set(scheduler="synchronous"):  # a slide reads one part at a time
            data.write(temporary)
    return path


def _shapes(adata: AnnData, spots: Spots) -> Any:
    from spatialdata.models import ShapesModel

    return ShapesModel.parse(
        spots.positions, geometry=0, radius=spots.diameter_px / 2, index=adata.obs_names.astype(str).rename("spot_id")
    )


def _table(adata: AnnData) -> AnnData:
    """The prediction without its thumbnail, its rows tied to the spots."""
    import pandas as pd
    from anndata import AnnData
    from spatialdata.models import TableModel

    ties = {"region": pd.Categorical(["spots"] * adata.n_obs), "spot_id": adata.obs_names.astype(str)}
    parts: Any = {"obsm": dict(adata.obsm), "layers": dict(adata.layers), "varm": dict(adata.varm)}
    uns = {name: value for name, value in adata.uns.items() if name != "spatial"}
    values = adata.X[:] if adata.isbacked else adata.X
    table = AnnData(values, obs=adata.obs.assign(**ties), var=adata.var, uns=uns, **parts)  # no copy of the numbers
    return TableModel.parse(table, region="spots", region_key="region", instance_key="spot_id")


@contextmanager
def _picture(spots: Spots, image: str | Path | None, damaged: DamagedTiles | None) -> Iterator[Any]:
    """The image as spatialdata's pyramid: of the file, else of the thumbnail, else None."""
    if image is not None:
        with open_image(image, damaged=damaged) as slide:
            spots.check_image(slide)
            yield _pyramid(slide)
    elif spots.thumbnail is not None:
        yield _parse(np.moveaxis(spots.thumbnail, -1, 0), 1 / spots.thumbnail_scale)
    else:
        yield None


def _pyramid(slide: SlideImage) -> Any:
    """Every resolution read from the slide itself: coarse ones from what the file stores of them."""
    import dask.array

    longest = max(slide.width, slide.height)
    zoom = max(1.0, longest / _LONGEST_SIDE)
    height, width = max(1, round(slide.height / zoom)), max(1, round(slide.width / zoom))

    def level(rows: int, columns: int, factor: float) -> Any:
        def part(block_info: Any = None) -> np.ndarray:
            (_, _), (top, bottom), (left, right) = block_info[None]["array-location"]
            box = (left * factor, top * factor, (right - left) * factor, (bottom - top) * factor)
            return np.moveaxis(slide.read_in_bands(*box, (bottom - top, right - left)), -1, 0)

        chunks = dask.array.core.normalize_chunks((3, _CHUNK, _CHUNK), (3, rows, columns))
        return dask.array.map_blocks(part, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))

    tree = _parse(level(height, width, zoom), zoom)
    if hasattr(tree, "children"):
        for number in range(1, len(tree.children)):
            node = tree[f"scale{number}"]
            stored = node["image"]
            rows, columns = stored.shape[1:]
            node.update({"image": stored.copy(data=level(rows, columns, zoom * 2**number))})
    return tree


def _parse(pixels: Any, factor: float) -> Any:
    """(colour y x) pixels, each ``factor`` full-resolution ones wide, with resolutions of half, a quarter, ... of them."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, Scale

    halvings = max(0, math.ceil(math.log2(max(pixels.shape[1:]) / _SMALLEST)))
    to_full = Identity() if factor == 1 else Scale([factor, factor], axes=("x", "y"))
    return Image2DModel.parse(
        pixels,
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2] * halvings or None,
        chunks=(3, _CHUNK, _CHUNK),
        transformations={"global": to_full},
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what spatialdata and those below it say of their own workings; errors still come through."""
    logger = logging.getLogger("spatialdata")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*autosharding.*")
        try:
            yield
        finally:
            logger.setLevel(level)
