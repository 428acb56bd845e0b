"""Counting for progress bars."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Count"]


class Count:
    """Adds up the spots of several sections for one progress bar, which is told (0, all) first, or how many are ``done``.

    >>> count = Count(print, 5)
    0 5
    >>> count.add(3)
    3 5
    """

    def __init__(self, tell: Callable[[int, int], None] | None, total: int, done: int = 0) -> None:
        self.tell, self.total, self.done = tell, total, done
        self.add(0)

    def add(self, spots: int) -> None:
        """Count these spots too."""
        self.done += spots
        if self.tell is not None:
            self.tell(self.done, self.total)

    def finish(self) -> None:
        """Count what is left."""
        self.add(self.total - self.done)
