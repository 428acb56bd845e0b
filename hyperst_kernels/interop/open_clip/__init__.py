"""open_clip trained and evaluated by geodesic distance: its model without normalisation, its loss, its metrics.

``python -m hyperst_kernels.interop.open_clip`` takes the arguments of open_clip's own training program, and runs it with these.
"""

try:
    import open_clip as _needed  # noqa: F401
except ImportError as error:
    raise ImportError("hyperst_kernels.interop.open_clip needs open_clip: pip install open_clip_torch") from error

from hyperst_kernels.interop.open_clip.evaluation import evaluate, retrieval_metrics, zero_shot_classifier
from hyperst_kernels.interop.open_clip.loss import HyperbolicClipLoss, create_loss
from hyperst_kernels.interop.open_clip.model import (
    HyperbolicCLIP,
    HyperbolicCustomTextCLIP,
    create_model_and_transforms,
    hyperbolic,
)

__all__ = [
    "HyperbolicCLIP",
    "HyperbolicClipLoss",
    "HyperbolicCustomTextCLIP",
    "create_loss",
    "create_model_and_transforms",
    "evaluate",
    "hyperbolic",
    "retrieval_metrics",
    "zero_shot_classifier",
]
