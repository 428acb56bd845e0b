"""A run: its folder, what is recorded about the data and the code that made it, and how its model is loaded. No Lightning.

``config.yaml`` is written last when a run starts, so a folder that has one has everything else too.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from hyperst.checkpoint import (
    frozen_weights,
    load_checkpoint,
    require_frozen,
    require_genes,
    require_settings,
    stored_mixture,
    take_weights,
    trained_settings,
)
from hyperst.closed_form import Mixture
from hyperst.config import RunConfig, read_run_config
from hyperst.data import Section, SpotDataset
from hyperst.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from hyperst.data.kept_crops import KeptCrops
from hyperst.device import choose_device
from hyperst.files import sha256, write_json_atomic, write_text_atomic
from hyperst.model import HyperST
from hyperst.model.backbones import is_pretrained
from hyperst.records import SectionRecord, Split
from hyperst.validation import reason_of

__all__ = [
    "Run",
    "RunFolder",
    "SectionRecord",
    "Split",
    "as_trained",
    "build_model",
    "load_checkpoint",
    "load_run",
    "run_checksum",
]


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
        self.calibration = self.path / "calibration.npz"
        self.training_spots = self.path / "training_spots.npz"
        self.tissue_pixels = self.path / "tissue_pixels.npz"
        self.best = self.path / "checkpoints" / "best.ckpt"
        self.last = self.path / "checkpoints" / "last.ckpt"
        self.networks = self.path / "networks"

    def network(self, number: int) -> RunFolder:
        """The folder of a further network, from 2 on: a run of its own, whose predictions count as much as those of this one."""
        return RunFolder(self.networks / str(number))

    def trained_networks(self) -> list[RunFolder]:
        """Folders of the further networks of the run whose training has ended."""
        wanted = range(2, read_run_config(self.config).model.n_networks + 1)
        return [each for each in map(self.network, wanted) if each.summary.is_file()]

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
        """Names of the predicted genes, one per line, in the order of the model's outputs.

        Raises:
            FileNotFoundError, ValueError: the file is missing, or no list of names.
        """
        genes = _read_text(self.genes).removesuffix("\n").split("\n")
        if not all(name.strip() for name in genes) or len(set(genes)) < len(genes):
            raise ValueError(f"{self.genes} is damaged: it must name each predicted gene once, one per line; {_AGAIN}")
        return genes

    def write_genes(self, genes: Sequence[str]) -> None:
        """Write ``genes.txt`` atomically. Raises ValueError for a name that is no single line."""
        broken = [name for name in genes if not name.strip() or len(name.splitlines()) != 1]
        if broken:
            raise ValueError(f"gene {broken[0]!r} has no name of one line; rename it in the sections (var_names)")
        write_text_atomic(self.genes, "\n".join(genes) + "\n")

    def read_split(self) -> Split:
        """The sections and held-out spots of the run.

        Raises:
            FileNotFoundError, ValueError: the file is missing or damaged.
        """
        try:
            split = _SPLIT.validate_python(_read_json(self.split))
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            where = ".".join(map(str, wrong["loc"])) or "the whole"
            raise ValueError(f"{self.split} is damaged ({where}: {wrong['msg']}); {_AGAIN}") from error
        if not split.role("training"):
            raise ValueError(f"{self.split} is damaged (it names no training section); {_AGAIN}")
        return split

    def write_split(self, split: Split) -> None:
        """Write ``split.json`` atomically."""
        write_json_atomic(self.split, asdict(split))

    def read_summary(self) -> dict[str, Any] | None:
        """How the training ended, or None while it has not."""
        return _read_object(self.summary) if self.summary.is_file() else None

    def read_versions(self) -> dict[str, str]:
        """Versions that the run was started with."""
        return _read_object(self.versions)


_SPLIT = TypeAdapter(Split)
_AGAIN = "restore it, or train again into another folder"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing from the run; {_AGAIN}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); {_AGAIN}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); {_AGAIN}") from error


def _read_object(path: Path) -> dict[str, Any]:
    if not isinstance(found := _read_json(path), dict):
        raise ValueError(f"{path} is damaged (it holds no table of names and values); {_AGAIN}")
    return found


def section_indices(sections: Sequence[Section], spots: dict[str, list[str]], *, inside: bool) -> list[tuple[int, int]]:
    """(section, spot) pairs of the spots that are (``inside``) or are not in ``spots`` (ids per section name)."""
    pairs = []
    for number, section in enumerate(sections):
        held_out = set(spots.get(section.name, ()))
        pairs += [(number, spot) for spot, name in enumerate(section.spot_ids) if (str(name) in held_out) == inside]
    return pairs


def build_model(config: RunConfig, n_genes: int, backbone_width: int | None = None, *, stored: bool = False) -> HyperST:
    """The untrained model of a run; ``backbone_width`` is the width of precomputed features.

    Args:
        stored: whether ``config`` is that of a run on disk. One without ``image_mean`` is of an older version, which
            normalised images as ImageNet's for every encoder and left weights without a place unused: it goes on so.
    """
    model = config.model
    old = stored and is_pretrained(model.backbone) and model.normalisation is None
    if old:
        model = replace(model, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
    return HyperST(
        n_genes,
        model,
        levels=config.crop.levels,
        target=config.data.target,
        backbone_width=backbone_width,
        image_size=config.crop.image_size,
        strict_weights=not old,
    )


def spot_dataset(
    config: RunConfig,
    sections: Sequence[Section],
    genes: Sequence[str] = (),
    *,
    augment: bool = False,
    raw_counts: bool = False,
    indices: Sequence[tuple[int, int]] | None = None,
    keep: bool = False,
    kept: KeptCrops | None = None,
    on_crops: Callable[[int], None] | None = None,
) -> SpotDataset:
    """Spots as a run sees them; without ``genes`` images alone. Crops are kept in memory only where they ``keep`` serving.

    ``kept``: see :class:`hyperst.data.SpotDataset`.
    """
    return SpotDataset(
        sections,
        genes,
        config.crop,
        config.data.target,
        augment=augment,
        raw_counts=raw_counts,
        feature_key=config.data.feature_key,
        indices=indices,
        cache_bytes=int(config.data.cache_gib * 2**30) if keep else 0,
        counts=len(genes) > 0,
        kept=kept,
        on_crops=on_crops,
    )


@dataclass(frozen=True)
class Run:
    """A trained run, ready to predict.

    Attributes:
        folder: where it lies.
        config, genes, split: what it was trained with; the model's outputs are in the order of ``genes``.
        model: in evaluation mode, on ``device``, with the weights of the best epoch.
        best_epoch: that epoch, counted from 1.
        checkpoint: SHA-256 of the file with the weights.
        mixture: of the network and the closed-form head; None where the network predicts alone, as until training has ended.
        others: runs of further networks, see `hyperst.model.ModelConfig.networks`; all else that is said of the run, intervals
            too, is of the first.
    """

    folder: Path
    config: RunConfig
    genes: list[str]
    split: Split
    model: HyperST
    device: torch.device
    best_epoch: int
    checkpoint: str
    mixture: Mixture | None = None
    others: tuple[Run, ...] = ()

    @property
    def networks(self) -> tuple[Run, ...]:
        """The run and the others."""
        return (self, *self.others)


def load_run(folder: str | Path, *, device: str | None = None, first_alone: bool = False) -> Run:
    """Load the best checkpoint of a run; a run that is still training, or was interrupted, can be loaded too.

    Warns where further networks are not trained yet.

    Args:
        device: ``"cpu"``, ``"cuda"``, ...; default: the GPU if there is one.
        first_alone: without further networks.

    Raises:
        FileNotFoundError: no run in ``folder``, or none of its epochs is finished.
        ValueError: no such device, a damaged checkpoint, or one that does not belong to the configuration beside it.
    """
    place = RunFolder(folder)
    place.require()
    chosen = choose_device(device)
    config, genes, split = read_run_config(place.config), place.read_genes(), place.read_split()
    checkpoint = load_checkpoint(place.best)
    require_genes(checkpoint, genes, place.best, place.genes)
    require_settings(checkpoint, config, place.best, place.config)
    copy = "averaged.module." if config.training.averaging else "model."
    weights = {key.removeprefix(copy): value for key, value in checkpoint["state_dict"].items() if key.startswith(copy)}
    try:
        # all of an encoder that was trained as a whole is in the checkpoint
        own = replace(config.model, weights=None) if config.model.tune == "full" else config.model
        model = build_model(
            replace(config, model=own), len(genes), weights["image_projectors.spot.weight"].shape[1], stored=True
        )
    except (RuntimeError, KeyError, IndexError) as error:
        raise ValueError(f"{place.best} does not fit {place.config}: {reason_of(error)}; {_AGAIN}") from error
    frozen = frozen_weights(model)
    try:
        take_weights(model, weights, optional=frozen)
        mixture = stored_mixture(checkpoint, len(genes)) if config.model.head != "network" else None
    except ValueError as error:
        raise ValueError(f"{place.best} does not fit {place.config}: {error}; {_AGAIN}") from error
    require_frozen(checkpoint, model, frozen, config.model.weights, place.path, place.config)
    model, epoch = model.eval().to(chosen), checkpoint["epoch"] + 1
    run = Run(place.path, config, genes, split, model, chosen, epoch, sha256(place.best), mixture)
    return run if first_alone else replace(run, others=tuple(_further_networks(run, device)))


def _further_networks(run: Run, device: str | None) -> Iterator[Run]:
    """Load the further networks whose training has ended. Warns where some are missing."""
    place = RunFolder(run.folder)
    trained = place.trained_networks()
    finished, wanted = int(place.summary.is_file()) + len(trained), run.config.model.n_networks
    if wanted > 1 and finished < wanted:
        warnings.warn(
            f"the training of {finished} of the {wanted} networks of the run in {place.path} has ended, and without the others a "
            f"prediction is another one; go on with hyperst train --resume --output {shlex.quote(str(place.path))}",
            stacklevel=3,
        )
    for each in trained:
        other = load_run(each.path, device=device)
        if other.genes != run.genes or trained_settings(other.config) != trained_settings(run.config):
            raise ValueError(
                f"{each.path} is no network of the run in {place.path}: it has other genes, or was trained with another "
                f"configuration; {_AGAIN}"
            )
        yield other


def run_checksum(folder: Path) -> str:
    """SHA-256 of what a run predicts with: weights, configuration, genes, sections, and its calibration where there is one."""
    place = RunFolder(folder)
    places = [place, *place.trained_networks()]
    paths = [path for each in places for path in (each.best, each.config, each.genes, each.split)]
    paths += [place.calibration] if place.calibration.is_file() else []
    return hashlib.sha256("".join(map(sha256, paths)).encode()).hexdigest()


def has_scale(run: Run) -> bool:
    """Whether the run knows um/px: those of its crops, or of the sections whose precomputed features it was trained on."""
    if run.config.data.feature_key is None:
        return run.config.crop.niche_um is not None
    return run.split.role("training")[0].um_per_px is not None


def as_trained(run: Run, section: Section) -> Section:
    """``section`` with its scale left out, and a warning, if the run was trained without one: then widths follow the spot grid."""
    if has_scale(run) or section.grid.um_per_px is None:
        return section
    if run.config.data.feature_key is None:  # crops are cut
        warnings.warn(
            f"the run in {run.folder} was trained without um/px, so those of section {section.name} have no effect: its image must "
            "have the pixel size of the training images",
            stacklevel=2,
        )
    return replace(section, grid=replace(section.grid, um_per_px=None, pitch_um=None))
