"""Options of precomputed features, and sections with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hyperst.data import Section

__all__ = ["Features", "NicheFeatures", "with_features"]

Features = Annotated[
    Path | None,
    typer.Option(
        "--features",
        help="Precomputed image features (.h5 of HEST, TRIDENT or CLAM) in place of crops: a file, or a folder with NAME.h5.",
    ),
]
NicheFeatures = Annotated[
    Path | None,
    typer.Option("--niche-features", help="The same for the niches. Default: the mean over the spots of a niche."),
]


def with_features(
    sections: list[Section],
    features: Path | None,
    niche_features: Path | None,
    key: str | None,
    wider: Mapping[str, Path] | None = None,
) -> list[Section]:
    """Sections with the features that are given, as ``key``; ``wider`` those of levels wider than the niche, by name.

    Raises:
        typer.BadParameter: the options do not go together.
        FileNotFoundError, ValueError: see :func:`hyperst.data.attach_features`.
    """
    from hyperst.data import attach_features

    wider = wider or {}
    if features is None:
        for given, option in ((niche_features, "--niche-features"), (wider, "--level-features")):
            if given:
                raise typer.BadParameter("goes with --features", param_hint=option)
        return sections
    if key is None:
        raise typer.BadParameter("the run was trained on crops of the image", param_hint="--features")
    for place in (features, niche_features, *wider.values()):
        if place is not None and place.is_file() and len(sections) > 1:
            raise typer.BadParameter(
                f"{place} is one file for {len(sections)} sections; give a folder with a file per section",
                param_hint="--features",
            )
    return [attach_features(section, features, niche_features, wider_features=wider, key=key) for section in sections]
