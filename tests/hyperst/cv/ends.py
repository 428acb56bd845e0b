"""Processes that end in every way; nothing is imported here that takes long to start."""

from __future__ import annotations

import os
from typing import Any


def end_as_told(cell: Any, threads: int, sender: Any) -> None:
    """Row "killed" ends as one that the system kills, "done" well, any other as a failure that is told."""
    if cell.row == "killed":
        os._exit(9)
    sender.send(None if cell.row == "done" else "no luck")
