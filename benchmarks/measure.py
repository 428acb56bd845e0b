"""Speed, peak memory and error of the providers of a problem."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.problem import OURS, Problem, Step
from benchmarks.results import REPOSITORY, Row

AGAIN = "ours, again"  # the same provider a second time: what differs is noise
PHASES = ("forward", "backward", "both")
OUT_OF_MEMORY = "out of memory"
SMALLEST = 1e-30  # float32 ends at 1e-38, and products of two factors on the way are smaller than their result


def describe(error: BaseException) -> str:
    """Why a provider has no figures, in a few words."""
    if isinstance(error, ImportError):
        return f"not installed: {error.name or error}"
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate" in text or "bad_alloc" in text:
        return OUT_OF_MEMORY
    return f"failed: {type(error).__name__} {text.strip().splitlines()[0] if text.strip() else ''}"[:120]


def seconds(step: Step) -> dict[str, float]:
    """Time of one forward and one backward pass, on the CPU."""
    start = time.perf_counter()
    step.forward()
    middle = time.perf_counter()
    step.backward()
    end = time.perf_counter()
    return {"forward": middle - start, "backward": end - middle, "both": end - start}


def warmed_up(problem: Problem, providers: Sequence[str]) -> tuple[dict[str, Step], dict[str, str]]:
    """A step that has run twice for each provider that can, and for the others why not. Ours must."""
    steps, notes = {}, {}
    for name in providers:
        try:
            step = problem.step(name)
            for _ in range(2):
                step.forward()
                step.backward()
        except Exception as error:  # whatever a peer dies of is a row of the table
            if name == OURS:
                raise
            notes[name] = describe(error)
        else:
            steps[name] = step
    return steps, notes


def speed(
    problem: Problem, about: dict, *, budget: float, green: bool, providers: Sequence[str] | None = None
) -> list[Row]:
    """Times of all providers, interleaved, for about ``budget`` seconds; ratios to ours only if its tests are green.

    ``about`` are the fields of a row that say what was measured.
    """
    chosen = list(problem.factories if providers is None else providers)
    steps, notes = warmed_up(problem, chosen)
    steps[AGAIN] = steps[OURS]
    order = list(steps)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    start, k = time.perf_counter(), 0
    while k < 5 or (k < 50 and time.perf_counter() - start < budget):
        for name in order:
            rounds[name].append(seconds(steps[name]))
        order.append(order.pop(0))
        k += 1
    rows = []
    for name, times in rounds.items():
        for phase in PHASES:
            values = [t[phase] for t in times]
            rows.append(Row.of(values, **about, provider=name, metric=f"{phase} s"))
            if green:
                ratios = [value / ours[phase] for value, ours in zip(values, rounds[OURS], strict=True)]
                rows.append(Row.of(ratios, **about, provider=name, metric=f"ratio {phase}"))
    missing = [
        Row(**about, provider=name, metric=f"{phase} s", note=note) for name, note in notes.items() for phase in PHASES
    ]
    return rows + missing


def isolated(
    family: str, operation: str, provider: str, n: int, d: int, repeats: int, timeout: float = 300
) -> list[Row]:
    """Peak memory and times of a provider in a process of its own, which may not take more memory than there is."""
    about: dict[str, Any] = {"operation": operation, "provider": provider, "n": n, "d": d, "dtype": "float32"}
    arguments = [family, operation, provider, n, d, repeats, torch.get_num_threads()]
    command = [sys.executable, "-m", "benchmarks.worker", *map(str, arguments)]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        note = f"stopped after {timeout:.0f} s"
    else:
        last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "{}"
        found = json.loads(last) if last.startswith("{") else {}
        if "peak" in found:
            rows = [Row.of([t[phase] for t in found["times"]], **about, metric=f"alone {phase} s") for phase in PHASES]
            return [Row.of([found["peak"]], **about, metric="peak bytes"), *rows]
        # a process that dies without a word has met the limit in code that cannot say so
        note = found.get("note", OUT_OF_MEMORY if done.returncode < 0 or "bad_alloc" in done.stderr else "failed")
    return [Row(**about, metric=metric, note=note) for metric in ("peak bytes", "alone both s")]


def value_and_gradient(step: Step, problem: Problem) -> tuple[Tensor, Tensor]:
    """Value, and gradient of the first input, as matrices whose rows have an error each.

    A row of the value is a vector like the inputs, or a single number; the gradient of a single loss is one row.
    """
    value = step.forward().detach()
    gradient = step.backward()[0]
    assert gradient is not None
    rows = value if value.shape == problem.inputs[0].shape else value[..., None]
    return rows, gradient if value.ndim else gradient.reshape(1, -1)


def error(got: Tensor, exact: Tensor) -> tuple[float, int]:
    """Largest error of a row (last axis) relative to its norm, and how many rows are not finite.

    Rows that float32 has no numbers for, or only just, do not count.
    """
    size = torch.linalg.vector_norm(exact, dim=-1)
    off = torch.linalg.vector_norm(got.double() - exact, dim=-1)
    finite, counts = torch.isfinite(off), size > SMALLEST
    relative = (off / size)[finite & counts]
    return (float(relative.max()) if len(relative) else math.nan), int((~finite & counts).sum())


def errors(problem: Problem, about: dict, providers: Sequence[str] | None = None) -> list[Row]:
    """Error of value and gradient of the first input against float64, and how many of their rows are not finite."""
    exact = problem.exact()
    truth = value_and_gradient(exact, problem)
    rows = []
    for name in problem.factories if providers is None else providers:
        if name in problem.other:
            continue
        try:
            step = problem.step(name)
            got = value_and_gradient(step, problem)
        except Exception as fault:
            if name == OURS:
                raise
            rows.append(Row(**about, provider=name, metric="error value", note=describe(fault)))
            continue
        for metric, ours, want in zip(("value", "gradient"), got, truth, strict=True):
            worst, bad = error(ours, want)
            rows.append(Row.of([worst], **about, provider=name, metric=f"error {metric}"))
            rows.append(Row.of([bad], **about, provider=name, metric=f"not finite {metric}"))
    return rows
