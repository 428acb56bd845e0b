"""Cross-validation: folds x seeds x configurations, compared with intervals."""

from hyperst.cv.folds import Fold, make_folds
from hyperst.cv.rows import ablation_rows
from hyperst.cv.run import CrossValidation, cross_validate

__all__ = ["CrossValidation", "Fold", "ablation_rows", "cross_validate", "make_folds"]
