"""A prediction as an AnnData: values, where the spots are, what is known of genes, spots and slide, and where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hyperst.calibration import Calibration, read_calibration
from hyperst.closed_form import Rows
from hyperst.data import Section, SlideImage, crop_widths_px, find_tissue, spot_window
from hyperst.data.identity import sampled_hash
from hyperst.doubt import add_doubt
from hyperst.export.held_out import held_out_figures
from hyperst.nearest import TrainingSpots, add_nearest, read_training_spots
from hyperst.run import Run, RunFolder, as_trained
from hyperst.stain import Stain

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["SHORT_UNITS", "UNITS", "Known", "describe_prediction", "section_anndata"]

UNITS = {
    "log1p_cp10k": "ln(1 + 10000 * count / total count of the spot)",
    "log2": "log2(1 + count)",
}
SHORT_UNITS = {"log1p_cp10k": "ln(1 + CP10k)", "log2": "log2(1 + count)"}
"""The same for a colour bar; CP10k: counts per 10000 of the spot."""
_THUMBNAIL_PX = 1000


@dataclass(frozen=True)
class Known:
    """What a run has measured beside its model, and prediction reports: read before the work, for it may be damaged."""

    stain: Stain
    held_out: pd.DataFrame
    evaluated: Sequence[str]
    calibration: Calibration | None
    trained: TrainingSpots | None

    @classmethod
    def of(cls, run: Run, stain: Stain) -> Known:
        """Read it."""
        held_out, evaluated = held_out_figures(run.folder, run.genes, run.best_epoch, stain, len(run.networks))
        trained = read_training_spots(run.folder, run.checkpoint)
        return cls(stain, held_out, evaluated, read_calibration(run), trained)

    @property
    def distances(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """What tells from image features (spot width) how far they are from the training tissue, float64 (spot,)."""
        return None if self.calibration is None else self.calibration.tissue.distances


def describe_prediction(
    run: Run,
    section: Section,
    values: np.ndarray | None,
    distances: np.ndarray | None,
    placed: Rows | None,
    known: Known,
) -> AnnData:
    """What :func:`hyperst.predict.predict_image` returns.

    Args:
        values: (spot gene), None without X. distances: (spot,), see :attr:`Known.distances`.
        placed: the network's image features (spot width), None where the run has stored no training spots.
    """
    predicted = section_anndata(run, section, values)
    predicted.var = predicted.var.join(known.held_out)
    predicted.uns["hyperst"] |= {"stain": known.stain, "held_out_sections": ", ".join(known.evaluated)}
    add_doubt(predicted, known.calibration, run.genes, distances)
    if placed is not None:
        add_nearest(predicted, known.trained, placed)
    if section.damaged is not None and section.image_path is not None:
        seen = as_trained(run, section)
        *_, widest = crop_widths_px(seen.grid, seen.spot_diameter_px, run.config.crop)
        predicted.obs["on_damaged_tile"] = section.damaged.touched(section.spot_px, widest)
        predicted.uns["hyperst"]["damaged_tiles"] = len(section.damaged)
    return predicted


def section_anndata(
    run: Run, section: Section, values: np.ndarray | None, genes: Sequence[str] | None = None
) -> AnnData:
    """``values`` (spot gene) predicted for a section as :func:`predict_image` returns them; ``genes`` default to the run's."""
    import anndata

    obs = pd.DataFrame(index=pd.Index(section.spot_ids.astype(str), name="spot"))
    if section.array_index is not None:
        obs["array_row"], obs["array_col"] = section.array_index[:, 0], section.array_index[:, 1]
    adata = anndata.AnnData(
        X=values, obs=obs, var=pd.DataFrame(index=pd.Index(run.genes if genes is None else genes, name="gene"))
    )
    adata.obsm["spatial"] = section.spot_px
    adata.uns["hyperst"] = _provenance(run, section)
    if section.image_path is not None:
        with section.open_image() as opened:
            adata.uns["spatial"] = {section.name: _picture(section, opened)}
            tissue = find_tissue(opened, side := spot_window(section))
            adata.obs["tissue_fraction"] = tissue.fraction(section.spot_px, side)
            if (um_per_px := section.grid.um_per_px) is not None:
                area = tissue.share * opened.width * opened.height * um_per_px**2 / 1e6
                adata.uns["hyperst"]["tissue_mm2"] = area
    return adata


def _provenance(run: Run, section: Section) -> dict[str, Any]:
    """Where the numbers come from; strings and numbers only, so that every reader of .h5ad can hold it."""
    versions = RunFolder(run.folder).read_versions()
    path = None if section.image_path is None else Path(section.image_path).resolve()
    facts = {
        "content": "predicted from the image; not measured",
        "target": run.config.data.target,
        "units": UNITS[run.config.data.target],
        "run": run.folder.resolve().name,
        "best_epoch": run.best_epoch,
        "checkpoint": run.checkpoint,
        "networks": len(run.networks),
        "training_sections": ", ".join(record.name for record in run.split.role("training")),
        "image": section.image_path.name if section.image_path is not None else "",
        "image_path": None if path is None else str(path),
        "image_checksum": None if path is None else sampled_hash(path),
        "um_per_px": section.grid.um_per_px,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "trained_with": versions.get("hyperst-kernels"),
        "trained_with_commit": versions.get("commit"),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _picture(section: Section, image: SlideImage) -> dict[str, Any]:
    """``uns['spatial'][name]``: a thumbnail of the image and how its pixels and the spots relate to full resolution."""
    thumbnail = image.thumbnail(_THUMBNAIL_PX)
    scale = thumbnail.shape[1] / image.width
    diameter = section.spot_diameter_px or (section.grid.pitch_px or 2 / scale) / 2
    return {
        "images": {"hires": thumbnail},
        "scalefactors": {
            "tissue_hires_scalef": float(scale),
            "spot_diameter_fullres": float(diameter),
            "fiducial_diameter_fullres": float(diameter),
        },
        "metadata": {"source_image": image.path.name},
    }
