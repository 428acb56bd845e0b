"""Microbenchmarks of every operator and provider: ``pytest benchmarks/ --benchmark-json out.json``."""

from __future__ import annotations

import pytest

from benchmarks import contrastive, distance, entailment, maps
from benchmarks.measure import describe

SHAPES = {"pairwise_distance": (1024, 128), "contrastive_loss": (2048, 128)}
CASES = [
    (family, operation, provider)
    for family in (maps, distance, entailment, contrastive)
    for operation in family.OPERATIONS
    for provider in family.setup(operation, 2, 2 if family is not contrastive else 32).factories
]


@pytest.mark.parametrize("phase", ["forward", "both"])
@pytest.mark.parametrize(("family", "operation", "provider"), CASES)
def test_speed(benchmark, family, operation, provider, phase):
    n, d = SHAPES.get(operation, (16384, 128))
    benchmark.group = f"{operation} {n} x {d} {phase}"
    try:
        step = family.setup(operation, n, d).step(provider)
    except ImportError as missing:
        pytest.skip(describe(missing))

    def run() -> None:
        step.forward()
        if phase == "both":
            step.backward()

    run()
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
