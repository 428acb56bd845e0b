"""Encoders with weights, built by timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from hyperst.model.backbones.conch import ConchImageTower
from hyperst.model.backbones.encoders import ENCODERS, IMAGENET, Encoder, Normalisation
from hyperst.model.backbones.small import Backbone
from hyperst.model.backbones.tuning import set_trained_mode

__all__ = ["PretrainedEncoder", "build_network", "encoder_of"]

PREFIX = "timm:"
_RESIZED = ("vit", "deit", "swin")  # built for one size of image


class PretrainedEncoder(Backbone):
    """A network without its classifier, in front of it the normalisation of the images that it was trained on.

    Args:
        network: images (b 3 h w) to features (b width), or to tokens (b n width) where ``pooling`` is "class+mean".
        normalisation: what the network expects; images come ImageNet-normalised.
    """

    def __init__(self, network: nn.Module, pooling: str, normalisation: Normalisation) -> None:
        super().__init__()
        self.model = network
        self.pooling = pooling
        # timm's width of what a network returns; with a hidden layer in the head it is not num_features
        width = int(getattr(network, "head_hidden_size", None) or network.num_features)  # type: ignore[arg-type]
        self.width = 2 * width if pooling == "class+mean" else width
        self.n_prefix = int(getattr(network, "num_prefix_tokens", 0))
        self.unchanged = normalisation == IMAGENET
        given, own = (list(zip(*each, strict=True)) for each in (IMAGENET, normalisation))  # (mean, std) per channel
        gain = [std / own_std for (_, std), (_, own_std) in zip(given, own, strict=True)]
        shift = [(mean - own_mean) / own_std for (mean, _), (own_mean, own_std) in zip(given, own, strict=True)]
        for name, values in (("gain", gain), ("shift", shift)):
            self.register_buffer(name, rearrange(torch.tensor(values), "rgb -> rgb 1 1"), persistent=False)
        self.train()  # Lightning leaves every module in the mode that it finds it in

    gain: Tensor
    shift: Tensor

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """What is frozen stays in evaluation mode: its batch statistics must not move."""
        super().train(mode)
        set_trained_mode(self.model, mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.unchanged else x * self.gain + self.shift
        features = self.model(x)
        if self.pooling == "class+mean":
            features = torch.cat([features[:, 0], features[:, self.n_prefix :].mean(dim=1)], dim=1)
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ValueError(
                f"the backbone returns features of shape {tuple(features.shape)}, need (images, {self.width}): leave "
                "num_classes and global_pool out of model.timm_kwargs"
            )
        return features


def encoder_of(name: str) -> Encoder:
    """The encoder called ``name``: a published one, or "timm:MODEL" as timm declares it.

    Raises:
        ImportError: timm is missing. ValueError: timm knows no such model.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    timm = _import_timm()
    architecture = name.removeprefix(PREFIX)
    if not timm.is_model(architecture):
        raise ValueError(f"timm knows no model {architecture!r}; see timm.list_models()")
    declared = timm.get_pretrained_cfg(architecture)
    classifier = () if declared is None or declared.classifier is None else declared.classifier
    return Encoder(
        architecture,
        {"num_classes": 0},
        normalisation=IMAGENET if declared is None else (tuple(declared.mean), tuple(declared.std)),
        input_size=None,
        left_over=tuple(f"{part}." for part in ((classifier,) if isinstance(classifier, str) else classifier)),
        source=f"weights of timm's {architecture}",
    )


def build_network(encoder: Encoder, kwargs: Mapping[str, Any], image_size: int) -> nn.Module:
    """The untrained network of an encoder; ``kwargs`` are added to its own.

    Raises:
        ImportError: timm is missing. ValueError: an argument that the network does not take.
    """
    timm = _import_timm()
    given = {**encoder.kwargs, **kwargs}
    if encoder.input_size is None and encoder.architecture.startswith(_RESIZED):
        given.setdefault("img_size", image_size)
    given = {key: _layer(timm, value) if key.endswith("_layer") else value for key, value in given.items()}
    try:
        network = timm.create_model(encoder.architecture, pretrained=False, **given)
    except (TypeError, AssertionError, ValueError) as error:
        raise ValueError(f"timm's {encoder.architecture} cannot be built with {dict(given)}: {error}") from error
    return ConchImageTower(network) if encoder.pooling == "attention" else network


def _layer(timm: Any, name: Any) -> Any:
    """A layer by the name that timm.layers or torch.nn has for it."""
    if not isinstance(name, str):
        return name
    for place in (timm.layers, nn):
        if hasattr(place, name):
            return getattr(place, name)
    raise ValueError(f"model.timm_kwargs: neither timm.layers nor torch.nn has a layer {name!r}")


def _import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ImportError('timm backbones need timm: pip install "hyperst-kernels[timm]"') from error
    except RuntimeError as error:  # what torchvision raises beside another PyTorch
        raise ImportError(
            f"timm cannot be imported: {error}; install a torchvision of the same build as PyTorch {torch.__version__}"
        ) from error
    return timm
