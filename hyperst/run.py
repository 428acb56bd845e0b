"""A run: what is recorded about the code that made it, how it sees its sections, and how its model is loaded. No Lightning."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch

from hyperst.checkpoint import fingerprint, load_checkpoint, require_genes, stored_identity
from hyperst.config import RunConfig, read_config
from hyperst.data import Section, SpotDataset
from hyperst.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from hyperst.data.features import has_niche_features
from hyperst.model import HyperST
from hyperst.model.backbones import is_pretrained
from hyperst.run_folder import RunFolder, SectionRecord, Split

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
        n_genes, model, backbone_width=backbone_width, image_size=config.crop.image_size, strict_weights=not old
    )


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


def feature_width(config: RunConfig, sections: Sequence[Section], own_niche: bool | None = None) -> int | None:
    """Width of the precomputed features, the same in all sections; None where crops are used.

    Args:
        own_niche: whether niches must have features of their own; None: as in the first section.

    Raises:
        ValueError: the widths differ, a section has no such features, or its niches' are of another kind.
    """
    key = config.data.feature_key
    if key is None:
        return None
    width = len(spot_dataset(config, sections, indices=[(0, 0)])[0]["spot_features"])
    own_niche = has_niche_features(sections[0], key) if own_niche is None else own_niche
    for section in sections:
        if has_niche_features(section, key) != own_niche:
            kinds = ("the mean over the niche's spots", "features of the niche itself")
            raise ValueError(
                f"section {section.name}: the niches' features are {kinds[not own_niche]}, those trained on {kinds[own_niche]}; "
                f"{'give them' if own_niche else 'leave them out'} ({key}_niche in obsm, or --niche-features)"
            )
    return width


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
        ValueError: a damaged checkpoint, or one that does not belong to the configuration beside it.
    """
    place = RunFolder(folder)
    place.require()
    config, genes, split = read_config(place.config), place.read_genes(), place.read_split()
    checkpoint = load_checkpoint(place.best)
    require_genes(checkpoint, genes, place.best, place.genes)
    copy = "averaged.module." if config.training.averaging else "model."
    stored = checkpoint["state_dict"].items()
    weights = {name.removeprefix(copy): value for name, value in stored if name.startswith(copy)}
    try:
        model = build_model(config, len(genes), weights["image_projectors.spot.weight"].shape[1], stored=True)
        problems = model.load_state_dict(weights, strict=False)
    except (RuntimeError, KeyError, IndexError) as error:
        raise ValueError(f"{place.best} does not fit {place.config}: {error}") from error
    frozen = frozen_weights(model)
    wrong = sorted({*problems.missing_keys, *problems.unexpected_keys} - frozen)
    if wrong:
        raise ValueError(f"{place.best} does not fit {place.config}: {', '.join(wrong[:3])} do not match")
    trained_on = stored_identity(checkpoint).get("frozen")
    if trained_on is not None and trained_on != fingerprint(model, frozen):
        raise ValueError(
            f"{config.model.weights} does not hold the weights that {place.path} was trained with; put back that file, or "
            f"point model.weights in {place.config} to it"
        )
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Run(place.path, config, genes, split, model.eval().to(chosen), chosen, int(checkpoint["epoch"]) + 1)


def as_trained(run: Run, section: Section) -> Section:
    """``section`` with its scale left out if the run was trained without one: then widths follow the spot grid."""
    if run.config.crop.niche_um is not None or section.grid.um_per_px is None:
        return section
    return replace(section, grid=replace(section.grid, um_per_px=None, pitch_um=None))
