"""Image backbones: a small convolutional encoder, hand-made stain features, any timm model, or precomputed features.

Nothing is ever downloaded: weights come from a local file, or the backbone starts untrained.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from hyperst.data.dataset import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["build_backbone"]


class Backbone(nn.Module):
    """(b 3 h w) -> (b width)."""

    width: int


def build_backbone(
    name: str, *, weights: str | None = None, lora: bool = False, image_size: int = 224, width: int | None = None
) -> Backbone:
    """The image backbone called ``name``; maps ImageNet-normalised images (b 3 h w) to features (b width).

    Args:
        name: "conv" (0.4 M parameters, trained from scratch), "stain" (hand-made, nothing to train), "conv+stain" (both
            side by side), "timm:MODEL" (frozen unless ``lora``), or "precomputed" (features pass through; ``width``
            must be given).
        weights: local file with the state of a timm model; None leaves it untrained.
        lora: adapters (rank 8, alpha 16, dropout 0.1) on the qkv of the last 11/24 of a vision transformer's blocks.
        image_size: side of the crops in pixels, for timm models.
        width: of precomputed features.

    Raises:
        ValueError: unknown name, or options that do not go with it. FileNotFoundError: no such weights file.
        ImportError: timm or peft is missing.

    >>> build_backbone("conv")(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 160])
    """
    if name.startswith("timm:"):
        return _Timm(name.removeprefix("timm:"), weights, lora, image_size)
    if weights is not None or lora:
        raise ValueError(f"backbone {name!r} takes no weights and no LoRA; they go with 'timm:MODEL'")
    if name == "conv":
        return _Convolutional()
    if name == "stain":
        return _Stain()
    if name == "conv+stain":
        return _ConvolutionalAndStain()
    if name == "precomputed":
        if width is None:
            raise ValueError("backbone 'precomputed' needs the width of the features")
        return _Precomputed(width)
    raise ValueError(f"backbone must be 'conv', 'stain', 'conv+stain', 'timm:MODEL' or 'precomputed', got {name!r}")


class _Convolutional(Backbone):
    """Five 3 x 3 convolutions and global average pooling. Batch norm: group norm cost a quarter of the correlation."""

    width = 160

    def __init__(self) -> None:
        super().__init__()
        channels, layers = (3, 32, 64, 96, 128, 160), []
        for number, (n_in, n_out) in enumerate(pairwise(channels)):
            stride = 2 if number < 4 else 1
            layers += [nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return reduce(self.layers(x), "b c h w -> b c", "mean")


class _Stain(Backbone):
    """Optical density per channel: moments, quantiles, texture at four scales, and a histogram of darkness."""

    _BINS = 16
    _SCALES = (1, 2, 4, 8)
    width = 3 * (2 + 5 + 2 * len(_SCALES)) + _BINS
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", rearrange(torch.tensor(IMAGENET_MEAN), "rgb -> rgb 1 1"), persistent=False)
        self.register_buffer("std", rearrange(torch.tensor(IMAGENET_STD), "rgb -> rgb 1 1"), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        density = -torch.log((x.float() * self.std + self.mean).clamp(0.02, 1))
        flat = rearrange(density, "b c h w -> b c (h w)")
        quantiles = torch.quantile(flat, flat.new_tensor([0.05, 0.25, 0.5, 0.75, 0.95]), dim=2)  # q b c
        parts = [flat.mean(2), flat.std(2), *quantiles]
        for scale in self._SCALES:
            pooled = F.avg_pool2d(density, scale)
            slopes = [reduce(pooled.diff(dim=dim).abs(), "b c h w -> b c", "mean") for dim in (2, 3)]
            parts += [rearrange(pooled, "b c h w -> b c (h w)").std(2), slopes[0] + slopes[1]]
        darkness = reduce(density, "b c h w -> b (h w)", "mean")
        bins = (darkness / 2 * self._BINS).long().clamp(0, self._BINS - 1)
        parts.append(reduce(F.one_hot(bins, self._BINS).float(), "b pixel bin -> b bin", "mean"))
        return torch.cat(parts, dim=1)


class _ConvolutionalAndStain(Backbone):
    """Learnt features beside the hand-made ones, which are standardised by their running statistics."""

    width = _Convolutional.width + _Stain.width

    def __init__(self) -> None:
        super().__init__()
        self.learnt, self.stain = _Convolutional(), _Stain()
        self.standardise = nn.BatchNorm1d(_Stain.width, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.learnt(x), self.standardise(self.stain(x))], dim=1)


class _Precomputed(Backbone):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x


class _Timm(Backbone):
    """Any timm model without its classifier; frozen, or trained through LoRA."""

    def __init__(self, name: str, weights: str | None, lora: bool, image_size: int) -> None:
        super().__init__()
        timm = _import_timm()
        if not timm.is_model(name):
            raise ValueError(f"timm knows no model {name!r}; see timm.list_models()")
        size = {"img_size": image_size} if name.startswith(("vit", "deit", "swin")) else {}
        model = timm.create_model(name, pretrained=False, num_classes=0, **size)
        if weights is not None:
            _load(model, Path(weights))
        model.requires_grad_(False)
        self.width = model.num_features
        self.model = _with_lora(model) if lora else model
        self.frozen = not lora

    def train(self, mode: bool = True) -> _Timm:
        """A frozen backbone stays in evaluation mode: its batch statistics must not move."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.model(x)


def _load(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist; give a local file (nothing is downloaded)")
    state = torch.load(path, map_location="cpu", weights_only=True)
    wrong = model.load_state_dict(
        {key: value for key, value in state.items() if not key.startswith("head.")}, strict=False
    )
    if wrong.missing_keys:
        raise ValueError(f"{path} lacks weights of the backbone, for example {', '.join(wrong.missing_keys[:3])}")


def _with_lora(model: nn.Module) -> nn.Module:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError('LoRA needs peft: pip install "hyperst-kernels[st]"') from error
    names = [name for name, _ in model.named_modules() if re.fullmatch(r"blocks\.\d+\.attn\.qkv", name)]
    if not names:
        raise ValueError("lora needs a vision transformer with blocks.N.attn.qkv; this model has none")
    last = names[-max(1, round(len(names) * 11 / 24)) :]
    return inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=last), model)


def _import_timm():
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ImportError('timm backbones need timm: pip install "hyperst-kernels[timm]"') from error
    except RuntimeError as error:  # what torchvision raises beside another PyTorch
        raise ImportError(
            f"timm cannot be imported: {error}; install a torchvision of the same build as PyTorch {torch.__version__}"
        ) from error
    return timm
