"""The folder of a run: which files it holds, and what is recorded about the data and the code that made it.

``config.yaml`` is written last when a run starts, so a folder that has one has everything else too.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hyperst.data import Section, read_section
from hyperst.files import write_json_atomic

__all__ = ["RunFolder", "SectionRecord", "Split", "code_versions"]


@dataclass(frozen=True)
class SectionRecord:
    """Where a section of a run came from and at which scale it was seen, enough to read it again.

    Attributes:
        role: ``"training"`` or ``"validation"``.
        path, image: absolute paths of the file or folder with the counts and of the full-resolution image.
        um_per_px, pitch_px, spot_diameter_px: scale of the image and of the spot grid; None where unknown.
    """

    name: str
    patient: str | None
    role: str
    path: str | None
    image: str | None
    n_spots: int
    um_per_px: float | None
    pitch_px: float | None
    spot_diameter_px: float | None

    def read(self) -> Section:
        """Read the section again. Errors: see :func:`hyperst.data.read_section`."""
        if self.path is None:
            raise ValueError(f"section {self.name} was not read from a file, so it cannot be read again")
        return read_section(
            self.path,
            image=self.image,
            mpp=self.um_per_px,
            name=self.name,
            patient=self.patient,
            require_image=self.image is not None,
        )

    @classmethod
    def of(cls, section: Section, role: str) -> SectionRecord:
        """The record of ``section`` in its role."""
        return cls(
            name=section.name,
            patient=section.patient,
            role=role,
            path=None if section.path is None else str(Path(section.path).resolve()),
            image=None if section.image_path is None else str(Path(section.image_path).resolve()),
            n_spots=section.n_spots,
            um_per_px=section.grid.um_per_px,
            pitch_px=section.grid.pitch_px,
            spot_diameter_px=section.spot_diameter_px,
        )


@dataclass(frozen=True)
class Split:
    """Which spots teach and which choose the checkpoint.

    Attributes:
        sections: every section of the run.
        validation_spots: per training section the ids of the spots held out; empty with whole validation sections.
    """

    sections: tuple[SectionRecord, ...]
    validation_spots: dict[str, list[str]]

    def role(self, role: str) -> list[SectionRecord]:
        """Records of the sections in ``role``."""
        return [record for record in self.sections if record.role == role]

    @property
    def patients(self) -> set[str]:
        """Known patients of all sections, training and validation."""
        return {record.patient for record in self.sections if record.patient is not None}


class RunFolder:
    """Names of a run's files.

    >>> RunFolder("runs/c3").best.as_posix()
    'runs/c3/checkpoints/best.ckpt'
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.genes = self.path / "genes.txt"
        self.split = self.path / "split.json"
        self.versions = self.path / "versions.json"
        self.metrics = self.path / "metrics.csv"
        self.summary = self.path / "summary.json"
        self.best = self.path / "checkpoints" / "best.ckpt"
        self.last = self.path / "checkpoints" / "last.ckpt"

    def exists(self) -> bool:
        """Whether a run was started here."""
        return self.config.is_file()

    def require(self) -> None:
        """Raise FileNotFoundError unless a run was started here."""
        if not self.exists():
            raise FileNotFoundError(
                f"{self.path} holds no run (no {self.config.name} in it); give the --output folder of `hyperst train`"
            )

    def read_genes(self) -> list[str]:
        """Names of the predicted genes, in the order of the model's outputs."""
        return self.genes.read_text(encoding="utf-8").split()

    def read_split(self) -> Split:
        """The sections and held-out spots of the run."""
        stored = self._read_json(self.split)
        return Split(tuple(SectionRecord(**entry) for entry in stored["sections"]), stored["validation_spots"])

    def write_split(self, split: Split) -> None:
        """Write ``split.json`` atomically."""
        sections = [asdict(record) for record in split.sections]
        write_json_atomic(self.split, {"sections": sections, "validation_spots": split.validation_spots})

    def read_summary(self) -> dict[str, Any] | None:
        """How the training ended, or None while it has not."""
        return self._read_json(self.summary) if self.summary.is_file() else None

    def read_versions(self) -> dict[str, str]:
        """Versions that the run was started with."""
        return self._read_json(self.versions)

    @staticmethod
    def _read_json(path: Path) -> Any:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged ({error}); train again into another folder") from error


def section_indices(sections: Sequence[Section], spots: dict[str, list[str]], *, inside: bool) -> list[tuple[int, int]]:
    """(section, spot) pairs of the spots that are (``inside``) or are not in ``spots`` (ids per section name)."""
    pairs = []
    for number, section in enumerate(sections):
        held_out = set(spots.get(section.name, ()))
        pairs += [(number, spot) for spot, name in enumerate(section.spot_ids) if (str(name) in held_out) == inside]
    return pairs


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
