"""Time of the fused loss from counts and a chip: what its units are busy for, one after the other within a kernel.

Of a kernel that visits all pairs, a block of threads multiplies, then takes powers, then adds: without other blocks to fill in,
these times add up (``predicted``); with enough of them the longest is left (``floor``). Copies run beside both. Library
products run at what the H200 reached of its published peak. A pass takes as long as its kernels
or its launches, whichever is longer.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.cluster.devices import DEVICES
from benchmarks.roofline.chips import CHIPS, Chip
from benchmarks.roofline.counts import Counted, Tile
from hyperst_kernels.gpu.contrastive import SUMS
from hyperst_kernels.gpu.contrastive.backward_blocks import BLOCK
from tests.kernels.launches import Launches

# Of 4096 to 16384 pairs both passes took what a CPU needs to launch them, 1.7 ms for 6 kernels of this library and 35 of PyTorch's
# and 3.8 ms for 8 and 114 (docs/notes/h200.md): so much for each of ours, with its tuples of arguments, and of PyTorch's
KERNEL, CALL = 150e-6, 23e-6
ITEMSIZE = {"bf16": 2, "float32": 4}


class Pass(NamedTuple):
    """Seconds of one pass: of its kernels one after the other, of the busiest unit of each alone, and of its launches."""

    kernels: float
    busiest: float
    launches: float

    @property
    def predicted(self) -> float:
        return max(self.kernels, self.launches)

    @property
    def floor(self) -> float:
        return max(self.busiest, self.launches)


def attained() -> float:
    """What a library product of bf16 matrices reached of the published peak on an H200."""
    return DEVICES["H200"].product_rate / CHIPS["H200"].peak


def forward(chip: Chip, counts: Counted, n: int, dim: int, dtype: str) -> Pass:
    """One pass over all pairs."""
    found = _over_pairs(chip, counts.forward, n, dim, dtype, products=1)
    return Pass(*found, _launching(counts.launched(n)[0]))


def backward(chip: Chip, counts: Counted, n: int, dim: int, dtype: str) -> Pass:
    """Once for the rows and once for the columns; or weights by blocks, which meet the features in library products."""
    launches = _launching(counts.launched(n)[1])
    if counts.by_rows:
        one = _over_pairs(chip, counts.backward, n, dim, dtype, products=2)
        return Pass(2 * one[0], 2 * one[1], launches)
    parts = 1 if dtype == "bf16" else 2
    plain = chip.target.startswith("gfx")  # no product of bf16 matrices with a float32 result: converted, in float32
    itemsize = 4 if plain and dtype == "float32" else 2 * parts
    rate = chip.float32 if plain else attained() * chip.peak
    products = 2 if parts == 1 or plain else 6  # of both sides
    multiplied = products * max(2 * n * n * dim / rate, n * n * 2 / chip.memory)
    tile = counts.backward
    times = n * n * (1 / tile.rows + 1 / tile.columns) * 4 * 2 / chip.memory  # each tile's sums are stored and read
    added = products * -(-n // BLOCK) * n * dim * 16 / chip.memory  # each product is stored, read and added
    weights = _over_pairs(chip, tile, n, dim, dtype, products=1, stored=itemsize)
    rest = multiplied + times + added
    # sums of half-precision gradients go by stripes of rows: weights of rows in one and columns in another are computed for both
    height = max(1, SUMS // (2 * dim * BLOCK)) * BLOCK if dtype == "bf16" else n
    visits = 2 - 1 / -(-n // height)
    return Pass(visits * weights[0] + rest, visits * weights[1] + rest, launches)


def _launching(launches: Launches) -> float:
    return launches.kernels * KERNEL + launches.calls * CALL


def _over_pairs(
    chip: Chip, tile: Tile, n: int, dim: int, dtype: str, products: int, stored: int = 0
) -> tuple[float, float]:
    """Seconds of a kernel that visits all pairs: units one after the other, and the busiest alone."""
    # a program owns rows of tiles, or stores the weights of one tile; the last round of them fills some processors only
    down, across = -(-n // tile.rows), -(-n // tile.columns)
    tiles = -(-down * across // chip.processors) if stored else -(-down // chip.processors) * across
    turns = tiles / chip.clock
    issued = turns * tile.warps * tile.instructions / chip.issue
    special = turns * tile.warps * tile.special * chip.lanes / chip.special
    as_many = 3 if dtype == "float32" else 1  # products of bf16 halves
    operations = 2 * tile.rows * tile.columns * dim * products * as_many
    multiplied = turns * operations / (chip.products * attained())
    whole = dim <= tile.inner  # rows stay in shared memory
    loaded = n * n * dim * ITEMSIZE[dtype] * (1 / tile.rows + (0 if whole else 1 / tile.columns))
    copied = max(loaded / (chip.l2 * chip.clock), n * n * stored / chip.memory)
    return max(issued + special + multiplied, copied), max(issued, special, multiplied, copied)
