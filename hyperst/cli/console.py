"""What the command line shows: sections, progress, results and errors; on a terminal or in a log file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from hyperst.data import Section
    from hyperst.evaluation import Evaluation
    from hyperst.train import Epoch, TrainingSummary

__all__ = [
    "EpochProgress",
    "SpotProgress",
    "make_console",
    "print_error",
    "print_evaluation",
    "print_sections",
    "print_training",
    "working",
]

_WIDTH_OF_LOGS = 120


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console for the current standard output (or error); wide enough for tables when that is no terminal. A quiet one is mute.

    It reads no markup: what it shows holds names of files, and a folder may be called ``[b]``. Styles are given as such.
    """
    console = Console(stderr=stderr, highlight=False, markup=False, quiet=quiet)
    if console.is_terminal:
        return console
    return Console(stderr=stderr, highlight=False, markup=False, quiet=quiet, width=_WIDTH_OF_LOGS)


def print_error(error: BaseException, hint: str = "run `hyperst --debug ...` to see where it happened") -> None:
    """One clear message on standard error."""
    console = make_console(stderr=True)
    message = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:  # without its number
        message = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if console.is_terminal:
        console.print(Panel(Text(message), title="error", title_align="left", border_style="red", subtitle=hint))
    else:  # one unbroken line, for logs and grep
        console.print(f"error: {' '.join(message.split())} ({hint})", soft_wrap=True)


def print_sections(console: Console, sections: Sequence[Section], title: str) -> None:
    """A table of sections: patient, spots, genes, grid and scale."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("section", "patient"):
        table.add_column(name)
    for name in ("spots", "genes", "median UMI", "grid", "um/px"):
        table.add_column(name, justify="right")
    for section in sections:
        scale = section.grid.um_per_px
        table.add_row(
            section.name,
            section.patient or "?",
            f"{section.n_spots}",
            f"{len(section.genes)}",
            f"{np.median(section.library_size):,.0f}",
            section.grid.kind,
            "?" if scale is None else f"{scale:.3f}",
        )
    console.print(table)


def print_training(console: Console, summary: TrainingSummary, networks: int = 1, head: str = "network") -> None:
    """How a training ended; the figures are of its first network, whatever ``head`` (`model.head`) makes of it."""
    done = f"trained for {summary.epochs} epochs in {summary.seconds:.0f} s"
    if networks > 1:
        done = f"{networks} networks trained in {summary.seconds:.0f} s, the first for {summary.epochs} epochs"
    console.print(
        f"{done}"
        f"{', stopped early' if summary.stopped_early else ''}; kept epoch {summary.best_epoch}: "
        f"validation MSE {summary.validation_mse:.4f}, mean PCC {summary.validation_pcc:+.3f}"
        f"{_whose_figures(networks, head)}"
    )


def _whose_figures(networks: int, head: str) -> str:
    """Words for what the validation of one network leaves out of what the run predicts; "" for nothing."""
    others = {
        "both": "with which a closed-form head is mixed",
        "closed-form": "in whose place a closed-form head predicts",
    }
    if head not in others:
        return " of the first network alone" if networks > 1 else ""
    return f" of the {'first ' if networks > 1 else ''}network alone, {others[head]}"


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """The scores of a section, and what they do not say."""
    console.print(evaluation.table())
    for caveat in evaluation.caveats:
        console.print(Text.assemble("  ", ("note", "yellow"), " ", caveat), soft_wrap=True)


class EpochProgress:
    """Progress of a training: call it with each epoch's row and the best epoch so far, close it at the end.

    On a terminal a bar, which appears when crops are read or with the first epoch; else about ten lines in all.
    """

    def __init__(self, console: Console, epochs: int) -> None:
        self.console = console
        self.epochs = epochs
        self.bar = _bar(console)
        self.name = ""
        self.reading = self.bar.add_task("crops are read", total=None, visible=False)
        self.task = self.bar.add_task("first epoch", total=epochs, visible=False)

    def __enter__(self) -> EpochProgress:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.stop()

    def network(self, number: int, networks: int) -> None:
        """Begin with one of several networks."""
        if networks > 1 and self.bar.disable:
            self.console.print(f"network {number} of {networks}")
        self.name = f"network {number} of {networks}, " if networks > 1 else ""
        self.bar.reset(self.task, total=self.epochs, description=f"{self.name}first epoch", visible=False)

    def crops(self, done: int, total: int) -> None:
        """Show how many crops are read; then the first epoch begins."""
        self.bar.update(self.reading, completed=done, total=total, visible=done < total)
        if done >= total:
            self.bar.reset(self.task, visible=True)
        self.bar.start()

    def __call__(self, row: Epoch, best_epoch: int) -> None:
        """Show one finished epoch."""
        epoch = int(row["epoch"])
        line = (
            f"validation MSE {row['validation_mse']:.4f}, mean PCC {row['validation_pcc']:+.3f}; "
            f"training MSE {row['training_mse']:.4f}; best epoch {best_epoch}"
        )
        if not self.bar.disable:
            self.bar.update(self.task, completed=epoch, description=f"{self.name}{line}", visible=True)
            self.bar.start()
        elif epoch == 1 or epoch % max(1, self.epochs // 10) == 0:
            self.console.print(f"  epoch {epoch} of at most {self.epochs}: {line}")


class SpotProgress:
    """Progress over spots, or other things, as a context manager; call it with (done, total).

    Args:
        before, after: what is done before the first call, and after the last thing; default the same.
    """

    def __init__(self, console: Console, description: str, *, before: str = "", after: str = "") -> None:
        self.description, self.after = description, after or description
        self.bar = _bar(console)
        self.task = self.bar.add_task(before or description, total=None)
        self.counting = False

    def __enter__(self) -> SpotProgress:
        self.bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show how many are done."""
        if done == 0 or not self.counting:
            # the time left is that of the spots, not of what came before, nor of those that an earlier process has done
            self.bar.reset(self.task, completed=done)
            self.counting = True
        description = self.description if done < total else self.after
        self.bar.update(self.task, completed=done, total=total, description=description)


@contextmanager
def working(console: Console, what: str) -> Iterator[None]:
    """Show on a terminal that something is done whose length nobody knows."""
    with SpotProgress(console, what):
        yield


class _Done(MofNCompleteColumn):
    """How many of how many, once that is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Left(TimeRemainingColumn):
    """The time left, once the number is known."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else Text.assemble(super().render(task), (" left", "progress.remaining"))


def _bar(console: Console) -> Progress:
    """A bar with the time that has passed and the time left; nothing where no one looks on: no terminal, or CI."""
    return Progress(
        SpinnerColumn(),
        BarColumn(bar_width=24),
        _Done(),
        TimeElapsedColumn(),
        _Left(),
        TextColumn("{task.description}", markup=False),
        console=console,
        disable=not console.is_terminal or bool(os.environ.get("CI")),
    )
