"""Hyperbolic contrastive losses, without the matrix of all pairs. See `docs/explanation/contrastive.md` for the derivation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyperst_kernels import _checks
from hyperst_kernels.loss_terms import Options, Term, losses_of

__all__ = ["Term", "contrastive_loss", "hierarchical_contrastive_loss"]


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    c: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    loss: str = "softmax",
    logit_bias: float | Tensor | None = None,
    positives: tuple[Tensor, Tensor] | None = None,
    input: str = "tangent",
    geometry: str = "lorentz",
    directions: str = "both",
    exclude_ids: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    precision: str | None = None,
    deterministic: bool = True,
    label_smoothing: float = 0.0,
    debias: float | Tensor | None = None,
    margin: float | None = None,
    query_scale: float | Tensor = 1.0,
    key_scale: float | Tensor = 1.0,
) -> Tensor:
    """Contrastive loss with logits -logit_scale * geodesic distance; ``keys[i]`` is the positive of ``queries[i]``.

    InfoNCE, several positives as in SupCon, or the sigmoid loss of SigLIP, never with the matrix of all pairs in memory.

    Args:
        queries: (n, d), any floating dtype; computed in float32, or float64 if given.
        keys: (m, d), m >= n; the keys beyond n are negatives only (a memory bank).
        c: curvature is -c, c > 0; a float or a 0-d tensor that may require grad. In a product of k spaces a tensor (k,), one for
            each factor.
        logit_scale: inverse temperature > 0, a number likewise, or (n,), one for each query.
        loss: "softmax", or "sigmoid": the sum over all pairs of softplus(-y (logit_bias - logit_scale d)), y = 1 for positives
            and -1 for the others, divided by n; ``directions`` has no effect on it.
        logit_bias: float or 0-d tensor, 0 for None. In a softmax it shifts all logits alike and has no effect. Of a sigmoid it is
            the logit of two equal points, and has to be positive: about the logit scale times the distance at which a pair is as
            likely a positive as not. SigLIP's -10 is for cosines, which are up to 1, and would pin every positive at 10.
        positives: None, or (query_ids (n,), key_ids (m,)), integers: every key with the query's id is a positive, for any n and
            m. The mean over positives stands outside the logarithm. Queries and keys without a positive have no loss, and
            are not counted in the mean; "none" gives 0 for them.
        input: "tangent" (encoder output, taken as tangent vectors at the origin) or "lorentz" (space components).
        geometry: "lorentz", or the same loss with "euclidean" distance or "cosine" similarity (then c is unused), or with the
            exterior "angle" at the query in place of the distance, or in a product of hyperbolic spaces: features are cut into k
            factors of d / k neighbouring numbers, k being the length of c, and the distance is the sum ("l1-product") or the root
            of the sum of squares ("l2-product", the geodesic one) of those in the factors.
        directions: "both" averages query-to-key and key-to-query; "rows" is query-to-key alone.
        exclude_ids: (m,) integers; a key with the same id as the query's own is no negative of it.
        weights: (n,) weights of the samples, finite and >= 0; the mean divides by their sum, and is 0 (with zero gradients)
            where all are 0. Where they cannot be looked at, a negative one gives NaN.
        reduction: "mean", "sum" (0-d) or "none" (n,).
        precision: the matrix product a GPU kernel may use; has no effect elsewhere.
        deterministic: False lets a GPU add the gradient in whatever order its programs finish: less work, and another
            last digit from run to run; no difference where that is no faster. Refused under
            ``torch.use_deterministic_algorithms``.
        label_smoothing: the part of a softmax's target, from 0 to below 1, that goes to all K pairs of a row alike, as in
            ``torch.nn.functional.cross_entropy``: 1 - label_smoothing of the mean over its positives, and label_smoothing of the
            mean over all K. K counts the positives and negatives that take part, excluded keys not.
        debias: tau_plus, the probability from 0 to below 1 that a negative is a positive in truth, a number or (n,), one for each
            query (and for the key beside it): from the sum over N negatives of e^logit is taken tau_plus N times the mean over
            positives, and the rest divided by 1 - tau_plus. Where that leaves less than N e^lowest, the lowest logit there is,
            it is that number, without a gradient: -2 logit_scale of cosines, -pi logit_scale of angles. Distances have no
            largest, the number is 0, and the row is done with: its loss is that of a row without negatives. It has no gradient.
        margin: None, or a number: a key nearer to the query than its positive by more than this, in units of the distance (or the
            angle), is suspected of being a positive too, and is no negative of it; below 0, so is one farther by less than that.
            Each direction has its own. The choice has no gradient, and needs positives that are not given by ids.
        query_scale, key_scale: factors > 0 of the queries and of the keys, floats or 0-d tensors that may require grad:
            exp(alpha) of a learnable lift, so that encoder output goes straight in.

    One ``logit_scale``, one positive for each query and a softmax over distances are computed in one kernel; everything else
    blockwise, from blocks of the matrix, at 1 to 6 times its cost.

    Returns the loss, 0-d or (n,), in float32 or float64. A single pair with no other key has loss 0.
    Raises TypeError / ValueError for wrong dtypes and shapes, tensors on several devices, an empty batch, c or a scale that
    is not a positive normal number of the loss's dtype, ids of which no key has a query's, or that stand beside ``exclude_ids`` or,
    in "both" directions, beside ``weights`` or "none", and (on the CPU, outside torch.compile) NaN or inf; elsewhere those
    give a NaN loss. RuntimeError where determinism is asked for and refused. Forward-mode and double differentiation raise.

    Source: van den Oord et al. 2018; Desai et al. 2023, section 3.1; Khosla et al. 2020, equation 2 (several positives); Zhai
    et al. 2023, equation 1 (sigmoid); Chuang et al. 2020, equation 8 (debias); Gu et al. 2019 (l2-product); Yoshikawa and Matsubara
    2025 (l1-product).

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> image, gene = torch.randn(8, 16), torch.randn(8, 16)
    >>> bool(contrastive_loss(image, image, logit_scale=10.0) < contrastive_loss(image, gene, logit_scale=10.0))
    True

    Positives that may be wrong, and negatives that may be positives: at a rate, or where they are nearer than the positive.

    >>> plain = contrastive_loss(image, image)
    >>> bool(contrastive_loss(image, image, debias=0.01) < plain < contrastive_loss(image, image, label_smoothing=0.1))
    True
    >>> bool(contrastive_loss(image, gene, margin=0.0) < contrastive_loss(image, gene))
    True

    Two spaces of 8 dimensions, each with a curvature that is learnt.

    >>> c = torch.ones(2, requires_grad=True)
    >>> contrastive_loss(image, gene, c, geometry="l1-product").backward()
    >>> c.grad.shape
    torch.Size([2])
    """
    options = Options(
        loss, logit_bias, positives, input, geometry, exclude_ids, weights, reduction, precision, deterministic,
        label_smoothing, debias, margin,
    )  # fmt: skip
    (found,) = losses_of([Term(queries, keys, 1.0, directions, query_scale, key_scale)], c, logit_scale, options)
    return found


def hierarchical_contrastive_loss(
    terms: Sequence[Term],
    c: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    loss: str = "softmax",
    logit_bias: float | Tensor | None = None,
    positives: tuple[Tensor, Tensor] | None = None,
    input: str = "tangent",
    geometry: str = "lorentz",
    exclude_ids: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    precision: str | None = None,
    deterministic: bool = True,
    label_smoothing: float = 0.0,
    debias: float | Tensor | None = None,
    margin: float | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Weighted sum of `contrastive_loss` over several pairs of views, and the unweighted loss of each.

    All terms are computed together. Features that occur in several, being the same tensor with the same scale, are
    prepared once; all have one d. The options are those of `contrastive_loss`, shared by all terms, except directions and
    scales, which each term has. Terms with a logit scale of their own are computed one by one.

    Returns 0-d losses, or (n,) for ``reduction="none"`` and terms of one n. Raises what `contrastive_loss` does, naming the
    term, and ValueError for no terms and for features of different d.

    Source: Zhang et al. 2025, section 3; Pal et al. 2025.

    >>> x = torch.eye(4)
    >>> total, parts = hierarchical_contrastive_loss([Term(x, x, 0.5), Term(x, 2 * x, 0.25, "rows")])
    >>> bool(torch.isclose(total, 0.5 * parts[0] + 0.25 * parts[1]))
    True
    """
    if not terms:
        raise ValueError("terms must hold at least one Term, got none")
    for t, term in enumerate(terms):
        if not isinstance(term, (tuple, list)):
            raise TypeError(f"terms[{t}] must be a Term, got {type(term).__name__}")
    terms = [Term(*term) for term in terms]
    for t, term in enumerate(terms):
        _checks.finite_number(f"terms[{t}].weight", term.weight)
    options = Options(
        loss, logit_bias, positives, input, geometry, exclude_ids, weights, reduction, precision, deterministic,
        label_smoothing, debias, margin,
    )  # fmt: skip
    losses = losses_of(terms, c, logit_scale, options)
    if any(found.shape != losses[0].shape for found in losses):
        sizes = ", ".join(str(found.shape[0]) for found in losses)
        raise ValueError(f"reduction must be 'mean' or 'sum' for terms of several n, got 'none' with n = {sizes}")
    return weighted_sum(losses, [term.weight for term in terms]), losses


def weighted_sum(losses: Sequence[Tensor], weights: Sequence[float | Tensor]) -> Tensor:
    """The sum of losses of one shape, each multiplied with its weight."""
    # numbers are factors as they are: a tensor of them would make a GPU wait
    factors = [
        w.reshape(()).to(found) if isinstance(w, Tensor) else w for w, found in zip(weights, losses, strict=True)
    ]
    return torch.stack([found * factor for found, factor in zip(losses, factors, strict=True)]).sum(0)
