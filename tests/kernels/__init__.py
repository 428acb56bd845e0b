"""Tests of ``hyperst_kernels``: a file for each operation, whose tests name the backends they run on (``backends``).

What the files of row-wise operators share is in ``row_wise``, ``float32``, ``far_out`` and ``hard_pairs``.
"""

import os


def examples(usually: int) -> int:
    """How many sets of inputs a property test draws: HYPERST_TEST_EXAMPLES, for a survey, else what is usual.

    A survey of every row-wise operator in one arithmetic:
    ``HYPERST_TEST_EXAMPLES=300 TRITON_INTERPRET=1 HYPERST_TEST_ARITHMETIC=contracted pytest -k float32_and_its_gradient tests``.
    """
    return int(os.environ.get("HYPERST_TEST_EXAMPLES", usually))
