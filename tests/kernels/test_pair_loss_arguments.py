"""Arguments of the losses of all pairs: what is refused, in which words, and what becomes of what cannot be looked at."""

from __future__ import annotations

import pytest
import torch

import hyperst_kernels as hk
from tests.kernels.test_pair_loss import inputs_of

X, Y, IDS = torch.ones(3, 2), torch.ones(4, 2), (torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2, 3]))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: hk.contrastive_loss(X, Y, loss="siglip"), ValueError, "loss must be one of 'softmax', 'sigmoid'"),
        (lambda: hk.contrastive_loss(X, Y, positives=IDS[0]), TypeError, "positives must be .query_ids, key_ids."),
        (
            lambda: hk.contrastive_loss(X, Y, positives=(IDS[1], IDS[0])),
            ValueError,
            r"query_ids must be integers of shape .3,",
        ),
        (lambda: hk.contrastive_loss(X, Y, positives=(IDS[0], IDS[1].float())), ValueError, "key_ids must be integers"),
        (lambda: hk.contrastive_loss(X, Y, positives=IDS, exclude_ids=IDS[1]), ValueError, "exclude_ids must be None"),
        (lambda: hk.contrastive_loss(X, Y, positives=(IDS[0] + 9, IDS[1])), ValueError, "no key has the id of a query"),
        (lambda: hk.contrastive_loss(X, Y, positives=IDS, reduction="none"), ValueError, "need directions='rows'"),
        (lambda: hk.contrastive_loss(X, Y, positives=IDS, weights=torch.ones(3)), ValueError, "need directions='rows'"),
        (lambda: hk.contrastive_loss(X, Y, positives=(*IDS, IDS[0])), TypeError, "got tuple of 3"),
        (
            lambda: hk.contrastive_loss(X, Y, 1.0, torch.ones(2)),
            ValueError,
            r"of shape .3,., one for each query, got shape .2,",
        ),
        (
            lambda: hk.contrastive_loss(X, Y, 1.0, torch.tensor([1.0, -1, 1])),
            ValueError,
            "logit_scale must lie .* index 1",
        ),
        (
            lambda: hk.contrastive_loss(X, Y, 1.0, torch.full((3,), 1e-50).double()),
            ValueError,
            "logit_scale must lie between",
        ),
        (
            lambda: hk.contrastive_loss(X, Y, 1.0, torch.tensor([True] * 3)),
            TypeError,
            "logit_scale must hold real numbers",
        ),
        (lambda: hk.contrastive_loss(X, Y, logit_bias=float("nan")), ValueError, "logit_bias must be a finite number"),
        (
            lambda: hk.contrastive_loss(X, Y, logit_bias=1e300, loss="sigmoid"),
            ValueError,
            "logit_bias must be a finite number",
        ),
        (
            lambda: hk.contrastive_loss(X, Y, logit_bias=torch.zeros((), device="meta")),
            ValueError,
            "logit_bias must hold numbers",
        ),
        (lambda: hk.hierarchical_contrastive_loss([X, Y]), TypeError, r"terms\[0\] must be a Term, got Tensor"),
        (
            lambda: hk.hierarchical_contrastive_loss([hk.Term(X, Y, float("nan"))]),
            ValueError,
            r"terms\[0\].weight must be a finite",
        ),
        (
            lambda: hk.hierarchical_contrastive_loss([hk.Term(X, Y), hk.Term(X, Y, 1.0, "row")]),
            ValueError,
            r"terms\[1\].directions must be",
        ),
        (
            lambda: hk.similarity(X, Y[:, :1], geometry="angle"),
            ValueError,
            "queries and keys must have the same number",
        ),
        (lambda: hk.contrastive_loss(X, Y, label_smoothing=1.0), ValueError, "label_smoothing must be .* got 1.0"),
        (
            lambda: hk.contrastive_loss(X, Y, label_smoothing=float("nan")),
            ValueError,
            "label_smoothing must be .* got nan",
        ),
        (
            lambda: hk.contrastive_loss(X, Y, label_smoothing=torch.zeros(3)),
            TypeError,
            "label_smoothing must be .* Tensor",
        ),
        (
            lambda: hk.contrastive_loss(X, Y, label_smoothing=0.1, loss="sigmoid"),
            ValueError,
            "label_smoothing needs loss='softmax', got 'sigmoid'",
        ),
        (lambda: hk.contrastive_loss(X, Y, debias=1.0), ValueError, "debias must be .* got 1.0"),
        (lambda: hk.contrastive_loss(X, Y, debias="0.1"), TypeError, "debias must be .* got str"),
        (
            lambda: hk.contrastive_loss(X, Y, debias=torch.ones(2)),
            ValueError,
            r"debias must be .* .3,., .* got shape .2,",
        ),
        (
            lambda: hk.contrastive_loss(X, Y, debias=torch.tensor([0.1, 0.2, -0.1])),
            ValueError,
            "debias must hold .* got -0.1 at index 2",
        ),
        (
            lambda: hk.contrastive_loss(X, Y, debias=torch.full((3,), 0.1, requires_grad=True)),
            ValueError,
            "debias has no gradient",
        ),
        (
            lambda: hk.contrastive_loss(X, Y, debias=torch.full((3,), 0.1), positives=IDS),
            ValueError,
            "need directions='rows'",
        ),
        (lambda: hk.contrastive_loss(X, Y, debias=0.1, loss="sigmoid"), ValueError, "debias needs loss='softmax'"),
        (lambda: hk.contrastive_loss(X, Y, margin=0.1, loss="sigmoid"), ValueError, "margin needs loss='softmax'"),
        (
            lambda: hk.contrastive_loss(X, Y, margin=0.1, positives=IDS),
            ValueError,
            "margin must be None where positives",
        ),
        (lambda: hk.contrastive_loss(X, Y, margin=torch.tensor(0.1)), TypeError, "margin must be a float, got Tensor"),
        (lambda: hk.contrastive_loss(X, Y, margin=float("inf")), ValueError, "margin must be a finite number"),
        (lambda: hk.HyperbolicContrastiveLoss(margin="0"), TypeError, "margin must be a float, got str"),
        (lambda: hk.HyperbolicContrastiveLoss(debias=2.0), ValueError, "debias must be .* got 2.0"),
        (lambda: hk.HyperbolicContrastiveLoss(loss="sigmoid", debias=0.1), ValueError, "debias needs loss='softmax'"),
        (lambda: hk.HyperbolicContrastiveLoss(label_smoothing=-0.1), ValueError, "label_smoothing must be .* got -0.1"),
        (lambda: hk.contrastive_loss(X, Y, logit_bias="0"), TypeError, "logit_bias must be a float"),
        (lambda: hk.HyperbolicContrastiveLoss(use_horovod=True), ValueError, "use_horovod must be False"),
    ],
)
def test_errors_say_what_is_needed(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_numbers_of_one_entry_do_not_change_the_shape(shape):
    bias, weight = torch.zeros(shape), torch.ones(shape)
    for loss in ("softmax", "sigmoid"):
        assert hk.contrastive_loss(X, Y, logit_bias=bias, loss=loss).shape == ()
    assert hk.hierarchical_contrastive_loss([hk.Term(X, Y, weight)], logit_bias=bias)[0].shape == ()


def test_what_cannot_be_refused_is_nan():
    """Inside torch.compile numbers cannot be looked at."""
    x, y = inputs_of(4, 5, 3, 13, 1.0, False)[:2]

    def compiled(function):
        return torch.compile(function, fullgraph=True, backend="eager")

    assert compiled(lambda s: hk.contrastive_loss(x, y, 1.0, s))(torch.tensor(-1.0)).isnan()
    each = torch.tensor([1.0, -1.0, 1.0, 1.0])
    found = compiled(lambda s: hk.contrastive_loss(x, y, 1.0, s, loss="sigmoid", reduction="none"))(each)
    assert found.isnan().tolist() == [False, True, False, False]
    for bad in (torch.tensor(1.0), torch.tensor(-0.1)):
        assert compiled(lambda t: hk.contrastive_loss(x, y, debias=t))(bad).isnan()
    ids = torch.arange(4), torch.arange(5)
    for shift, nothing in ((0, False), (100, True)):
        loss = compiled(lambda i, k: hk.contrastive_loss(x, y, positives=(i, k)))(ids[0], ids[1] + shift)
        assert bool(loss.isnan()) == nothing


@pytest.mark.parametrize(
    "options",
    [{}, {"loss": "sigmoid", "logit_bias": 3.0}, {"geometry": "angle"}, {"logit_scale": torch.full((9,), 5.0)}],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_excluded_ids_of_any_integers(options, dtype):
    q, k = (x.to(dtype) for x in inputs_of(9, 12, 3, 12, 1.0, False)[:2])
    ids = torch.arange(12) % 5
    want = hk.contrastive_loss(q, k, exclude_ids=ids, **options)
    assert not torch.equal(want, hk.contrastive_loss(q, k, **options))
    for integer in (torch.int32, torch.int16, torch.uint8, torch.uint16):
        assert torch.equal(hk.contrastive_loss(q, k, exclude_ids=ids.to(integer), **options), want)
    every_other = torch.stack([ids, ids + 9], 1)[:, 0]  # not in one piece
    assert torch.equal(hk.contrastive_loss(q, k, exclude_ids=every_other, **options), want)
