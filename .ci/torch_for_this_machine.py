"""Install a PyTorch that suits this machine: the CUDA build where there is an NVIDIA GPU, the CPU build where not.

Run with the Python of the environment to install into; it takes another requirement than PyTorch's default version as its
argument. Without a GPU, pip is first asked what it WOULD install; only if that includes CUDA packages is the CPU build
fetched instead, through uv's `--torch-backend`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys

TORCH = "torch==2.13.0"
PIP = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def would_pull_cuda() -> bool:
    command = [sys.executable, *PIP, "--dry-run", "--ignore-installed", "--report", "-", TORCH]
    report = subprocess.run(command, capture_output=True, text=True, check=True)
    names = [item["metadata"]["name"].lower() for item in json.loads(report.stdout)["install"]]
    return any(name.startswith(("nvidia-", "cuda-")) for name in names)


def install(python: str, *arguments: str) -> None:
    """Let ``python`` install PyTorch, or what has to be of its build."""
    if shutil.which("nvidia-smi") or not sys.platform.startswith("linux") or not would_pull_cuda():
        subprocess.run([python, *PIP, *arguments], check=True)
        return
    subprocess.run([sys.executable, *PIP, "uv"], check=True)
    uv = [sys.executable, "-m", "uv", "pip", "install", "--python", python, "--torch-backend", "cpu"]
    subprocess.run([*uv, *arguments], check=True)


if __name__ == "__main__" and importlib.util.find_spec("torch") is None:
    install(sys.executable, *(sys.argv[1:] or [TORCH]))
