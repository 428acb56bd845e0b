"""The check on a real device: the kernels' tests there, then times, bandwidths and memory of what they find right.

    python3 -m benchmarks.gpu [--smoke] [--tests] [--bench [NAME ...]] [--tune [MINUTES]] [--out FOLDER]

Whatever is found is on disk when it is found: outcomes of tests in ``tests.jsonl``, times in ``<device>-<date>.csv``, settings
in ``launch_table.json``. An operator is timed only if its tests are green in that folder, for the same sources on the same
device; where they have not run there, its smoke tests run first. Where there is no GPU this says so and succeeds; with
TRITON_INTERPRET=1 the tests run in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import device, device_summary, device_tests, device_times, measure, outcomes, results
from benchmarks.concerns import OPERATORS
from benchmarks.problem import OURS
from benchmarks.results import Row

TABLE = "launch_table.json"
MINUTES = 8.0  # of tuning: with the start of the process less than ten


def minutes_of(text: str) -> float:
    """A number of minutes above 0."""
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"expected minutes above 0, got {text}")
    return minutes


def folder_of(text: str) -> Path:
    """A folder, which is made where it is missing."""
    try:
        Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot be made a folder: {error}") from None
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """Of the command."""
    made = argparse.ArgumentParser(
        prog="python3 -m benchmarks.gpu",
        description="Check and measure the kernels on this GPU: without a flag the smoke tests, all tests, all times. "
        "Where there is no GPU it says so and succeeds.",
    )
    made.add_argument("--smoke", action="store_true", help="the smoke tests: every kernel and variant of the loss once")
    made.add_argument("--tests", action="store_true", help="all tests of the kernels")
    made.add_argument(
        "--bench",
        nargs="*",
        metavar="NAME",
        choices=OPERATORS,
        help=f"times of operators whose tests are green; without names of all: {', '.join(OPERATORS)}",
    )
    made.add_argument(
        "--tune",
        nargs="?",
        type=minutes_of,
        const=MINUTES,
        metavar="MINUTES",
        help=f"launch settings, for so many minutes (default: %(const)s), into {TABLE}",
    )
    made.add_argument(
        "--out",
        type=folder_of,
        default=os.environ.get("OUT") or str(results.FOLDER),
        metavar="FOLDER",
        help="where everything is written and read again (default: $OUT, else benchmarks/results)",
    )
    made.add_argument(
        "--unchecked",
        action="store_true",
        help="time operators whose tests are not green as well: seconds and bytes, no ratios",
    )
    return made


def bench(names: Sequence[str], folder: Path, run: str, unchecked: bool, meter: device.Meter) -> None:
    """Time operators one after another, each row on disk at once. One that fails is a row, and the next one follows."""
    path = results.path_for(meter.place, folder)
    objections = outcomes.objections(device_tests.known(folder))
    for k, name in enumerate(names):
        if objections[name] and not unchecked:
            print(f"{name}: not timed, {objections[name]}", flush=True)
            continue
        rows = device_times.timings(name, meter)
        try:
            for row in device_times.unchecked(rows) if objections[name] else rows:
                print(show(row), flush=True)
                results.append([row], path, run, meter.place)
        except Exception as error:  # whatever it dies of: the others have their answers
            fault = Row(name, OURS, 0, 0, "", "s", note=measure.describe(error))
            print(show(fault), flush=True)
            results.append([fault], path, run, meter.place)
            if device.is_lost():
                again = ["--bench", *names[k + 1 :], "--out", str(folder), *(["--unchecked"] * unchecked)]
                if names[k + 1 :]:
                    subprocess.run(
                        [sys.executable, "-m", "benchmarks.gpu", *again], cwd=results.REPOSITORY, check=False
                    )
                return
        del rows
        torch.cuda.empty_cache()


def show(row: Row) -> str:
    shape = f"{row.operation} {row.n} x {row.d} {row.dtype}"
    return f"{shape:50} {row.provider:14} {row.metric:28} {row.note or f'{row.median:.4g}'}"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    name, folder = device.name(), options.out.resolve()
    if not name:
        print("no GPU on this machine: nothing to check (TRITON_INTERPRET=1 runs the tests in Triton's interpreter)")
        return 0
    if device.lacks():
        print(f"every kernel may fail: Triton needs {device.lacks()}, which is not found")
    everything = not (options.smoke or options.tests or options.bench is not None or options.tune is not None)
    run = datetime.datetime.now().isoformat(timespec="seconds")
    print(f"{name}, {len(os.sched_getaffinity(0))} cores, {results.versions()}, {results.commit()}", flush=True)
    if options.smoke or everything:
        device_tests.run(device_tests.SMOKE, folder)
    if options.tests or everything:
        device_tests.run(device_tests.ALL, folder)
    if options.bench is not None or everything:
        names = [operator for operator in OPERATORS if not options.bench or operator in options.bench]
        found = outcomes.objections(device_tests.known(folder))
        untested = [operator for operator in names if found[operator] == outcomes.NOT_RUN]
        if untested and not options.unchecked:
            device_tests.run(device_tests.SMOKE, folder, untested)
        if name == device.INTERPRETER:
            print("times are taken on a GPU")
        else:
            bench(names, folder, run, options.unchecked, device.Meter())
    if options.tune is not None and name == device.INTERPRETER:
        print("settings are measured on a GPU")
    elif options.tune is not None:
        tune(options.tune, folder)
    runs = device_tests.known(folder)
    rows = [] if name == device.INTERPRETER else results.read_since(results.path_for("cuda", folder), run)
    print(f"\n{device_summary.summary(runs, rows)}\nwritten: {folder}")
    return 1 if outcomes.failures(runs) or any(row.provider == OURS and row.note for row in rows) else 0


def tune(minutes: float, folder: Path) -> int:
    """Settings measured for so long; a table that is there already is continued."""
    from hyperst_kernels.gpu import tune as command

    return command.main(["tune", "--output", str(folder / TABLE), "--minutes", str(minutes)])


if __name__ == "__main__":
    sys.exit(main())
