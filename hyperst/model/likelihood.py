"""Likelihoods of raw counts: what a network learns from them, and what it then predicts on the target's scale."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import NegativeBinomial

from hyperst.data.targets import Target

__all__ = ["CountLikelihood", "Likelihood"]

Likelihood = Literal["gaussian", "poisson", "negative-binomial"]

_STEP = 0.6  # of the trapezoidal rule, whose error falls with exp(-pi^2 / step): 7e-8
_ENDS = (18.0, 3.5)  # what lies outside is below exp(-18), and below exp(-exp(3.5))
_INVERSE_DISPERSION = (1e-2, 1e4)  # at the start: counts that vary no more than Poisson's have no finite one


class CountLikelihood(nn.Module):
    """Counts k of a gene in a spot with library size L, of mean L p: the network's output is the logit of p, the gene's share.

    "poisson" has variance L p. "negative-binomial" has variance L p + (L p)^2 / theta, with an inverse dispersion theta of each
    gene, which is learnt (Robinson and Smyth, Biostatistics 9:321, 2008; as in Lopez et al., Nat. Methods 15:1053, 2018).

    Args:
        n_genes: number of genes.
        kind: "poisson" or "negative-binomial".
        target: scale of :meth:`expected_target`.

    >>> likelihood = CountLikelihood(2, "poisson", "log2")
    >>> bias = likelihood.initialise(torch.tensor([[1.0, 3.0]]), torch.tensor([8.0]))
    >>> bias.sigmoid()
    tensor([0.1667, 0.3889])
    """

    library_size: Tensor

    def __init__(self, n_genes: int, kind: Likelihood, target: Target) -> None:
        super().__init__()
        self.target = target
        self.log_inverse_dispersion = nn.Parameter(torch.zeros(n_genes)) if kind == "negative-binomial" else None
        self.register_buffer("library_size", torch.ones(()))

    @torch.no_grad()
    def initialise(self, counts: Tensor, library_size: Tensor) -> Tensor:
        """Start from training counts (spot gene) and library sizes (spot,) and return the output (gene,) to start with.

        That is the logit of each gene's share in all counts, of which half a count more is taken so that it is not 0; inverse
        dispersions are those of moments. The median library size is kept for :meth:`expected_target`.

        Raises:
            ValueError: no spot has a count.
        """
        counts, total = counts.double(), library_size.double()
        if not total.sum() > 0:
            raise ValueError(
                "model.likelihood: the training spots have no counts; need a library size above 0 in one of them"
            )
        share = (counts.sum(dim=0) + 0.5) / (total.sum() + 1)
        self.library_size.copy_(total[total > 0].median())
        if self.log_inverse_dispersion is not None:
            mean = total[:, None] * share
            excess = ((counts - mean) ** 2 - mean).sum(dim=0)
            theta = torch.where(excess > 0, (mean**2).sum(dim=0) / excess, math.inf)
            self.log_inverse_dispersion.copy_(theta.clamp(*_INVERSE_DISPERSION).log())
        return share.logit().float()

    def forward(self, output: Tensor, counts: Tensor, library_size: Tensor) -> Tensor:
        """Minus the log likelihood of each count in nats, float64 (spot gene); 0 for a spot without any count.

        Args:
            output: (spot gene), logits of shares. counts: (spot gene), raw. library_size: (spot,), total counts.
        """
        # log gamma of a count of 1e6 is 1e7: in float32 its rounding is as large as what is left of the difference
        counts, total = counts.double(), library_size.double()[:, None]
        empty = total == 0
        log_mean = nn.functional.logsigmoid(output.double()) + torch.where(empty, 1, total).log()
        if self.log_inverse_dispersion is None:
            found = nn.functional.poisson_nll_loss(log_mean, counts, reduction="none") + torch.lgamma(counts + 1)
        else:
            log_theta = self.log_inverse_dispersion.double()
            binomial = NegativeBinomial(log_theta.exp(), logits=log_mean - log_theta, validate_args=False)
            found = -binomial.log_prob(counts)
        return torch.where(empty, 0, found)

    def expected_target(self, output: Tensor) -> Tensor:
        """Expected value (spot gene) of the target of a spot with the median library size of the training spots.

        It is E[ln(1 + c k)], with c = 10^4 / library size for log1p_cp10k, and with c = 1 and over ln 2 for log2: what a mean of
        measured values tends to, below the target of the mean. By ln(1 + x) = int_0^inf (1 - e^(-t x)) e^(-t) / t dt (Frullani),
        it is an integral over the Laplace transform E[e^(-s k)] at s = c t, which both distributions have in closed form.

        Args:
            output: (spot gene), logits of shares; float32 unless it is float64.
        """
        output = output if output.dtype == torch.float64 else output.float()
        total = self.library_size.to(output)
        unit, largest = (1e4 / total, 1e4) if self.target == "log1p_cp10k" else (torch.ones_like(total), float(total))
        # c k is at most `largest`, which tells where the integral begins
        log_t = torch.arange(-math.log1p(largest) - _ENDS[0], _ENDS[1], _STEP, dtype=output.dtype, device=output.device)
        t = log_t.exp()[:, None, None]
        mean = total * output.sigmoid()
        exponent = mean * -torch.expm1(-unit * t)
        if self.log_inverse_dispersion is not None:
            theta = self.log_inverse_dispersion.to(output).exp()
            exponent = theta * torch.log1p(exponent / theta)
        expected = _STEP * (-torch.expm1(-exponent) * torch.exp(-t)).sum(dim=0)
        return expected if self.target == "log1p_cp10k" else expected / math.log(2)
