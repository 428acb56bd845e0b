"""Names and numbers that several rooms agree on. `setup.py` hands those of the machine code to its compiler as macros."""

from __future__ import annotations

INPUTS = ("tangent", "lorentz")
PRECISIONS = ("ieee", "bf16x3", "tf32", "bf16")
GEOMETRIES = ("lorentz", "euclidean", "cosine")  # compiled code knows a geometry by its place
LOSS_GEOMETRIES = (*GEOMETRIES, "angle")  # the last blockwise only
PRODUCTS = ("l1-product", "l2-product")  # of hyperbolic spaces, for contrastive losses; blockwise

# Of the machine code for a CPU.
INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")  # compiled code knows one by its place; NEON is the baseline of ARM
CHUNK, STRIP = 256, 64  # columns and rows of a tile that a thread takes at a time: a change counts as one of arguments
SMALL = 512  # rows of a batch whose terms are computed in one call
SIGNATURES = 16  # counts changes of its functions' arguments: a library built from other sources must not be called
