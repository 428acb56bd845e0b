"""What `hyperst check` shows: one table for several sections, and what was found in each; and what `hyperst predict` notes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hyperst.cli.inputs import require_bin

if TYPE_CHECKING:
    from anndata import AnnData

    from hyperst.data.check import Finding, Report

__all__ = ["draw_reports", "examine_all", "foretell_training", "print_note", "print_notes", "print_reports"]

_COLOURS = {"error": "red", "warning": "yellow", "ok": "green"}


def examine_all(
    paths: Sequence[Path],
    image: Path | None,
    images: Path | None,
    mpp: float | None,
    bin_um: int | None,
    gene_names: str | None,
    min_counts: int,
    on_section: Callable[[int, int], None],
) -> list[Report]:
    """A report of every section that ``paths`` hold, folders standing for the sections in them; errors are findings.

    ``on_section`` is called with (sections done, sections in all).
    """
    from hyperst.data import distinct_names, list_sections
    from hyperst.data.check import Finding, Report, examine_section

    refused: list[tuple[Path, Exception]] = []
    sources = list_sections(paths, bin_um=bin_um, refused=refused)
    if sources:
        require_bin(sources, bin_um)
    clash = None
    try:
        sources = distinct_names(sources)
    except (OSError, ValueError) as error:  # each is examined under its own name all the same
        clash = error
    reports = []
    on_section(0, len(sources))
    for source in sources:
        options: dict[str, Any] = {"image": image, "images_dir": images, "mpp": mpp, "gene_names": gene_names}
        reports.append(examine_section(source, min_counts=min_counts, **options))
        on_section(len(reports), len(sources))
    said = {finding.message for report in reports for finding in report.findings}
    if clash is not None and str(clash) not in said:
        refused.append((paths[0], clash))
    return reports + [Report(path, [Finding("error", str(error))]) for path, error in refused]


def foretell_training(reports: Sequence[Report], min_counts: int) -> list[Finding]:
    """Add to each report what training on the section alone would refuse; return what it would of all of them together."""
    from hyperst.plan import foretell

    fit = []
    for report in reports:
        if report.section is None:
            continue
        found = foretell([report.section], min_counts)
        errors = [finding for finding in found if finding.level == "error"]
        # what training refuses has been a warning of its own where crops were looked at
        said = [each for each in report.findings if not any(each.message in error.message for error in errors)]
        report.findings = said + (errors if len(reports) > 1 else found)
        if not errors:
            fit.append(report.section)
    return foretell(fit, min_counts) if len(fit) > 1 else []


def print_reports(console: Console, reports: Sequence[Report], together: Sequence[Finding] = ()) -> None:
    """A table if there are several, then the findings: all of a single section, else warnings and errors.

    Args:
        together: what was found of all sections together.
    """
    if len(reports) > 1:
        console.print(_table(reports))
    for report in reports:
        shown = [finding for finding in report.findings if len(reports) == 1 or finding.level != "ok"]
        if shown:
            console.print(str(report.path), style="bold", soft_wrap=True)
        for finding in shown:
            _print_finding(console, finding)
    if together:
        console.print("all sections together", style="bold")
    for finding in together:
        _print_finding(console, finding)


def _print_finding(console: Console, finding: Finding) -> None:
    remedy = f"  ->  {finding.remedy}" if finding.remedy else ""
    line = Text.assemble("  ", (f"{finding.level:7}", _COLOURS[finding.level]), " ", finding.message + remedy)
    console.print(line, soft_wrap=True)


def draw_reports(console: Console, reports: Sequence[Report], output: Path | None) -> None:
    """Draw the spots of every section on its image, into a folder, and say where; without a folder say how."""
    drawn = [report for report in reports if report.section is not None and report.picture is not None]
    if output is None:
        if drawn:
            console.print("look at the spots on the images: --output FOLDER draws them")
        return
    from hyperst.files import distinct_file_names
    from hyperst.overlay import draw_overlay

    called = [report.section.name for report in drawn if report.section is not None]
    for name, report in zip(distinct_file_names(called, [report.path for report in drawn]), drawn, strict=True):
        console.print(f"spots on the image: {draw_overlay(report, output / f'{name}_spots.png')}", soft_wrap=True)


def print_notes(console: Console, predicted: AnnData) -> None:
    """What one has to know of a prediction, see :func:`hyperst.prediction_notes.prediction_notes`."""
    from hyperst.prediction_notes import prediction_notes

    for note in prediction_notes(predicted):
        print_note(console, note)


def print_note(console: Console, note: str, about: str = "") -> None:
    """One note, and what it is about."""
    console.print(Text.assemble(("note", "yellow"), f" {about}: {note}" if about else f" {note}"), soft_wrap=True)


def _table(reports: Sequence[Report]) -> Table:
    table = Table(title="sections", title_justify="left", title_style="bold")
    for name in ("section", "patient"):
        table.add_column(name, overflow="fold")
    for name in ("spots", "genes", "median UMI", "grid", "um/px", "on background", "found"):
        table.add_column(name, justify="right")
    for report in reports:
        table.add_row(*_row(report))
    return table


def _row(report: Report) -> list[str | Text]:
    from statistics import median

    section, placement = report.section, report.placement
    times = {level: sum(finding.level == level for finding in report.findings) for level in _COLOURS}
    level = next(level for level in _COLOURS if times[level] or level == "ok")
    word = level if level == "ok" else f"{times[level]} {level}{'s' if times[level] > 1 else ''}"
    verdict = Text(word, style=_COLOURS[level])
    if section is None:
        return [Text(report.path.name), *["?"] * 7, verdict]
    scale = section.grid.um_per_px
    return [
        Text(section.name),
        Text(section.patient or "?"),
        f"{section.n_spots}",
        f"{len(section.genes)}",
        f"{median(section.library_size.tolist()):,.0f}",
        section.grid.kind,
        "?" if scale is None else f"{scale:.3f}",
        "?" if placement is None else f"{placement.n_background}",
        verdict,
    ]
