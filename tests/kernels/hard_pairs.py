"""Pairs of vectors from the nasty regions, for tests against 60-digit arithmetic, and how far each is known."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from benchmarks import oracle

EPS = torch.finfo(torch.float32).eps
CURVATURES = [float(torch.tensor(c)) for c in (1e-6, 1e-3, 0.25, 1.0, 4.0, 1e4)]  # as float32 has them
DIGITS = 200  # of products of two points at radius 60, whose difference from 1 may be e^-28


@st.composite
def pairs(draw, smallest=1e-6, largest=60.0):
    """Two float32 tangent vectors: radius 1e-6..60, any angle from coincident to antipodal; on one ray exactly or but for
    rounding, on one axis or two."""
    d = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    a, noise = (
        torch.nn.functional.normalize(torch.randn(d, generator=generator, dtype=torch.float64), dim=0) for _ in range(2)
    )
    radius = [10 ** draw(st.floats(math.log10(smallest), math.log10(largest))) for _ in range(2)]
    axes = torch.eye(d, dtype=torch.float64)
    u = (a * radius[0]).float().double()
    kind = draw(
        st.sampled_from(["generic", "near", "coincident", "antipodal", "origin", "doubled", "ray", "axis", "two axes"])
    )
    if kind == "generic":
        v = noise * radius[1]
    elif kind == "near":
        v = u + noise * radius[0] * 10 ** draw(st.floats(-5, -1))
    elif kind == "coincident":
        v = u.clone()
    elif kind == "antipodal":
        v = -u
    elif kind == "origin":
        v = torch.zeros_like(u)
    elif kind == "doubled":
        v = u * draw(st.sampled_from([-0.5, 0.25, 0.5]))
    elif kind == "ray":
        v = a * radius[1]
    else:
        u, v = axes[0] * radius[0], axes[-1 if kind == "two axes" else 0] * radius[1]
    return u.float(), v.float()


def perturbed(u):
    """One ulp up and down in every component at once, and in every other the other way: how far the inputs are known."""
    turned = torch.ones_like(u)
    turned[1::2] = -1
    return [torch.nextafter(u, torch.inf * sense) for sense in (turned.abs(), -turned.abs(), turned, -turned)]


def conditioning(f, u, v):
    base = f(oracle.vector(u), oracle.vector(v))
    changes = [abs(f(oracle.vector(p), oracle.vector(v)) - base) for p in perturbed(u)]
    changes += [abs(f(oracle.vector(u), oracle.vector(p)) - base) for p in perturbed(v)]
    return float(max(changes))
