"""Checkpoints: read without running code, whole or not at all, and matched with the genes and weights they belong to."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hyperst.closed_form import Mixture
from hyperst.config import RunConfig
from hyperst.validation import reason_of

__all__ = [
    "frozen_weights",
    "load_checkpoint",
    "require_frozen",
    "require_genes",
    "require_settings",
    "stored_identity",
    "stored_mixture",
    "take_weights",
    "trained_settings",
    "weights_checksum",
]

IDENTITY = "hyperst"
"""Entry of a checkpoint with what it belongs to: "genes", the names in order, "frozen", the :func:`weights_checksum`, and
"settings", the :func:`trained_settings`."""

MIXTURE = "closed_form"
"""Entry of a checkpoint with the tensors of :class:`hyperst.closed_form.Mixture`, once training has ended."""

_SAMPLES = 64  # values of each tensor that a checksum covers


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU with ``weights_only=True``; every checksum in the file is looked at.

    Raises:
        FileNotFoundError: the run has no such checkpoint (its first epoch was not finished).
        ValueError: the file is damaged, is no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint {path} does not exist: the run has no finished epoch yet; continue it with --resume"
        )
    with path.open("rb"):  # a file without permission is no damaged one
        pass
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()  # PyTorch does not compare checksums as it reads
        if wrong is not None:
            raise ValueError(f"{wrong} in it is not what was written")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not _is_checkpoint(checkpoint):
            raise ValueError("it holds no state_dict and epoch")
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"checkpoint {path} is damaged or not of this library ({reason_of(error)}); train again"
        ) from error
    return checkpoint


def weights_checksum(model: nn.Module, names: Collection[str]) -> str | None:
    """A checksum of the parameters called ``names``, from name, shape and 64 values of each; None without any.

    >>> layer = nn.Linear(2, 2)
    >>> weights_checksum(layer, {"weight"}) == weights_checksum(layer, {"weight"}) != weights_checksum(layer, {"bias"})
    True
    """
    if not names:
        return None
    digest = hashlib.sha256()
    parameters = dict(model.named_parameters())
    for name in sorted(names):
        flat = parameters[name].detach().float().cpu().flatten()
        digest.update(f"{name} {tuple(parameters[name].shape)} ".encode())
        digest.update(flat[:: max(1, len(flat) // _SAMPLES)].numpy().tobytes())
    return digest.hexdigest()


def stored_identity(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says it belongs to; empty in one of an older version, which does not say."""
    stored = checkpoint.get(IDENTITY)
    return stored if isinstance(stored, dict) else {}


def require_genes(checkpoint: dict[str, Any], genes: Sequence[str], checkpoint_path: Path, genes_path: Path) -> None:
    """Raise ValueError unless ``genes`` are those that the checkpoint was trained on, in their order."""
    trained = stored_identity(checkpoint).get("genes")
    if trained is None or trained == list(genes):
        return
    if len(trained) != len(genes):
        differs = f"it names {len(genes)} genes, not {len(trained)}"
    else:
        line = next(number for number, pair in enumerate(zip(trained, genes, strict=True)) if pair[0] != pair[1])
        differs = f"line {line + 1} is {genes[line]!r}, not {trained[line]!r}"
    raise ValueError(
        f"{genes_path} is not the list of genes that {checkpoint_path} was trained on: {differs}. Put back the file of this "
        "run, or train again"
    )


def trained_settings(config: RunConfig) -> dict[str, Any]:
    """What predictions mean and what the model sees: a configuration that says otherwise is of another run."""
    model = {f"model.{key}": getattr(config.model, key) for key in ("likelihood", "average")}
    return {
        "data.target": config.data.target,
        **model,
        **{f"crop.{key}": value for key, value in asdict(config.crop).items()},
    }


def require_settings(checkpoint: dict[str, Any], config: RunConfig, checkpoint_path: Path, config_path: Path) -> None:
    """Raise ValueError where the configuration has been changed since training in what the weights depend on."""
    trained = stored_identity(checkpoint).get("settings", {})
    given = trained_settings(config)
    changed = [key for key, value in trained.items() if given.get(key) != value]
    if changed:
        said = ", ".join(f"{key} is {given.get(key)!r}, not {trained[key]!r}" for key in changed)
        raise ValueError(
            f"{config_path} is not the configuration that {checkpoint_path} was trained with: {said}. Put back the file of this "
            "run, or train again"
        )


def frozen_weights(model: nn.Module) -> set[str]:
    """Names of the parameters that training does not change."""
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def require_frozen(
    checkpoint: dict[str, Any],
    model: nn.Module,
    names: Collection[str],
    weights: str | None,
    folder: Path,
    config_path: Path,
) -> None:
    """Raise ValueError unless the frozen parameters called ``names``, from the file ``weights``, are those trained with."""
    trained_on = stored_identity(checkpoint).get("frozen")
    if trained_on is not None and trained_on != weights_checksum(model, names):
        raise ValueError(
            f"{weights} does not hold the weights that {folder} was trained with; put back that file, or point model.weights in "
            f"{config_path} to it"
        )


def take_weights(model: nn.Module, weights: dict[str, Tensor], optional: Collection[str]) -> None:
    """Load ``weights`` into ``model``. Raises ValueError where shapes differ, or names that are not ``optional``."""
    expected = model.state_dict()
    for name in sorted(expected.keys() & weights.keys()):
        if expected[name].shape != weights[name].shape:
            raise ValueError(f"{name} is {tuple(weights[name].shape)}, need {tuple(expected[name].shape)}")
    problems = model.load_state_dict(weights, strict=False)
    wrong = sorted({*problems.missing_keys, *problems.unexpected_keys} - set(optional))
    if wrong:
        raise ValueError(f"{', '.join(wrong[:3])} do not match")


def stored_mixture(checkpoint: dict[str, Any], n_genes: int) -> Mixture | None:
    """The mixture that a checkpoint holds, None without one. Raises ValueError where it is incomplete or of other genes."""
    stored = checkpoint.get(MIXTURE)
    if stored is None:
        return None
    try:
        mixture = Mixture.from_tensors(stored)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"its closed-form head is incomplete ({reason_of(error)})") from error
    if mixture.mean.shape != (n_genes,):
        raise ValueError(f"its closed-form head predicts {mixture.mean.size} genes, need {n_genes}")
    return mixture


def _is_checkpoint(checkpoint: Any) -> bool:
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("epoch"), int):
        return False
    state = checkpoint.get("state_dict")
    return isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())
