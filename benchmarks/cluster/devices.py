"""What one GPU does by itself: measured here, or predicted from its published peak."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.problem import OURS
from benchmarks.results import FOLDER, read_since


@dataclass(frozen=True)
class Device:
    """``peak``: dense bf16 operations per second; ``memory`` and ``memory_rate``: bytes, bytes per second; all as published.

    ``results``: the file of `benchmarks.results` that measured it; None is a prediction, the H200's times by the ratio of peaks.
    """

    name: str
    peak: float
    memory: float
    memory_rate: float
    link: str
    results: str | None = None

    @property
    def source(self) -> str:
        return (
            f"measured: benchmarks/results/{self.results}"
            if self.results
            else "predicted from the H200 and published peaks"
        )

    @property
    def product_rate(self) -> float:
        """Operations per second of a product of two bf16 matrices 8192 x 8192."""
        return self._measured().product_rate * self._ratio()

    def seconds_per_pair(self, dim: int) -> float:
        """Forward and backward of the loss in both directions, per pair of features (D,) in bf16.

        A straight line through the times at D = 128 and 512, each of the largest batch that was measured.
        """
        few, many = (self._measured().seconds_per_pair[d] for d in _DIMS)
        return (few + (many - few) * (dim - _DIMS[0]) / (_DIMS[1] - _DIMS[0])) / self._ratio()

    def _measured(self) -> Measured:
        return measured(self.results or DEVICES["H200"].results or "")

    def _ratio(self) -> float:
        return 1.0 if self.results else self.peak / DEVICES["H200"].peak


@dataclass(frozen=True)
class Measured:
    product_rate: float
    seconds_per_pair: Mapping[int, float]


_DIMS = (128, 512)
# forward and backward of a batch too small to fill the device: as long as a CPU takes for 163 launches (docs/notes/h200.md)
LAUNCHES = 5.5e-3


@functools.cache
def measured(file: str) -> Measured:
    """The last rows of a file of results."""
    rows = [row for row in read_since(FOLDER / file, "") if row.dtype == "bfloat16" and not row.note]
    both = {
        (row.d, row.n): row.median / row.n**2
        for row in rows
        if (row.operation, row.provider, row.metric, row.setting) == ("contrastive_loss", OURS, "both s", "")
    }
    largest = {d: max(n for dim, n in both if dim == d) for d in _DIMS}
    rate = [row.median for row in rows if (row.operation, row.metric) == ("product", "operations/s")][-1]
    return Measured(rate, {d: both[d, n] for d, n in largest.items()})


DEVICES = {
    device.name: device
    for device in (
        Device("H200", 989e12, 141e9, 4.8e12, "NVLink 4", "nvidia-h200-2026-11-27.csv"),
        Device("H100", 989e12, 80e9, 3.35e12, "NVLink 4", "nvidia-h100-80gb-hbm3-2026-11-27.csv"),
        Device("A100", 312e12, 80e9, 2.04e12, "NVLink 3"),
        Device("A800", 312e12, 80e9, 2.04e12, "NVLink 3 (A800)"),
        Device("B200", 2250e12, 180e9, 8.0e12, "NVLink 5"),
    )
}
