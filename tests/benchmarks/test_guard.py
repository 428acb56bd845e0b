"""The guard of what benchmarks claim, in counts that cannot flake: memory, calls, launches, and error of near positives.

Instructions, registers and shared memory of the GPU kernels are guarded by tests/kernels/test_ahead_of_time.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from triton.runtime.jit import JITFunction

from benchmarks import contrastive, peers
from benchmarks.measure import errors
from benchmarks.problem import OURS
from hyperst_kernels.cpu import memory, online_softmax, tiles
from hyperst_kernels.cpu.native import bindings
from hyperst_kernels.gpu import contrastive as gpu
from hyperst_kernels.gpu.contrastive import backward_blocks
from hyperst_kernels.reference.contrastive import Pairing
from tests.benchmarks.counting import Counts, count
from tests.kernels import ahead_of_time
from tests.kernels.launches import Launches as Asked
from tests.kernels.launches import of_loss

# Numbers of the size of the features, (n, d + 8), that a step may hold at once: operands, gradients, temporaries of
# positives. Seven or eight are needed.
FEATURE_SIZED = 12
TILES = tiles.for_threads(8 << 20)  # bytes: one tile of the native kernel; those of the portable one are smaller


@functools.cache
def step(provider: str, n: int, d: int) -> Counts:
    """Of forward and backward."""
    made = contrastive.setup("contrastive_loss", n, d).step(provider)

    def run() -> None:
        made.forward()
        made.backward()

    return count(run)


def features(n: int, d: int) -> int:
    """Bytes of a matrix of n rows of float32 features, padded."""
    return 4 * n * (d + 8)


def visits(n: int) -> int:
    """Tiles that forward and backward go through."""
    used = bindings.library() is not None
    rows, columns = (
        (online_softmax.NATIVE_ROWS, online_softmax.NATIVE_COLUMNS) if used else (tiles.TILE_ROWS, tiles.TILE_COLUMNS)
    )
    return 2 * math.ceil(n / tiles.for_threads(rows)) * math.ceil(n / columns)


def test_memory_grows_with_the_features_and_not_with_the_pairs():
    n, d = 8448, 16  # more than the batch whose products are kept
    small, large = step(OURS, n, d), step(OURS, 2 * n, d)
    assert large.peak - small.peak <= FEATURE_SIZED * features(n, d)
    assert large.largest <= max(TILES, features(2 * n, d))


def test_what_is_kept_for_the_backward_pass_is_bounded():
    n, d = 8192, 16
    assert 4 * n * n == memory.kept_bytes
    memory.release_cpu_memory()
    assert step(OURS, n, d).peak <= memory.kept_bytes + TILES + FEATURE_SIZED * features(n, d)


def test_the_count_sees_a_matrix_of_all_pairs():
    """The textbook formula fails the bounds above: they do measure what they are meant to."""
    n, d = 1024, 16
    small, large = step(peers.EAGER, n, d), step(peers.EAGER, 2 * n, d)
    assert large.peak - small.peak > 20 * FEATURE_SIZED * features(n, d)


def test_calls_grow_with_the_tiles():
    """About 80 calls of operators per tile with machine code and 180 without, 610 and 2510 in a step of one small tile.

    Those inside others are included.
    """
    n = 8448
    small, large = step(OURS, n, 16), step(OURS, 2 * n, 16)
    per_tile, small_step = (200, 3000) if bindings.library() is None else (120, 1000)
    assert (large.calls - small.calls) / (visits(2 * n) - visits(n)) <= per_tile
    assert step(OURS, 64, 16).calls <= small_step


@pytest.mark.parametrize("separation", [1e-4, 1e-2])
@pytest.mark.parametrize("logit_scale", [5.0, 14.0])
def test_near_positives_keep_their_digits(separation, logit_scale):
    """With positives from the matrix product value or gradient are wrong by 4e-5 to 2e-3 here."""
    problem = contrastive.setup("contrastive_loss", 128, 32, separation=separation, logit_scale=logit_scale)
    found = {(row.provider, row.metric): row.median for row in errors(problem, _ABOUT, (OURS, peers.EAGER))}
    assert found[OURS, "error value"] <= 1e-5
    assert found[OURS, "error gradient"] <= 1e-5
    assert not found[peers.EAGER, "error gradient"] <= 1e-4  # NaN among it


_ABOUT = {"operation": "contrastive_loss", "n": 128, "d": 32, "dtype": "float32"}


class Launches(NamedTuple):
    """Kernels that the GPU's launch code starts, and what it asks of PyTorch, forward and backward."""

    started: tuple[int, int]
    forward: Counts
    backward: Counts


def launches(
    n: int,
    monkeypatch: pytest.MonkeyPatch,
    pairings: Sequence[Pairing] = ahead_of_time.PAIR,
    dtype: torch.dtype = torch.float32,
    d: int = 16,
) -> Launches:
    """Of the loss of n pairs with d features, on CPU tensors and without running the kernels."""
    started: list[str] = []
    found: list[torch.Tensor] = []
    flags = (pairings, "lorentz", True, "bf16x3")
    one, matrices = torch.ones(()), 1 + max(max(p.queries, p.keys) for p in pairings)
    x = [torch.zeros(n, d, dtype=dtype) for _ in range(matrices)]
    given = (x, None, one, one, None)
    with ahead_of_time.compiling_for("sm_90"), monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", lambda self, *args, **options: started.append(self.__name__))
        forward = count(lambda: found.extend(gpu.forward(*given, *flags)))
        first = len(started)
        *sums, tiles = found
        slopes = gpu.of_losses(*sums[:2], *sums, x, pairings)
        backward = count(lambda: gpu.backward(slopes, *given, tiles, *flags, False))
    return Launches((first, len(started) - first), forward, backward)


def test_launches_and_memory_on_a_gpu(monkeypatch):
    """Forward: as many kernels at any batch, and sums of columns for each program. Backward: one more per block of pairs."""
    n = 8192  # pairs in the side of a block
    small, large = launches(n, monkeypatch), launches(2 * n, monkeypatch)
    assert large.started[0] == small.started[0]
    assert large.started[1] - small.started[1] <= 4
    assert large.forward.peak - small.forward.peak <= 4 * 512 * n
    assert large.backward.peak - small.backward.peak <= 4 * FEATURE_SIZED * features(n, 16)


def test_a_hierarchy_takes_the_launches_of_its_kinds_of_terms(monkeypatch):
    """One set for symmetric terms and one for row-only ones, however many there are of each."""
    start = functools.partial(launches, 512, monkeypatch, dtype=torch.bfloat16)
    one, three = (start([Pairing(2 * t, 2 * t + 1, True) for t in range(k)]) for k in (1, 3))
    assert three.started == one.started
    hierarchy, alone = (
        start(ahead_of_time.HIERARCHY),
        [start([p._replace(queries=0, keys=1)]) for p in ahead_of_time.HIERARCHY],
    )
    for taken, each in zip(hierarchy.started, zip(*(step.started for step in alone), strict=True), strict=True):
        assert taken <= sum(each) * 3 / 4


def test_gradients_in_half_precision_are_summed_in_stripes(monkeypatch):
    """One stripe or two: beyond the gradients the backward pass holds a few numbers per row, not one in float32 per feature."""
    monkeypatch.setattr(gpu, "SUMS", 1)
    monkeypatch.setattr(gpu, "BLOCK", 1024)
    monkeypatch.setattr(backward_blocks, "BLOCK", 1024)
    n, d = 1024, 256
    small, large = (launches(k * n, monkeypatch, dtype=torch.bfloat16, d=d) for k in (1, 2))
    gradients = 2 * n * d * 2
    assert large.backward.peak - small.backward.peak - gradients <= 2 * n * (d // 4) * 4


@pytest.mark.parametrize(("dtype", "of_block", "of_row"), [(torch.bfloat16, 8, 3), (torch.float32, 16, 3)])
def test_a_block_of_weights_is_few_calls(dtype, of_block, of_row, monkeypatch):
    """Of each side a product and sums of times, both added; in float32 three products. A GPU waited for the calls of a CPU."""
    monkeypatch.setattr(backward_blocks, "BLOCK", 1024)
    small, large = (of_loss("sm_90", k * 1024, 512, dtype)[1] for k in (1, 4))
    assert large == Asked(small.kernels + 15, small.calls + 15 * of_block + 3 * of_row)


@pytest.mark.parametrize("n", [1, 64, 4096])
def test_a_small_batch_is_few_calls(n):
    """A CPU needs as long for each as a GPU for thousands of pairs. Had a pass to wait for a number, counting would raise."""
    forward, backward = of_loss("sm_90", n, 128, torch.bfloat16)
    assert forward == Asked(kernels=7, calls=8)
    assert backward == Asked(kernels=11, calls=6)
    hierarchy = of_loss("sm_90", n, 128, torch.bfloat16, ahead_of_time.HIERARCHY)
    assert hierarchy == (Asked(kernels=8, calls=10), Asked(kernels=15, calls=6))


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_no_pass_waits_for_a_number(geometry, dtype):
    """Tensors without numbers go through: no pass copies one to the CPU, or branches on it. A CUDA graph can capture it."""
    forward, backward = of_loss("sm_90", 512, 64, dtype, ahead_of_time.HIERARCHY, geometry)
    assert min(forward.kernels, backward.kernels) > 3


def test_a_pass_that_waits_for_a_number_is_seen(monkeypatch):
    made = gpu.scalar_gradients
    monkeypatch.setattr(gpu, "scalar_gradients", lambda inputs, *given: made(inputs, *given)[2].item())
    with pytest.raises(RuntimeError, match="meta"):
        of_loss("sm_90", 64, 128, torch.bfloat16)
