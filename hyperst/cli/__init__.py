"""The ``hyperst`` command."""

from hyperst.cli.commands import app, main

__all__ = ["app", "main"]
