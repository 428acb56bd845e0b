"""Training: fit, its loaders, its step, its checkpoints."""

from hyperst.train.fit import Epoch, TrainingSummary, fit
from hyperst.train.step import parameter_groups

__all__ = ["Epoch", "TrainingSummary", "fit", "parameter_groups"]
