"""Row-wise operators in float32 against the float64 reference: what each result may be off by, as far as its inputs are known."""

from __future__ import annotations

import torch

from benchmarks.cases import CASES, ROW_WISE
from hyperst_kernels.cpu import distance, entailment, maps
from tests.kernels.backends import device, documented

EPS = torch.finfo(torch.float32).eps


def run(compute, case, inputs, upstream):
    """Value, and the gradients of all inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = compute(*leaves, *case.flags)
    grads = torch.autograd.grad(value, leaves, upstream.to(value), materialize_grads=True)
    return value.detach().cpu(), [g.cpu() for g in grads]


def has_native(operator):
    """Whether there is machine code of it."""
    return any(hasattr(room, operator) for room in (maps, distance, entailment))


def implementation(operator, backend):
    """The operator on a backend; where it has machine code, PyTorch calls are not reached through the dispatcher."""
    chosen = ROW_WISE[operator]
    return chosen.portable if backend == "portable" and has_native(operator) else chosen.operator


def on_backend(case, inputs, upstream, backend):
    return run(implementation(case.operator, backend), case, [x.to(device(backend)) for x in inputs], upstream)


def reference(case, inputs, upstream):
    return run(ROW_WISE[case.operator].portable, case, [x.double() for x in inputs], upstream)


def moved(inputs):
    """The inputs one ulp up and down, one tensor at a time: how far they are known. Vectors also with every other number
    the other way, for that turns them."""
    for i, x in enumerate(inputs):
        alternating = torch.ones_like(x)
        if x.ndim == 2:
            alternating[:, 1::2] = -1
        for sense in (1, -1, alternating, -alternating)[: 4 if x.ndim == 2 and x.shape[1] > 1 else 2]:
            yield [*inputs[:i], torch.nextafter(x, torch.inf * sense * torch.ones_like(x)), *inputs[i + 1 :]]


def straightened(inputs):
    """The inputs with each vector on the ray of the first, or closer to it, wherever an ulp in the numbers of both may have
    taken it off. Numbers of the chord below what rounding leaves are taken for none, one by one; slopes go with 1 / chord."""
    first = inputs[0].double()
    for i, x in enumerate(inputs[1:], 1):
        if x.ndim == 2:
            wide = x.double()
            factor = (wide * first).sum(1, keepdim=True) / (first * first).sum(1, keepdim=True).clamp(min=1e-300)
            ulp = torch.nextafter(x.abs(), torch.full_like(x, torch.inf)).double() - wide.abs()
            off = wide - factor * first
            near = (off.abs() <= 2 * ulp).all(1, keepdim=True)
            for share in (1, 0.75):
                yield [*inputs[:i], torch.where(near, wide - share * off, wide), *inputs[i + 1 :]]


def tilted(inputs):
    """Vectors of one feature with a second, eps times as large: directions are no better known than that."""
    vectors = [x for x in inputs if x.ndim == 2]
    for i in range(len(vectors)):
        for sign in (1, -1):
            tilt = [torch.cat([x, sign * EPS * x.abs() * (k == i)], 1) for k, x in enumerate(vectors)]
            yield [*tilt, *inputs[len(vectors) :]]


def uncertainty(case, inputs, upstream, exact, exact_grads):
    """Twice the change of value and gradients, row by row, at inputs that float32 cannot tell from these."""
    results = [reference(case, other, upstream) for other in (*moved(inputs), *straightened(inputs))]
    exact = [exact, *exact_grads]
    changes = [[size(a - b) for a, b in zip([value, *grads], exact, strict=True)] for value, grads in results]
    if inputs[0].shape[1] == 1:
        exact, upstream = [widened(t) for t in exact], widened(upstream)
        results = [reference(case, other, upstream) for other in tilted(inputs)]
        changes += [[size(a - b) for a, b in zip([value, *grads], exact, strict=True)] for value, grads in results]
    return [2 * torch.stack(each).amax(0) for each in zip(*changes, strict=True)]


def widened(x):
    """With one more feature, 0."""
    return torch.cat([x, torch.zeros_like(x[:, :1])], 1) if x.ndim == 2 else x


def size(x):
    """Norm of each row, or the absolute value of each number."""
    return x.double().norm(dim=-1) if x.ndim == 2 else x.double().abs()


def compare_with_the_reference(name, backend, n, d, seed, largest, c):
    """Assert that value and gradients on inputs of one draw are right."""
    case = CASES[name]
    inputs = case.inputs(n, d, seed, largest, torch.float32, c)
    value_shape = ROW_WISE[case.operator].portable(*inputs, *case.flags).shape
    upstream = torch.randn(value_shape, generator=torch.Generator().manual_seed(seed))
    value, grads = on_backend(case, inputs, upstream, backend)
    exact, exact_grads = reference(case, inputs, upstream)
    known = uncertainty(case, inputs, upstream, exact, exact_grads)
    cancelling, slopes_known = case.cancelling([x.double() for x in inputs if x.ndim == 2], c)

    assert torch.isfinite(value).all()
    tolerance = max(1e-6, 4 * EPS * (1 + largest)) + documented(4, backend)  # in a row: two quotients, two roots
    rounding = (8 * EPS + documented(4, backend)) * cancelling
    assert (size(value - exact) <= tolerance * size(exact) + rounding + case.absolute + known[0]).all()

    slopes = documented(32, backend)  # e^-D enters them squared, each with the errors of D; and as many of their own
    for i, (got, want) in enumerate(zip(grads, exact_grads, strict=True)):
        assert torch.isfinite(got).all()
        if got.ndim == 0:
            # a sum over rows that may cancel; by homogeneity each row's share is what is left of these terms, the value's
            # and those of its slopes along the vectors, each known as far as these are
            scale = sum_of_shares(case, inputs, upstream, i)
            along = sum((x * g).sum(1).abs() for x, g in zip(inputs, exact_grads, strict=True) if g.ndim)
            terms = tolerance * size(upstream * exact) + (case.gradient(largest) + slopes) * along
            rounding = float(terms.sum() / inputs[i])
        else:
            scale = size(want)
            rounding = (8 * EPS + documented(16, backend)) * size(upstream) * slopes_known[i]
        assert (
            size(got - want)
            <= (case.gradient(largest) + slopes) * scale + rounding + known[i + 1] + torch.finfo(torch.float32).tiny
        ).all(), i


def sum_of_shares(case, inputs, upstream, i):
    """Sum over rows of what each adds to the gradient of the scalar i, in absolute value."""
    rows = range(len(upstream))
    alone = [[x[r : r + 1] if x.ndim == 2 else x for x in inputs] for r in rows]
    return sum(reference(case, alone[r], upstream[r : r + 1])[1][i].abs() for r in rows)
