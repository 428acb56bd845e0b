"""What a cohort is told by: a line for each slide, and the mean predicted expression of each (pseudo-bulk)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hyperst.cohort.slides import Slide, SlideResult
from hyperst.doubt import HALF_WIDTH
from hyperst.files import atomic_path, write_h5ad_atomic

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["COLUMNS", "PSEUDO_BULK", "TABLE", "pseudo_bulk", "require_own_tables", "result_table", "write_tables"]

TABLE, PSEUDO_BULK = "cohort.csv", "cohort.h5ad"
COLUMNS = ("slide", "status", "spots", "tissue_mm2", "unlike_share", "unlike_slide", "seconds", "error")
_CONTENT = "pseudo-bulk of predictions: the mean over the spots of each slide; not measured"
_NUMBERS = 1 << 20  # of a prediction that are in memory at a time
_SHARED = ("target", "units", "run", "best_epoch", "training_sections", "run_checksum", "held_out_sections")
_MEASURES = {"tissue_mm2": float, "unlike_share": float, "unlike_slide": "boolean"}


def result_table(results: Sequence[SlideResult]) -> pd.DataFrame:
    """A line for each slide, with the columns :data:`COLUMNS`.

    >>> result_table([SlideResult("A", "failed", error="no such tile")]).to_dict("records")[0]["error"]
    'no such tile'
    """
    table = pd.DataFrame([[getattr(result, name) for name in COLUMNS] for result in results], columns=list(COLUMNS))
    return table.astype({"spots": "Int64", "seconds": float, **_MEASURES})


def pseudo_bulk(slides: Sequence[Slide]) -> AnnData:
    """The mean over the spots of each slide's stored prediction, float32 (slide gene), on the run's target scale.

    Returns:
        AnnData with one observation per slide; in obs its ``n_spots`` and, where they are known, ``tissue_mm2``,
        ``unlike_share``, ``unlike_slide`` (see :func:`hyperst.doubt.add_doubt`) and ``patient``. Of what predictions say of
        genes in var, and of their run in uns, that in which all agree, without half-widths, which are those of single spots.
    """
    import anndata

    means, rows, told = [], [], []
    for slide in slides:
        try:
            mean, n_spots, var, facts = _stored_mean(slide.output)
        except Exception as error:  # whatever the library raises of a damaged file
            raise ValueError(
                f"{slide.output} is damaged ({error}); remove it, and the same command predicts it again"
            ) from error
        means.append(mean)
        told.append((var.drop(columns=HALF_WIDTH, errors="ignore"), facts))
        rows.append(
            {
                "n_spots": n_spots,
                **{name: facts.get(name) for name in _MEASURES},
                "patient": slide.source.patient or facts.get("section_patient"),
            }
        )
    if not told:
        raise ValueError("slides: got none, need at least one that was predicted")
    obs = pd.DataFrame(rows, index=pd.Index([slide.name for slide in slides], name="slide"))
    obs = obs.astype({**_MEASURES, "patient": "category"})  # which hold an unknown one
    obs = obs.dropna(axis="columns", how="all")
    if "unlike_slide" in obs and obs["unlike_slide"].notna().all():
        obs["unlike_slide"] = obs["unlike_slide"].astype(bool)  # which selects slides
    var, facts = told[0]
    agreed = [name for name in var if all(name in other and other[name].equals(var[name]) for other, _ in told)]
    shared = [name for name in _SHARED if name in facts and all(other.get(name) == facts[name] for _, other in told)]
    result = anndata.AnnData(np.stack(means), obs=obs, var=var[agreed])
    result.uns["hyperst"] = {"content": _CONTENT, **{name: facts[name] for name in shared}}
    return result


def _stored_mean(path: Path) -> tuple[np.ndarray, int, pd.DataFrame, dict[str, Any]]:
    """Mean float32 (gene,) of a stored prediction, how many spots it is over, var, and ``uns["hyperst"]``.

    Some rows are in memory at a time. They are added one after another in float64, as the mean of all at once adds them.
    """
    import anndata

    stored = anndata.read_h5ad(path, backed="r")
    with closing(stored.file):
        rows = max(1, _NUMBERS // stored.n_vars)
        total = np.zeros(stored.n_vars)
        for start in range(0, stored.n_obs, rows):
            block = stored.X[start : start + rows].astype(np.float64)
            block[0] += total
            total = block.sum(axis=0)
        return (total / stored.n_obs).astype(np.float32), stored.n_obs, stored.var, dict(stored.uns["hyperst"])


def write_tables(folder: Path, slides: Sequence[Slide], results: Sequence[SlideResult]) -> None:
    """Write :data:`TABLE` and, of the slides that did not fail, :data:`PSEUDO_BULK`; without any, one of before is removed."""
    with atomic_path(folder / TABLE) as temporary:
        result_table(results).to_csv(temporary, index=False, float_format="%.6g")
    done = [slide for slide, result in zip(slides, results, strict=True) if result.status != "failed"]
    if done:
        write_h5ad_atomic(pseudo_bulk(done), folder / PSEUDO_BULK)
    else:
        (folder / PSEUDO_BULK).unlink(missing_ok=True)


def require_own_tables(folder: Path, slides: Sequence[Slide]) -> None:
    """Raise where writing the tables would replace a file that is none of them.

    Raises:
        FileExistsError: one of them, or the folder of logs, is another file.
        ValueError: a slide has the name of one.
    """
    if (folder / "logs").exists() and not (folder / "logs").is_dir():
        raise FileExistsError(f"{folder / 'logs'} is a file; logs of slides go into a folder of that name, move it")
    if any(slide.output.name == PSEUDO_BULK for slide in slides):
        raise ValueError(f"a slide is called {Path(PSEUDO_BULK).stem}, as the tables of a cohort; give it another name")
    for name, is_own in ((TABLE, _is_table), (PSEUDO_BULK, _is_pseudo_bulk)):
        path = folder / name
        if path.exists() and not is_own(path):
            raise FileExistsError(
                f"{path} exists, is no table of a cohort, and is not overwritten; choose another --output, or remove it"
            )


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline().strip() == ",".join(COLUMNS).encode()


def _is_pseudo_bulk(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path) as file:
            content: Any = file["uns/hyperst/content"][()]
    except (OSError, KeyError, RuntimeError, TypeError):
        return False
    return content == _CONTENT.encode()
