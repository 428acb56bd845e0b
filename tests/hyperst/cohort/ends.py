"""Tasks that end in every way; nothing is imported here that takes long to start."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def make() -> Callable[[str], tuple[str, int]]:
    """What returns a task and its process, and ends as one that the system kills at the task "killed"."""

    def do(task: str) -> tuple[str, int]:
        if task == "killed":
            os._exit(9)
        return task, os.getpid()

    return do


def broken() -> Any:
    """A process that cannot begin."""
    raise SystemExit(3)
