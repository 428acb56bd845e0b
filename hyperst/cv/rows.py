"""The rows of a cross-validation's table: configurations, and the paper's ablation of one of them."""

from __future__ import annotations

from collections.abc import Sequence

from hyperst.config import RunConfig, with_ablation
from hyperst.model.alignment import ABLATION_FIELDS

__all__ = ["ablation_rows", "require_comparable"]

_SHARED = ("target", "n_genes", "gene_selection", "min_counts")


def ablation_rows(configs: dict[str, RunConfig], ablations: Sequence[str]) -> dict[str, RunConfig]:
    """Each configuration with each ablation; "all" stands for every row of the paper's table.

    With a single configuration rows are called as the ablation, else CONFIGURATION+ABLATION. Without ablations they are the
    configurations.

    Raises:
        ValueError: no such ablation.

    >>> list(ablation_rows({"cpu": RunConfig()}, ["all"]))[:3]
    ['full', 'no_gene_image_hea', 'no_hea']
    """
    if not ablations:
        return dict(configs)
    names = list(ABLATION_FIELDS) if "all" in ablations else list(dict.fromkeys(ablations))
    return {
        ablation if len(configs) == 1 else f"{name}+{ablation}": with_ablation(config, ablation)
        for name, config in configs.items()
        for ablation in names
    }


def require_comparable(rows: dict[str, RunConfig]) -> None:
    """Raise ValueError unless all rows predict the same genes of the same spots on the same scale."""
    first, *others = rows
    for name in others:
        for key in (*_SHARED, "feature_key"):
            one, other = (getattr(rows[row].data, key) for row in (first, name))
            if one != other:
                raise ValueError(
                    f"data.{key} is {one!r} in row {first} and {other!r} in row {name}: their scores cannot be compared; use one "
                    "value in all configurations"
                )
