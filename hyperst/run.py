"""A run: its folder, what is recorded about the data and the code that made it, and how its model is loaded. No Lightning.

``config.yaml`` is written last when a run starts, so a folder that has one has everything else too.
"""

from __future__ import annotations

import json
import pickle
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hyperst.config import RunConfig, read_config
from hyperst.data import Section, SpotDataset, fingerprint, read_section
from hyperst.device import choose_device
from hyperst.files import write_json_atomic
from hyperst.model import HyperST

__all__ = [
    "Run",
    "RunFolder",
    "SectionRecord",
    "Split",
    "as_trained",
    "build_model",
    "code_versions",
    "load_checkpoint",
    "load_run",
]


@dataclass(frozen=True)
class SectionRecord:
    """Where a section of a run came from and at which scale it was seen, enough to read it again.

    Attributes:
        role: ``"training"`` or ``"validation"``.
        path, image: absolute paths of the file or folder with the counts and of the full-resolution image.
        um_per_px, pitch_px, spot_diameter_px: scale of the image and of the spot grid; None where unknown.
        gene_names, kind: how it was read, see :func:`hyperst.data.read_section`; None for the usual.
        fingerprint: of its content, to know it again under another name; None in runs of earlier versions.
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
    gene_names: str | None = None
    kind: str | None = None
    fingerprint: dict[str, Any] | None = None

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
            gene_names=self.gene_names,
            kind=self.kind,
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
            gene_names=section.gene_names,
            kind=section.kind,
            fingerprint=asdict(fingerprint(section)),
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


def build_model(config: RunConfig, n_genes: int, backbone_width: int | None = None) -> HyperST:
    """The untrained model of a run; ``backbone_width`` is the width of precomputed features."""
    return HyperST(n_genes, config.model, backbone_width=backbone_width, image_size=config.crop.image_size)


def frozen_weights(model: HyperST) -> set[str]:
    """Names of the parameters that training does not change."""
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def spot_dataset(
    config: RunConfig,
    sections: Sequence[Section],
    genes: Sequence[str] = (),
    *,
    augment: bool = False,
    indices: Sequence[tuple[int, int]] | None = None,
    keep: bool = False,
) -> SpotDataset:
    """Spots as a run sees them; without ``genes`` images alone. Crops are kept in memory only where they ``keep`` serving."""
    return SpotDataset(
        sections,
        genes,
        config.crop,
        config.data.target,
        augment=augment,
        feature_key=config.data.feature_key,
        indices=indices,
        cache_bytes=int(config.data.cache_gib * 2**30) if keep else 0,
        counts=len(genes) > 0,
    )


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU with ``weights_only=True``.

    Raises:
        FileNotFoundError: the run has no such checkpoint (its first epoch was not finished).
        ValueError: the file is damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {path} does not exist: the run has no finished epoch yet; continue it with --resume"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint {path} is damaged or not of this library ({reason}); train again") from error


@dataclass(frozen=True)
class Run:
    """A trained run, ready to predict.

    Attributes:
        folder: where it lies.
        config, genes, split: what it was trained with; the model's outputs are in the order of ``genes``.
        model: in evaluation mode, on ``device``, with the weights of the best epoch.
        best_epoch: that epoch, counted from 1.
    """

    folder: Path
    config: RunConfig
    genes: list[str]
    split: Split
    model: HyperST
    device: torch.device
    best_epoch: int


def load_run(folder: str | Path, *, device: str | None = None) -> Run:
    """Load the best checkpoint of a run; a run that is still training, or was interrupted, can be loaded too.

    Args:
        device: ``"cpu"``, ``"cuda"``, ...; default: the GPU if there is one.

    Raises:
        FileNotFoundError: no run in ``folder``, or none of its epochs is finished.
        ValueError: no such device, a damaged checkpoint, or one that does not belong to the configuration beside it.
    """
    place = RunFolder(folder)
    place.require()
    chosen = choose_device(device)
    config, genes, split = read_config(place.config), place.read_genes(), place.read_split()
    checkpoint = load_checkpoint(place.best)
    copy = "averaged.module." if config.training.averaging else "model."
    stored = checkpoint["state_dict"].items()
    weights = {name.removeprefix(copy): value for name, value in stored if name.startswith(copy)}
    try:
        model = build_model(config, len(genes), weights["image_projectors.spot.weight"].shape[1])
        problems = model.load_state_dict(weights, strict=False)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{place.best} does not fit {place.config}: {error}") from error
    wrong = sorted({*problems.missing_keys, *problems.unexpected_keys} - frozen_weights(model))
    if wrong:
        raise ValueError(f"{place.best} does not fit {place.config}: {', '.join(wrong[:3])} do not match")
    return Run(place.path, config, genes, split, model.eval().to(chosen), chosen, int(checkpoint["epoch"]) + 1)


def as_trained(run: Run, section: Section) -> Section:
    """``section`` with its scale left out if the run was trained without one: then widths follow the spot grid."""
    if run.config.crop.niche_um is not None or section.grid.um_per_px is None:
        return section
    return replace(section, grid=replace(section.grid, um_per_px=None, pitch_um=None))
