"""What a prediction says of its own doubt: in an AnnData, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hyperst.applicability import UNLIKE, applicability
from hyperst.calibration import COVERAGE, Calibration
from hyperst.data.placement import BACKGROUND

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["HALF_WIDTH", "add_doubt", "coverage", "doubt_words"]

HALF_WIDTH = f"half_width_{100 * COVERAGE:.0f}"
"""Column of ``var`` with the half-width of each gene's interval: prediction less and plus it."""

_UNLIKE_SLIDE = 0.1  # median applicability of its spots; that of left-out tissue is near a half


def add_doubt(
    predicted: AnnData, calibration: Calibration | None, genes: Sequence[str], distances: np.ndarray | None
) -> None:
    """Write what is known of a prediction's doubt into it; nothing where the run has measured none.

    ``var['half_width_90']``: the interval of a gene is the prediction less and plus this, one number for all spots.
    ``obs['applicability']``: p-value of each spot, see :func:`hyperst.applicability.applicability`. In ``uns['hyperst']``
    stand of the spots on tissue ``slide_applicability``, its median, ``unlike_slide``, whether that is at most 0.1, and
    ``unlike_share``, the share of spots with at most 0.05; ``left_out`` says what tissue it was measured on.

    Args:
        genes: of the run, in the order of the half-widths; ``predicted`` may have fewer.
        distances: (spot,), see :meth:`hyperst.applicability.TissueModel.distances`.
    """
    if calibration is None or distances is None:
        return
    if calibration.half_widths is not None:
        places = {gene: place for place, gene in enumerate(genes)}
        predicted.var[HALF_WIDTH] = calibration.half_widths[[places[gene] for gene in predicted.var_names]]
    predicted.obs["applicability"] = values = applicability(distances, calibration.left_out)
    predicted.uns["hyperst"] |= {"left_out": calibration.groups, "held_out_spots": calibration.n_spots}
    tissue = values
    if "tissue_fraction" in predicted.obs:
        tissue = values[np.asarray(predicted.obs["tissue_fraction"] >= BACKGROUND)]
    if len(tissue):
        middle, share = float(np.median(tissue)), float((tissue <= UNLIKE).mean())
        facts = {"slide_applicability": middle, "unlike_share": share, "unlike_slide": middle <= _UNLIKE_SLIDE}
        predicted.uns["hyperst"] |= facts


def doubt_words(facts: Mapping[str, Any], *, with_intervals: bool) -> list[str]:
    """Sentences about a slide from ``uns['hyperst']``; one that says what is missing where the run has measured nothing.

    Args:
        with_intervals: whether ``var`` has half-widths.

    >>> facts = {"slide_applicability": 0.02, "unlike_slide": True, "left_out": "sections"}
    >>> doubt_words(facts, with_intervals=True)[0][:78]
    'this slide is unlike the training tissue: half of its spots look more unusual '
    """
    if "left_out" not in facts:
        return ["the run has measured neither intervals nor applicability: nothing here says where to doubt it"]
    said = []
    if "slide_applicability" in facts:
        share = 100 - 100 * float(facts["slide_applicability"])
        others = _LEFT_OUT[str(facts["left_out"])]
        beyond = f"half of its spots look more unusual than {share:.0f} % of {others}; 50 % would be usual"
        if facts["unlike_slide"]:
            said.append(f"this slide is unlike the training tissue: {beyond}. Do not use these values unmeasured")
        else:
            said.append(f"this slide is like the training tissue, as far as image features tell: {beyond}")
    if not with_intervals:
        said.append("the run held out too few spots or blocks for intervals")
    return said


def coverage(prediction: np.ndarray, measured: np.ndarray, half_widths: np.ndarray) -> np.ndarray:
    """Share of the measured values (spot gene) that lie in the interval, float64 (gene,)."""
    off = np.abs(np.asarray(prediction, dtype=np.float64) - measured)
    return (off <= half_widths).mean(axis=0)


_LEFT_OUT = {
    "patients": "those of a patient left out of training",
    "sections": "those of a section left out of training",
    "validation sections": "those of the validation sections",
    "blocks": "those held out of the one training section (which says nothing of other slides)",
}
