"""How well the noise of the counts lets anything predict them: a ceiling of the correlation, by count splitting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyperst.data import Section, Target, align_genes, transform
from hyperst.metrics import per_gene_pearson

__all__ = ["noise_ceiling"]


def noise_ceiling(
    section: Section, genes: Sequence[str] | np.ndarray, target: Target, *, n_splits: int = 10, seed: int = 0
) -> np.ndarray:
    """Largest correlation with the measured expression that a prediction of the true means could reach, for each gene.

    Every count is split into two halves, of which each molecule goes to either by chance. The halves of Poisson counts are
    independent given their mean (Neufeld et al., Biostatistics 25:270, 2024), so the correlation r of the halves, both on the
    target's scale, mean over ``n_splits``, is the reliability of half the depth. That of the whole depth is 2 r / (1 + r)
    (Spearman, Brit. J. Psychol. 3:271, 1910; Brown, ibid. 296), and the correlation of truth and measurement is its root.

    What varies more than Poisson counts do counts as truth here, so the ceiling is rather too high than too low.

    Args:
        genes: names of genes that the section has measured.
        target: scale of the expression, see :func:`hyperst.data.transform`.

    Returns:
        float64 (gene,), 0 to 1: 0 where the halves do not go together; NaN where a gene is constant in every split.

    >>> from tempfile import mkdtemp
    >>> from hyperst.data import read_section
    >>> from hyperst.synthetic import write_tissue
    >>> section = read_section(write_tissue(mkdtemp(), seed=0, n_rows=6, n_cols=6))
    >>> noise_ceiling(section, section.genes[:2], "log1p_cp10k").round(1)
    array([0.9, 0.3])
    """
    random = np.random.default_rng(seed)
    counts = align_genes(section, genes).astype(np.int64)
    others = np.rint(section.library_size).astype(np.int64) - counts.sum(axis=1)
    correlations = []
    for _ in range(n_splits):
        half, half_others = random.binomial(counts, 0.5), random.binomial(others, 0.5)
        halves = ((half, half_others), (counts - half, others - half_others))
        one, other = (transform(own.astype(np.float64), own.sum(axis=1) + rest, target) for own, rest in halves)
        correlations.append(per_gene_pearson(one, other))
    found = np.asarray(correlations)
    n_defined = np.isfinite(found).sum(axis=0)
    reliability = np.where(n_defined > 0, np.nansum(found, axis=0) / np.maximum(n_defined, 1), np.nan)
    positive = np.where(reliability < 0, 0.0, reliability)  # halves that disagree show no signal at all
    return np.sqrt(2 * positive / (1 + positive))
