"""MERU's and HyCoCLIP's losses, by the formulas of the papers in float64, are what the examples of the documentation compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.kernels.test_replicas import example

K = 0.1  # of the aperture


class Point:
    """exp_map0 of a tangent vector (n d) by its time (n) and space (n d) components (Desai et al. 2023, section 3)."""

    def __init__(self, v: Tensor, c: Tensor) -> None:
        length = c.sqrt() * v.norm(dim=1, keepdim=True)
        self.c, self.space = c, torch.sinh(length) / length * v
        self.time = (1 / c + self.space.square().sum(1)).sqrt()

    def cross_entropy(self, keys: Point, scale: Tensor) -> Tensor:
        """Of minus the scaled distances to all keys, of which one's own is the target."""
        product = self.space @ keys.space.T - torch.outer(self.time, keys.time)
        distances = torch.acosh(-self.c * product) / self.c.sqrt()
        return F.cross_entropy(-scale * distances, torch.arange(len(self.time)))

    def entails(self, child: Point, eta: float = 1.0) -> Tensor:
        """The mean of max(0, exterior angle - eta half-aperture) (Desai et al. 2023, section 3.2)."""
        product = self.c * ((self.space * child.space).sum(1) - self.time * child.time)
        length = self.space.norm(dim=1)
        above = child.time + self.time * product
        angle = torch.acos(above / (length * (product.square() - 1).sqrt()))
        aperture = torch.asin((2 * K / (self.c.sqrt() * length)).clamp(max=1))
        return (angle - eta * aperture).clamp(min=0).mean()


def points(model: nn.Module, image: Tensor, text: Tensor) -> tuple[Point, Point]:
    c = model.lift.log_curvature.exp().squeeze()
    scales = {name: alpha.exp() for name, alpha in model.lift.log_alpha.items()}
    return Point(scales["image"] * model.visual(image), c), Point(scales["text"] * model.textual(text), c)


def meru(model: nn.Module, image: Tensor, text: Tensor) -> Tensor:
    """Desai et al. 2023, section 3.2: contrastive loss + 0.2 entailment loss."""
    (images, texts), scale = points(model, image, text), model.logit_scale.exp()
    contrastive = (images.cross_entropy(texts, scale) + texts.cross_entropy(images, scale)) / 2
    return contrastive + 0.2 * texts.entails(images)


def hycoclip(model: nn.Module, image: Tensor, text: Tensor, image_box: Tensor, text_box: Tensor) -> Tensor:
    """Pal et al. 2025, section 3: the mean of four contrastive terms + 0.1 times the sum of four entailments."""
    (images, texts), scale = points(model, image, text), model.logit_scale.exp()
    image_boxes, text_boxes = points(model, image_box, text_box)
    pairs = (images, texts), (texts, images), (image_boxes, texts), (text_boxes, images)
    contrastive = torch.stack([queries.cross_entropy(keys, scale) for queries, keys in pairs]).mean()
    between = texts.entails(images, 0.7) + text_boxes.entails(image_boxes, 0.7)
    within = image_boxes.entails(images, 1.2) + text_boxes.entails(texts, 1.2)
    return contrastive + 0.1 * (between + within)


@pytest.mark.parametrize(
    ("name", "kind", "formula"), [("meru_loop", "Meru", meru), ("hycoclip_loop", "HyCoClip", hycoclip)]
)
@pytest.mark.parametrize("curvature", [0.3, 1.0])
def test_an_example_computes_what_the_paper_says(name, kind, formula, curvature):
    """To nine digits, with the gradients of encoders, curvature, scales of the features and temperature."""
    toy = example("toy")
    torch.manual_seed(0)
    model = getattr(example(name), kind)().double()
    with torch.no_grad():
        model.lift.log_curvature.fill_(torch.tensor(curvature).log())
        model.lift.log_alpha["text"].add_(0.3)
    image, text = toy.pairs(20)
    given = (image, text) if formula is meru else (image, text, *toy.boxes(image, text))
    given = [x.double() if x.is_floating_point() else x for x in given]
    learnt = dict(model.named_parameters())
    found, expected = model(*given)["loss"], formula(model, *given)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    gradients = [torch.autograd.grad(loss, list(learnt.values())) for loss in (found, expected)]
    for parameter, ours, theirs in zip(learnt, *gradients, strict=True):
        assert theirs.abs().max() > 0, parameter
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9 * float(theirs.abs().max()))
