"""Processes that end in every way; nothing is imported here that takes long to start."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def cells_that_end_as_told(threads: int) -> Callable[[Any], str | None]:
    """Row "killed" ends as one that the system kills, "done" well, any other as a failure that is told."""

    def do(cell: Any) -> str | None:
        if cell.row == "killed":
            os._exit(9)
        return None if cell.row == "done" else f"no luck with {threads} threads"

    return do
