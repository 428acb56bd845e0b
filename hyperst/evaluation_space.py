"""Where a section's spots and niches, images and genes, lie in the hyperbolic space of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from hyperst.checkpoint import load_checkpoint
from hyperst.data import Section
from hyperst.data.dataset import collate
from hyperst.files import write_json_atomic
from hyperst.model import Alignment
from hyperst.poincare import disk_layout
from hyperst.run import Run, RunFolder, as_trained, spot_dataset
from hyperst.stain import Stains, match_stain
from hyperst_kernels import exterior_angle, half_aperture
from hyperst_kernels.hierarchy import HYPERST_ENTAILMENT

__all__ = ["KINDS", "SPACE", "hyperbolic_space", "read_space", "run_alignment", "write_space"]

KINDS = ("image_spot", "image_niche", "gene_spot", "gene_niche")
SPACE = "space.json"
_SPOTS, _CLUSTERS = 150, 6
_LEAST_SPOTS = 20


def write_space(run: Run, section: Section, folder: Path, stains: Stains | None = None) -> None:
    """Write :func:`hyperbolic_space` into the folder of an evaluation; an earlier one is removed where there is none now."""
    found = hyperbolic_space(run, section, stains)
    if found is None:
        (folder / SPACE).unlink(missing_ok=True)
    else:
        write_json_atomic(folder / SPACE, found)


def hyperbolic_space(run: Run, section: Section, stains: Stains | None = None) -> dict[str, Any] | None:
    """Places of 150 spots spread over a section in the Poincare disk, as plain values.

    Args:
        stains: see :func:`hyperst.spot_values.over_spots`.

    Returns:
        "spots", names; "cluster", of each, 1 being the largest: k-means of the measured expression of all spots; of each of
        :data:`KINDS` "places" in the unit disk and "radius", the distance from the origin times sqrt(c); "curvature" c,
        "stress" of the picture, and of each relation of the entailment loss the share of these spots whose child lies in the
        cone of its parent ("parent", "child", "eta", "inside"), which is told in the space of all dimensions.
        None where the run has no such space, a gene is not measured, or there are fewer than 20 spots.
    """
    alignment = run_alignment(run)
    if alignment is None or section.n_spots < _LEAST_SPOTS or not np.isin(run.genes, section.genes).all():
        return None
    chosen = np.unique(np.linspace(0, section.n_spots - 1, min(_SPOTS, section.n_spots)).round().astype(int))
    whole = spot_dataset(run.config, [as_trained(run, section)], run.genes, indices=[(0, int(i)) for i in chosen])
    parts: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
    with torch.inference_mode():
        for batch in DataLoader(whole, 64, collate_fn=collate):
            batch = {name: value.to(run.device) for name, value in batch.items()}
            if stains is not None:
                batch |= {
                    name: match_stain(batch[name], *stains) for name in [f"{level}_image" for level in run.model.levels]
                }
            outputs = run.model(batch)
            for kind in KINDS:
                parts[kind].append(alignment.lift(outputs[kind].float(), kind.split("_")[0]).double().cpu())
        c = float(alignment.lift.curvature)
    tangent = {kind: torch.cat(part) for kind, part in parts.items()}
    places, stress = disk_layout(torch.cat(list(tangent.values())), c)
    return {
        "spots": [str(section.spot_ids[spot]) for spot in chosen],
        "cluster": _clusters(run, section)[chosen].tolist(),
        "curvature": c,
        "stress": stress,
        "kinds": {
            kind: {"places": _rounded(part), "radius": _rounded(tangent[kind].norm(dim=1) * c**0.5)}
            for kind, part in zip(KINDS, places.split(len(chosen)), strict=True)
        },
        "cones": [
            {
                "parent": term.parent,
                "child": term.child,
                "eta": term.eta,
                "inside": _inside(tangent[term.parent], tangent[term.child], c, term.eta),
            }
            for term in HYPERST_ENTAILMENT
        ],
    }


def read_space(folder: Path) -> dict[str, Any] | None:
    """Read what :func:`write_space` wrote. Raises ValueError for a damaged file."""
    path = folder / SPACE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if set(found["kinds"]) != set(KINDS) or len(found["cluster"]) != len(found["spots"]):
            raise ValueError("it lacks a part")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate the section again with `hyperst evaluate`") from error
    return found


def run_alignment(run: Run) -> Alignment | None:
    """The alignment that the run has learnt; None where its loss knew no hyperbolic space."""
    config = run.config.alignment
    if config.geometry != "lorentz" or config.weight == 0 or (config.contrastive, config.entailment) == ("none",) * 2:
        return None
    stored = load_checkpoint(RunFolder(run.folder).best)["state_dict"]
    state = {name.removeprefix("alignment."): value for name, value in stored.items() if name.startswith("alignment.")}
    alignment = Alignment(config, run.config.model.width)
    alignment.load_state_dict(state, strict=False)
    return alignment.to(run.device)


def _clusters(run: Run, section: Section) -> np.ndarray:
    from sklearn.cluster import KMeans

    from hyperst.evaluation import measured_expression

    count = min(_CLUSTERS, section.n_spots // 4)
    labels = KMeans(count, n_init=4, random_state=0).fit_predict(measured_expression(run, section).astype(np.float64))
    order = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    return np.argsort(order)[labels] + 1


def _inside(parent: torch.Tensor, child: torch.Tensor, c: float, eta: float) -> float:
    angle = exterior_angle(parent, child, c, input="tangent")
    return float((angle <= eta * half_aperture(parent, c, input="tangent")).double().mean())


def _rounded(values: torch.Tensor) -> list[Any]:
    return values.numpy().round(4).tolist()
