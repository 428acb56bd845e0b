"""A head fitted in closed form on a trained network's image features, and its mixture with the network's own output.

The target's principal components are predicted one by one by kernel ridge regression, each with a penalty of its own that
cross-validation over blocks of spots chooses: components that the image does not tell shrink to nothing, and with them the noise of
single genes, which a network's output layer goes on to learn.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from hyperst.data import Section
from hyperst.data.niches import niche_members

if TYPE_CHECKING:
    from hyperst.run import Run

__all__ = [
    "ClosedFormHead",
    "Mixture",
    "Rows",
    "blocks_with_closed_form",
    "fit_head",
    "fit_mixture",
    "head_features",
    "of_network",
    "with_closed_form",
]

_CLIP = 5.0  # standard deviations; features of another slide may lie anywhere
_WIDTH = 4.0  # of the kernel, in median squared distances: nearly linear, with what bends saturating far out
_PENALTIES = np.logspace(-7, 0, 29)  # per spot; at the last one, next to nothing is left of a component
_FOLDS = 5
_CHUNK = 1024  # spots predicted at once


class Rows(Protocol):
    """An array (spot ...), in memory or in a file, that gives the rows of some spots."""

    def __getitem__(self, spots: np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True)
class ClosedFormHead:
    """Kernel ridge regression on standardised features; all float64.

    Attributes:
        mean, scale: (width,) of the training spots' features; scale is infinite for a feature that does not vary.
        points: (spot width) training features, standardised and clipped at 5 standard deviations.
        bandwidth: h of the kernel exp(-|a - b|^2 / h).
        coefficients: (spot gene). offset: (gene,).
    """

    mean: np.ndarray
    scale: np.ndarray
    points: np.ndarray
    bandwidth: float
    coefficients: np.ndarray
    offset: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Predict from features (spot width): float64 (spot gene)."""
        distances = _distances(_standardised(features, self.mean, self.scale), self.points)
        return np.exp(-distances / self.bandwidth) @ self.coefficients + self.offset


@dataclass(frozen=True)
class Mixture:
    """The closed form and the network's shrunk output in their shares, both as differences to the training mean.

    Attributes:
        share: 0 to 1, of the closed form. strength: 0 to 1, what is left of the difference to the mean.
        mean: (gene,) of the training targets, float64.
        shrinkage: (gene gene) float64, what the network's difference to the mean is multiplied by.
    """

    head: ClosedFormHead
    share: float
    strength: float
    mean: np.ndarray
    shrinkage: np.ndarray

    def __call__(self, features: np.ndarray, network: np.ndarray) -> np.ndarray:
        """Predict from features (spot width) and the network's output (spot gene): float32 (spot gene)."""
        mixed = np.empty(network.shape, dtype=np.float32)
        for start in range(0, len(mixed), _CHUNK):
            part = slice(start, start + _CHUNK)
            ours, theirs = self.head(features[part]) - self.mean, (network[part] - self.mean) @ self.shrinkage
            mixed[part] = self.mean + self.strength * (self.share * ours + (1 - self.share) * theirs)
        return mixed

    def as_tensors(self) -> dict[str, Tensor]:
        """Flat tensors, which a checkpoint can hold; :meth:`from_tensors` gives the same mixture back, bit by bit."""
        values = {
            **vars(self.head),
            **{f"mixture.{name}": value for name, value in vars(self).items() if name != "head"},
        }
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Mixture:
        """The mixture of :meth:`as_tensors`. Raises KeyError where a tensor is missing."""
        head: dict[str, Any] = {field.name: tensors[field.name].numpy() for field in fields(ClosedFormHead)}
        head["bandwidth"] = float(head["bandwidth"])
        own = {field.name: tensors[f"mixture.{field.name}"] for field in fields(cls) if field.name != "head"}
        share, strength = (float(own[name]) for name in ("share", "strength"))
        return cls(ClosedFormHead(**head), share, strength, own["mean"].numpy(), own["shrinkage"].numpy())


def head_features(section: Section, features: np.ndarray, levels: Sequence[str], seen: Sequence[str]) -> np.ndarray:
    """What the head sees of each spot: image features of some levels, and their mean over the spot and its neighbours.

    Args:
        features: (spot width), of all spots of the section, those of each level side by side.
        levels: all of the model, from narrow to wide. seen: some of them.

    Returns:
        float32 (spot width).
    """
    return _with_neighbours(niche_members(section), slice(0, section.n_spots), features, levels, seen)


def _with_neighbours(
    members: sparse.csr_array, part: slice, features: Rows, levels: Sequence[str], seen: Sequence[str]
) -> np.ndarray:
    """:func:`head_features` of the spots ``part``, from the ``members`` (spot spot) of the niches of all."""
    niches = members[part]
    needed = np.unique(niches.indices)  # the spots themselves among them
    of_each = dict(zip(levels, np.split(features[needed], len(levels), axis=1), strict=True))
    chosen = np.concatenate([of_each[level] for level in seen], axis=1)
    niches = sparse.csr_array(
        (niches.data, np.searchsorted(needed, niches.indices), niches.indptr), shape=(niches.shape[0], len(needed))
    )
    own = chosen[np.searchsorted(needed, np.arange(part.start, part.stop))]
    return np.concatenate([own, niches @ chosen / niches.sum(axis=1)[:, None]], axis=1)


def of_network(name: str, number: int) -> str:
    """How the values called ``name`` are called of a network: as they are of the first, 0.

    >>> of_network("features", 0), of_network("features", 1)
    ('features', 'features of network 2')
    """
    return name if number == 0 else f"{name} of network {number + 1}"


def with_closed_form(run: Run, section: Section, found: Mapping[str, Rows]) -> np.ndarray:
    """What the run predicts, float32 (spot gene), from its networks' "prediction" and "features" of all spots of a section.

    The mean over networks. Warns where the run is to have a closed-form head and, its training not having ended, has none yet.
    """
    return np.concatenate(list(blocks_with_closed_form(run, section, found)))


def blocks_with_closed_form(run: Run, section: Section, found: Mapping[str, Rows]) -> Iterator[np.ndarray]:
    """:func:`with_closed_form` of 1024 spots after another."""
    of_networks = (_blocks_of(network, section, found, number) for number, network in enumerate(run.networks))
    for blocks in zip(*of_networks, strict=True):
        yield blocks[0] if len(blocks) == 1 else np.stack(blocks).mean(axis=0, dtype=np.float64).astype(np.float32)


def _blocks_of(run: Run, section: Section, found: Mapping[str, Rows], number: int) -> Iterator[np.ndarray]:
    """What the network of this number predicts, 1024 spots after another."""
    if run.mixture is None and run.config.model.head != "network":
        warnings.warn(
            f"the training of the run in {run.folder} has not ended, so the network predicts without the closed-form head; go on "
            f"with hyperst train --resume --output {shlex.quote(str(run.folder))}",
            stacklevel=4,
        )
    members = None if run.mixture is None else niche_members(section)
    for start in range(0, section.n_spots, _CHUNK):
        part = slice(start, min(start + _CHUNK, section.n_spots))
        network = found[of_network("prediction", number)][np.arange(part.start, part.stop)]
        if run.mixture is None or members is None:
            yield network
        else:
            features = found[of_network("features", number)]
            yield run.mixture(
                _with_neighbours(members, part, features, run.model.levels, run.model.head_levels), network
            )


def fit_head(features: np.ndarray, targets: np.ndarray, blocks: np.ndarray, seed: int = 0) -> ClosedFormHead:
    """Fit a head to training spots.

    Targets are standardised per gene and turned to their principal components. Each has the penalty whose error in five-fold
    cross-validation over blocks of spots is smallest, so that neighbours, which share their noise, are held out together.

    Args:
        features: (spot width). targets: (spot gene). blocks: integers (spot,), the same for spots that are held out together.
        seed: which blocks are in which fold.

    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> head = fit_head(x, x @ np.ones((3, 2)), np.arange(200))
    >>> bool(np.abs(head(x) - x @ np.ones((3, 2))).max() < 0.1)
    True
    """
    features, targets = features.astype(np.float64), targets.astype(np.float64)
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-8 * (1 + np.abs(mean)), scale, np.inf)
    points = _standardised(features, mean, scale)
    distances = _distances(points, points)
    bandwidth = _WIDTH * float(np.median(distances[np.triu_indices(len(points), 1)])) or 1.0
    kernel = np.exp(-distances / bandwidth)

    centre, spread = targets.mean(axis=0), targets.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    standard = (targets - centre) / spread
    basis = np.linalg.svd(standard, full_matrices=False)[2]
    components = standard @ basis.T
    error = np.zeros((len(_PENALTIES), len(basis)))
    fold = _folds(blocks, seed)
    for number in np.unique(fold):
        out = fold == number
        solve = _ridge(kernel[np.ix_(~out, ~out)], components[~out])
        held_out = kernel[np.ix_(out, ~out)]
        for index, penalty in enumerate(_PENALTIES):
            coefficients, offset = solve(penalty)
            error[index] += ((held_out @ coefficients + offset - components[out]) ** 2).sum(axis=0)
    coefficients, offset = _ridge(kernel, components)(_PENALTIES[error.argmin(axis=0)])
    back = basis * spread
    return ClosedFormHead(mean, scale, points, bandwidth, coefficients @ back, centre + offset @ back)


def fit_mixture(
    features: np.ndarray,
    network: np.ndarray,
    targets: np.ndarray,
    blocks: np.ndarray,
    validation: np.ndarray,
    *,
    alone: bool = False,
) -> Mixture:
    """Fit a head to the spots that are not ``validation``, and choose on those that are how it is mixed with the network.

    On validation spots each principal component of the network's output keeps the part, 0 to 1, that errs least; then the share of
    the closed form, and the strength of the whole, are those of the smallest squared error. With strength 0 it is that of the
    training mean, so on these spots the mixture is never worse.

    Args:
        features: (spot width). network: its output (spot gene). targets: (spot gene). blocks: see :func:`fit_head`.
        validation: bool (spot,), at least one of them and two others.
        alone: whether the closed form has the whole share.
    """
    targets, network = targets.astype(np.float64), network.astype(np.float64)
    head = fit_head(features[~validation], targets[~validation], blocks[~validation])
    mean = targets[~validation].mean(axis=0)
    shrinkage = _shrinkage(targets - mean, network - mean, validation)
    known = targets[validation] - mean
    ours, theirs = head(features[validation]) - mean, (network[validation] - mean) @ shrinkage
    share = 1.0 if alone else _best_part(ours - theirs, known - theirs)
    strength = _best_part(share * ours + (1 - share) * theirs, known)
    return Mixture(head, share, strength, mean, shrinkage)


def _shrinkage(targets: np.ndarray, network: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """What a network's output is multiplied by (gene gene): each principal component of the targets by its part on validation."""
    spread = targets[~validation].std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    basis = np.linalg.svd(targets[~validation] / spread, full_matrices=False)[2]
    given, known = (values[validation] / spread @ basis.T for values in (network, targets))
    part = [_best_part(one, other) for one, other in zip(given.T, known.T, strict=True)]
    return (basis.T * part @ basis) * spread / spread[:, None]


def _best_part(given: np.ndarray, wanted: np.ndarray) -> float:
    """The factor, 0 to 1, with which ``given`` has the smallest squared error against ``wanted``; 0 for zeros."""
    square = float((given**2).sum())
    return float(np.clip((given * wanted).sum() / square, 0, 1)) if square > 0 else 0.0


def _standardised(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip((features - mean) / scale, -_CLIP, _CLIP)


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (a b) of rows."""
    return np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T, 0)


def _ridge(kernel: np.ndarray, targets: np.ndarray) -> Callable[[float | np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Kernel ridge regression with an intercept: coefficients (spot column) and offset (column,) as a function of the penalty.

    The penalty is one number or one per column, per spot. Coefficients of a column sum to 0, so that centring of the kernel against
    new spots drops out.
    """
    row = kernel.mean(axis=0)
    values, vectors = np.linalg.eigh(kernel - row - row[:, None] + row.mean())
    mean = targets.mean(axis=0)
    turned = vectors.T @ (targets - mean)

    def solve(penalty: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        coefficients = vectors @ (turned / (np.maximum(values, 0)[:, None] + len(kernel) * penalty))
        return coefficients, mean - row @ coefficients

    return solve


def _folds(blocks: np.ndarray, seed: int) -> np.ndarray:
    """The fold (spot,) of each spot: all spots of a block are in one; of a single block the spots themselves are dealt."""
    _, block = np.unique(blocks, return_inverse=True)
    block = block if block.max() > 0 else np.arange(len(blocks))
    dealt = np.random.default_rng(seed).permutation(block.max() + 1) % _FOLDS
    return dealt[block]
