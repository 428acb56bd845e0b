"""Times, bandwidths and memory of each operator on a GPU: rows for the CSV, one operator at a time.

Row-wise operators are set against a copy measured beside them, the matrix of distances against the textbook formula, the
contrastive loss against its peers and against a library product measured beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from unittest import mock

import torch

import hyperst_kernels as hk
from benchmarks import contrastive, measure, peers, textbook
from benchmarks.cases import CASES, ROW_WISE
from benchmarks.concerns import HIERARCHY, HINGES, LOSS, PAIRS
from benchmarks.device import Meter
from benchmarks.problem import OURS, Step
from benchmarks.results import Row
from hyperst_kernels.operators.register import ops

ROWS, SIDE, PRODUCT = (1 << 20, 512), (16384, 512), 8192
# n, d, dtype of the loss; peers run at the smallest batch, where eager fits
LOSSES = (
    (32768, 128, torch.bfloat16),
    (32768, 512, torch.bfloat16),
    (32768, 128, torch.float32),
    (32768, 512, torch.float32),
    (131072, 512, torch.bfloat16),
)
HIERARCHIES = ((4096, 128, torch.bfloat16), (32768, 128, torch.bfloat16))
ONE_STEP = (1 << 20, 512, torch.bfloat16)
# of a batch that has collapsed: n, d, dtype; and how far its vectors are apart beside their length
COLLAPSED = ((8192, 128, torch.bfloat16), (32768, 128, torch.bfloat16), (32768, 512, torch.bfloat16))
SPREAD, CENTRED, DIFFERENCES = 0.03, "ours, centred", "ours, differences alone"
BESIDE = (peers.EAGER, peers.COMPILED, peers.CHUNKED, peers.OPEN_CLIP, peers.MEMEFF, peers.PRODUCTS)
ROUNDS = 3


def about(operation: str, n: int, d: int, dtype: torch.dtype = torch.float32) -> dict:
    return {"operation": operation, "n": n, "d": d, "dtype": str(dtype).removeprefix("torch.")}


def both(step: Step) -> None:
    step.forward()
    step.backward()


def forward(step: Step) -> None:
    """A forward pass whose saved tensors are let go of at once."""
    step.forward()
    step.value = None


# -------------------------------------------------------------------------------------------------------------- rows


def row_wise(operator: str, n: int, d: int, meter: Meter) -> Iterator[Row]:
    """Seconds, and the rate at which the bytes move that have to, as a share of a copy's."""
    case = next(case for case in CASES.values() if case.operator == operator)
    one = torch.ones((), device=meter.place)
    # of length 1/2: also points of the ball
    vectors = [torch.randn(n, d, device=meter.place) / (2 * d**0.5) for _ in case.vectors(1, 1, 0, 1.0)]
    scalars = [one for _ in (*case.scalars, "c")]
    run, back = ROW_WISE[operator].operator, ROW_WISE[operator].backward
    value = run(*vectors, *scalars, *case.flags)
    grad = torch.ones_like(value)
    moved = sum(x.nbytes for x in vectors)
    passes: dict[str, tuple[int, Callable[[], object]]] = {
        "forward": (moved + value.nbytes, lambda: run(*vectors, *scalars, *case.flags)),
        "backward": (
            2 * moved + grad.nbytes + len(scalars) * 4 * n,
            lambda: back(grad, *vectors, *scalars, *case.flags),
        ),
    }
    yield from _beside_a_copy(operator, vectors[0], passes, meter)


def hinges(n: int, d: int, meter: Meter) -> Iterator[Row]:
    """The same of one relation of the entailment loss."""
    x, y = (torch.randn(n, d, device=meter.place) / (2 * d**0.5) for _ in range(2))
    given = ([x], [y], torch.ones((), device=meter.place), [0.7], 0.1, True)
    grad = torch.ones(1, n, device=meter.place)
    passes: dict[str, tuple[int, Callable[[], object]]] = {
        "forward": (x.nbytes + y.nbytes + grad.nbytes, lambda: ops.entailment_hinges(*given)),
        "backward": (2 * (x.nbytes + y.nbytes + grad.nbytes), lambda: ops.entailment_hinges_backward(grad, *given)),
    }
    yield from _beside_a_copy(HINGES, x, passes, meter)


def _beside_a_copy(
    operator: str, like: torch.Tensor, passes: dict[str, tuple[int, Callable[[], object]]], meter: Meter
) -> Iterator[Row]:
    what, target = about(operator, *like.shape), torch.empty_like(like)
    took = meter.seconds(lambda: target.copy_(like))
    copy = 2 * like.nbytes / took
    yield Row.of([took], **what, provider="copy", metric="forward s")
    for phase, (size, run) in passes.items():
        took = meter.seconds(run)
        yield Row.of([took], **what, provider=OURS, metric=f"{phase} s")
        yield Row.of([size / took / copy], **what, provider=OURS, metric=f"share of copy {phase}")


# ------------------------------------------------------------------------------------------------------------- pairs


def pairwise(n: int, d: int, meter: Meter) -> Iterator[Row]:
    """The matrix of distances beside the formula everybody writes first."""
    c = torch.ones((), device=meter.place)
    x, y = (torch.randn(n, d, device=meter.place) / d**0.5 for _ in range(2))
    what = about(PAIRS, n, d)
    eager = meter.seconds(lambda: textbook.pairwise_distance(textbook.exp_map0(x, c), textbook.exp_map0(y, c), c))
    yield Row.of([eager], **what, provider=peers.EAGER, metric="forward s")
    for precision in ("ieee", "bf16x3", "tf32", "bf16"):
        took = meter.seconds(partial(ops.pairwise_distance, x, y, c, True, precision))
        yield Row.of([took], **what, provider=f"{OURS}, {precision}", metric="forward s")
        yield Row.of([eager / took], **what, provider=f"{OURS}, {precision}", metric="ratio eager / ours forward")
    matrix = ops.pairwise_distance(x, y, c, True, "bf16x3")
    took = meter.seconds(lambda: ops.pairwise_distance_backward(matrix, x, y, c, matrix, True, "bf16x3"))
    yield Row.of([took], **what, provider=f"{OURS}, bf16x3", metric="backward s")


# -------------------------------------------------------------------------------------------------------------- loss


def rate_of_products(meter: Meter, side: int) -> float:
    """Operations per second of a library product in bf16."""
    x, y = (torch.randn(side, side, device=meter.place, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / meter.seconds(lambda: x @ y)


def shares(n: int, d: int, dtype: torch.dtype, times: dict[str, float], what: dict, rate: float) -> Iterator[Row]:
    """Share of a library product's rate: 2 n^2 d operations forward, 8 n^2 d both ways; three products for float32."""
    products = 3 if dtype == torch.float32 else 1
    for phase, operations in (("forward", 2), ("both", 8)):
        share = operations * products * n * n * d / rate / times[phase]
        yield Row.of([share], **what, provider=OURS, metric=f"share of product {phase}")


def loss(
    n: int,
    d: int,
    dtype: torch.dtype,
    providers: Sequence[str],
    meter: Meter,
    operation: str = LOSS,
    rate: float | None = None,
) -> Iterator[Row]:
    """Times in rounds over all providers, ratios to ours, memory, and the share of a product's rate, if that is given."""
    what = about(operation, n, d, dtype)
    problem = contrastive.setup(operation, n, d, device=meter.place, dtype=dtype)
    steps, notes = measure.warmed_up(problem, (OURS, *providers))
    for name, note in notes.items():
        yield Row(**what, provider=name, metric="both s", note=note)
    for name, step in steps.items():
        yield Row.of([meter.extra_bytes(step)], **what, provider=name, metric="peak bytes")
    steps[measure.AGAIN] = steps[OURS]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            times = {"forward": meter.seconds(partial(forward, step)), "both": meter.seconds(partial(both, step))}
            rounds[name].append(times)
    for name, found in rounds.items():
        for phase in ("forward", "both"):
            values = [times[phase] for times in found]
            ratios = [value / ours[phase] for value, ours in zip(values, rounds[OURS], strict=True)]
            yield Row.of(values, **what, provider=name, metric=f"{phase} s")
            yield Row.of(ratios, **what, provider=name, metric=f"ratio {phase}")
    if rate is not None:
        best = {phase: min(times[phase] for times in rounds[OURS]) for phase in ("forward", "both")}
        yield from shares(n, d, dtype, best, what, rate)


def one_step(n: int, d: int, dtype: torch.dtype, meter: Meter, rate: float) -> Iterator[Row]:
    """A batch that is too large to be repeated often."""
    what = about(LOSS, n, d, dtype)
    step = contrastive.setup(LOSS, n, d, device=meter.place, dtype=dtype).step(OURS)
    yield Row.of([meter.extra_bytes(step)], **what, provider=OURS, metric="peak bytes")  # compiles too
    times = {"forward": meter.seconds_once(partial(forward, step)), "both": meter.seconds_once(partial(both, step))}
    for phase, value in times.items():
        yield Row.of([value], **what, provider=OURS, metric=f"{phase} s")
    yield from shares(n, d, dtype, times, what, rate)


def collapsed(n: int, d: int, dtype: torch.dtype, meter: Meter) -> Iterator[Row]:
    """Times of vectors that are nearly one, and beside them of the kernels that take every pair from differences."""
    from hyperst_kernels.gpu.contrastive import inputs

    what = {**about(LOSS, n, d, dtype), "setting": f"spread={SPREAD}"}
    vectors = [(1 + SPREAD * torch.randn(n, d, device=meter.place)) / d**0.5 for _ in range(2)]
    scalars = [torch.tensor(value, device=meter.place) for value in (1.0, 1 / 0.07)]
    step = Step(hk.contrastive_loss, [*(x.to(dtype) for x in vectors), *scalars])
    times: dict[tuple[str, str], float] = {}
    for provider, least in ((CENTRED, 0), (DIFFERENCES, n * n + 1)):
        with mock.patch.object(inputs, "CENTRED_FROM", least):
            both(step)  # compiles
            for phase, run in (("forward", forward), ("both", both)):
                times[phase, provider] = meter.seconds_once(partial(run, step))
                yield Row.of([times[phase, provider]], **what, provider=provider, metric=f"{phase} s")
    ratio = times["both", DIFFERENCES] / times["both", CENTRED]
    yield Row.of([ratio], **what, provider=DIFFERENCES, metric="ratio both")


def losses(meter: Meter) -> Iterator[Row]:
    rate = rate_of_products(meter, PRODUCT)
    yield Row.of(
        [rate], **about("product", PRODUCT, PRODUCT, torch.bfloat16), provider="library", metric="operations/s"
    )
    for n, d, dtype in LOSSES:
        beside = BESIDE if n == LOSSES[0][0] else (contrastive.ANY_ORDER,)
        yield from loss(n, d, dtype, beside, meter, rate=rate)
        torch.cuda.empty_cache()
    for case in COLLAPSED:
        yield from collapsed(*case, meter)
    yield from one_step(*ONE_STEP, meter, rate)


def hierarchies(meter: Meter) -> Iterator[Row]:
    for n, d, dtype in HIERARCHIES:
        yield from loss(n, d, dtype, [contrastive.ONE_BY_ONE], meter, HIERARCHY)


# ----------------------------------------------------------------------------------------------------------- operators


def timings(operator: str, meter: Meter) -> Iterator[Row]:
    """All rows of one operator."""
    others: dict[str, Callable[[Meter], Iterator[Row]]] = {
        HINGES: partial(hinges, *ROWS),
        PAIRS: partial(pairwise, *SIDE),
        LOSS: losses,
        HIERARCHY: hierarchies,
    }
    return others[operator](meter) if operator in others else row_wise(operator, *ROWS, meter)


def unchecked(rows: Iterator[Row]) -> Iterator[Row]:
    """Without what compares ours with others, and marked: of an operator whose tests are not green."""
    for row in rows:
        if "ratio" not in row.metric and "share" not in row.metric:
            yield replace(row, setting="checked=0")
