"""A label of whole slides from their predicted pseudo-bulk, by nested cross-validation, on synthetic slides with a known answer.

The paper does so for microsatellite instability: a random forest on the predicted expression of slides without transcriptomics.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

import hyperst
from hyperst.cohort import predict_cohort
from hyperst.config import update
from hyperst.data import SectionSource
from hyperst.synthetic import write_tissue

KINDS = (4, 3)  # cell types: large nuclei, small ones
SETTINGS = {"max_features": ["sqrt", 0.5], "min_samples_leaf": [1, 3]}


def nested_cross_validation(
    bulk: AnnData, labels: pd.Series, patients: pd.Series, *, folds: int = 5, trees: int = 100, seed: int = 0
) -> pd.DataFrame:
    """A line for each slide: its label, and the probability from a forest that has seen no slide of its patient.

    Settings of the forest are chosen by a cross-validation of their own among the slides that it learns from.

    Args:
        bulk: cohort.h5ad. labels: True or False by slide; those that are missing are left out. patients: by slide.
    """
    slides = bulk.obs_names.intersection(labels.dropna().index)
    x = bulk[slides].X
    y, patient = labels[slides].to_numpy(dtype=bool), patients[slides].to_numpy()
    outer = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    probability, fold = np.full(len(slides), np.nan), np.zeros(len(slides), dtype=int)
    for number, (training, test) in enumerate(outer.split(x, y, patient)):
        inner = StratifiedGroupKFold(3, shuffle=True, random_state=seed)
        forest = RandomForestClassifier(trees, class_weight="balanced", random_state=seed)
        search = GridSearchCV(forest, SETTINGS, scoring="roc_auc", cv=inner)
        search.fit(x[training], y[training], groups=patient[training])
        probability[test] = search.predict_proba(x[test])[:, 1]
        fold[test] = number
    return pd.DataFrame({"label": y, "probability": probability, "patient": patient, "fold": fold}, index=slides)


def auroc(found: pd.DataFrame) -> float:
    """Area under the ROC curve, the mean over folds: probabilities of two forests are not compared."""
    scores = [roc_auc_score(each["label"], each["probability"]) for _, each in found.groupby("fold")]
    return float(np.mean(scores))


def make_slides(folder: Path, n_slides: int, n_spots: int) -> tuple[list[SectionSource], pd.Series]:
    """Images of ``n_slides`` tissues, two of each patient, and their labels: whether most cells are of one kind or the other."""
    sources, labels = [], {}
    for number in range(n_slides):
        name, patient = f"slide{number:03}", number // 2
        labels[name] = patient % 2 == 1
        size = {"n_rows": n_spots, "n_cols": n_spots, "um_per_px": 2.0}
        write_tissue(folder, 1000 + number, name, **size, dominant=KINDS[labels[name]])
        sources.append(SectionSource(folder / "images" / f"{name}.png", name=name, patient=f"P{patient}", mpp=2.0))
    return sources, pd.Series(labels)


def predict_slides(folder: Path, n_slides: int = 40, n_spots: int = 8, **training: int) -> tuple[AnnData, pd.Series]:
    """Train on four sections of their own, predict slides from their images; the pseudo-bulk, and the labels."""
    size = {"n_rows": n_spots, "n_cols": n_spots, "um_per_px": 2.0}
    paths = [write_tissue(folder, seed, dominant=KINDS[seed % 2], **size) for seed in range(4)]
    sections = [hyperst.read_section(path) for path in paths]
    config = update(hyperst.RunConfig(), {"data": {"n_genes": 40}, "crop": {"image_size": 32}, "training": training})
    hyperst.fit(config, sections, folder / "run")
    sources, labels = make_slides(folder / "slides", n_slides, n_spots)
    predict_cohort(folder / "run", sources, folder / "cohort", workers=0)
    return anndata.read_h5ad(folder / "cohort" / "cohort.h5ad"), labels


def by_chance(labels: pd.Series, patients: pd.Series, seed: int = 0) -> pd.Series:
    """The labels, exchanged among patients."""
    of_patient = labels.groupby(patients).first()
    shuffled = pd.Series(np.random.default_rng(seed).permutation(of_patient), of_patient.index)
    return patients.map(shuffled).astype(bool)


def main(folder: Path) -> None:
    bulk, labels = predict_slides(folder, epochs=4)
    patients = bulk.obs["patient"].astype(str)
    for what, each in (("cells", labels), ("chance", by_chance(labels, patients))):
        print(f"{what}: AUROC {auroc(nested_cross_validation(bulk, each, patients)):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
