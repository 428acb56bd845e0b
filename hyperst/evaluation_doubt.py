"""What an evaluation finds of a run's doubt: the ceiling of each gene, and whether intervals hold what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hyperst.calibration import COVERAGE, Calibration, read_calibration
from hyperst.data import Section
from hyperst.doubt import HALF_WIDTH, add_doubt, coverage
from hyperst.noise_ceiling import noise_ceiling
from hyperst.run import Run

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Doubt", "doubt_of"]


@dataclass(frozen=True)
class Doubt:
    """Doubt of the prediction of one section.

    Attributes:
        columns: a row per gene: "noise_ceiling", see :func:`hyperst.noise_ceiling.noise_ceiling`, and where the run has
            intervals their half-width and "coverage_90", the share of the section's values that they hold.
        record: plain values for metrics.json: the mean ceiling, and the mean coverage beside the nominal one; None where there
            is none.
        run, calibration, distances: what it was measured with; see :func:`hyperst.doubt.add_doubt`.
    """

    columns: pd.DataFrame
    record: dict[str, Any]
    run: Run
    calibration: Calibration | None
    distances: np.ndarray | None

    def caveats(self, name: str) -> list[str]:
        """What a reader has to know of the intervals on this section, called ``name``."""
        if self.record["coverage"] is None:
            return []
        held, nominal = 100 * self.record["coverage"], 100 * COVERAGE
        return [f"The run's {nominal:.0f} % intervals hold {held:.0f} % of the measured values of {name}."]

    def add_to(self, predicted: AnnData) -> None:
        """Write it into the prediction; see :func:`hyperst.doubt.add_doubt`."""
        add_doubt(predicted, self.calibration, self.run.genes, self.distances)


def doubt_of(
    run: Run,
    section: Section,
    genes: Sequence[str],
    prediction: np.ndarray,
    measured: np.ndarray,
    features: np.ndarray,
) -> Doubt:
    """Measure the doubt of a prediction.

    Args:
        genes: names of the columns of ``prediction`` and ``measured`` (spot gene).
        features: of the run's image backbone (spot width).
    """
    calibration = read_calibration(run)
    columns = pd.DataFrame(index=pd.Index(genes, name="gene"))
    columns["noise_ceiling"] = np.nan  # of genes that were taken as measured and never seen
    there = [gene for gene in genes if gene in set(section.genes)]
    if section.n_spots > 1:
        columns.loc[there, "noise_ceiling"] = noise_ceiling(section, there, run.config.data.target)
    held = None
    if calibration is not None and calibration.half_widths is not None:
        widths = pd.Series(calibration.half_widths, index=run.genes)[list(genes)].to_numpy()
        columns[HALF_WIDTH] = widths
        columns[_COVERAGE] = coverage(prediction, measured, widths)
        held = float(columns[_COVERAGE].mean())
    ceiling = columns["noise_ceiling"].mean()
    record = {
        "noise_ceiling": None if np.isnan(ceiling) else float(ceiling),
        "coverage": held,
        "nominal_coverage": COVERAGE,
    }
    distances = None if calibration is None else calibration.tissue.distances(features)
    return Doubt(columns, record, run, calibration, distances)


_COVERAGE = f"coverage_{100 * COVERAGE:.0f}"
