"""Does the alignment of images and genes help? Ways of using it, each beside the same training without it, with intervals.

On precomputed features, so that a training takes seconds: every section is held out in turn, every seed is one training, and a
way is compared with "none" of the same batch size and the same training spots.

    python -m benchmarks.alignment A.h5ad B.h5ad C.h5ad --features DIR --niche-features DIR --seeds 3 --output alignment.csv
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.torchvision_of_another_build import prepare_torchvision

prepare_torchvision()  # a peer brings one, which Lightning imports
from hyperst.config import RunConfig, update  # noqa: E402
from hyperst.cv.tables import grid  # noqa: E402
from hyperst.data import Section, attach_features, read_section, with_min_counts  # noqa: E402
from hyperst.intervals import Interval, paired_interval  # noqa: E402
from hyperst.metrics import per_gene_pearson  # noqa: E402
from hyperst.model import Alignment, HyperST  # noqa: E402
from hyperst.plan import plan_run  # noqa: E402
from hyperst.run import section_indices, spot_dataset  # noqa: E402
from hyperst.train import parameter_groups  # noqa: E402
from hyperst.train.step import averaged_model  # noqa: E402
from hyperst_kernels import contrastive_loss, topk  # noqa: E402

__all__ = ["WAYS", "Way", "train", "try_ways"]

CANDIDATES = 10  # of image-to-gene retrieval
WARM_UP = 10  # epochs
_LIFTED = ("image_spot", "image_niche", "gene_spot", "gene_niche")


@dataclass(frozen=True)
class Way:
    """A way of using the alignment.

    Attributes:
        weight: of the alignment beside the squared error.
        mask: spots of one block are no negatives of each other.
        schedule: "constant"; "rising" from 0 over the first ten epochs; "first", the alignment alone for ten epochs, then the
            squared error alone.
        bank: how many earlier spots, of the steps before, are negatives too.
        pretrained: epochs in which the gene branch first learns to give back the expression that it sees, without images.
        batch: spots of a step. share: of the training spots, in blocks.
    """

    weight: float = 0.2
    mask: bool = False
    schedule: str = "constant"
    bank: int = 0
    pretrained: int = 0
    batch: int = 32
    share: float = 1.0


WAYS = {
    "as published": Way(),
    "neighbours masked": Way(mask=True),
    "weight .05": Way(weight=0.05),
    "weight 1": Way(weight=1.0),
    "rising": Way(schedule="rising"),
    "first": Way(schedule="first"),
    "bank of 256": Way(bank=256),
    "gene branch pretrained": Way(pretrained=20),
    "batch 128": Way(batch=128),
    "batch 128, neighbours masked": Way(batch=128, mask=True),
    "a quarter of the spots": Way(share=0.25),
    "an eighth of the spots": Way(share=0.125),
}


class Bank:
    """Lifted images and genes of earlier spots, without gradient; the oldest go first."""

    def __init__(self, size: int) -> None:
        self.size, self.kept = size, dict[str, Tensor]()

    def loss(self, lifted: dict[str, Tensor], alignment: Alignment) -> Tensor:
        """Spots of images and genes query each other, with the bank's as further negatives; then these spots are kept."""
        total = lifted["image_spot"].new_zeros(())
        for query, key in (("image_spot", "gene_spot"), ("gene_spot", "image_spot")):
            keys = torch.cat([lifted[key], self.kept[key]]) if key in self.kept else lifted[key]
            total = total + 0.5 * contrastive_loss(
                lifted[query], keys, alignment.lift.curvature, alignment.logit_scale, directions="rows"
            )
        for key in ("image_spot", "gene_spot"):
            new = lifted[key].detach()
            self.kept[key] = torch.cat([new, self.kept[key]])[: self.size] if key in self.kept else new[: self.size]
        return total


def train(
    way: Way | None, plain: Way, batch: dict[str, Tensor], validation: Tensor, seed: int
) -> tuple[HyperST, Alignment]:
    """Train on the spots of ``batch`` that are not ``validation``, which choose the epoch; ``way`` None: no alignment.

    Args:
        plain: what batch size and share are read from.
    """
    torch.manual_seed(seed)
    config = update(RunConfig(), {"model": {"backbone": "precomputed"}, "data": {"feature_key": "file"}})
    model = HyperST(batch["target"].shape[1], config.model, backbone_width=batch["spot_features"].shape[1])
    alignment = Alignment(replace(config.alignment, weight=1.0, mask_neighbours=way is not None and way.mask), 256)
    teach, judge = ({name: values[side] for name, values in batch.items()} for side in (~validation, validation))
    model.initialise_output(teach["target"].mean(dim=0))
    order = np.random.default_rng(seed)
    if way is not None and way.pretrained:
        _pretrain(model, teach, way, order)
    optimiser = torch.optim.AdamW(parameter_groups(nn.ModuleList([model, alignment]), 0.01), lr=1e-3)
    averaged = averaged_model(model, config.training.averaging)
    judged = cast(HyperST, averaged.module)
    bank = Bank(way.bank) if way is not None and way.bank else None
    best, kept, waited = float("inf"), (model, alignment), 0
    for epoch in range(config.training.epochs):
        model.train()
        weight, fitted = _weights(way, epoch)
        for step in _steps(len(teach["target"]), plain.batch, order):
            part = {name: values[step] for name, values in teach.items()}
            outputs = model(part)
            loss = fitted * nn.functional.mse_loss(outputs["prediction"], part["target"])
            if weight:
                loss = loss + weight * alignment(outputs, part["block_id"])["loss"]
                if bank is not None:
                    lifted = {name: alignment.lift(outputs[name], name.split("_")[0]) for name in _LIFTED}
                    loss = loss + weight * bank.loss(lifted, alignment)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
            optimiser.step()
            averaged.update_parameters(model)
        if not fitted:
            continue
        averaged.eval()
        with torch.no_grad():
            error = float(nn.functional.mse_loss(judged.predict(judge), judge["target"]))
        waited = 0 if error < best else waited + 1
        if error < best:
            best, kept = error, copy.deepcopy((judged, alignment))
        if waited == config.training.patience:
            break
    return kept[0].eval(), kept[1]


def _pretrain(model: HyperST, teach: dict[str, Tensor], way: Way, order: np.random.Generator) -> None:
    """The gene branch of the spot learns to give back its expression."""
    back = nn.Linear(model.config.width, teach["target"].shape[1])
    branch = nn.Sequential(model.gene_projectors["spot"], model.gene_encoders["spot"], model.gene_projection)
    optimiser = torch.optim.AdamW([*branch.parameters(), *back.parameters()], lr=1e-3)
    for _ in range(way.pretrained):
        for step in _steps(len(teach["target"]), way.batch, order):
            genes = teach["spot_expression"][step]
            optimiser.zero_grad()
            nn.functional.mse_loss(back(branch(genes)), genes).backward()
            optimiser.step()
    model.gene_encoders["niche"].load_state_dict(model.gene_encoders["spot"].state_dict())
    model.gene_projectors["niche"].load_state_dict(model.gene_projectors["spot"].state_dict())


def _weights(way: Way | None, epoch: int) -> tuple[float, float]:
    """Weights of the alignment and of the squared error in an epoch, from 0 on."""
    if way is None:
        return 0.0, 1.0
    if way.schedule == "first":
        return (way.weight, 0.0) if epoch < WARM_UP else (0.0, 1.0)
    return way.weight * (min(1.0, epoch / WARM_UP) if way.schedule == "rising" else 1.0), 1.0


def _steps(n: int, batch: int, order: np.random.Generator) -> list[np.ndarray]:
    """A random order of n spots in whole batches, one batch of all where there are fewer."""
    size = min(batch, n)
    return list(order.permutation(n)[: n // size * size].reshape(-1, size))


def try_ways(
    sections: Sequence[Section], ways: dict[str, Way], seeds: Sequence[int], n_genes: int = 200
) -> pd.DataFrame:
    """Every way, and "none" of its batch size and share, on every held-out section with every seed.

    Returns:
        Columns fold, seed, row, metric, value. Metrics: pcc and mse of the prediction on the held-out section;
        retrieval, the share of its spots whose genes are among the ten nearest to their image, in the space of the alignment;
        retrieval_predicted, the same by the distance of measured to predicted expression, each gene in standard deviations.
    """
    lines: list[tuple[str, int, str, str, float]] = []
    for held_out in sections:
        learnt = [section for section in sections if section is not held_out]
        for seed in seeds:
            for name, way, plain in _with_baselines(ways):
                config = update(
                    RunConfig(),
                    {
                        "model": {"backbone": "precomputed"},
                        "data": {"feature_key": "file", "n_genes": n_genes},
                        "training": {"seed": seed, "validation_fraction": 1 - 0.85 * plain.share},
                    },
                )
                plan = plan_run(config, learnt)
                batch = _tensors(config, plan.sections, plan.genes)
                held = np.asarray(section_indices(plan.sections, plan.split.validation_spots, inside=True))
                validation = _mark(plan.sections, held)
                found = train(way, plain, batch, validation, seed)
                scored = with_min_counts(held_out, config.data.min_counts)
                scores = _scores(*found, way is not None, batch["target"], _tensors(config, [scored], plan.genes))
                lines += [(held_out.name, seed, name, metric, value) for metric, value in scores.items()]
                print(
                    held_out.name, seed, name, {metric: round(value, 4) for metric, value in scores.items()}, flush=True
                )
    return pd.DataFrame(lines, columns=["fold", "seed", "row", "metric", "value"])


def baseline(way: Way) -> str:
    """The row that a way is compared with."""
    return f"none, batch {way.batch}, share {way.share:g}"


def _with_baselines(ways: dict[str, Way]) -> list[tuple[str, Way | None, Way]]:
    plain = {baseline(way): Way(batch=way.batch, share=way.share) for way in ways.values()}
    return [*((name, None, way) for name, way in plain.items()), *((name, way, way) for name, way in ways.items())]


def _tensors(config: RunConfig, sections: Sequence[Section], genes: Sequence[str]) -> dict[str, Tensor]:
    whole = spot_dataset(config, sections, genes, keep=True)
    return whole.__getitems__(list(range(len(whole))))  # type: ignore[return-value]


def _mark(sections: Sequence[Section], pairs: np.ndarray) -> Tensor:
    starts = np.cumsum([0, *(section.n_spots for section in sections)])
    marked = torch.zeros(int(starts[-1]), dtype=torch.bool)
    marked[torch.from_numpy(starts[pairs[:, 0]] + pairs[:, 1])] = True
    return marked


def _scores(
    model: HyperST, alignment: Alignment, aligned: bool, taught: Tensor, batch: dict[str, Tensor]
) -> dict[str, float]:
    with torch.no_grad():
        outputs = model(batch)
        prediction, target = outputs["prediction"].double(), batch["target"].double()
        correlation = per_gene_pearson(prediction, target)
        spread = taught.double().std(dim=0)
        scores = {
            "pcc": float(correlation[torch.isfinite(correlation)].mean()),
            "mse": float(nn.functional.mse_loss(prediction, target)),
            "retrieval_predicted": _recall(prediction / spread, target / spread, "euclidean", 1.0),
        }
        if aligned:
            lift = alignment.lift
            image, gene = (lift(outputs[f"{name}_spot"], name) for name in ("image", "gene"))
            scores["retrieval"] = _recall(image, gene, "lorentz", float(lift.curvature))
    return scores


def _recall(queries: Tensor, keys: Tensor, geometry: str, c: float) -> float:
    nearest = topk(queries, keys, min(CANDIDATES, len(keys)), c, input="tangent", geometry=geometry)[1]
    return float((nearest == torch.arange(len(queries))[:, None]).any(dim=1).double().mean())


def compared(table: pd.DataFrame, ways: dict[str, Way]) -> str:
    """The table in Markdown: each way less its "none", with 95 % intervals over folds and seeds.

    Retrieval is compared with that by the prediction of "none".
    """
    lines = ["| way | PCC | difference | MSE | difference | retrieval | difference |", "|" + " --- |" * 7]
    for name, way, plain in _with_baselines(ways):
        cells = [name]
        theirs = {"pcc": "pcc", "mse": "mse", "retrieval": "retrieval_predicted"}
        for metric, other in theirs.items():
            ours = grid(table, name, other if way is None else metric)
            cells.append(f"{float(np.nanmean(ours.to_numpy())):.3f}")
            cells.append(
                "" if way is None else _words(paired_interval((ours - grid(table, baseline(plain), other)).to_numpy()))
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _words(difference: Interval | None) -> str:
    if difference is None or difference.low is None or difference.high is None:
        return ""
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", type=Path)
    parser.add_argument("--features", required=True, type=Path, help="folder with NAME.h5 of the spots")
    parser.add_argument("--niche-features", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n-genes", type=int, default=200)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args()
    sections = [read_section(path, require_image=False) for path in options.sections]
    sections = [
        attach_features(section, options.features / f"{section.name}.h5", options.niche_features / f"{section.name}.h5")
        for section in sections
    ]
    ways = {name: WAYS[name] for name in options.ways}
    table = try_ways(sections, ways, range(options.seeds), options.n_genes)
    table.to_csv(options.output, index=False)
    print(compared(table, ways))


if __name__ == "__main__":
    main()
