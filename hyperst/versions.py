"""Versions of what makes a result."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

__all__ = ["code_versions"]


def code_versions() -> dict[str, str]:
    """Versions of what makes a result: this library (with its git commit where there is one) and what it stands on."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("hyperst-kernels", "torch", "lightning", "numpy", "anndata", "timm", "peft"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _git_commit(Path(__file__).resolve().parents[1])
    return {**versions, **({"commit": commit} if commit else {})}


def _git_commit(folder: Path) -> str | None:
    """Commit of the checkout that holds this library, marked ``-dirty`` when files differ from it; None elsewhere."""
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return answer.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
