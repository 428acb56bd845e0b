"""The nearest keys of each query, against a sorted matrix; what this installation says of itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

import hyperst_kernels as hk
from hyperst_kernels.blocked import blocks
from tests.kernels.triton import DEVICE

GEOMETRIES = ["lorentz", "euclidean", "cosine", "angle"]


@pytest.fixture
def small_blocks(monkeypatch):
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(blocks.SIDE, device, (3, 4))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("tangent", ["tangent", "lorentz"])
def test_the_smallest_of_each_row_in_order(geometry, tangent, dtype):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 5, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for n in (7, 13))
    y[2] = x[3]  # a distance of 0
    wide = [t.to(torch.promote_types(dtype, torch.float32)) for t in (x, y)]
    matrix = -hk.similarity(*wide, 0.7, input=tangent, geometry=geometry)
    for k in (1, 3, 13):
        distances, indices = hk.topk(x, y, k, 0.7, input=tangent, geometry=geometry)
        torch.testing.assert_close(distances, matrix.sort(1).values[:, :k], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(matrix.gather(1, indices), distances, rtol=1e-5, atol=1e-6)
        assert all(len(set(row)) == k for row in indices.tolist())


@given(seed=st.integers(0, 2**31), n=st.integers(1, 9), m=st.integers(1, 9), radius=st.sampled_from([1e-6, 1.0, 20.0]))
def test_any_shape(seed, n, m, radius):
    generator = torch.Generator().manual_seed(seed)
    x, y = (radius * torch.randn(r, 3, generator=generator, dtype=torch.float64) for r in (n, m))
    k = 1 + seed % m
    distances, indices = hk.topk(x, y, k, input="tangent")
    want = hk.pairwise_distance(x, y, input="tangent")
    torch.testing.assert_close(distances, want.sort(1).values[:, :k], rtol=1e-9, atol=1e-12 * radius)
    torch.testing.assert_close(want.gather(1, indices), distances, rtol=1e-9, atol=1e-12 * radius)


def test_an_index_of_inner_products_finds_the_same_keys():
    """The recipe of docs/howto/retrieve.md, in faiss, and the distance from the product that it returns."""
    faiss = pytest.importorskip("faiss", reason="faiss is not installed; `make loops` runs this test with it")
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(n, 8, generator=generator) / 3 for n in (20, 500))
    index = faiss.IndexFlatIP(9)
    index.add(hk.lift(hk.exp_map0(keys, 0.7), 0.7).numpy())
    asked = hk.lift(hk.exp_map0(queries, 0.7), 0.7) * torch.tensor([-1.0, *[1.0] * 8])
    products, indices = (torch.from_numpy(found) for found in index.search(asked.numpy(), 5))
    distances, nearest = hk.topk(queries, keys, 5, 0.7, input="tangent")
    assert torch.equal(indices, nearest)
    torch.testing.assert_close(torch.acosh(-0.7 * products) / 0.7**0.5, distances, rtol=1e-4, atol=0)


@pytest.mark.parametrize("far", ["queries", "keys"])
def test_vectors_whose_points_have_no_products_are_named(far):
    given = {"queries": torch.ones(2, 1), "keys": torch.ones(3, 1)}
    given[far][1] = 500.0
    with pytest.raises(ValueError, match=rf"{far} reaches sqrt\(c\)\|v\| = 500"):
        hk.topk(**given, k=1, input="tangent")


def test_one_compilation_serves_every_batch_size():
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, y: hk.topk(x, y, 2), fullgraph=True, backend=counter)
    for n in (5, 7, 2, 11, 3):
        x, y = torch.randn(n, 3, generator=torch.Generator().manual_seed(n)), torch.randn(n + 3, 3)
        torch.testing.assert_close(compiled(x, y), hk.topk(x, y, 2))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("k", [0, 4, 1.5])
def test_k_is_named(k):
    with pytest.raises(ValueError, match="k must be"):
        hk.topk(torch.ones(2, 2), torch.ones(3, 2), k)


def test_what_computes_here_is_told():
    told = hk.show_config()
    assert f"torch {torch.__version__}" in told
    assert f"threads          {torch.get_num_threads()}" in told
    assert "not in use" in told
    with hk.use_reference():
        assert "use_reference" in hk.show_config()
