"""The package as it is given away: a source distribution that has every file, and a wheel built from it without a compiler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import hyperst_kernels

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("hyperst", "hyperst_kernels")
BESIDE = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


def _build(kind: str, source: Path, output: Path) -> Path:
    """The distribution that ``build_sdist`` or ``build_wheel`` makes of ``source``, without a compiler."""
    environment = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
    command = [sys.executable, "-c", BUILD, kind, str(output)]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = output.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in BESIDE:
        shutil.copy(REPOSITORY / name, source)
    (folder / "sdist").mkdir()
    with tarfile.open(_build("build_sdist", source, folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


def _files(folder: Path) -> set[str]:
    found = (path for name in PACKAGES for path in (folder / name).rglob("*"))
    return {
        path.relative_to(folder).as_posix()
        for path in found
        if path.is_file() and path.suffix not in (".pyc", ".so") and "__pycache__" not in path.parts
    }


def test_the_source_distribution_is_complete(sdist):
    assert _files(sdist) == _files(REPOSITORY)
    assert {name for name in BESIDE if not (sdist / name).is_file()} == set()


def test_a_wheel_from_the_source_distribution_without_a_compiler(sdist, tmp_path):
    with zipfile.ZipFile(_build("build_wheel", sdist, tmp_path)) as wheel:
        names = set(wheel.namelist())
    needed = {name for name in _files(REPOSITORY) if name.endswith((".py", ".json", "py.typed"))}
    assert needed <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)
    assert not any(name.endswith(".so") for name in names)


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_warns_of_nothing(package):
    subprocess.run([sys.executable, "-W", "error", "-c", f"import {package}"], check=True)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package):
    assert (REPOSITORY / package / "py.typed").is_file()


def test_one_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    newest = re.search(r"^## \[(\d.*?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest is not None
    assert citation["version"] == newest[1] == hyperst_kernels.__version__
