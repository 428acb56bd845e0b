"""The application that the commands belong to, and what it makes of their errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from hyperst.cli.console import print_error

__all__ = ["app"]

_USER_ERRORS = (ValueError, TypeError, OSError, ArithmeticError, ImportError, MemoryError)
_INTERRUPTED = 130  # what a shell reports for Ctrl-C


class _FriendlyGroup(TyperGroup):
    """Turns errors into one message and an exit code; ``--debug`` shows the traceback instead."""

    def invoke(self, ctx: Any) -> Any:  # typer brings its own click
        usual = warnings.formatwarning
        warnings.formatwarning = _plain_warning(usual)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            print_error(error if str(error) else KeyboardInterrupt("interrupted"), hint="no result is half-written")
            raise typer.Exit(_INTERRUPTED) from error
        except _USER_ERRORS as error:
            if ctx.params.get("debug"):
                raise
            print_error(error)
            raise typer.Exit(1) from error
        finally:
            warnings.formatwarning = usual


def _plain_warning(usual: Callable[..., str]) -> Callable[..., str]:
    """What turns a warning of this library into one line without the place in the code; ``usual`` does it for all others."""

    def formatted(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
        return f"warning: {message}\n" if category is UserWarning else usual(message, category, *where, **more)

    return formatted


app = typer.Typer(
    cls=_FriendlyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Gene expression from histology images: train on spatial transcriptomics sections, predict on images alone.",
    epilog="Start with [bold]hyperst demo[/bold]: it needs no data and takes about two minutes.",
)
