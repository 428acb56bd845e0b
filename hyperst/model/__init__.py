"""The model: backbones, HyperST itself, and the alignment of its representations in hyperbolic space."""

from hyperst.model.alignment import ABLATIONS, Alignment, AlignmentConfig
from hyperst.model.backbones import ENCODERS, build_backbone
from hyperst.model.hyperst import HyperST, ModelConfig

__all__ = ["ABLATIONS", "ENCODERS", "Alignment", "AlignmentConfig", "HyperST", "ModelConfig", "build_backbone"]
