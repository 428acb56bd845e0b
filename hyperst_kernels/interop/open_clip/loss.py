"""open_clip's losses by distance, with the arguments of open_clip's."""

from __future__ import annotations

from typing import Any

from hyperst_kernels.curvature import Curvature
from hyperst_kernels.modules import HyperbolicContrastiveLoss


class HyperbolicClipLoss(HyperbolicContrastiveLoss):
    """`hyperst_kernels.HyperbolicContrastiveLoss` with the arguments of open_clip's ``ClipLoss``, in their order.

    Those of its own follow by name: ``curvature``, ``input``, ``directions``, ``geometry``, ``precision``, ``group``, ``loss``,
    ``scheme``.

    >>> HyperbolicClipLoss(False, False, True, 0, 1, curvature=0.5).curvature
    0.5
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        curvature: Curvature = 1.0,
        **options: Any,
    ):
        super().__init__(
            curvature,
            local_loss=local_loss,
            gather_with_grad=gather_with_grad,
            cache_labels=cache_labels,
            rank=rank,
            world_size=world_size,
            use_horovod=use_horovod,
            **options,
        )


def create_loss(args: Any, curvature: Curvature = 1.0) -> HyperbolicClipLoss:
    """Return the loss for the arguments that ``open_clip.create_loss`` takes, those of open_clip's training program.

    ``args.siglip`` is the sigmoid loss, each rank's images against the texts of all; ``args.loss_dist_impl`` is another way to the
    same numbers, and has no effect. ``curvature`` is that of the model. Raises ValueError for CoCa, distillation and Horovod.
    """
    if getattr(args, "distill", False):
        raise ValueError(
            "args.distill must be False, got True: a teacher's logits are not distances. In a loop of your own, add a divergence "
            "between softmax(teacher logits) and softmax(logit_scale * loss.similarity(image, text)) to the loss"
        )
    if "coca" in str(getattr(args, "model", "")).lower():
        raise ValueError(
            f"args.model must be no CoCa, got {args.model!r}: in a loop of your own, add the cross-entropy of its captions, "
            "logits.permute(0, 2, 1) against labels, to HyperbolicContrastiveLoss"
        )
    siglip = bool(getattr(args, "siglip", False))
    return HyperbolicClipLoss(
        args.local_loss or siglip,
        args.gather_with_grad or siglip,
        True,
        args.rank,
        args.world_size,
        getattr(args, "horovod", False),
        curvature=curvature,
        loss="sigmoid" if siglip else "softmax",
    )
