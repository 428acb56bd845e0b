"""SIGTERM ends processes that train together as Ctrl-C does, and the first of these signals alone counts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning

__all__ = ["EXIT_CODE", "SIGNALS", "InterruptibleLoop", "Interruption", "interruptible"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODE = 130  # what a shell reports for Ctrl-C


class Interruption:
    """Handler of :data:`SIGNALS` that raises KeyboardInterrupt at the first.

    Ctrl-C reaches a process from the terminal and from its parent: the second must not break what the first cleans up.
    """

    def __init__(self) -> None:
        self.seen = False
        self.held = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.seen:
            self.seen = True
            if not self.held:
                raise KeyboardInterrupt

    def release(self) -> None:
        """Raise what came while it was ``held``."""
        self.held = False
        if self.seen:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Handle :data:`SIGNALS` inside the block, but those that are ignored or that a program handles itself.

    Python allows this in the main thread only; in another one nothing is handled.
    """
    interruption = Interruption()
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
    usual = [number for number, handler in handlers.items() if handler in (signal.SIG_DFL, signal.default_int_handler)]
    for number in usual:
        signal.signal(number, interruption)
    try:
        yield interruption
    finally:
        for number in usual:
            signal.signal(number, handlers[number])


class InterruptibleLoop(lightning.Callback):
    """Keep the handler of SIGTERM that Lightning replaces when it begins to train, and raise at a batch what was lost.

    Lightning's own broadcasts from inside the handler, amid whatever the processes exchange: they wait for each other for ever.
    A KeyboardInterrupt is lost where Python drops errors, as in what it calls at the fork of a loader's process.
    """

    def __init__(self) -> None:
        self.handler: Any = None

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.handler not in (None, signal.getsignal(signal.SIGTERM)):  # None: not set from Python
            signal.signal(signal.SIGTERM, self.handler)

    def on_train_batch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule, *batch: Any) -> None:
        if isinstance(self.handler, Interruption) and self.handler.seen:
            raise KeyboardInterrupt
