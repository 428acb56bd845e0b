"""Install a PyTorch that suits this machine: the CUDA build where there is an NVIDIA GPU, the CPU build where not.

Run with the Python of the environment to install into. Without a GPU, pip is first asked what it WOULD install; only if
that includes CUDA packages is the CPU build fetched instead, through uv's `--torch-backend`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys

TORCH = "torch==2.13.0"
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def would_pull_cuda() -> bool:
    report = subprocess.run([*PIP, "--dry-run", "--report", "-", TORCH], capture_output=True, text=True, check=True)
    names = [item["metadata"]["name"].lower() for item in json.loads(report.stdout)["install"]]
    return any(name.startswith(("nvidia-", "cuda-")) for name in names)


def main() -> None:
    if importlib.util.find_spec("torch") is not None:
        return
    if shutil.which("nvidia-smi") or not sys.platform.startswith("linux") or not would_pull_cuda():
        subprocess.run([*PIP, TORCH], check=True)
        return
    subprocess.run([*PIP, "uv"], check=True)
    command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    subprocess.run([*command, "--torch-backend", "cpu", TORCH], check=True)


if __name__ == "__main__":
    main()
