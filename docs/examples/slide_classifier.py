"""A label of whole slides from their predicted pseudo-bulk, by nested cross-validation, on synthetic slides with a known answer.

The paper does so for microsatellite instability: a random forest on the predicted expression of slides without transcriptomics.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold

import hyperst
from hyperst.cohort import predict_cohort
from hyperst.config import update
from hyperst.data import SectionSource, transform
from hyperst.synthetic import write_tissue

UM_PER_PX = 2.8
SETTINGS = {"max_features": ["sqrt", 0.5], "min_samples_leaf": [1, 3]}


def nested_cross_validation(
    bulk: anndata.AnnData, labels: pd.Series, patients: pd.Series, *, folds: int = 5, trees: int = 100, seed: int = 0
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


def make_slides(folder: Path, n_slides: int, n_spots: int) -> tuple[list[SectionSource], pd.DataFrame]:
    """Images of ``n_slides`` tissues, two of each patient, and the measured pseudo-bulk, which only the labels are made of."""
    sources, measured = [], {}
    for number in range(n_slides):
        name, patient = f"slide{number:03}", f"P{number // 2}"
        path = write_tissue(folder, seed=1000 + number, name=name, n_rows=n_spots, n_cols=n_spots, um_per_px=UM_PER_PX)
        section = anndata.read_h5ad(path)
        counts = section.X.toarray()
        measured[name] = transform(counts, counts.sum(axis=1), "log1p_cp10k").mean(axis=0)
        sources.append(SectionSource(folder / "images" / f"{name}.png", name=name, patient=patient, mpp=UM_PER_PX))
    return sources, pd.DataFrame(measured, section.var_names).T


def main(folder: Path, n_slides: int = 60, n_spots: int = 12, epochs: int = 20) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train on three sections, predict slides from their images, and classify them; then the same with labels of chance."""
    size = {"n_rows": n_spots, "n_cols": n_spots, "um_per_px": UM_PER_PX}
    training = [write_tissue(folder / "training", seed=seed, **size) for seed in range(3)]
    config = update(hyperst.RunConfig(), {"data": {"n_genes": 50}, "training": {"epochs": epochs}})
    hyperst.fit(config, [hyperst.read_section(path) for path in training], folder / "run")
    sources, measured = make_slides(folder / "slides", n_slides, n_spots)
    predict_cohort(folder / "run", sources, folder / "cohort", workers=0)
    bulk = anndata.read_h5ad(folder / "cohort" / "cohort.h5ad")
    gene = measured[bulk.var_names].std().idxmax()  # the one that differs most between slides
    labels = measured[gene] > measured[gene].median()
    chance = pd.Series(np.random.default_rng(0).permutation(labels), labels.index)
    found, null = (nested_cross_validation(bulk, each, bulk.obs["patient"]) for each in (labels, chance))
    return found, null


if __name__ == "__main__":
    found, null = main(Path(sys.argv[1]))
    print(f"AUROC {auroc(found):.3f}, of labels by chance {auroc(null):.3f}")
