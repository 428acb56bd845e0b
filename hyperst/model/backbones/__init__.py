"""Image backbones: a small convolutional encoder, hand-made stain features, published encoders, or precomputed features.

Nothing is ever downloaded: weights come from a local file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperst.model.backbones.encoders import ENCODERS, Encoder, Normalisation
from hyperst.model.backbones.pretrained import PREFIX, PretrainedEncoder, build_network, encoder_of
from hyperst.model.backbones.small import Backbone, Convolutional, ConvolutionalAndStain, Precomputed, Stain
from hyperst.model.backbones.tuning import Tune, tuned
from hyperst.model.backbones.weights import load_known_weights, load_weights

__all__ = [
    "ENCODERS",
    "Backbone",
    "Encoder",
    "Normalisation",
    "Tune",
    "build_backbone",
    "declared_normalisation",
    "is_pretrained",
    "require_weights",
]

_SMALL = {"conv": Convolutional, "stain": Stain, "conv+stain": ConvolutionalAndStain}


def is_pretrained(name: str) -> bool:
    """Whether the backbone called ``name`` takes weights of others.

    >>> is_pretrained("uni"), is_pretrained("timm:resnet18"), is_pretrained("conv")
    (True, True, False)
    """
    return name in ENCODERS or name.startswith(PREFIX)


def require_weights(name: str, weights: str | None, image_size: int) -> None:
    """Raise unless the backbone can start: its weights are there, and crops have the size it was made for.

    Raises:
        ValueError: no weights, weights for a backbone that takes none, or another size of crops.
        FileNotFoundError: no such file of weights.

    >>> require_weights("conv", None, 96)
    """
    if not is_pretrained(name):
        if weights is not None:
            raise _takes_no_weights(name)
        return
    source = ENCODERS[name].source if name in ENCODERS else f"a file of the weights of {name.removeprefix(PREFIX)}"
    if weights is None:
        raise ValueError(
            f"backbone {name!r} needs its weights, or it would be a random network: give the local file ({source}) with "
            "--weights FILE (model.weights), or choose --backbone conv+stain, which needs none"
        )
    if not Path(weights).is_file():
        raise FileNotFoundError(f"weights file {weights} does not exist; give a local file (nothing is downloaded)")
    _check_size(name, image_size)


def declared_normalisation(name: str) -> Normalisation | None:
    """Mean and standard deviation of the images that a backbone was trained on; None where it takes no weights.

    Raises:
        ImportError, ValueError: see :func:`build_backbone`.

    >>> declared_normalisation("h-optimus-0")
    ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
    """
    return encoder_of(name).normalisation if is_pretrained(name) else None


def build_backbone(
    name: str,
    *,
    weights: str | None = None,
    tune: Tune = "frozen",
    image_size: int = 224,
    width: int | None = None,
    timm_kwargs: Mapping[str, Any] | None = None,
    normalisation: Normalisation | None = None,
    strict: bool = True,
) -> Backbone:
    """The image backbone called ``name``; maps ImageNet-normalised images (b 3 h w) to features (b width).

    Args:
        name: "conv" (0.4 M parameters, trained from scratch), "stain" (hand-made, nothing to train), "conv+stain" (both
            side by side), a published encoder (`ENCODERS`) or "timm:MODEL", or "precomputed"
            (features pass through; ``width`` must be given).
        weights: local file with the encoder's weights (.bin, .pt, .pth or .safetensors); None leaves it untrained.
        tune: what of an encoder with weights is trained, see :func:`hyperst.model.backbones.tuning.tuned`.
        image_size: side of the crops in pixels.
        width: of precomputed features.
        timm_kwargs: keyword arguments of "timm:MODEL"; layers by name, such as {"mlp_layer": "SwiGLUPacked"}.
        normalisation: mean and standard deviation of the encoder's images; default what the encoder declares.
        strict: False takes weights as runs of before did: those without a place are dropped, with a warning.

    Raises:
        ValueError: unknown name, options that do not go with it, or weights that are not those of the encoder.
        FileNotFoundError: no such weights file. ImportError: timm, peft or safetensors is missing.

    >>> import torch
    >>> build_backbone("conv")(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 160])
    """
    if timm_kwargs and not name.startswith(PREFIX):
        raise ValueError(f"backbone {name!r} takes no timm_kwargs; they go with 'timm:MODEL'")
    if is_pretrained(name):
        _check_size(name, image_size)
        encoder = encoder_of(name)
        network = build_network(encoder, timm_kwargs or {}, image_size)
        if weights is not None and strict:
            load_weights(network, weights, name=name, layout=encoder.layout, left_over=encoder.left_over)
        elif weights is not None:
            load_known_weights(network, weights, name=name, left_over=encoder.left_over)
        return PretrainedEncoder(tuned(network, tune), encoder.pooling, normalisation or encoder.normalisation)
    if weights is not None or tune != "frozen" or normalisation is not None:
        raise _takes_no_weights(name)
    if name == "precomputed":
        if width is None:
            raise ValueError("backbone 'precomputed' needs the width of the features")
        return Precomputed(width)
    if name not in _SMALL:
        known = ", ".join(map(repr, (*_SMALL, "precomputed", *ENCODERS)))
        raise ValueError(f"backbone must be one of {known} or 'timm:MODEL', got {name!r}")
    return _SMALL[name]()


def _takes_no_weights(name: str) -> ValueError:
    return ValueError(
        f"backbone {name!r} takes no weights, no tune and no image_mean and image_std; they go with "
        f"{', '.join(map(repr, ENCODERS))} or 'timm:MODEL'"
    )


def _check_size(name: str, image_size: int) -> None:
    size = ENCODERS[name].input_size if name in ENCODERS else None
    if size is not None and image_size != size:
        raise ValueError(
            f"backbone {name!r} takes crops of {size} px, got {image_size}: set --image-size {size} (crop.image_size)"
        )
