"""Beside other libraries: `from_geoopt` and `to_geoopt` here; `interop.open_clip` and `interop.sentence_transformers` are imported
by their own names, and need those libraries.
"""

from hyperst_kernels.interop.geoopt import from_geoopt, to_geoopt

__all__ = ["from_geoopt", "to_geoopt"]
