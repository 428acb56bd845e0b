"""Rows of results: what is written, where, and how it is read again."""

from __future__ import annotations

import csv
import datetime
import functools
import hashlib
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "benchmarks" / "results"
_PACKAGES = ("torch", "triton", "geoopt", "hyperbolix", "hypll", "pykeops", "open_clip_torch", "memeff")
# what a commit has to say about a result: changes elsewhere do not matter
_SOURCES = ("hyperst_kernels", "hyperst", "benchmarks/*.py", "docs/examples")


@dataclass(frozen=True)
class Row:
    """One metric of one provider on one shape. Numbers are nan where ``note`` says why there is none.

    Metrics end in their unit. "ratio both" is the time of the provider over ours, round by round in one run; that of
    "ours, again" is the noise. ``setting`` names what else was varied, as "key=value key=value".
    """

    operation: str
    provider: str
    n: int
    d: int
    dtype: str
    metric: str
    median: float = float("nan")
    p20: float = float("nan")
    p80: float = float("nan")
    repeats: int = 0
    threads: int = 0
    setting: str = ""
    note: str = ""

    @property
    def settings(self) -> dict[str, float]:
        """``setting`` as numbers by name."""
        return {key: float(value) for key, value in (part.split("=") for part in self.setting.split())}

    @staticmethod
    def of(values: Sequence[float], **rest) -> Row:
        """Median, 20th and 80th percentile of ``values``."""
        p20, median, p80 = (float(p) for p in np.percentile(values, (20, 50, 80)))
        return Row(median=median, p20=p20, p80=p80, repeats=len(values), threads=torch.get_num_threads(), **rest)


_TYPES: dict[str, Callable] = {"int": int, "float": float, "str": str}


def device_name(device: str = "cpu") -> str:
    """The GPU, or the processor with the number of threads in use."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    try:
        models = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        models = []
    model = models[0].strip() if models else platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"


@functools.cache
def versions() -> str:
    """Python and the packages that are installed of those that matter."""
    found = [f"python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


@functools.cache
def digest() -> str:
    """Of the kernels and their tests: tells apart what one commit or none may stand for."""
    found = hashlib.sha256()
    for folder in ("hyperst_kernels", "tests/kernels"):
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.suffix in (".py", ".json", ".cpp", ".h"):
                found.update(path.relative_to(REPOSITORY).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:12]


@functools.cache
def commit() -> str:
    """Short hash, with "+" where sources have been changed since; outside a git repository the digest of the sources."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", *_SOURCES).strip()
        return git("rev-parse", "--short", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"sources {digest()}"


def path_for(device: str = "cpu", folder: Path = FOLDER) -> Path:
    """results/<device>-<date>.csv."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return folder / f"{slug}-{datetime.date.today()}.csv"


def append(rows: Iterable[Row], path: Path, run: str, device: str = "cpu") -> None:
    """Add rows to the CSV at ``path``, each with the run it belongs to, device, versions and commit."""
    about = {"run": run, "device": device_name(device), "versions": versions(), "commit": commit()}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)] + list(about), lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            plain = {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
            writer.writerow({**plain, **about})


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _row(line: dict[str, str]) -> Row:
    return Row(**{f.name: _TYPES[str(f.type)](line[f.name]) for f in fields(Row)})


def read_last(path: Path) -> tuple[list[Row], dict[str, str]]:
    """Rows of the last run in a CSV, and its device, versions and commit."""
    lines = _lines(path)
    last = [line for line in lines if line["run"] == lines[-1]["run"]]
    return [_row(line) for line in last], {key: last[0][key] for key in ("run", "device", "versions", "commit")}


def read_since(path: Path, run: str) -> list[Row]:
    """Rows of a run and of those after it; none where there is no file yet."""
    return [_row(line) for line in _lines(path) if line["run"] >= run] if path.is_file() else []
