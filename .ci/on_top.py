"""Make FOLDER, an environment on top of the one that runs this, with the requirements of one EXTRA of this package.

    .venv/bin/python .ci/on_top.py build/with-timm timm

For extras that bring torchvision: it fits one build of PyTorch, and Lightning and peft import whichever they find. So it
comes from where PyTorch does, and stays out of the environment below. spatialdata brings none, but a good many others.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from torch_for_this_machine import PIP, install

# vitessce asks for a Zarr that spatialdata no longer takes, and works with the newer one: it comes without what it asks for
ALONE = {"spatialdata": ["vitessce>=3.8"]}
BESIDE = {"spatialdata": ["black", "starlette"]}  # of that, what it imports


def main(folder: Path, extra: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (packages / "below.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    if extra != "spatialdata":
        minor = int(metadata.version("torch").split(".")[1])
        install(python, "--no-deps", f"torchvision==0.{minor + 15}.*")  # 0.28 goes with 2.13
    found = [Requirement(line) for line in metadata.requires("hyperst-kernels") or ()]
    wanted = [each for each in found if each.marker and each.marker.evaluate({"extra": extra})]
    names = [f"{each.name}{each.specifier}" for each in wanted if not each.marker.evaluate({"extra": ""})]
    pip(python, "-c", ".ci/constraints.txt", *names, *BESIDE.get(extra, []))
    if extra in ALONE:
        pip(python, "--no-deps", *ALONE[extra])


def pip(python: str, *arguments: str) -> None:
    if subprocess.run([python, *PIP, *arguments], check=False).returncode:
        raise SystemExit(
            f"Python {platform.python_version()} cannot have {arguments[-1]} and what goes with it, see above"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
