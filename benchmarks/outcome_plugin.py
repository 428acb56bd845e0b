"""A pytest plugin that writes each test's outcome when the test ends: ``-p benchmarks.outcome_plugin --outcomes FILE``.

With pytest-xdist the process that hands out tests writes, and the others run them. A process whose GPU context an illegal
access has ended would fail whatever it ran next: it stops, and xdist puts another in its place.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import outcomes
from benchmarks.concerns import concerned
from benchmarks.device import is_lost

LAST = 1500  # characters that are kept of what a failure said


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="append a line of JSON per test to this file")
    parser.addoption(
        "--operators", type=lambda names: set(names.split(",")), help="only tests that concern one of these"
    )


def pytest_configure(config: pytest.Config) -> None:
    worker = hasattr(config, "workerinput")
    config.pluginmanager.register(Worker() if worker else Writer(config.getoption("outcomes")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("operators")
    if wanted:
        config.hook.pytest_deselected(items=[item for item in items if not wanted & concerned(item.nodeid)])
        items[:] = [item for item in items if wanted & concerned(item.nodeid)]


class Writer:
    """Of the process that reports."""

    def __init__(self, path: Path) -> None:
        self.path, self.planned = path, False

    def plan(self, tests: list[str]) -> None:
        if not self.planned:
            outcomes.append(self.path, planned=tests)
        self.planned = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.plan(ids)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.items:  # with xdist other processes collect
            self.plan([item.nodeid for item in session.items])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            outcomes.append(self.path, test=report.nodeid, outcome="failed", said=report.longreprtext[-LAST:])

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            outcomes.append(
                self.path,
                test=report.nodeid,
                outcome=report.outcome,
                seconds=round(report.duration, 2),
                said=report.longreprtext[-LAST:] if report.failed else "",
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        """Where this process runs the tests itself."""
        done = yield
        if is_lost():
            item.session.shouldstop = "the GPU's context is lost: what is left did not run"
        return done

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        outcomes.append(self.path, status=int(exitstatus))


class Worker:
    """Of a process that runs tests for another."""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and is_lost():
            os._exit(1)  # the report has been sent
