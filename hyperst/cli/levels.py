"""Options of levels wider than the niche."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["LevelFeatures", "Levels", "level_widths", "wider_features"]

LevelFeatures = Annotated[
    list[str] | None,
    typer.Option(
        "--level-features",
        help="The same for a level wider than the niche (--level, or crop.wider_um of a --config), as NAME=PLACE; repeat for more.",
    ),
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
