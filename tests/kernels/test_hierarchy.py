"""`hierarchical_contrastive_loss`: the same as its terms one by one, shared work, factors, and what users get wrong."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.compilers import nop

import hyperst_kernels as hk
from benchmarks import textbook
from hyperst_kernels import loss_terms
from hyperst_kernels.operators.register import ops
from hyperst_kernels.reference.contrastive import Pairing


def four(n, d, seed, dtype=torch.float64):
    """Image spot, gene spot, image niche, gene niche, and a factor for images and one for genes."""
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(n, d, generator=generator, dtype=dtype).requires_grad_() for _ in range(4)]
    factors = [torch.tensor(value, dtype=dtype, requires_grad=True) for value in (0.3, 0.7)]
    return features, factors


def hyperst(features, factors):
    """HCA of Zhang et al. 2025: a symmetric pair and two row-only pairs."""
    (image, gene, image_niche, gene_niche), (a, b) = features, factors
    return [
        hk.Term(image, gene, 0.5, "both", a, b),
        hk.Term(image_niche, gene, 0.25, "rows", a, b),
        hk.Term(gene_niche, image, 0.25, "rows", b, a),
    ]


@given(
    n=st.sampled_from([1, 2, 9, 40]),
    d=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, 2**31),
    geometry=st.sampled_from(["lorentz", "euclidean", "cosine"]),
    excluding=st.booleans(),
)
def test_equals_its_terms_one_by_one(n, d, seed, geometry, excluding):
    """Values, and gradients of features, factors, curvature and logit scale, against the reference of each term alone."""
    options = {"geometry": geometry, "exclude_ids": torch.arange(n) // 2 if excluding else None}

    def run(total):
        features, factors = four(n, d, seed)
        c, scale = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.8, 9.0))
        leaves = (*features, *factors, c, scale)
        loss, parts = total(hyperst(features, factors), c, scale)
        return [loss.detach(), *parts, *torch.autograd.grad(loss, leaves, materialize_grads=True)]

    def one_by_one(terms, c, scale):
        with hk.use_reference():
            parts = [
                hk.contrastive_loss(
                    t.queries * t.query_scale, t.keys * t.key_scale, c, scale, directions=t.directions, **options
                )
                for t in terms
            ]
        return sum(t.weight * part for t, part in zip(terms, parts, strict=True)), parts

    def together(terms, c, scale):
        return hk.hierarchical_contrastive_loss(terms, c, scale, **options)

    for got, want in zip(run(together), run(one_by_one), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_equals_the_textbook_where_that_is_accurate():
    """MERU's loss, in float64 and at distances where nothing cancels."""
    features, factors = four(20, 8, 0)
    total, (first, *_) = hk.hierarchical_contrastive_loss(hyperst(features, factors)[:1], 1.0, 9.0)
    c, scale = torch.tensor([1.0, 9.0], dtype=torch.float64)
    want = textbook.contrastive_loss(features[0] * factors[0], features[1] * factors[1], c, scale)
    torch.testing.assert_close(first, want, rtol=1e-7, atol=0)
    torch.testing.assert_close(total, 0.5 * first)


def test_terms_of_several_lengths_and_a_feature_beside_itself():
    """A memory bank behind one term, a small batch in another, and one matrix as queries and keys."""
    generator = torch.Generator().manual_seed(1)
    x, y, bank = (torch.randn(n, 6, generator=generator, requires_grad=True) for n in (9, 9, 30))
    small = torch.randn(4, 6, generator=generator)
    terms = [hk.Term(x, y), hk.Term(x, bank, 1.0, "rows"), hk.Term(small, bank), hk.Term(y, y, 2.0)]
    total, parts = hk.hierarchical_contrastive_loss(terms, 0.8, 9.0)
    alone = [hk.contrastive_loss(t.queries, t.keys, 0.8, 9.0, directions=t.directions) for t in terms]
    # terms of one length alone go through other code than several lengths do: a logit of 50 carries its rounding
    torch.testing.assert_close(list(parts), alone, rtol=0, atol=64 * torch.finfo(torch.float32).eps)
    grads = torch.autograd.grad(total, (x, y, bank))
    want = torch.autograd.grad(sum(t.weight * loss for t, loss in zip(terms, alone, strict=True)), (x, y, bank))
    torch.testing.assert_close(grads, want, rtol=1e-5, atol=1e-6)


def test_what_terms_share_is_taken_once(monkeypatch):
    seen = []
    compute = loss_terms.contrastive_terms
    monkeypatch.setattr(loss_terms, "contrastive_terms", lambda *args: seen.append(args) or compute(*args))
    features, factors = four(5, 3, 0)
    hk.hierarchical_contrastive_loss(hyperst(features, factors))
    ((vectors, scales, _, _, pairings, *_),) = seen
    assert [x is y for x, y in zip(vectors, features, strict=True)] == [True] * 4
    assert pairings == [Pairing(0, 1, True), Pairing(2, 1, False), Pairing(3, 0, False)]
    assert scales.tolist() == pytest.approx([0.3, 0.7, 0.3, 0.7])
    # another factor makes other features of the same tensor; factors of 1 cost nothing
    hk.hierarchical_contrastive_loss(
        [hk.Term(features[0], features[1], 1.0, "both", 2.0), hk.Term(features[0], features[1])]
    )
    assert len(seen[1][0]) == 3
    hk.contrastive_loss(features[0], features[1])
    assert seen[2][1] is None


def test_encoder_output_goes_straight_in():
    """exp(alpha) of a lift as a factor, instead of lifted features."""
    torch.manual_seed(0)
    lift = hk.LorentzLift(16, ("image", "gene"), output="tangent")
    image, gene = torch.randn(12, 16), torch.randn(12, 16)
    one = hk.contrastive_loss(lift(image, "image"), lift(gene, "gene"), lift.curvature, 14.0)
    other = hk.contrastive_loss(
        image, gene, lift.curvature, 14.0, query_scale=lift.scale("image"), key_scale=lift.scale("gene")
    )
    torch.testing.assert_close(one, other)
    leaves = [*lift.log_alpha.values(), lift.log_curvature]
    torch.testing.assert_close(
        torch.autograd.grad(other, leaves), torch.autograd.grad(one, leaves), rtol=1e-4, atol=1e-6
    )


def test_half_precision_and_mixed_dtypes():
    features, factors = four(8, 12, 0, torch.float32)
    half = [x.detach().bfloat16().requires_grad_() for x in features]
    total, _ = hk.hierarchical_contrastive_loss(hyperst(half, factors), 1.0, 9.0)
    want, _ = hk.hierarchical_contrastive_loss(hyperst([x.float() for x in half], factors), 1.0, 9.0)
    assert torch.equal(total, want)
    assert [g.dtype for g in torch.autograd.grad(total, half)] == [torch.bfloat16] * 4
    mixed = hk.contrastive_loss(half[0], features[1].double())
    assert mixed.dtype == torch.float64


def test_reductions_and_weights():
    features, factors = four(6, 4, 0)
    terms, weights = hyperst(features, factors), torch.tensor([1.0, 0, 2, 1, 1, 1])
    each, parts = hk.hierarchical_contrastive_loss(terms, reduction="none")
    assert each.shape == (6,)
    torch.testing.assert_close(each, 0.5 * parts[0] + 0.25 * parts[1] + 0.25 * parts[2])
    weighted, _ = hk.hierarchical_contrastive_loss(terms, weights=weights)
    torch.testing.assert_close(weighted, (each * weights).sum() / weights.sum())


def test_operator_contract():
    features, _ = four(5, 4, 0, torch.float32)
    factors, c, scale = (torch.tensor(v, requires_grad=True) for v in ([0.3, 0.7, 0.3, 0.7], 1.0, 9.0))
    pairings = [0, 1, 1, 2, 1, 0, 3, 0, 0]
    flags = (pairings, "lorentz", True, "bf16x3", False, 1 << 20)
    torch.library.opcheck(ops.contrastive_forward.default, (features, factors, c, scale, None, *flags))
    total, _ = hk.hierarchical_contrastive_loss(hyperst(features, (factors[0], factors[1])), c, scale)
    grads = torch.autograd.grad(total, (*features, c), create_graph=True)
    for grad in grads:
        with pytest.raises(NotImplementedError, match="second derivative"):
            grad.sum().backward(retain_graph=True)


def test_compiles_fullgraph():
    features, factors = four(7, 5, 0, torch.float32)

    def loss(*given):
        return hk.hierarchical_contrastive_loss(hyperst(given[:4], given[4:]), 0.8, 9.0)[0]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(*features, *factors), (*features, *factors)) for f in (compiled, loss))
    torch.testing.assert_close(got, want)


def test_one_compilation_serves_every_batch_size():
    graphs = []
    backend = aot_autograd(fw_compiler=lambda graph, inputs: graphs.append(graph) or graph.forward, bw_compiler=nop)

    def loss(*features):
        return hk.hierarchical_contrastive_loss(hyperst(features, (0.3, 0.7)), 0.8, 9.0)[0]

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    for n in (7, 9, 12):
        features, _ = four(n, 5, n, torch.float32)
        got, want = (torch.autograd.grad(f(*features), features) for f in (compiled, loss))
        torch.testing.assert_close(got, want)
    assert len(graphs) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, k: [hk.Term(q, k), hk.Term(q, k[:, :2])], r"terms\[1\].queries .* the same d in all terms"),
        (lambda q, k: [hk.Term(q, k), hk.Term(k, q[:3])], r"terms\[1\].queries .* 1 <= n <= m"),
        (lambda q, k: [hk.Term(q, k), hk.Term(q, k, 1.0, "columns")], "directions must be one of"),
        (lambda q, k: [hk.Term(q, k), hk.Term(q, k.int())], r"terms\[1\].keys must be a floating tensor"),
        (lambda q, k: [hk.Term(q, k), hk.Term(q, k * torch.nan)], r"terms\[1\].keys must be finite"),
        (lambda q, k: [hk.Term(q, k), hk.Term(q, k, 1.0, "both", -1.0)], r"terms\[1\].query_scale must be positive"),
        (lambda q, k: [hk.Term(q, k, key_scale=torch.ones(2))], "key_scale must be a number or a 0-d tensor"),
        (lambda q, k: [hk.Term(q, k, key_scale=1000.0)], r"keys reaches sqrt\(c\)\|v\|"),
        (
            lambda q, k: [hk.Term(q, k), hk.Term(q[:3], k)],
            "reduction must be 'mean' or 'sum' for terms of several n, got 'none'",
        ),
        (lambda q, k: [], "terms must hold at least one Term"),
    ],
)
def test_errors_name_the_argument(change, words):
    with pytest.raises((ValueError, TypeError), match=words):
        hk.hierarchical_contrastive_loss(change(torch.ones(5, 3), torch.ones(5, 3)), reduction="none")
