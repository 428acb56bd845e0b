"""Modules: the lift with its learnable scales, and the losses as drop-ins for training loops."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hyperst_kernels import _checks
from hyperst_kernels._checks import choice, positive_number
from hyperst_kernels._constants import INPUTS, LOSS_GEOMETRIES
from hyperst_kernels.curvature import Curvature, check, current, describe, hold
from hyperst_kernels.distance import similarity
from hyperst_kernels.distributed import SCHEMES, Gather, Group, Ranks, place
from hyperst_kernels.entailment import entailment_loss
from hyperst_kernels.first_logit_scale import FirstLogitScale
from hyperst_kernels.loss_terms import DIRECTIONS, Options, Term, check_options, losses_of
from hyperst_kernels.maps import scaled_exp_map0
from hyperst_kernels.operators.register import in_reverse, transformed
from hyperst_kernels.rank_losses import Call, Shard


class _Bounded(torch.autograd.Function):
    """Clamp whose gradient still flows where a step along it leads back inside."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.low, ctx.high = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        outward = ((x <= ctx.low) & (grad > 0)) | ((x >= ctx.high) & (grad < 0))
        return grad.masked_fill(outward, 0), None, None


def bounded(x: Tensor, low: float, high: float) -> Tensor:
    """``x`` clamped to [low, high], with the gradient cut only where a descent step would lead further out.

    >>> x = torch.tensor(2.0, requires_grad=True)
    >>> bounded(x, 0.0, 1.0).backward(); x.grad
    tensor(1.)
    """
    if _checks.seen(x) and not transformed() and x.numel() == 1 and low < float(x.detach()) < high:
        return x.clone()  # a custom function would take 50 us
    return in_reverse("bounded", _Bounded.apply, x, low, high)


def scalar(value: float, *, learn: bool = True) -> nn.Parameter:
    """A number as a parameter of shape (1,): FSDP2 shards along the first dimension, and refuses shape ().

    >>> scalar(2.0)
    Parameter containing:
    tensor([2.], requires_grad=True)
    """
    return nn.Parameter(torch.tensor([value]), requires_grad=learn)


def load_scalars(module: nn.Module, state: dict, prefix: str, *rest) -> None:
    """A hook before `load_state_dict`: checkpoints that hold the module's scalars in shape () load as well."""
    for name, parameter in module.named_parameters():
        saved = state.get(prefix + name)
        if saved is not None and saved.ndim == 0 and parameter.shape == (1,):
            state[prefix + name] = saved.reshape(1)


class LorentzLift(nn.Module):
    """Encoder features to the hyperboloid: multiply by exp(alpha) of their modality, then the exponential map.

    ``alpha`` starts at ln(dim)/-2, so that features of norm sqrt(dim) reach radius about 1, and the scale is clamped to
    at most 1; the curvature -c is shared, learnable, and c is clamped to ``curvature_bounds`` (Desai et al. 2023).
    ``output="tangent"`` leaves out the exponential map: the losses of this library take tangent vectors as they are.
    Parameters have shape (1,), as FSDP2 asks; what `curvature` and `scale` give is 0-d. Under FSDP2 both must be called
    inside the ``forward`` of a sharded module, where parameters are whole.

    >>> lift = LorentzLift(1024, ("image", "gene"))
    >>> lift(torch.randn(5, 1024), "image").shape
    torch.Size([5, 1024])
    """

    def __init__(
        self,
        dim: int,
        modalities: Sequence[str] = ("image", "gene"),
        *,
        curvature: float = 1.0,
        learn_curvature: bool = True,
        curvature_bounds: tuple[float, float] = (0.1, 10.0),
        output: str = "lorentz",
    ):
        super().__init__()
        choice("output", output, INPUTS)
        _checks.count("dim", dim)
        for bound in curvature_bounds:
            positive_number("curvature_bounds", bound)
        check(curvature)
        if not curvature_bounds[0] <= curvature <= curvature_bounds[1]:
            raise ValueError(f"curvature must lie within curvature_bounds {curvature_bounds}, got {curvature}")
        self.output = output
        self.log_alpha = nn.ParameterDict({m: scalar(-math.log(dim) / 2) for m in modalities})
        self.log_curvature = scalar(math.log(curvature), learn=learn_curvature)
        self.register_load_state_dict_pre_hook(load_scalars)
        self.log_bounds = (math.log(curvature_bounds[0]), math.log(curvature_bounds[1]))

    @property
    def curvature(self) -> Tensor:
        """c > 0, 0-d; the curvature is -c."""
        return self._whole(self.log_curvature, *self.log_bounds)

    def scale(self, modality: str) -> Tensor:
        """exp(alpha), 0-d, at most 1."""
        if modality not in self.log_alpha:
            raise ValueError(f"modality must be one of {', '.join(self.log_alpha)}, got {modality!r}")
        return self._whole(self.log_alpha[modality], -math.inf, 0.0)

    def _whole(self, logarithm: Tensor, low: float, high: float) -> Tensor:
        """What a parameter stands for, 0-d."""
        if hasattr(logarithm, "full_tensor"):
            raise RuntimeError(
                "LorentzLift holds DTensors, sharded by FSDP2: ask for its curvature and scales inside the forward of the "
                "sharded module, or call unshard() of that module first"
            )
        return bounded(logarithm, low, high).exp().reshape(())

    def extra_repr(self) -> str:
        sharded = hasattr(self.log_curvature, "full_tensor")
        c = "sharded" if sharded else describe(self.curvature.detach())
        scales = {m: "sharded" if sharded else describe(self.scale(m).detach()) for m in self.log_alpha}
        low, high = (math.exp(bound) for bound in self.log_bounds)
        learnt = f"learnt within ({low:g}, {high:g})" if self.log_curvature.requires_grad else "fixed"
        return f"curvature={c} {learnt}, output={self.output!r}, scales={scales}".replace("'", "")

    def forward(self, features: Tensor, modality: str = "image") -> Tensor:
        """(..., dim) -> (..., dim): tangent vectors at the origin, or points by their space components."""
        scale = self.scale(modality)
        return features * scale if self.output == "tangent" else scaled_exp_map0(features, scale, self.curvature)


class EntailmentLoss(nn.Module):
    """`entailment_loss` as a module: ``forward(parent, child, curvature)``, matching rows (..., d) -> 0-d mean.

    >>> EntailmentLoss(eta=0.7)(torch.ones(2, 3), 2 * torch.ones(2, 3), 1.0)
    tensor(0.)
    """

    def __init__(self, eta: float = 1.0, min_radius: float = 0.1, input: str = "lorentz"):
        super().__init__()
        choice("input", input, INPUTS)
        positive_number("eta", eta)
        positive_number("min_radius", min_radius)
        self.eta, self.min_radius, self.input = eta, min_radius, input

    def extra_repr(self) -> str:
        return f"eta={self.eta:g}, min_radius={self.min_radius:g}, input={self.input!r}"

    def forward(self, parent: Tensor, child: Tensor, curvature: float | Tensor = 1.0) -> Tensor:
        return entailment_loss(parent, child, curvature, eta=self.eta, min_radius=self.min_radius, input=self.input)


class HyperbolicContrastiveLoss(nn.Module):
    """Drop-in for open_clip's ``ClipLoss``: the same call, with geodesic distance in place of the dot product.

    ``forward(image_features (n, d), text_features (m, d), logit_scale, logit_bias=None, output_dict=False)`` returns
    the 0-d loss, or ``{"contrastive_loss": loss}``. ``loss="sigmoid"`` is SigLIP's, with its ``logit_bias``; in a softmax a
    bias shifts every logit alike, has no effect, and its gradient is 0. Switch off the model's feature normalisation and rank
    with `similarity`.

    ``curvature`` is one of the following, and `forward` and `similarity` take another ``curvature=`` in its place for one call:

    - a float;
    - a tensor: an ``nn.Parameter`` is registered as such, hence trained, any other as a buffer; one that was computed from
      parameters belongs to the graph of one step, and fails at the second;
    - a `LorentzLift`, or another module with a ``curvature`` or whose call gives c: registered, asked at every step;
    - a function without arguments, called at every step: ``lambda: model.lift.curvature`` for a lift that the model holds.

    ``forward`` also takes ``exclude_ids`` (m,), ``positives`` (query_ids (n,), key_ids (m,)), ``weights`` (n,) and ``debias`` (n,)
    by name, the last in place of the module's number, and a logit_scale (n,), as `contrastive_loss` does.

    Several processes: ``group``, or a rank and world_size, of the default group, that ``torch.distributed`` confirms. Each has
    its own rows, of any number, and meets those of all. With ``gather_with_grad=True`` gradients reach the features of other
    ranks, and after a mean of parameters' gradients over ranks, which DDP and FSDP2 take, they are the true ones, whether the
    loss is local (each rank's is that of its own rows) or global (every rank's is that of all). Those of curvature, logit scale
    and bias are true on every rank as they are. Without it, a global loss gives exactly 1/world_size of the gradient of the
    features, and ``local_loss=True`` drops the part through the other ranks' keys, which is wrong and warned about. A wrong
    argument on one rank, or one that other ranks do not have, is the same error on every rank. ``scheme`` is how keys meet
    queries: "gather", all at once; "ring", a rank's at a time, in memory for two shards, with gradients; "auto", gathered up to
    32 GiB.
    ``cache_labels`` is accepted for compatibility: there are no labels to cache.

    >>> loss = HyperbolicContrastiveLoss()
    >>> model_out = {"image_features": torch.eye(4), "text_features": torch.eye(4), "logit_scale": torch.tensor(10.0)}
    >>> sorted(loss(**model_out, output_dict=True))
    ['contrastive_loss']
    """

    curvature: Curvature

    def __init__(
        self,
        curvature: Curvature = 1.0,
        input: str = "tangent",
        directions: str = "both",
        geometry: str = "lorentz",
        precision: str | None = None,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        group: torch.distributed.ProcessGroup | None = None,
        *,
        loss: str = "softmax",
        scheme: str = "auto",
        label_smoothing: float = 0.0,
        debias: float | None = None,
        margin: float | None = None,
    ):
        super().__init__()
        choice("directions", directions, DIRECTIONS)
        choice("geometry", geometry, LOSS_GEOMETRIES)
        choice("scheme", scheme, SCHEMES)
        if debias is not None:
            _checks.fraction("debias", debias)
        if use_horovod:
            raise ValueError("use_horovod must be False, got True: features are gathered with torch.distributed")
        hold(self, curvature)
        self.options: dict[str, Any] = {"loss": loss, "input": input, "geometry": geometry, "precision": precision}
        self.options |= {"label_smoothing": label_smoothing, "debias": debias, "margin": margin}
        check_options(Options(**self.options))
        self.input, self.directions, self.geometry = input, directions, geometry
        self.local_loss, self.gather_with_grad = local_loss, gather_with_grad
        if group is not None or torch.distributed.is_initialized():
            rank, world_size = place(group, rank, world_size)
        self.rank, self.world_size, self.group, self.scheme = rank, world_size, Group(group), scheme
        self.logit_scales = FirstLogitScale()
        if scheme == "ring" and not gather_with_grad:
            raise ValueError("scheme='ring' needs gather_with_grad=True")
        if world_size > 1 and local_loss and not gather_with_grad:
            warnings.warn(
                "local_loss=True with gather_with_grad=False drops the gradient through the gathered features: "
                "set gather_with_grad=True",
                stacklevel=2,
            )

    def extra_repr(self) -> str:
        options = {**self.options, "directions": self.directions}
        if self.world_size > 1:
            options |= {name: getattr(self, name) for name in ("local_loss", "gather_with_grad", "rank", "world_size")}
        asked = {
            name: value
            for name, value in options.items()
            if value is not None and (name, value) != ("label_smoothing", 0)
        }
        given = ", ".join(f"{name}={value!r}" for name, value in asked.items())
        return f"curvature={describe(self.curvature)}, {given}"

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
        *,
        exclude_ids: Tensor | None = None,
        positives: tuple[Tensor, Tensor] | None = None,
        weights: Tensor | None = None,
        debias: float | Tensor | None = None,
        curvature: Curvature | None = None,
    ):
        self.logit_scales(logit_scale)
        options = Options(
            logit_bias=logit_bias,
            positives=positives,
            exclude_ids=exclude_ids,
            weights=weights,
            **self.options,
        )
        if debias is not None:
            options = options._replace(debias=debias)

        def given():
            c = current(self.curvature if curvature is None else curvature)
            return [Term(image_features, text_features, 1.0, self.directions)], c, logit_scale, options

        (loss,) = losses_of(*given()) if self.world_size == 1 else self._losses_of_rank(given)
        return {"contrastive_loss": loss} if output_dict else loss

    def _losses_of_rank(self, given: Callable[[], tuple[list[Term], float | Tensor, float | Tensor, Options]]):
        place(self.group.held, self.rank, self.world_size)
        ranks = Ranks(self.group.held)
        flags = {name: getattr(self, name) for name in ("local_loss", "gather_with_grad", "scheme")}

        def check():
            call = Call.checked(*given(), self.local_loss, self.gather_with_grad, self.scheme)
            return call, {**call.facts(), **flags}, call.sizes()

        call, sizes = ranks.agree(check)
        shard = Shard(call, Gather(ranks, self.gather_with_grad), sizes, self.scheme)
        return shard.own_losses() if self.local_loss else shard.all_losses()

    def similarity(self, queries: Tensor, keys: Tensor, *, curvature: Curvature | None = None) -> Tensor:
        """Minus the distance of the loss's own geometry, (n, d), (m, d) -> (n, m), to rank by in evaluation.

        ``curvature`` takes the place of the loss's own for this call: the one that ``forward`` was given.
        """
        c = current(self.curvature if curvature is None else curvature)
        return similarity(queries, keys, c, input=self.input, geometry=self.geometry)
