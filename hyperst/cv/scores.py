"""Scores of the test sections of one fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from hyperst.baselines import ridge_floor, training_mean
from hyperst.data import Section, Target, align_genes, transform
from hyperst.evaluation import TOP, score
from hyperst.evaluation_images import read_images
from hyperst.metrics import jensen_shannon, mae, mse, per_gene_pearson, relative_variance_distance
from hyperst.moran import morans_i, neighbours
from hyperst.nearest import image_space, retrieve
from hyperst.noise_ceiling import noise_ceiling
from hyperst.predict import predict_values
from hyperst.run import Run

__all__ = ["METHODS", "MeasuredSection", "fold_scores", "method_scores", "null_scores"]

METHODS = ("model", "network", "stain_match", "ridge_own", "ridge_stain", "retrieval", "training_mean", "noise_ceiling")
_N_SHUFFLES = 20
_OF_SECTIONS = ("rvd", "jsd", "moran_pcc", "moran_mae")
Scores = dict[str, float | None]


@dataclass(frozen=True)
class MeasuredSection:
    """A test section: its name, measured expression (spot gene), and which spots are neighbours."""

    name: str
    measured: np.ndarray
    weights: sparse.csr_array

    @classmethod
    def of(cls, section: Section, genes: Sequence[str], target: Target) -> MeasuredSection:
        """The measured ``genes`` of a section on the scale of ``target``."""
        measured = transform(align_genes(section, genes), section.library_size, target)
        return cls(section.name, measured, neighbours(section))


def fold_scores(
    run: Run, training: Sequence[Section], test: Sequence[Section], genes: Sequence[str]
) -> dict[str, dict[str, Scores]]:
    """Scores of a run and of its baselines: method -> section, or "" for the fold -> metric -> value.

    Args:
        training, test: without the spots that have too few counts.
        genes: those of the run that every test section has measured.
    """
    target, columns = run.config.data.target, np.flatnonzero(np.isin(run.genes, genes))
    tested = [MeasuredSection.of(section, genes, target) for section in test]
    targets = np.concatenate([transform(align_genes(each, genes), each.library_size, target) for each in training])
    seen = [read_images(run, section) for section in test]
    learnt = [read_images(run, section) for section in training]
    predictions = {"model": [each["prediction"][:, columns] for each in seen]}
    if run.mixture is not None:
        predictions["network"] = [each["network"][:, columns] for each in seen]
    if run.config.data.stain_mean is not None:
        predictions["stain_match"] = [predict_values(run, section, stain="match")[:, columns] for section in test]
    for name in ("own", "stain"):
        if name in seen[0]:
            features = np.concatenate([each[name] for each in learnt])
            predictions[f"ridge_{name}"] = [ridge_floor(features, targets, each[name]) for each in seen]
    if (space := image_space(run)) is not None:
        known = np.concatenate([each["image_spot"] for each in learnt])
        predictions["retrieval"] = [retrieve(space, each["image_spot"], known, targets) for each in seen]
    predictions["training_mean"] = [training_mean(targets, section.n_spots) for section in test]
    scores = {method: method_scores(each, tested) for method, each in predictions.items()}
    scores["model"][""] |= null_scores(predictions["model"], tested, run.config.training.seed)
    scores["noise_ceiling"] = _ceilings(test, genes, target)
    return scores


def method_scores(predictions: Sequence[np.ndarray], tested: Sequence[MeasuredSection]) -> dict[str, Scores]:
    """Scores of predictions (spot gene), one for each test section: of every section by name, and of the fold as "".

    Of the fold: ``pcc``, ``rvd``, ``jsd``, ``moran_pcc`` and ``moran_mae`` are means over its sections; ``pcc_pooled``,
    ``pcc_10``, ``pcc_50``, ``pcc_200``, ``mse`` and ``mae`` are over the spots of all of them. None where one is not defined.
    """
    found = {each.name: _section_scores(prediction, each) for prediction, each in zip(predictions, tested, strict=True)}
    pooled = score(np.concatenate(predictions), np.concatenate([each.measured for each in tested]))
    top = {f"pcc_{k}": value for k, value in pooled.pcc_top.items()}
    correlation, *rest = (_mean([each[name] for each in found.values()]) for name in ("pcc", *_OF_SECTIONS))
    means = dict(zip(_OF_SECTIONS, rest, strict=True))
    return {**found, "": {"pcc": correlation, "pcc_pooled": pooled.pcc, **top, **pooled.errors, **means}}


def null_scores(predictions: Sequence[np.ndarray], tested: Sequence[MeasuredSection], seed: int) -> Scores:
    """Correlations of the fold with predictions shuffled between the spots of each section, mean over 20 shuffles: "NAME_null"."""
    random = np.random.default_rng(seed)
    measured = np.concatenate([each.measured for each in tested])
    shuffled = [
        score(np.concatenate([values[random.permutation(len(values))] for values in predictions]), measured)
        for _ in range(_N_SHUFFLES)
    ]
    top = {f"pcc_{k}_null": _mean([each.pcc_top.get(k) for each in shuffled]) for k in TOP if k in shuffled[0].pcc_top}
    return {"pcc_pooled_null": _mean([each.pcc for each in shuffled]), **top}


def _section_scores(prediction: np.ndarray, tested: MeasuredSection) -> Scores:
    measured = tested.measured
    ours, theirs = (morans_i(values, tested.weights) for values in (prediction, measured))
    both = np.isfinite(ours) & np.isfinite(theirs)
    agreement = per_gene_pearson(ours[both, None], theirs[both, None])[0] if both.sum() > 2 else np.nan
    values = {
        "pcc": per_gene_pearson(prediction.astype(np.float64), measured.astype(np.float64)),
        "mse": np.asarray([mse(prediction, measured)]),
        "mae": np.asarray([mae(prediction, measured)]),
        "rvd": relative_variance_distance(prediction, measured),
        "jsd": jensen_shannon(prediction, measured),
        "moran_pcc": np.asarray([agreement]),
        "moran_mae": np.abs(ours - theirs),
    }
    return {name: _mean(each.tolist()) for name, each in values.items()}


def _ceilings(test: Sequence[Section], genes: Sequence[str], target: Target) -> dict[str, Scores]:
    found: dict[str, Scores] = {
        section.name: {"pcc": _mean(noise_ceiling(section, genes, target).tolist())} for section in test
    }
    return {**found, "": {"pcc": _mean([each["pcc"] for each in found.values()])}}


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of what is defined; None if nothing is."""
    defined = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(defined)) if defined else None
