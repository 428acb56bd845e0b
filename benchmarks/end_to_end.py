"""Training steps of HyperST, with our alignment loss and with the textbook's, and what share of a step the loss takes.

Image features are given (1024 numbers, as from a pathology foundation model), so that nothing hides the loss; one case has the
default backbone on crops of 64 pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers, textbook
from benchmarks.measure import AGAIN
from benchmarks.problem import OURS
from benchmarks.results import Row
from benchmarks.torchvision_of_another_build import prepare_torchvision

prepare_torchvision()  # the peers bring one, which Lightning imports
from hyperst.model import Alignment, AlignmentConfig, HyperST, ModelConfig  # noqa: E402
from hyperst.train import parameter_groups  # noqa: E402

STEP = "HyperST step"
WIDTH, GENES, FEATURES, CROP = 256, 200, 1024, 64


def batch_of(size: int, backbone: str) -> dict[str, Tensor]:
    """Random spots: features or crops of both levels, expression, and the target."""
    generator = torch.Generator().manual_seed(0)
    image = (FEATURES,) if backbone == "precomputed" else (3, CROP, CROP)
    kind = "features" if backbone == "precomputed" else "image"
    shapes = {f"{level}_{kind}": image for level in ("spot", "niche")}
    shapes |= {name: (GENES,) for name in ("spot_expression", "niche_expression", "target")}
    return {name: torch.randn(size, *shape, generator=generator) for name, shape in shapes.items()}


class Training:
    """A model, its optimiser and one batch, which every step uses again."""

    def __init__(self, size: int, loss: nn.Module | None = None, backbone: str = "precomputed") -> None:
        torch.manual_seed(0)
        self.batch = batch_of(size, backbone)
        width = FEATURES if backbone == "precomputed" else None
        self.model = HyperST(GENES, ModelConfig(backbone, width=WIDTH), backbone_width=width, image_size=CROP)
        self.alignment = Alignment(AlignmentConfig(), WIDTH)
        if loss is not None:
            self.alignment.loss = loss  # type: ignore[assignment]
        learnt = nn.ModuleList([self.model, self.alignment])
        self.optimizer = torch.optim.AdamW(parameter_groups(learnt, 0.01), lr=1e-4)
        with torch.no_grad():
            outputs = self.model(self.batch)
            self.features = {name: outputs[name] for name in outputs if name.startswith(("image_", "gene_"))}

    def step(self) -> float:
        """Forward, backward and update; returns the loss."""
        self.optimizer.zero_grad()
        outputs = self.model(self.batch)
        error = nn.functional.mse_loss(outputs["prediction"], self.batch["target"])
        loss = error + self.alignment(outputs)["loss"]
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def loss_alone(self) -> None:
        """Forward and backward of the alignment on features that are already there."""
        leaves = {name: feature.detach().requires_grad_() for name, feature in self.features.items()}
        torch.autograd.grad(self.alignment(leaves)["loss"], list(leaves.values()))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rows(size: int, *, budget: float, backbone: str = "precomputed", green: bool = True) -> list[Row]:
    """Spots per second and the share of the loss, ours and the textbook's, interleaved for about ``budget`` seconds."""
    trainings = {OURS: Training(size, None, backbone), peers.EAGER: Training(size, textbook.Alignment(), backbone)}
    for training in trainings.values():
        training.step()
        training.loss_alone()
    trainings[AGAIN] = trainings[OURS]
    steps: dict[str, list[float]] = {name: [] for name in trainings}
    losses: dict[str, list[float]] = {name: [] for name in trainings}
    start = time.perf_counter()
    while len(steps[OURS]) < 5 or (len(steps[OURS]) < 30 and time.perf_counter() - start < budget):
        for name, training in trainings.items():
            steps[name].append(_seconds(training.step))
            losses[name].append(_seconds(training.loss_alone))
    found = []
    for name in trainings:
        about: dict[str, Any] = {"operation": STEP, "provider": name, "n": size, "d": WIDTH, "dtype": "float32"}
        about["setting"] = f"images={int(backbone != 'precomputed')}"
        shares = [loss / step for loss, step in zip(losses[name], steps[name], strict=True)]
        found.append(Row.of([size / t for t in steps[name]], **about, metric="spots/s"))
        found.append(Row.of(shares, **about, metric="share of loss"))
        if green:
            ratios = [t / ours for t, ours in zip(steps[name], steps[OURS], strict=True)]
            found.append(Row.of(ratios, **about, metric="ratio both"))
    return found
