"""The page: what was collected, laid out by the template beside this file, complete in one file."""

from __future__ import annotations

import base64
import gzip
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from hyperst.baselines import RIDGE_OWN
from hyperst.evaluation_record import COLUMNS
from hyperst.files import write_text_atomic
from hyperst.nearest import TrainingSpots, read_training_spots
from hyperst.prediction_anndata import UNITS
from hyperst.report.again import train_again
from hyperst.report.embed import DATA_BYTES, embed, wanted_bytes
from hyperst.report.nearest import nearest_examples
from hyperst.report.origin import origin_warnings, require_origin
from hyperst.report.spots import SpotMap, read_spot_map
from hyperst.report.summary import RunSummary, SectionScores, collect
from hyperst.report.verdict import figure, strongest_ridge, verdicts
from hyperst.report.zoom import LEAST_BYTES, MOST_BYTES, deep_zoom
from hyperst.run import RunFolder
from hyperst.versions import code_versions

__all__ = ["render", "require_report", "write_report"]

_PARTS = Path(__file__).parent
_SCRIPTS = ("page.js", "zoom.js", "space.js")
_MARK = '<meta name="generator" content="hyperst report">'
_KINDS = {
    f"{of}_{level}": f"{of.replace('gene', 'genes')} of the {level}"
    for of in ("image", "gene")
    for level in ("spot", "niche")
}
_MOST_ROWS = 800  # of all tables of genes together, about 700 kB
_MOST_MAPS = 12  # their pictures take up to 400 kB each; and most pictures of hyperbolic space


def require_report() -> None:
    """Raise ImportError, with the remedy, where the packages of the extra `report` are missing."""
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"the report needs {error.name}, which is not installed: pip install 'hyperst-kernels[report]'"
        ) from error


def write_report(
    folder: str | Path,
    predictions: Sequence[str | Path] = (),
    output: str | Path | None = None,
    images: str | Path | None = None,
) -> Path:
    """Write the report of a run, with maps of its evaluated sections and of ``predictions``, and return its path.

    Args:
        folder: of the run.
        predictions: .h5ad files that the run has predicted.
        output: file to write, default ``report.html`` in the run; an earlier report is replaced.
        images: folder of slides that are no longer where they were predicted; of slides that are found there is a deep zoom.

    Raises:
        FileNotFoundError: no run, no such prediction, or no folder ``images``.
        ValueError: a damaged file, a prediction of other genes or of other weights, or more predictions than a page holds.
        FileExistsError: ``output`` is a file that is no report.
        ImportError: the extra `report` is not installed.
    """
    require_report()
    folder = Path(folder)
    RunFolder(folder).require()
    path = folder / "report.html" if output is None else Path(output)
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise FileExistsError(f"{path} exists and is no report of `hyperst report`; choose another --output")
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"{images} (--images) is no folder")
    summary = collect(folder)
    room = _MOST_MAPS - len(predictions)
    if room < 0:
        raise ValueError(f"got {len(predictions)} predictions, a page holds {_MOST_MAPS}; make several with --output")
    evaluated = [scores.expression for scores in summary.evaluations if scores.expression is not None]
    maps = [read_spot_map(file, summary.genes) for file in evaluated[:room]]
    for file in map(Path, predictions):
        spots = read_spot_map(file, summary.genes)
        require_origin(spots, file, summary)
        twice = spots.title in {each.title for each in maps}
        maps.append(replace(spots, title=f"{spots.title} ({file.name})") if twice else spots)
    where = [] if images is None else ["--images", str(images)]
    command = shlex.join(["hyperst", "report", str(folder), *map(str, predictions), *where])
    slides = None if images is None else Path(images)
    return write_text_atomic(path, render(summary, maps, command, unmapped=len(evaluated[room:]), images=slides))


def render(
    summary: RunSummary, maps: Sequence[SpotMap], command: str, unmapped: int = 0, images: Path | None = None
) -> str:
    """The page as HTML. Everything that comes from files is escaped.

    Args:
        command: that makes the page.
        unmapped: how many evaluated sections have no room among the maps.
        images: folder to look for slides in first.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(_PARTS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"figure": figure, "signed": lambda value: f"{value:+.3f}", "percent": "{:.0%}".format}
    trained = _training_spots(summary)
    records, niche_um = summary.split.role("training"), summary.config.crop.niche_um
    examples = [[] if trained is None else nearest_examples(each, trained, records, niche_um) for each in maps]
    pictures = sum(len(each.picture or "") for each in maps) + len(json.dumps(examples, default=asdict))
    shown = [scores for scores in summary.evaluations if scores.space is not None][:_MOST_MAPS]
    spaces = [{"name": scores.section, **(scores.space or {})} for scores in shown]
    room = DATA_BYTES - pictures - len(json.dumps(spaces))
    zooms = deep_zoom(maps, images, _tile_bytes(maps, room))
    budget = (room - len(json.dumps(zooms.slides))) // max(1, len(maps))
    overs = [_ridge_columns(scores) for scores in summary.evaluations]
    most_rows = max(1, _MOST_ROWS // max(1, len(overs)))
    curves = [{str(key): float(value) for key, value in row.items()} for row in summary.curves.to_dict("records")]
    return environment.get_template("page.html").render(
        name=summary.folder.resolve().name,
        summary=summary,
        units=UNITS[summary.config.data.target],
        verdicts=verdicts(summary),
        coverages={scores.section: scores.doubt.get("coverage") for scores in summary.evaluations},
        kinds=_KINDS,
        warnings=origin_warnings(maps, summary),
        spaces=spaces,
        columns=[_score_columns(scores) for scores in summary.evaluations],
        overs=overs,
        rows=[_rows(scores, over, most_rows) for scores, over in zip(summary.evaluations, overs, strict=True)],
        most_rows=most_rows,
        unmapped=unmapped,
        curves=curves,
        maps=maps,
        examples=examples,
        trained=trained,
        quartiles=[_quartiles(each.tissue_fraction) for each in maps],
        facts=_facts(summary, maps),
        again=train_again(summary),
        configuration=(summary.folder / "config.yaml").read_text(encoding="utf-8"),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        data={
            "maps": [
                {**embed(each, budget), "slide": slide, "finest": words}
                for each, slide, words in zip(maps, zooms.of_map, zooms.words, strict=True)
            ],
            "slides": zooms.slides,
            "spaces": spaces,
            "curves": curves,
            "best_epoch": None if summary.training is None else summary.training.get("best_epoch"),
        },
        style=Markup((_PARTS / "page.css").read_text(encoding="utf-8")),
        script=Markup("".join((_PARTS / name).read_text(encoding="utf-8") for name in _SCRIPTS)),
        plotly=base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode("ascii"),
    )


def _tile_bytes(maps: Sequence[SpotMap], room: int) -> int:
    """What tiles may take of ``room``: what all genes leave of it, or their least, if that leaves each map a gene."""
    # each map has the same share of what tiles leave, so that the largest counts
    everything = len(maps) * max((wanted_bytes(each, len(each.genes)) for each in maps), default=0)
    one_gene = len(maps) * max((wanted_bytes(each, 1) for each in maps), default=0)
    return min(max(room - everything, LEAST_BYTES), MOST_BYTES, room - one_gene)


def _training_spots(summary: RunSummary) -> TrainingSpots | None:
    best = RunFolder(summary.folder).best
    checkpoint = summary.checksums.get(best.relative_to(summary.folder).as_posix())
    return None if checkpoint is None else read_training_spots(summary.folder, checkpoint)


def _score_columns(scores: SectionScores) -> list[str]:
    """Names of the scores that any method has, in the order of the first."""
    names = dict.fromkeys(name for entry in scores.methods.values() for name in entry)
    return [name for name in names if name != "n_genes_undefined"]


def _ridge_columns(scores: SectionScores) -> dict[str, str]:
    """Columns of `per_gene.csv` about the ridge regression that the verdict counts; there need be none."""
    best = strongest_ridge(scores) or RIDGE_OWN
    over = COLUMNS[best].replace("pcc", "over", 1)
    return {"ridge": COLUMNS[best], "low": f"{over}_low", "high": f"{over}_high"}


def _rows(scores: SectionScores, over: dict[str, str], most: int) -> list[dict[str, Any]]:
    """A row for each of the first ``most`` genes: its figures (None: undefined), the difference from ridge, the word for it."""
    rows = []
    for gene, values in scores.per_gene.head(most).iterrows():
        row: dict[str, Any] = {str(key): float(value) if np.isfinite(value) else None for key, value in values.items()}
        row["gene"] = gene
        ridge, low, high = (row.get(over[key]) for key in ("ridge", "low", "high"))
        row["less"] = None if ridge is None or row["pcc"] is None else row["pcc"] - ridge
        shown = low is not None and high is not None and (low > 0 or high < 0)
        row["verdict"] = ("better" if low is not None and low > 0 else "worse") if shown else "not shown"
        rows.append(row)
    return rows


def _quartiles(fractions: np.ndarray | None) -> str:
    if fractions is None or not len(fractions):
        return "not recorded"
    return ", ".join(f"{value:.2f}" for value in np.quantile(fractions, [0.25, 0.5, 0.75]))


def _facts(summary: RunSummary, maps: Sequence[SpotMap]) -> list[tuple[str, dict[str, str]]]:
    """Tables of names and values: checksums, versions, and what each prediction says of itself."""
    return [
        ("Checksums (SHA-256)", summary.checksums),
        ("Versions at the start of the training", summary.versions),
        ("Versions that made this page", code_versions()),
        *((f"Prediction: {each.title}", each.facts) for each in maps),
    ]
