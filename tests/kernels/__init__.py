"""Tests of ``hyperst_kernels``."""

import os


def examples(usually: int) -> int:
    """How many sets of inputs a property test draws: HYPERST_TEST_EXAMPLES, for a survey, else what is usual.

    A survey of every row-wise operator in one arithmetic:
    ``HYPERST_TEST_EXAMPLES=300 TRITON_INTERPRET=1 HYPERST_TEST_ARITHMETIC=contracted pytest tests/kernels/test_row_wise.py``.
    """
    return int(os.environ.get("HYPERST_TEST_EXAMPLES", usually))
