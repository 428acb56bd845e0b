"""Batch norm over the rows of all processes, on GPUs and on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hyperst_kernels.distributed import Gather, Ranks

__all__ = ["BatchNormOverRanks", "synchronise_batch_norms"]


class BatchNormOverRanks(_BatchNorm):
    """What ``torch.nn.SyncBatchNorm`` is on GPUs, for CPUs, over the processes of the default group."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, ...) to the same shape. Ranks may hold unequally many rows."""
        if not self.training:
            return super().forward(x)
        values = x.to(torch.promote_types(x.dtype, torch.float32)).transpose(0, 1).flatten(1)
        mean = values.mean(1)
        squares = (values - mean[:, None]).square().sum(1)
        mean, variance, count = _combine(mean, squares, values.shape[1])
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = torch.rsqrt(variance + self.eps)
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        per_channel = (1, -1) + (1,) * (x.ndim - 2)
        return (x * scale.view(per_channel) + shift.view(per_channel)).to(x.dtype)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of axes from two on."""

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(variance.to(self.running_var.dtype), factor)


def synchronise_batch_norms(model: nn.Module, device: str) -> None:
    """Have each batch norm of ``model`` that learns take its mean and variance over the rows of all processes, in place.

    ``device`` is the kind that will train: ``"cpu"``, ``"cuda"``, ... Those of a frozen encoder stay as they are.

    Raises:
        ValueError: a layer joins batch norm and something else.
    """
    model.train()
    for name, module in list(model.named_modules()):
        if not isinstance(module, _BatchNorm) or not module.training:
            continue
        if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            raise ValueError(
                f"layer {name} is a {type(module).__name__}, whose statistics cannot be taken over several processes; train in one "
                "process (--devices 1), or with model.tune frozen"
            )
        kind = BatchNormOverRanks if device == "cpu" else nn.SyncBatchNorm
        options = (module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
        converted = kind(*options)
        converted.load_state_dict(module.state_dict(), assign=True)  # in the same dtype
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, converted)


def _combine(mean: Tensor, squares: Tensor, count: int) -> tuple[Tensor, Tensor, float]:
    """Mean, variance and count over all ranks from this rank's means (c,), sums of squares about them (c,) and count.

    Chan, Golub and LeVeque (1983): no difference of large numbers. Ranks are added in their own order on every rank, so that
    replicas agree to the last bit.
    """
    ranks = Ranks()
    own = torch.cat([mean, squares, mean.new_tensor([count])])
    everything = Gather(ranks, with_grad=True)(own[None], [1] * ranks.size).roll(ranks.rank, 0)
    means, all_squares, counts = everything.split([len(mean), len(mean), 1], 1)
    total = counts.detach().sum()
    shares = counts.detach() / total
    mean = (means * shares).sum(0)
    return mean, all_squares.sum(0) / total + ((means - mean).square() * shares).sum(0), float(total)
