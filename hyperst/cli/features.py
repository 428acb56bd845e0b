"""Options of precomputed features, and sections with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hyperst.data import Section

__all__ = ["Features", "LevelFeatures", "Levels", "NicheFeatures", "level_widths", "wider_features", "with_features"]

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

LevelFeatures = Annotated[
    list[str] | None,
    typer.Option("--level-features", help="The same for a level of --level, as NAME=PLACE; repeat for more."),
]
Levels = Annotated[
    list[str] | None,
    typer.Option(
        "--level",
        help="A level wider than the niche, as NAME=UM such as region=616; repeat for more, from narrow to wide.",
    ),
]


def _parsed(given: list[str] | None, option: str) -> dict[str, str]:
    """What stands behind the name of each level, of options NAME=VALUE.

    Raises:
        typer.BadParameter: an option of another form, or a name twice.
    """
    found: dict[str, str] = {}
    for entry in given or []:
        name, equals, value = entry.partition("=")
        if not (name and equals and value):
            raise typer.BadParameter(f"{entry!r} is not of the form NAME=VALUE", param_hint=option)
        if name in found:
            raise typer.BadParameter(f"level {name!r} is given twice", param_hint=option)
        found[name] = value
    return found


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


def wider_features(given: list[str] | None) -> dict[str, Path]:
    """Places of the features of wider levels, by name."""
    return {name: Path(place) for name, place in _parsed(given, "--level-features").items()}


def level_widths(given: list[str] | None) -> dict[str, float] | None:
    """Widths in um of wider levels, by name; None where no option is given. Raises typer.BadParameter for what is no number."""
    found = {}
    for name, value in _parsed(given, "--level").items():
        try:
            found[name] = float(value)
        except ValueError as error:
            raise typer.BadParameter(
                f"{value!r} is no width in um, such as region=616", param_hint="--level"
            ) from error
    return found or None
