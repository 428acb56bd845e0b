"""What a GPU does per clock and per second, as published; the clock is the one at which its published peak holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """A GPU; ``target`` is the one of `tests.kernels.ahead_of_time` that kernels are compiled for.

    ``peak``: dense bf16 operations per second, of ``products`` per clock on each of ``processors``; ``float32`` those of library
    products in float32. Each processor starts ``issue`` instructions of a warp of ``lanes`` per clock, and has ``special``
    results of exponentials, logarithms and roots. ``l2``: bytes per clock out of the cache that all processors share, ``memory``
    bytes per second.
    """

    name: str
    target: str
    processors: int
    products: int
    peak: float
    float32: float
    memory: float
    l2: int
    issue: int = 4
    lanes: int = 32
    special: int = 16

    @property
    def clock(self) -> float:
        return self.peak / (self.processors * self.products)


# L2: A100's is NVIDIA's figure. H100's and B200's are not published: as A100's, and twice that for two dies. MI300X: that of its
# Infinity Cache, 17.2 TB/s, since its L2 caches are apart for each of eight dies.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("H200", "sm_90", 132, 4096, 989e12, 67e12, 4.8e12, 5120),
        Chip("H100", "sm_90", 132, 4096, 989e12, 67e12, 3.35e12, 5120),
        Chip("A100", "sm_80", 108, 2048, 312e12, 19.5e12, 2.04e12, 5120),
        Chip("B200", "sm_100", 148, 8192, 2250e12, 75e12, 8.0e12, 10240),
        Chip("MI300X", "gfx942", 304, 2048, 1307e12, 163e12, 5.3e12, 8192, issue=1, lanes=64),
    )
}
