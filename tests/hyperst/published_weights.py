"""Names and shapes of the weights of published encoders, in timm's layout, written out."""

from __future__ import annotations

__all__ = ["PUBLISHED"]


def vit(depth, d, hidden, positions, patch, *, registers=0, scaled=True, gated=False):
    """Names and shapes of a vision transformer's weights in timm's layout, written out."""
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, positions, d),
        "patch_embed.proj.weight": (d, 3, patch, patch),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    if registers:
        shapes["reg_token"] = (1, registers, d)
    for block in (f"blocks.{number}" for number in range(depth)):
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (d,), f"{block}.{norm}.bias": (d,)}
        shapes |= {f"{block}.attn.qkv.weight": (3 * d, d), f"{block}.attn.qkv.bias": (3 * d,)}
        shapes |= {f"{block}.attn.proj.weight": (d, d), f"{block}.attn.proj.bias": (d,)}
        shapes |= {f"{block}.mlp.fc1.weight": (hidden, d), f"{block}.mlp.fc1.bias": (hidden,)}
        shapes |= {f"{block}.mlp.fc2.weight": (d, hidden // 2 if gated else hidden), f"{block}.mlp.fc2.bias": (d,)}
        if scaled:
            shapes |= {f"{block}.ls1.gamma": (d,), f"{block}.ls2.gamma": (d,)}
    return shapes


def conch():
    """The trunk is a plain ViT-B/16 of 448 px, the pooler one query of 512 numbers that reads 768."""
    trunk = vit(12, 768, 3072, 28 * 28 + 1, 16, scaled=False)
    pooler = {
        "query": (1, 512),
        "attn.q_proj_weight": (512, 512),
        "attn.k_proj_weight": (512, 768),
        "attn.v_proj_weight": (512, 768),
        "attn.in_proj_bias": (1536,),
        "attn.out_proj.weight": (512, 512),
        "attn.out_proj.bias": (512,),
        "ln_q.weight": (512,),
        "ln_q.bias": (512,),
        "ln_k.weight": (768,),
        "ln_k.bias": (768,),
    }
    return (
        {f"trunk.{key}": shape for key, shape in trunk.items()}
        | {f"attn_pool_contrast.{key}": shape for key, shape in pooler.items()}
        | {"ln_contrast.weight": (512,), "ln_contrast.bias": (512,)}
    )


def resnet50():
    shapes = {"conv1.weight": (64, 3, 7, 7), **batch_norm("bn1", 64)}
    width_in = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, width_in, 1, 1)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            shapes[f"{name}.conv3.weight"] = (4 * width, width, 1, 1)
            for number, size in ((1, width), (2, width), (3, 4 * width)):
                shapes |= batch_norm(f"{name}.bn{number}", size)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, width_in, 1, 1)
                shapes |= batch_norm(f"{name}.downsample.1", 4 * width)
            width_in = 4 * width
    return shapes


def batch_norm(name, size):
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{key}": (size,) for key in vectors} | {f"{name}.num_batches_tracked": ()}


def efficientnet_lite0():
    """Tan and Le, EfficientNet, 2019, table 1, without squeeze and excitation; stem and head are not scaled."""
    shapes = {"conv_stem.weight": (32, 3, 3, 3), **batch_norm("bn1", 32)}
    width_in = 32
    stages = (
        (1, 3, 16, 1),
        (6, 3, 24, 2),
        (6, 5, 40, 2),
        (6, 3, 80, 3),
        (6, 5, 112, 3),
        (6, 5, 192, 4),
        (6, 3, 320, 1),
    )
    for stage, (expansion, kernel, width, blocks) in enumerate(stages):
        for name in (f"blocks.{stage}.{block}" for block in range(blocks)):
            inside = expansion * width_in
            convolutions = [("dw", (inside, 1, kernel, kernel)), ("pwl", (width, inside, 1, 1))]
            if expansion > 1:
                convolutions.insert(0, ("pw", (inside, width_in, 1, 1)))
            else:
                convolutions[1] = ("pw", (width, inside, 1, 1))
            for number, (kind, shape) in enumerate(convolutions, 1):
                shapes |= {f"{name}.conv_{kind}.weight": shape, **batch_norm(f"{name}.bn{number}", shape[0])}
            width_in = width
    return shapes | {"conv_head.weight": (1280, 320, 1, 1), **batch_norm("bn2", 1280)}


PUBLISHED = {  # weights by name and shape; width of the feature; parameters in millions, as the model cards say
    "uni": (vit(24, 1024, 4096, 197, 16), 1024, 303.3),
    "uni2-h": (vit(24, 1536, 8192, 256, 14, registers=8, gated=True), 1536, 681),
    "conch": (conch(), 512, None),
    "virchow2": (vit(32, 1280, 6832, 261, 14, registers=4, gated=True), 2560, 632),
    "h-optimus-0": (vit(40, 1536, 8192, 256, 14, registers=4, gated=True), 1536, 1135),
    "gigapath": (vit(40, 1536, 8192, 197, 16, gated=True), 1536, 1135),
    "phikon-v2": (vit(24, 1024, 4096, 197, 16), 1024, 303),
    "resnet50": (resnet50(), 2048, None),
    "efficientnet-lite0": (efficientnet_lite0(), 1280, None),
}
