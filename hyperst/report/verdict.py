"""Whether to believe a run, in words. "Better" and "worse" stand only where a 95 % interval over blocks of spots says so."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hyperst.baselines import MEAN, NULL, OURS, RIDGE_OWN, RIDGE_STAIN
from hyperst.evaluation_record import COLUMNS
from hyperst.report.summary import RunSummary, SectionScores

__all__ = ["Verdict", "figure", "section_verdict", "strongest_ridge", "verdicts"]


@dataclass(frozen=True)
class Verdict:
    """What is found of one section, or of a run without any.

    Attributes:
        headline: the finding, one sentence.
        points: what stands behind it.
        missing: figures that there are not, with the command that gives them.
    """

    headline: str
    points: tuple[str, ...]
    missing: tuple[str, ...]


def verdicts(summary: RunSummary) -> list[Verdict]:
    """One verdict for each evaluated section, or one that says that there is none."""
    command = f"hyperst evaluate {shlex.quote(str(summary.folder))} SECTION"
    if summary.evaluations:
        return [section_verdict(scores, command) for scores in summary.evaluations]
    points = []
    if len(summary.curves):
        best = summary.curves.sort_values("validation_mse", kind="stable").iloc[0]
        points.append(
            f"On the validation spots, which chose the epoch and so flatter it: mean PCC {figure(best['validation_pcc'])} "
            f"in epoch {int(best['epoch'])}."
        )
    return [
        Verdict(
            "Not compared with measurements: nothing here says whether to believe this run's predictions.",
            tuple(points),
            (f"Scores on a section that the run has not seen, beside baselines: {command}",),
        )
    ]


def section_verdict(scores: SectionScores, command: str = "hyperst evaluate RUN SECTION") -> Verdict:
    """The verdict of one section.

    Args:
        command: evaluates the section again.
    """
    ours = scores.methods[OURS]
    ridge = strongest_ridge(scores)
    missing: list[str] = []
    points: list[str] = []
    said = None if ridge is None else _genes(scores.per_gene, ridge)
    if ridge is None:
        missing.append(
            f"Ridge regression and the training mean, which need the files of the training sections: put them back, and {command}"
        )
    elif said is None:
        missing.append(f"Intervals of single genes, which this evaluation by an earlier version has not: {command}")
    interval = (scores.intervals or {}).get("pcc")
    if scores.intervals is None and said is not None:
        missing.append(f"The interval of the mean PCC: {command}")
    if scores.expression is None:
        missing.append(f"Predicted and measured expression of the spots, for the maps: {command}")
    pcc = "no gene has a correlation" if ours["pcc"] is None else f"mean PCC {_with_ends(ours['pcc'], interval)}"
    ceiling = scores.doubt.get("noise_ceiling")
    if ceiling is not None:
        pcc += f"; noise ceiling {figure(ceiling)}"
    else:
        missing.append(f"The noise ceiling: {command}")
    if scores.doubt.get("coverage") is None:
        missing.append(f"Whether intervals hold what they say: {command}, of a run that has intervals")
    unknown = "not compared with ridge" if ridge is None else "not shown whether it is better than ridge"
    points += _null_points(scores)
    for name, difference in (scores.intervals or {}).get("differences", {}).items():
        points += _difference_points(name, difference)
    return Verdict(f"{scores.section}: {said or unknown}, {pcc}.", tuple(points), tuple(missing))


def strongest_ridge(scores: SectionScores) -> str | None:
    """Name of the ridge regression of the larger mean correlation, which a run is compared with; None where there is none."""
    found = {name: scores.methods[name]["pcc"] for name in (RIDGE_OWN, RIDGE_STAIN) if name in scores.methods}
    return max(found, key=lambda name: -1.0 if (pcc := found[name]) is None else pcc, default=None)


def figure(value: float) -> str:
    """``value`` with two places and no zero before the point, as correlations are printed.

    >>> figure(0.374), figure(-0.05), figure(1.0), figure(-0.001)
    ('.37', '-.05', '1.00', '.00')
    """
    text = f"{value:.2f}".replace("-0.00", "0.00")
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def _genes(per_gene: pd.DataFrame, ridge: str) -> str | None:
    """On how many genes the run is better or worse than ``ridge``; None where there are no intervals."""
    over = COLUMNS[ridge].replace("pcc", "over", 1)
    if f"{over}_low" not in per_gene:
        return None
    better, worse = int((per_gene[f"{over}_low"] > 0).sum()), int((per_gene[f"{over}_high"] < 0).sum())
    n = len(per_gene)
    if not better and not worse:
        return f"not shown to be better or worse than {ridge} on any of {n} genes"
    if worse > better:
        return f"worse than {ridge} on {worse} of {n} genes" + (f" and better on {better}" if better else "")
    return f"better than {ridge} on {better} of {n} genes" + (f" and worse on {worse}" if worse else "")


def _null_points(scores: SectionScores) -> list[str]:
    said = []
    if "pcc_low" in scores.per_gene and scores.per_gene["pcc_low"].notna().any():  # else of too few blocks
        above = int((scores.per_gene["pcc_low"] > 0).sum())
        n = len(scores.per_gene)
        said.append(
            f"The correlation is above 0 on {above} of {n} genes. Each gene has its own 95 % interval: by chance alone "
            f"about {0.025 * n:.0f} of {n} would be counted as better, and as many as worse."
        )
    null = scores.methods.get(NULL, {}).get("pcc")
    if null is not None:
        said.append(f"With images shuffled between spots the mean PCC is {figure(null)}.")
    return said


def _difference_points(name: str, difference: dict[str, dict[str, Any]]) -> list[str]:
    """What the mean over genes says beside a baseline: correlation, and error."""
    said = []
    for metric, sign in (("pcc", 1), ("mse", -1)):
        if metric not in difference or (metric == "pcc" and name == MEAN):
            continue
        mean, low, high = (difference[metric][key] for key in ("mean", "low", "high"))
        what = "Mean PCC" if metric == "pcc" else "Squared error"
        shown = low is not None and high is not None and (low > 0 or high < 0)
        word = ("better" if mean * sign > 0 else "worse") if shown else "not shown to be better or worse"
        ends = "" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]"
        said.append(f"{what} less that of {name}: {mean:+.3f}{ends}: {word}.")
    return said


def _with_ends(value: float | None, interval: dict[str, Any] | None) -> str:
    assert value is not None
    if interval is None or interval["low"] is None:
        return f"{figure(value)} (no interval)"
    return f"{figure(value)} [{figure(interval['low'])}, {figure(interval['high'])}]"
