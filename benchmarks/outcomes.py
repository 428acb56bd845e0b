"""Outcomes of the kernels' tests, kept line by line in ``tests.jsonl``, and what they say about each operator.

A run is a line about it (selection, sources, device), a line with the tests that were chosen, one line per test as it
ends, and a last one with pytest's exit status. A run that was cut off lacks its end, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.concerns import OPERATORS, concerned

NAME = "tests.jsonl"
NOT_RUN = "tests have not run"


@dataclass
class Outcome:
    """How a test ended: "passed", "skipped" or "failed", its seconds, and the last lines of what a failure said."""

    outcome: str
    seconds: float = 0.0
    said: str = ""


@dataclass
class Run:
    """One start of pytest."""

    about: dict[str, str]
    planned: list[str] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    status: int | None = None

    def missing(self) -> list[str]:
        return [test for test in self.planned if test not in self.outcomes]

    def green(self, operator: str) -> bool:
        """Whether all tests of an operator that were chosen have ended well, and some were."""
        found = [self.outcomes.get(test) for test in self.planned if operator in concerned(test)]
        return any(each and each.outcome == "passed" for each in found) and not any(
            each is None or each.outcome == "failed" for each in found
        )


def append(path: Path, **line: Any) -> None:
    """Add a line, which is on disk when this returns, whatever becomes of the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read(path: Path, **about: str) -> list[Run]:
    """Runs of a file, the oldest first: those that are about the same sources, device, or whatever is named."""
    runs: list[Run] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # cut off while it was written
            continue
        if "about" in line:
            runs.append(Run(line["about"]))
        elif "planned" in line:
            runs[-1].planned = line["planned"]
        elif "test" in line:
            test = line.pop("test")
            before = runs[-1].outcomes.get(test)
            if before is None or before.outcome != "failed":  # a failure stays one, whatever comes after it
                runs[-1].outcomes[test] = Outcome(**line)
        elif "status" in line:
            runs[-1].status = line["status"]
    return [run for run in runs if about.items() <= run.about.items()]


def failures(runs: Iterable[Run]) -> dict[str, Outcome]:
    """Tests whose last outcome is a failure."""
    last = {test: outcome for run in runs for test, outcome in run.outcomes.items()}
    return {test: outcome for test, outcome in last.items() if outcome.outcome == "failed"}


def objections(runs: Sequence[Run]) -> dict[str, str]:
    """Why an operator is not to be timed, "" where its tests are green: all of one run ended well, and none failed since."""
    failed = failures(runs)
    found = {}
    for operator in OPERATORS:
        against = [test for test in failed if operator in concerned(test)]
        if against:
            found[operator] = f"{len(against)} failed, as {against[0].rsplit('::', 1)[-1]}"
        else:
            found[operator] = "" if any(run.green(operator) for run in runs) else NOT_RUN
    return found
