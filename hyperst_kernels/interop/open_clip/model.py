"""open_clip's models with tangent vectors in place of unit vectors, which is all that a hyperbolic loss asks of them."""

from __future__ import annotations

from typing import Any, TypeVar

import open_clip
import torch
from torch import Tensor, nn

from hyperst_kernels.curvature import check
from hyperst_kernels.distance import similarity
from hyperst_kernels.modules import LorentzLift

Model = TypeVar("Model", bound=nn.Module)


class _Unnormalized:
    """Features as tangent vectors: what every method of the model took from a normalisation, it takes from the lift."""

    lift: LorentzLift

    @property
    def curvature(self) -> Tensor:
        """c > 0, 0-d."""
        return self.lift.curvature

    def forward(self, image=None, text=None):
        """What open_clip's model returns, with tangent vectors for features."""
        found = super().forward(image, text)  # type: ignore[misc]
        bias = getattr(self, "logit_bias", None)
        if bias is None:
            return found
        # not the parameter itself, whose numbers FSDP2 frees as forward ends
        return {**found, "logit_bias": bias.clone()} if isinstance(found, dict) else (*found[:-1], bias.clone())

    def encode_image(self, image, normalize: bool = False) -> Tensor:
        """Tangent vectors (n, d) of images; ``normalize`` is accepted for compatibility, and has no effect."""
        return self.lift(super().encode_image(image), "image")  # type: ignore[misc]

    def encode_text(self, text, normalize: bool = False) -> Tensor:
        """Tangent vectors (n, d) of tokens; ``normalize`` is accepted for compatibility, and has no effect."""
        return self.lift(super().encode_text(text), "text")  # type: ignore[misc]

    def get_logits(self, image, text) -> tuple[Tensor, Tensor]:
        """Minus the scaled distances, plus the bias where there is one: (n, m) and (m, n)."""
        model: Any = self
        logits = similarity(self.encode_image(image), self.encode_text(text), self.curvature)
        logits = model.logit_scale.exp() * logits
        if getattr(model, "logit_bias", None) is not None:
            logits = logits + model.logit_bias
        return logits, logits.T

    def forward_intermediates(self, image=None, text=None, *, normalize: bool = True, **options) -> dict:
        """What open_clip returns, with tangent vectors for features; logits come from `get_logits`."""
        if options.get("output_logits"):
            raise ValueError("output_logits must be False, got True: get_logits(image, text) has them")
        found = super().forward_intermediates(image, text, normalize=False, **options)  # type: ignore[misc]
        for modality in ("image", "text"):
            if found.get(f"{modality}_features") is not None:
                found[f"{modality}_features"] = self.lift(found[f"{modality}_features"], modality)
        return found


class HyperbolicCLIP(_Unnormalized, open_clip.CLIP):
    """open_clip's ``CLIP`` of tangent vectors, made by `hyperbolic`."""


class HyperbolicCustomTextCLIP(_Unnormalized, open_clip.CustomTextCLIP):
    """open_clip's ``CustomTextCLIP`` of tangent vectors, made by `hyperbolic`."""


_CLASSES: dict[type, type] = {open_clip.CLIP: HyperbolicCLIP, open_clip.CustomTextCLIP: HyperbolicCustomTextCLIP}


def hyperbolic(
    model: Model, curvature: float = 1.0, *, dim: int | None = None, logit_bias: float | None = None
) -> Model:
    """Make an open_clip model one of tangent vectors, in place, and return it.

    Its class becomes a subclass of its own that does not normalise, and it gains a `LorentzLift`: features are multiplied with a
    learnable scale of their modality, so that they begin at radius about 1. All else stays: ``forward`` and what it returns, names
    of parameters, locked towers, checkpointing, ``logit_scale`` and its clamp. Call it once weights are loaded, and before
    the optimizer and DistributedDataParallel are made.

    Args:
        model: open_clip's ``CLIP`` or ``CustomTextCLIP``, from open_clip 2.20 on.
        curvature: c, the curvature being -c; not learnt, since the scales and the logit scale learn the same family of losses.
        dim: the number of features; None asks the model's towers.
        logit_bias: where a model for SigLIP's loss starts. None is its inverse temperature, so that pairs closer than 1 are
            positives at first; the -10 of cosines would make every positive a hopeless one.

    Raises TypeError for another model, ValueError for a curvature that is not positive or a ``dim`` that cannot be found.

    >>> import open_clip
    >>> model = hyperbolic(open_clip.create_model("RN50"))
    >>> isinstance(model, open_clip.CLIP), float(model.curvature)
    (True, 1.0)
    """
    changed = _CLASSES.get(type(model))
    if changed is None:
        raise TypeError(_refusal(model))
    check(curvature)
    anything: Any = model
    lift = LorentzLift(
        _features(model) if dim is None else dim,
        ("image", "text"),
        curvature=curvature,
        learn_curvature=False,
        curvature_bounds=(min(curvature, 0.1), max(curvature, 10.0)),
        output="tangent",
    )
    model.lift = lift.to(anything.logit_scale.device)
    if getattr(model, "logit_bias", None) is not None:
        with torch.no_grad():
            anything.logit_bias.copy_(anything.logit_scale.exp() if logit_bias is None else torch.tensor(logit_bias))
    model.__class__ = changed
    return model


def create_model_and_transforms(*args, curvature: float = 1.0, **options) -> tuple[nn.Module, Any, Any]:
    """Return what ``open_clip.create_model_and_transforms`` does of the same arguments, with the model made `hyperbolic`."""
    model, *transforms = open_clip.create_model_and_transforms(*args, **options)
    return (hyperbolic(model, curvature), *transforms)


def _refusal(model: object) -> str:
    name = type(model).__name__
    if isinstance(model, tuple(_CLASSES.values())):
        return f"model must be an open_clip model that is not hyperbolic yet, got {name}"
    if name == "CoCa":
        return (
            "model must be open_clip's CLIP or CustomTextCLIP, got CoCa, which normalises where it captions: in a loop of your "
            "own, lift what its encode_image and encode_text give with normalize=False, and add its caption loss to "
            "HyperbolicContrastiveLoss"
        )
    return (
        f"model must be open_clip's CLIP or CustomTextCLIP itself, got {name}: call hyperbolic(model) before "
        "DistributedDataParallel, fully_shard, torch.compile or scripting"
    )


def _features(model: Any) -> int:
    """How many features the towers give."""
    for tower in (model.visual, getattr(model, "text", None)):
        dim = getattr(tower, "output_dim", None)
        if isinstance(dim, int):
            return dim
    projection = getattr(model, "text_projection", None)
    if isinstance(projection, nn.Linear):
        return projection.out_features
    if isinstance(projection, Tensor):
        return projection.shape[1]
    raise ValueError(f"dim must be given: {type(model.visual).__name__} does not say how many features it has")
