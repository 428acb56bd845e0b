"""What `hyperst check` shows: one table for several sections, and what was found in each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from hyperst.data.check import Report

__all__ = ["examine_all", "print_reports"]

_COLOURS = {"error": "red", "warning": "yellow", "ok": "green"}


def examine_all(
    paths: Sequence[Path],
    image: Path | None,
    images: Path | None,
    mpp: float | None,
    bin_um: int | None,
    gene_names: str | None,
) -> list[Report]:
    """A report of every section that ``paths`` hold, folders standing for the sections in them; errors are findings."""
    from hyperst.data import list_sections
    from hyperst.data.check import Finding, Report, examine_section

    reports = []
    for path in paths:
        try:
            found = list_sections(path, bin_um=bin_um)
        except (OSError, ValueError) as error:
            reports.append(Report(path, [Finding("error", str(error))]))
            continue
        reports += [
            examine_section(each, image=image, images_dir=images, mpp=mpp, gene_names=gene_names) for each in found
        ]
    return reports


def print_reports(console: Console, reports: Sequence[Report]) -> None:
    """A table if there are several, then the findings: all of a single section, else warnings and errors."""
    if len(reports) > 1:
        console.print(_table(reports))
    for report in reports:
        shown = [finding for finding in report.findings if len(reports) == 1 or finding.level != "ok"]
        if shown:
            console.print(str(report.path), style="bold", soft_wrap=True)
        for finding in shown:
            remedy = f"  ->  {finding.remedy}" if finding.remedy else ""
            line = Text.assemble("  ", (f"{finding.level:7}", _COLOURS[finding.level]), " ", finding.message + remedy)
            console.print(line, soft_wrap=True)


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
