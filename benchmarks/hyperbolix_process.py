"""Distances of hyperbolix (JAX) and their gradients: of each line of standard input, two lists of tangent vectors, as JSON.

A process of its own, since hyperbolix asks for Python 3.12; it imports nothing of this repository.
"""

import json
import sys

import jax
import jax.numpy as jnp
from hyperbolix.manifolds import Hyperboloid

manifold = Hyperboloid()


def distance(u, v):
    points = (manifold.expmap_0(jnp.concatenate([jnp.zeros(1), x]), 1.0) for x in (u, v))
    return manifold.dist(*points, 1.0)


with_gradients = jax.jit(jax.vmap(jax.value_and_grad(distance, (0, 1))))

for line in sys.stdin:
    value, gradients = with_gradients(*jnp.array(json.loads(line), dtype=jnp.float32))
    print(json.dumps([x.tolist() for x in (value, *gradients)]), flush=True)
