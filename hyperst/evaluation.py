"""Evaluation: a run beside its simplest competitors on a section it has not seen, with the caveats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from hyperst.baselines import MEAN, NETWORK, NULL, OURS, RIDGE_OWN, RIDGE_STAIN, ridge_floor, training_mean
from hyperst.data import Section, align_genes, excluded_spots_message, fingerprint, transform, with_min_counts
from hyperst.data.dataset import block_ids
from hyperst.evaluation_doubt import doubt_of
from hyperst.evaluation_images import read_images
from hyperst.evaluation_inputs import Missing, check_folder, check_inputs
from hyperst.evaluation_record import gene_figures, write_evaluation
from hyperst.evaluation_space import write_space
from hyperst.files import write_json_atomic
from hyperst.intervals import spot_intervals
from hyperst.metrics import METRICS, per_gene_pearson, top_k_mean
from hyperst.progress import Count
from hyperst.run import Run
from hyperst.stain import Stain, Stains, matching

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Evaluation", "Scores", "evaluate", "measured_expression", "score", "summarise"]

TOP = (10, 50, 200)
_N_SHUFFLES = 20
_FEW_SPOTS = 30


@dataclass(frozen=True)
class Scores:
    """How well one method predicts one section.

    Attributes:
        pcc: mean over genes of the Pearson correlation over spots; None where it is undefined (a constant prediction).
        pcc_top: mean of the k largest per-gene correlations, for each k up to the number of genes. The genes are picked
            on this very section, so chance alone makes it positive: read it beside the null.
        errors: each of `hyperst.metrics.METRICS`, by name, on the target scale: "mse", "mae".
        n_undefined: genes without a correlation, because prediction or measurement is constant; left out of ``pcc``.
    """

    pcc: float | None
    pcc_top: dict[int, float]
    errors: dict[str, float]
    n_undefined: int

    @property
    def mse(self) -> float:
        """Mean squared error over spots and genes."""
        return self.errors["mse"]

    @property
    def mae(self) -> float:
        """Mean absolute error over spots and genes."""
        return self.errors["mae"]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        top = {f"pcc_{k}": value for k, value in self.pcc_top.items()}
        return {"pcc": self.pcc, **top, **self.errors, "n_genes_undefined": self.n_undefined}


@dataclass(frozen=True)
class Evaluation:
    """One section's evaluation.

    Attributes:
        scores: per method, ours first.
        per_gene: one row per gene, see :func:`hyperst.evaluation_record.gene_figures`.
        caveats: what the numbers do not say.
        folder, figure: where metrics.json, per_gene.csv and the figure are.
        missing_genes: genes of the run that the section has not measured.
    """

    section: str
    n_spots: int
    target: str
    scores: dict[str, Scores]
    per_gene: pd.DataFrame
    caveats: list[str]
    folder: Path
    figure: Path
    missing_genes: tuple[str, ...] = ()

    def table(self) -> Table:
        """The scores as a rich table."""
        from rich.table import Table

        ks = sorted({k for entry in self.scores.values() for k in entry.pcc_top})
        genes = f"{len(self.per_gene)} genes, {self.n_spots} spots, target {self.target}"
        table = Table(title=f"{self.section}: {genes}", title_justify="left", title_style="bold")
        table.add_column("method")
        for name in ("PCC", *(f"PCC-{k}" for k in ks), *(name.upper() for name in METRICS)):
            table.add_column(name, justify="right")
        for name, entry in self.scores.items():
            correlations = [entry.pcc, *(entry.pcc_top.get(k) for k in ks)]
            cells = ["-" if value is None else f"{value:+.3f}" for value in correlations]
            style = "bold" if name == OURS else None
            errors = (f"{entry.errors[metric]:.4f}" for metric in METRICS)
            table.add_row(name, *cells, *errors, style=style)
        return table


def evaluate(
    run: Run,
    section: Section,
    *,
    training_sections: Sequence[Section] = (),
    output: str | Path | None = None,
    genes: Sequence[str] = (),
    missing: Missing = "drop",
    min_counts: int | None = None,
    stain: Stain = "none",
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predict ``section``, compare with its counts, and write metrics.json, per_gene.csv, expression.h5ad and a figure.

    Beside the run stand: the same predictions for images shuffled between spots (mean over 20 shuffles), the mean of
    the training spots, and ridge regression fitted on the training spots, on the features of the run's own image
    backbone and on hand-made stain and texture features. Ridge sees all training spots, also those that the run held out.

    Args:
        section: not one of the training sections; their own scores would say nothing.
        training_sections: those of the run; without them the training mean and ridge regression are left out.
        output: results go to ``output/SECTION``; default ``RUN/evaluation/SECTION``.
        genes: names of genes to draw beside the best predicted.
        missing: what to do with genes of the run that the section has not measured: "drop" evaluates on the shared ones and
            says which are missing; "zero" takes them as measured and never seen, which is right for files that leave out
            genes without counts; "error" refuses.
        min_counts: least total count of a spot of ``section`` that is compared, 0 for all; default that of the run. Spots of
            ``training_sections`` are those that the run has used.
        stain: "match" or "macenko" sees the image of ``section`` with the stain of the training tissue, in all methods; see
            :mod:`hyperst.stain`.
        on_progress: called with (spots done, spots in all), over all sections.

    Raises:
        ValueError: the section is one of the training sections, whatever it is called; it shares no gene with the run, or lacks
            some with "error"; a gene to draw is none of the run's; its spots do not lie on the tissue of its image, or none
            of them has enough counts.
        FileExistsError: the folder for the results holds those of another section, with another ``missing`` or ``stain``, or
            over other spots.
    """
    kept, absent = check_inputs(run, section, training_sections, missing=missing, genes=genes)
    whole = section
    min_counts = run.config.data.min_counts if min_counts is None else min_counts
    section = with_min_counts(section, min_counts)
    training_sections = [with_min_counts(each, run.config.data.min_counts) for each in training_sections]
    columns = np.flatnonzero(np.isin(run.genes, kept))
    measured = _measured(run, section, kept, "zero" if missing == "zero" else "error")
    folder = (Path(output) if output is not None else run.folder / "evaluation") / section.name
    check_folder(folder, whole, missing, section.excluded_spots, stain)
    progress = Count(on_progress, sum(each.n_spots for each in (section, *training_sections)))
    stains = matching(run, section, stain)
    test = read_images(run, section, progress, stains)
    test["prediction"] = np.ascontiguousarray(test["prediction"][:, columns])
    predictions = {OURS: test["prediction"]}
    if run.mixture is not None:
        predictions[NETWORK] = np.ascontiguousarray(test["network"][:, columns])
    if training_sections:
        train = [read_images(run, each, progress) for each in training_sections]
        targets = np.concatenate([measured_expression(run, each) for each in training_sections])
        for name, key in ((RIDGE_OWN, "own"), (RIDGE_STAIN, "stain")):
            if key in test:
                ridge = ridge_floor(np.concatenate([each[key] for each in train]), targets, test[key])
                predictions[name] = np.ascontiguousarray(ridge[:, columns])
        predictions[MEAN] = training_mean(targets[:, columns], section.n_spots)
    scores = {name: score(prediction, measured) for name, prediction in predictions.items()}
    scores[NULL] = _null_scores(test["prediction"], measured, run.config.training.seed)
    blocks, seed = block_ids(section, 0, pitches=3), run.config.training.seed
    per_gene, intervals = gene_figures(kept, predictions, measured, blocks, seed)
    doubt = doubt_of(run, section, kept, test["prediction"], measured, test["own"])
    evaluation = Evaluation(
        section=section.name,
        n_spots=section.n_spots,
        target=run.config.data.target,
        scores=scores,
        per_gene=per_gene.join(doubt.columns),
        caveats=[
            *_spot_caveats(section, min_counts),
            *_stain_caveats(section, stains),
            *_gene_caveats(run, section, absent, missing),
            *_caveats(run, section, scores),
            *_comparisons(section, predictions, measured, scores),
            *doubt.caveats(section.name),
        ],
        folder=folder,
        figure=folder / "expression.png",
        missing_genes=tuple(absent),
    )
    settings = {
        "fingerprint": list(fingerprint(whole).counts),
        "missing": missing,
        "min_counts": min_counts,
        "stain": stain,
        "intervals": intervals,
        "doubt": doubt.record,
    }
    predicted, placed = test["prediction"], test["image_spot"]
    write_evaluation(run, section, evaluation, kept, predicted, measured, genes, settings, doubt, placed)
    write_space(run, section, folder, stains)
    return evaluation


def measured_expression(run: Run, section: Section) -> np.ndarray:
    """Measured expression of the run's genes, float32 (spot gene), on the run's target scale.

    Raises:
        ValueError: the section lacks some of the genes.
    """
    return _measured(run, section, run.genes)


def _measured(
    run: Run, section: Section, genes: Sequence[str], missing: Literal["error", "zero"] = "error"
) -> np.ndarray:
    return transform(align_genes(section, genes, missing), section.library_size, run.config.data.target)


def score(prediction: np.ndarray, measured: np.ndarray) -> Scores:
    """Scores of a prediction, both (spot gene) on one scale.

    >>> measured = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    >>> round(score(measured + 1, measured).pcc, 6), score(measured + 1, measured).mse
    (1.0, 1.0)
    """
    correlation = np.asarray(per_gene_pearson(prediction, measured), dtype=np.float64)
    finite = correlation[np.isfinite(correlation)]
    return Scores(
        pcc=float(finite.mean()) if len(finite) else None,
        pcc_top={k: float(top_k_mean(finite, k)) for k in TOP if 0 < k <= len(finite)},
        errors={name: metric(prediction, measured) for name, metric in METRICS.items()},
        n_undefined=int(len(correlation) - len(finite)),
    )


def summarise(evaluations: Sequence[Evaluation], path: str | Path) -> Path:
    """Write mean and standard deviation over sections of every score of every method, as JSON, and return the path."""
    methods = list(evaluations[0].scores)
    summary: dict[str, Any] = {"sections": [entry.section for entry in evaluations], "methods": {}}
    for method in methods:
        rows = pd.DataFrame([entry.scores[method].as_json() for entry in evaluations]).astype(float)
        summary["methods"][method] = {
            name: {"mean": _plain(rows[name].mean()), "std": _plain(rows[name].std(ddof=0))} for name in rows
        }
    return write_json_atomic(path, summary)


def _null_scores(prediction: np.ndarray, measured: np.ndarray, seed: int) -> Scores:
    """Scores when every spot gets the prediction of a random other one, mean over shuffles.

    Of a head that sees neighbours, shuffled images would give other predictions, which correlate as little.
    """
    random = np.random.default_rng(seed)
    shuffled = [score(prediction[random.permutation(len(prediction))], measured) for _ in range(_N_SHUFFLES)]
    correlations = [entry.pcc for entry in shuffled if entry.pcc is not None]
    return Scores(
        pcc=float(np.mean(correlations)) if correlations else None,
        pcc_top={k: float(np.mean([entry.pcc_top[k] for entry in shuffled])) for k in shuffled[0].pcc_top},
        errors={name: float(np.mean([entry.errors[name] for entry in shuffled])) for name in METRICS},
        n_undefined=shuffled[0].n_undefined,
    )


def _spot_caveats(section: Section, min_counts: int) -> list[str]:
    message = excluded_spots_message(section, min_counts)
    return [] if message is None else [f"{message}; --min-counts decides."]


def _stain_caveats(section: Section, stains: Stains | None) -> list[str]:
    if stains is None:
        return []
    return [
        f"The stain of {section.name} was matched: optical density of red, green, blue {stains[0]}, of the training tissue "
        f"{stains[1]}."
    ]


def _gene_caveats(run: Run, section: Section, absent: Sequence[str], missing: Missing) -> list[str]:
    """Which genes the section lacks, and what was made of them."""
    if not absent:
        return []
    shown = ", ".join(absent[:10]) + (" ..." if len(absent) > 10 else "")
    what = f"{section.name} has not measured {len(absent)} of the {len(run.genes)} genes of the run ({shown})"
    if missing == "zero":
        return [f"{what}; they were taken as measured and never seen."]
    return [f"{what}; all scores are over the other {len(run.genes) - len(absent)}, also those of the baselines."]


def _caveats(run: Run, section: Section, scores: dict[str, Scores]) -> list[str]:
    """What a reader of the table has to know."""
    said = []
    null = scores[NULL].pcc_top.get(10)
    if null is not None:
        said.append(
            f"PCC-10 picks its ten genes on {section.name} itself: with shuffled images it is already {null:+.3f}. "
            "PCC, the mean over all genes, has no such advantage."
        )
    known = run.split.patients
    if section.patient is None or any(record.patient is None for record in run.split.sections):
        said.append("Patients are not recorded for all sections, so this supports no claim about new patients.")
    elif section.patient in known:
        said.append(
            f"{section.name} is from patient {section.patient}, as are training sections: this supports no claim about "
            "new patients."
        )
    elif len(known) < 5:
        said.append(
            f"The training sections come from {len(known)} patients: too few for a claim about patients in general."
        )
    if run.config.data.target == "log2":
        said.append(
            "On the log2(1 + count) scale most of the correlation is the spots' total count; "
            "compare with --target log1p_cp10k."
        )
    if section.n_spots < _FEW_SPOTS:
        said.append(f"{section.name} has {section.n_spots} spots: correlations over so few are mostly chance.")
    if scores[OURS].pcc is None:
        said.append("No gene varies in both prediction and measurement, so there is no correlation to compare.")
    return said


def _comparisons(
    section: Section, predictions: dict[str, np.ndarray], measured: np.ndarray, scores: dict[str, Scores]
) -> list[str]:
    """Baselines that the run is not shown to beat, or that beat it, by intervals over blocks of spots."""
    blocks = block_ids(section, 0, pitches=3)
    ridges = [name for name in (RIDGE_OWN, RIDGE_STAIN) if name in scores]
    against: list[tuple[str, str, str]] = []
    if with_pcc := [name for name in ridges if scores[name].pcc is not None and scores[OURS].pcc is not None]:
        best = max(with_pcc, key=lambda name: scores[name].pcc or 0.0)
        against.append(("pcc", best, "this run has learnt nothing beyond it"))
    if ridges:
        best = min(ridges, key=lambda name: scores[name].mse)
        against.append(("mse", best, "use its values where size matters, not only rank"))
    if MEAN in scores:
        against.append(("mse", MEAN, "do not use these values as they are"))
    said = []
    for metric, name, consequence in against:
        interval = spot_intervals(predictions[OURS], predictions[name], measured, blocks)[metric]
        difference = interval.mean if metric == "pcc" else -interval.mean
        ends = "" if interval.low is None else f" [{interval.low:+.3f}, {interval.high:+.3f}]"
        found = f"{metric.upper()} {interval.mean:+.3f}{ends}"
        if not interval.excludes_zero:
            said.append(f"That this run is better than {name} on {section.name} is not shown: {found}.")
        elif difference < 0:
            said.append(f"This run is worse than {name} on {section.name}, {found}: {consequence}.")
    return said


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
