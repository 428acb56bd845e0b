"""The check on a real device: every kernel's tests there, then times, bandwidths and memory.

    python -m benchmarks.gpu

Row-wise kernels are set against a copy measured in the same run, the matrix of distances against the textbook formula, the
contrastive loss against its peers and against what the tensor cores could do. Nothing is timed unless the tests pass. The
rows are printed and appended to ``benchmarks/results/<device>-<date>.csv``. Where there is no GPU this says so and succeeds.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from benchmarks import contrastive, measure, peers, results
from benchmarks.problem import OURS, Step
from benchmarks.results import Row

TESTS = (
    "tests/kernels/triton",
    *(f"tests/kernels/test_{name}.py" for name in ("row_wise", "contrastive", "hierarchy")),
)
# of an H200: what products in bf16 and memory can do at most
TENSOR_PEAK, BANDWIDTH = 790e12, 4.3e12
# n, d, dtype of the loss; peers run in float32 at the smallest batch, where eager fits
LOSSES = (
    (32768, 128, torch.bfloat16),
    (32768, 512, torch.bfloat16),
    (32768, 128, torch.float32),
    (32768, 512, torch.float32),
    (131072, 512, torch.bfloat16),
)
HIERARCHIES = ((4096, 128, torch.bfloat16), (32768, 128, torch.bfloat16))
ONE_STEP = (1 << 20, 512, torch.bfloat16)
PEERS = (peers.EAGER, peers.COMPILED, peers.CHUNKED, peers.OPEN_CLIP, peers.PRODUCTS)
ROUNDS = 3
Clock = Callable[[Callable[[], object]], float]


def tests_pass() -> bool:
    """The kernels' tests on the device, each result computed twice among them."""
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "--timeout=1200", *TESTS]).returncode == 0


def seconds(run: Callable[[], object]) -> float:
    """Median of many runs between CUDA events, each with a cold cache."""
    import triton

    return triton.testing.do_bench(run, warmup=50, rep=200, return_mode="median") / 1e3


def seconds_once(run: Callable[[], object]) -> float:
    """One run between CUDA events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def both(step: Step) -> None:
    step.forward()
    step.backward()


def forward(step: Step) -> None:
    """A forward pass whose saved tensors are let go of at once."""
    step.forward()
    step.value = None


def extra_bytes(step: Step) -> int:
    """Most device memory in use during a step, beyond inputs and gradients."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both(step)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in step.leaves)


def about(operation: str, n: int, d: int, dtype: torch.dtype = torch.float32) -> dict:
    return {"operation": operation, "n": n, "d": d, "dtype": str(dtype).removeprefix("torch.")}


def shares(n: int, d: int, dtype: torch.dtype, times: dict[str, float], what: dict) -> Iterator[Row]:
    """Share of the tensor cores' peak: 2 n^2 d operations forward, 8 n^2 d both ways; three bf16 products for a float32 one."""
    products = 3 if dtype == torch.float32 else 1
    for phase, operations in (("forward", 2), ("both", 8)):
        share = operations * products * n * n * d / TENSOR_PEAK / times[phase]
        yield Row.of([share], **what, provider=OURS, metric=f"share of tensor peak {phase}")


def loss(
    n: int,
    d: int,
    dtype: torch.dtype,
    providers: Sequence[str],
    device: str,
    clock: Clock,
    extra: Callable[[Step], int],
    operation: str = contrastive.OPERATIONS[0],
) -> Iterator[Row]:
    """Times in rounds over all providers, ratios to ours, memory, and of one term the share of the peak."""
    what = about(operation, n, d, dtype)
    problem = contrastive.setup(what["operation"], n, d, device=device, dtype=dtype)
    steps, notes = measure.warmed_up(problem, (OURS, *providers))
    for name, note in notes.items():
        yield Row(**what, provider=name, metric="both s", note=note)
    for name, step in steps.items():
        yield Row.of([extra(step)], **what, provider=name, metric="peak bytes")
    steps[measure.AGAIN] = steps[OURS]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            times = {"forward": clock(partial(forward, step)), "both": clock(partial(both, step))}
            rounds[name].append(times)
    for name, found in rounds.items():
        for phase in ("forward", "both"):
            values = [times[phase] for times in found]
            ratios = [value / ours[phase] for value, ours in zip(values, rounds[OURS], strict=True)]
            yield Row.of(values, **what, provider=name, metric=f"{phase} s")
            yield Row.of(ratios, **what, provider=name, metric=f"ratio {phase}")
    if operation != contrastive.HIERARCHY:
        yield from shares(n, d, dtype, {p: min(times[p] for times in rounds[OURS]) for p in ("forward", "both")}, what)


def one_step(
    n: int, d: int, dtype: torch.dtype, device: str, clock: Clock, extra: Callable[[Step], int]
) -> Iterator[Row]:
    """A batch that is too large to be repeated often."""
    what = about(contrastive.OPERATIONS[0], n, d, dtype)
    step = contrastive.setup(what["operation"], n, d, device=device, dtype=dtype).step(OURS)
    yield Row.of([extra(step)], **what, provider=OURS, metric="peak bytes")  # compiles too
    times = {"forward": clock(partial(forward, step)), "both": clock(partial(both, step))}
    for phase, value in times.items():
        yield Row.of([value], **what, provider=OURS, metric=f"{phase} s")
    yield from shares(n, d, dtype, times, what)


def row_wise(n: int, d: int) -> Iterator[Row]:
    """Bytes that have to move, over the time it took, as a share of what a copy reaches and of the memory's peak."""
    from hyperst_kernels.gpu import distance, entailment, maps

    c = torch.ones((), device="cuda")
    x, y, g = (torch.randn(n, d, device="cuda") / d**0.5 for _ in range(3))
    each, target = torch.ones(n, device="cuda"), torch.empty_like(x)
    matrix, column = x.nbytes, each.nbytes
    hinges = ([x], [y], c, [0.7], 0.1, True)
    work: list[tuple[str, int, Callable[[], object]]] = [
        ("copy", 2 * matrix, lambda: target.copy_(x)),
        ("exp_map0 with scale", 2 * matrix, lambda: maps.exp_map0(x, c, c)),
        ("exp_map0 backward", 3 * matrix + 2 * column, lambda: maps.exp_map0_backward(g, x, c, c)),
        ("log_map0", 2 * matrix, lambda: maps.log_map0(x, c)),
        ("log_map0 backward", 3 * matrix + column, lambda: maps.log_map0_backward(g, x, c)),
        ("exp_map", 3 * matrix, lambda: maps.exp_map(x, y, c)),
        ("exp_map backward", 5 * matrix + column, lambda: maps.exp_map_backward(g, x, y, c)),
        ("log_map", 3 * matrix, lambda: maps.log_map(x, y, c)),
        ("log_map backward", 5 * matrix + column, lambda: maps.log_map_backward(g, x, y, c)),
        ("lorentz_to_poincare", 2 * matrix, lambda: maps.lorentz_to_poincare(x, c)),
        ("inner", 2 * matrix + column, lambda: distance.inner(x, y, c)),
        ("distance", 2 * matrix + column, lambda: distance.distance(x, y, c, True)),
        ("distance backward", 4 * matrix + 2 * column, lambda: distance.distance_backward(each, x, y, c, True)),
        ("half_aperture", matrix + column, lambda: entailment.half_aperture(x, c, 0.1, True)),
        ("exterior_angle", 2 * matrix + column, lambda: entailment.exterior_angle(x, y, c, True)),
        ("entailment hinge", 2 * matrix + column, lambda: entailment.entailment_hinges(*hinges)),
        (
            "entailment hinge backward",
            4 * matrix + 2 * column,
            lambda: entailment.entailment_hinges_backward(each[None], *hinges),
        ),
    ]
    copy = 0.0
    for name, size, run in work:
        took = seconds(run)
        rate = size / took
        copy = copy or rate
        what = {**about(name, n, d), "provider": OURS}
        yield Row.of([took], **what, metric="s")
        yield Row.of([rate / copy], **what, metric="share of copy")
        yield Row.of([rate / BANDWIDTH], **what, metric="share of bandwidth")


def pairwise(n: int, d: int) -> Iterator[Row]:
    """The matrix of distances beside the formula everybody writes first."""
    from hyperst_kernels.gpu import pairwise as kernels
    from tests.kernels import meru

    c = torch.ones((), device="cuda")
    x, y = (torch.randn(n, d, device="cuda") / d**0.5 for _ in range(2))
    what = about("pairwise_distance", n, d)
    textbook = seconds(lambda: meru.pairwise_distance(meru.exp_map0(x, c), meru.exp_map0(y, c), c))
    yield Row.of([textbook], **what, provider=peers.EAGER, metric="forward s")
    for precision in ("ieee", "bf16x3", "tf32", "bf16"):
        took = seconds(partial(kernels.pairwise_distance, x, y, c, True, precision))
        yield Row.of([took], **what, provider=f"{OURS}, {precision}", metric="forward s")
        yield Row.of([textbook / took], **what, provider=f"{OURS}, {precision}", metric="eager / ours forward")
    matrix = kernels.pairwise_distance(x, y, c, True, "bf16x3")
    took = seconds(lambda: kernels.pairwise_distance_backward(matrix, x, y, c, matrix, True, "bf16x3"))
    yield Row.of([took], **what, provider=f"{OURS}, bf16x3", metric="backward s")


def everything() -> Iterator[Row]:
    yield from row_wise(1 << 20, 512)
    yield from pairwise(16384, 512)
    for n, d, dtype in LOSSES:
        beside = PEERS if n == LOSSES[0][0] and dtype == torch.float32 else (contrastive.ANY_ORDER,)
        yield from loss(n, d, dtype, beside, "cuda", seconds, extra_bytes)
        torch.cuda.empty_cache()
    for n, d, dtype in HIERARCHIES:
        yield from loss(n, d, dtype, [contrastive.ONE_BY_ONE], "cuda", seconds, extra_bytes, contrastive.HIERARCHY)
    yield from one_step(*ONE_STEP, "cuda", seconds_once, extra_bytes)


def show(row: Row) -> str:
    shape = f"{row.operation} {row.n} x {row.d} {row.dtype}"
    return f"{shape:50} {row.provider:14} {row.metric:28} {row.note or f'{row.median:.4g}'}"


def main() -> int:
    if not torch.cuda.is_available():
        print("no GPU on this machine: nothing to check")
        return 0
    if not tests_pass():
        print("the kernels' tests fail on this device: nothing is timed")
        return 1
    run, path = datetime.datetime.now().isoformat(timespec="seconds"), results.path_for("cuda")
    for row in everything():
        print(show(row), flush=True)
        results.append([row], path, run, "cuda")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
