"""Numbers, dtypes, devices and shapes that public functions and modules accept, and what they say to others."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import hyperst_kernels as hk


def pairs(n: int = 6, d: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return x, torch.cat([y, x[:1] + 1e-6])  # with a near pair


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64])
def test_scalars_of_numpy_are_numbers(kind):
    x, y = pairs()
    one, two = kind(1), kind(2)
    torch.testing.assert_close(hk.distance(x, x + 1, two), hk.distance(x, x + 1, 2.0))
    torch.testing.assert_close(hk.contrastive_loss(x, y, two, two), hk.contrastive_loss(x, y, 2.0, 2.0))
    torch.testing.assert_close(hk.entailment_loss(x, x + 1, two, eta=one), hk.entailment_loss(x, x + 1, 2.0))
    term = hk.Term(x.requires_grad_(), y, two, "both", one, two)
    got, _ = hk.hierarchical_contrastive_loss([term], two, two)
    want, _ = hk.hierarchical_contrastive_loss([hk.Term(x, y, 2.0, "both", 1.0, 2.0)], 2.0, 2.0)
    torch.testing.assert_close(got, want)
    features = {name: x for name in ("image_spot", "image_niche", "gene_spot", "gene_niche")}
    weighted = hk.HierarchicalAlignmentLoss(contrastive_weight=two, entailment_weight=one)
    got = weighted(features, one, two)["loss"]
    want = hk.HierarchicalAlignmentLoss(contrastive_weight=2.0, entailment_weight=1.0)(features, 1.0, 2.0)["loss"]
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("c", [np.float32(2), np.float64(2), np.array(2.0)])
def test_scalars_of_numpy_compile(c):
    x = pairs()[0]
    compiled = torch.compile(lambda x: hk.distance(x, x + 1, c), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), hk.distance(x, x + 1, 2.0))
    torch.testing.assert_close(hk.distance(x, x + 1, c), hk.distance(x, x + 1, 2.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: hk.distance(x, x), "x must be a floating tensor .* got torch.float8_e4m3fn"),
        (lambda x: hk.contrastive_loss(x, x), "queries must be a floating tensor .* got torch.float8_e4m3fn"),
        (lambda x: hk.similarity(x, x), "queries must be a floating tensor .* got torch.float8_e4m3fn"),
        (lambda x: hk.centroid(x), "x must be a floating tensor .* got torch.float8_e4m3fn"),
    ],
)
def test_float8_is_refused_by_name(call, words):
    with pytest.raises(TypeError, match=words):
        call(torch.ones(3, 2).to(torch.float8_e4m3fn))


@pytest.mark.parametrize(
    ("loss", "features", "words"),
    [
        (hk.HierarchicalAlignmentLoss((), ()), {}, "features must hold at least one tensor, got none"),
        (
            hk.HierarchicalAlignmentLoss((), (("a", "b", 1.0, 1.0),)),
            {"a": torch.ones(0, 3), "b": torch.ones(0, 3)},
            r"features\['a'\] must hold at least one row, got shape \(0, 3\)",
        ),
        (
            hk.HierarchicalAlignmentLoss((("a", "b", 1.0),), ()),
            {"a": torch.ones(0, 3), "b": torch.ones(0, 3)},
            r"features\['a'\] must hold at least one row",
        ),
    ],
)
def test_nothing_to_align_is_refused_by_name(loss, features, words):
    with pytest.raises(ValueError, match=words):
        loss(features, 1.0, 1.0)


X = torch.ones(3, 2)
META = torch.ones(3, 2, device="meta")
ALIGNED = hk.HierarchicalAlignmentLoss((("a", "b", 1.0),), ())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: hk.distance(X, META), "tensors must be on one device, got x on cpu, y on meta"),
        (lambda: hk.parallel_transport(X, X, META), "one device, got x on cpu, y on cpu, v on meta"),
        (lambda: hk.pairwise_distance(X, META), "one device, got x on cpu, y on meta"),
        (lambda: hk.similarity(X, META), "one device, got queries on cpu, keys on meta"),
        (lambda: hk.similarity(X, META, geometry="cosine"), "one device, got queries on cpu, keys on meta"),
        (lambda: hk.contrastive_loss(X, META), "one device, got queries on cpu, keys on meta"),
        (lambda: hk.entailment_loss(X, META), "one device, got parent on cpu, child on meta"),
        (
            lambda: hk.hierarchical_contrastive_loss([hk.Term(X, X), hk.Term(META, META)]),
            r"one device, got terms\[0\].queries on cpu, terms\[1\].queries on meta",
        ),
        (lambda: hk.distance(X, X, META[0, 0]), "c must hold numbers, got a tensor on device meta beside one on cpu"),
        (lambda: hk.contrastive_loss(X, X, 1.0, META[0, 0]), "logit_scale must hold numbers"),
        (lambda: hk.contrastive_loss(X, X, weights=META[:, 0]), "weights must hold numbers"),
        (lambda: hk.contrastive_loss(X, X, exclude_ids=META[:, 0].long()), "exclude_ids must hold numbers"),
        (lambda: hk.centroid(X, weights=META[:, 0]), "weights must hold numbers"),
    ],
)
def test_tensors_lie_on_one_device(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("value", [1e-46, 1e-40, 1e39])
@pytest.mark.parametrize("kind", [float, np.float64, lambda v: torch.tensor(v, dtype=torch.float64)])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda v: hk.distance(X, X, v), "c"),
        (lambda v: hk.pairwise_distance(X, X, v), "c"),
        (lambda v: hk.contrastive_loss(X, X, v), "c"),
        (lambda v: hk.contrastive_loss(X, X, 1.0, v), "logit_scale"),
        (lambda v: hk.contrastive_loss(X, X, query_scale=v), "query_scale"),
        (lambda v: hk.entailment_loss(X, X, eta=v), "eta"),
        (lambda v: hk.half_aperture(X, min_radius=v), "min_radius"),
    ],
)
def test_numbers_that_float32_does_not_hold(call, name, kind, value):
    with pytest.raises(ValueError, match=f"{name} must lie between 1.18e-38 and 3.4e.38 in torch.float32, got 1e"):
        call(kind(value))


def test_numbers_that_float64_holds():
    assert hk.distance(X.double(), X.double(), 1e-46).sum() == 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: hk.contrastive_loss(X, X, exclude_ids=[1, 2, 3]),
            TypeError,
            "exclude_ids must be a torch.Tensor .* list",
        ),
        (
            lambda: hk.contrastive_loss(X, X, exclude_ids=torch.ones(3, dtype=torch.bool)),
            ValueError,
            "exclude_ids must be integers .* got torch.bool",
        ),
        (
            lambda: hk.contrastive_loss(X, X, exclude_ids=torch.ones(3, dtype=torch.complex64)),
            ValueError,
            "exclude_ids must be integers .* got torch.complex64",
        ),
        (
            lambda: hk.contrastive_loss(X, X, query_scale=np.array([2.0, 3.0])),
            ValueError,
            r"query_scale must be a number or a 0-d tensor, got shape \(2,\)",
        ),
        (lambda: hk.distance(X, X, torch.tensor(1j)), TypeError, "c must be a real number, got torch.complex64"),
        (lambda: hk.distance(X, X, torch.tensor(True)), TypeError, "c must be a real number, got torch.bool"),
        (lambda: hk.LorentzLift(0), ValueError, "dim must be an integer of at least 1, got 0"),
        (lambda: hk.LorentzLift(-3), ValueError, "dim must be an integer of at least 1, got -3"),
        (lambda: hk.LorentzLift(2.5), ValueError, "dim must be an integer of at least 1, got 2.5"),
        (
            lambda: hk.LorentzLift(4, curvature_bounds=(0.1, math.inf)),
            ValueError,
            "curvature_bounds must be positive and finite, got inf",
        ),
        (
            lambda: hk.LorentzLift(4, curvature_bounds=(0.0, 2.0)),
            ValueError,
            "curvature_bounds must be positive and finite, got 0.0",
        ),
        (lambda: hk.LorentzLift(4, curvature="1"), TypeError, "curvature must be a float .* got str"),
        (lambda: hk.LorentzLift(4, curvature=20.0), ValueError, "curvature must lie within curvature_bounds"),
        (lambda: ALIGNED({"a": torch.tensor(1.0), "b": X}, 1.0, 1.0), ValueError, r"features\['a'\] must have shape"),
        (
            lambda: ALIGNED({"a": X, "b": [1.0]}, 1.0, 1.0),
            TypeError,
            r"features\['b'\] must be a torch.Tensor, got list",
        ),
        (
            lambda: hk.hierarchical_contrastive_loss([hk.Term(X, X)], weightz=1),
            TypeError,
            r"^hierarchical_contrastive_loss",
        ),
        (
            lambda: hk.hierarchical_contrastive_loss([hk.Term(X, X, "1")]),
            TypeError,
            r"terms\[0\].weight must be a float or a 0-d tensor, got str",
        ),
        (
            lambda: hk.HierarchicalAlignmentLoss((("a", "b", "1"),), ()),
            TypeError,
            r"contrastive\[0\].weight must be a float .* got str",
        ),
        (
            lambda: hk.HierarchicalAlignmentLoss((("a", "b", 1.0, "columns"),), ()),
            ValueError,
            r"contrastive\[0\].directions must be one of .* got 'columns'",
        ),
        (
            lambda: hk.HierarchicalAlignmentLoss((), (("a", "b", -1.0, 1.0),)),
            ValueError,
            r"entailment\[0\].eta must be positive and finite, got -1.0",
        ),
        (lambda: hk.HierarchicalAlignmentLoss(min_radius=0.0), ValueError, "min_radius must be positive and finite"),
        (lambda: hk.HierarchicalAlignmentLoss(entailment_weight="1"), TypeError, "entailment_weight must be a float"),
        (lambda: hk.EntailmentLoss(eta=-1), ValueError, "eta must be positive and finite, got -1"),
        (lambda: hk.EntailmentLoss(min_radius=math.nan), ValueError, "min_radius must be positive and finite, got nan"),
        (lambda: hk.entailment_loss([1.0], X), TypeError, "parent must be a torch.Tensor, got list"),
        (lambda: hk.HyperbolicContrastiveLoss(precision="x"), ValueError, "precision must be one of .* got 'x'"),
        (lambda: hk.HyperbolicContrastiveLoss(-1.0), ValueError, "curvature must be positive and finite, got -1.0"),
        (lambda: hk.HyperbolicContrastiveLoss(torch.ones(2)), ValueError, r"curvature must be a number .* \(2,\)"),
        (lambda: hk.HyperbolicContrastiveLoss("1"), TypeError, "curvature must be a float .* got str"),
        (
            lambda: hk.similarity(X, X, input="bogus", geometry="euclidean"),
            ValueError,
            "input must be one of .* got 'bogus'",
        ),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_without_terms_there_is_nothing_to_lose():
    parts = hk.HierarchicalAlignmentLoss((), ())({"image_spot": torch.ones(2, 3)}, 1.0, 1.0)
    assert parts["loss"] == 0


def test_a_mean_over_no_rows_is_refused():
    with pytest.raises(ValueError, match="parent and child must hold at least one row"):
        hk.entailment_loss(torch.ones(1, 3), torch.ones(0, 3))
