"""Spots with too few counts to tell what is expressed: left out of gene selection, training and evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from hyperst.data.sections import Section

__all__ = ["MIN_COUNTS", "excluded_spots_message", "take_spots", "with_min_counts"]

MIN_COUNTS = 200
"""Usual least total count (UMI) of a spot. On the log1p_cp10k scale one count of a spot that has only one is 9.2."""

_PER_SPOT = ("counts", "spot_ids", "spot_px", "array_index", "library_size")


def take_spots(section: Section, keep: np.ndarray) -> Section:
    """``section`` with the spots where ``keep``, bool (spot,), is True; its grid stays that of all spots."""
    values: dict[str, Any] = {name: getattr(section, name) for name in _PER_SPOT}
    kept: dict[str, Any] = {name: None if value is None else value[keep] for name, value in values.items()}
    features = {
        name: value[keep] if isinstance(value, np.ndarray) else value.take(keep)
        for name, value in section.features.items()
    }
    return replace(section, **kept, features=features)


def with_min_counts(section: Section, min_counts: int) -> Section:
    """``section`` without the spots whose total count over all genes is below ``min_counts``; 0 keeps all.

    Spots that are left out are named in ``excluded_spots`` of the result, and no longer count as neighbours: the niches of
    those beside them are means over the others.

    Raises:
        ValueError: no spot is left.

    >>> from tempfile import mkdtemp
    >>> from hyperst.data import read_section
    >>> from hyperst.synthetic import write_tissue
    >>> section = read_section(write_tissue(mkdtemp(), seed=0, n_rows=5, n_cols=5))
    >>> median = int(np.median(section.library_size))
    >>> with_min_counts(section, median).n_spots, len(with_min_counts(section, median).excluded_spots)
    (13, 12)
    """
    keep = section.library_size >= min_counts
    if keep.all():
        return section
    if not keep.any():
        raise ValueError(
            f"section {section.name}: all {section.n_spots} spots have fewer than {min_counts} counts (at most "
            f"{section.library_size.max():g}); lower data.min_counts (--min-counts), 0 keeps every spot"
        )
    excluded = tuple(str(name) for name in section.spot_ids[~keep])
    return replace(take_spots(section, keep), excluded_spots=(*section.excluded_spots, *excluded))


def excluded_spots_message(section: Section, min_counts: int) -> str | None:
    """Say how many spots :func:`with_min_counts` has left out of ``section`` and why; None where it left out none."""
    names = section.excluded_spots
    if not names:
        return None
    shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    return (
        f"section {section.name}: {len(names)} of {len(names) + section.n_spots} spots have fewer than {min_counts} counts and "
        f"are left out ({shown})"
    )
