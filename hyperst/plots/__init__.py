"""Figures for a paper: measured and predicted expression over the tissue, its error, and the curves of a training."""

from hyperst.plots.curves import curves_figure
from hyperst.plots.expression import Scale, error_figure, expression_figure
from hyperst.plots.tissue import Tissue, tissue_of_prediction, tissue_of_section

__all__ = [
    "Scale",
    "Tissue",
    "curves_figure",
    "error_figure",
    "expression_figure",
    "tissue_of_prediction",
    "tissue_of_section",
]
