"""Recall against batch size, of the two encoders in docs/examples/large_batch.py."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.problem import OURS
from benchmarks.results import REPOSITORY, Row

RECALL = "recall"


def rows(batches: tuple[int, ...], steps: int) -> Iterator[Row]:
    """Recall@1 on held-out pairs after ``steps`` steps at each batch size, and the seconds of a step."""
    examples = str(REPOSITORY / "docs" / "examples")
    if examples not in sys.path:
        sys.path.insert(0, examples)
    large_batch = importlib.import_module("large_batch")
    for batch in batches:
        start = time.perf_counter()
        encoders = large_batch.train(batch, steps)
        took = (time.perf_counter() - start) / steps
        about: dict[str, Any] = {
            "operation": RECALL,
            "provider": OURS,
            "n": batch,
            "d": large_batch.DIM,
            "dtype": "float32",
        }
        about["setting"] = f"steps={steps}"
        yield Row.of([large_batch.recall_at_1(encoders)], **about, metric="recall@1")
        yield Row.of([took], **about, metric="step s")
