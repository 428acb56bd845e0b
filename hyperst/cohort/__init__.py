"""A cohort: many slides predicted with one run, on the cores, GPUs or machines there are, and a table of them."""

from hyperst.cohort.run import Cohort, predict_cohort
from hyperst.cohort.slides import Options, SlideResult
from hyperst.cohort.tables import pseudo_bulk

__all__ = ["Cohort", "Options", "SlideResult", "predict_cohort", "pseudo_bulk"]
