"""Published encoders: their construction, their input, their pooling, and weights loaded strictly. `make timm` runs these."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.torchvision_of_another_build import prepare_torchvision
from hyperst.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from hyperst.model import backbones
from hyperst.model.backbones import ENCODERS, build_backbone, declared_normalisation, pretrained
from hyperst.model.backbones.weights import read_weights
from tests.hyperst.published_weights import PUBLISHED


def fit(*arguments):
    """Training, imported late: Lightning looks at the torchvision beside it."""
    prepare_torchvision()
    from hyperst.train import fit

    return fit(*arguments)


@pytest.fixture
def timm():
    """timm, also beside a torchvision of another build than PyTorch."""
    prepare_torchvision()
    return pytest.importorskip("timm", reason="timm is not installed; `make timm` runs these tests with it")


def test_every_encoder_is_written_down_here():
    assert PUBLISHED.keys() == ENCODERS.keys()


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_by_name_and_shape(name):
    expected, width, millions = PUBLISHED[name]
    with torch.device("meta"):
        backbone = build_backbone(name, image_size=ENCODERS[name].input_size or 224)
    found = {key: tuple(value.shape) for key, value in backbone.model.state_dict().items()}
    assert found == expected
    assert backbone.width == width
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    if millions is not None:
        assert sum(parameter.numel() for parameter in backbone.model.parameters()) / 1e6 == pytest.approx(
            millions, abs=1
        )


def test_images_that_encoders_were_trained_on():
    own = {
        "conch": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        "h-optimus-0": ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)),
        "efficientnet-lite0": ((127 / 255,) * 3, (128 / 255,) * 3),
    }
    sizes = {"conch": 448, "resnet50": None, "efficientnet-lite0": None}
    for name, encoder in ENCODERS.items():
        assert declared_normalisation(name) == own.get(name, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))), name
        assert encoder.input_size == sizes.get(name, 224), name


SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3}


@pytest.fixture
def small(timm, monkeypatch):
    """The encoders with two narrow blocks in place of theirs, and nothing else changed."""
    del timm
    for name, encoder in ENCODERS.items():
        if name != "resnet50":
            monkeypatch.setitem(backbones.ENCODERS, name, replace(encoder, kwargs={**encoder.kwargs, **SMALL}))
    monkeypatch.setattr(
        nn.init, "trunc_normal_", lambda tensor, *args, **kwargs: tensor
    )  # weights come from random_state


def random_state(module):
    """A state in which every weight matters, layer scales and norms too."""
    generator = torch.Generator().manual_seed(3)
    return {
        key: value
        if not value.is_floating_point()
        else 0.5 * torch.rand(value.shape, generator=generator) + 0.1
        if "running_var" in key
        else 0.3 * torch.randn(value.shape, generator=generator)
        for key, value in module.state_dict().items()
    }


def images(size, batch=2):
    """Pixels in 0..1, and the same ImageNet-normalised, as backbones get them."""
    pixels = torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(5))
    return pixels, normalised(pixels, (IMAGENET_MEAN, IMAGENET_STD))


def normalised(pixels, normalisation):
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in normalisation)
    return (pixels - mean) / std


def of_timm(timm, name):
    """The network as timm builds it from the published arguments, without this library."""
    layers = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    kwargs = {
        "uni": {"patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True},
        "uni2-h": {
            "patch_size": 14, "init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8,
            "dynamic_img_size": True, **layers,
        },
        "virchow2": {
            "patch_size": 14, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": "", "reg_tokens": 4,
            "dynamic_img_size": True, **layers,
        },
        "h-optimus-0": {
            "patch_size": 14, "init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "reg_tokens": 4, "no_embed_class": True, **layers,
        },
        "gigapath": {"patch_size": 16, "init_values": 1e-5, "mlp_ratio": 5.33334, **layers},
    }[name]  # fmt: skip
    return timm.models.vision_transformer.VisionTransformer(img_size=224, num_classes=0, **kwargs, **SMALL)


def assert_same_features(found, expected):
    # two orders of float32 sums over a few dozen products and two blocks
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert float(expected.std()) > 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["uni", "uni2-h", "virchow2", "h-optimus-0", "gigapath"])
@torch.no_grad()
def test_features_are_those_of_the_published_network(timm, tmp_path, name):
    network = of_timm(timm, name).eval()
    state = random_state(network)
    network.load_state_dict(state)
    torch.save(state, tmp_path / "pytorch_model.bin")
    backbone = build_backbone(name, weights=str(tmp_path / "pytorch_model.bin")).eval()
    pixels, given = images(224)
    expected = network(normalised(pixels, ENCODERS[name].normalisation))
    if name == "virchow2":  # 1 class token, 4 registers, 256 patches
        assert expected.shape[1] == 261
        expected = torch.cat([expected[:, 0], expected[:, 5:].mean(dim=1)], dim=1)
    assert_same_features(backbone(given), expected)


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_phikon_v2_computes_what_transformers_does(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=224, patch_size=16, mlp_ratio=4,
        layerscale_value=1.0, layer_norm_eps=1e-6, attn_implementation="eager",
    )  # fmt: skip
    network = transformers.Dinov2Model(config).eval()
    network.load_state_dict(random_state(network))
    network.save_pretrained(tmp_path)
    state = read_weights(tmp_path / "model.safetensors")
    assert {"embeddings.mask_token", "encoder.layer.0.attention.attention.query.weight"} <= state.keys()
    backbone = build_backbone("phikon-v2", weights=str(tmp_path / "model.safetensors")).eval()
    _, given = images(224)
    assert_same_features(backbone(given), network(pixel_values=given).last_hidden_state[:, 0])

    state.pop("encoder.layer.1.attention.attention.key.bias")
    torch.save(state, tmp_path / "lacking.pt")
    with pytest.raises(
        ValueError, match=r"blocks\.1\.attn\.qkv\.bias.*encoder\.layer\.1\.attention\.attention\.query\.bias"
    ):
        build_backbone("phikon-v2", weights=str(tmp_path / "lacking.pt"))


@pytest.mark.usefixtures("small")
@torch.no_grad()
def test_conch_pools_its_tokens_with_one_query(timm, tmp_path):
    torch.manual_seed(0)
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=448, patch_size=16, num_classes=0, dynamic_img_size=True, **SMALL
    ).eval()
    trunk.load_state_dict(random_state(trunk))
    attention = nn.MultiheadAttention(512, 8, kdim=24, vdim=24)  # as published: (tokens, batch, width)
    query, ln_q, ln_k, ln = torch.randn(1, 512), nn.LayerNorm(512), nn.LayerNorm(24), nn.LayerNorm(512)
    for norm in (ln_q, ln_k, ln):
        norm.load_state_dict(random_state(norm))
    parts = {"trunk": trunk, "attn_pool_contrast.attn": attention, "attn_pool_contrast.ln_q": ln_q}
    parts |= {"attn_pool_contrast.ln_k": ln_k, "ln_contrast": ln}
    state = {
        f"visual.{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()
    }
    state["visual.attn_pool_contrast.query"] = query
    others = ("text.cls_emb", "text_decoder.x", "logit_scale", "visual.proj_contrast", "visual.attn_pool_caption.query")
    state |= {key: torch.randn(3) for key in (*others, "visual.ln_caption.weight")}
    torch.save(state, tmp_path / "conch.bin")
    pixels, given = images(448)
    tokens = ln_k(trunk.forward_features(normalised(pixels, ENCODERS["conch"].normalisation))).permute(1, 0, 2)
    pooled = attention(ln_q(query)[:, None].repeat(1, 2, 1), tokens, tokens, need_weights=False)[0]
    backbone = build_backbone("conch", weights=str(tmp_path / "conch.bin"), image_size=448).eval()
    assert_same_features(backbone(given), ln(pooled[0]))


@pytest.mark.usefixtures("small")
def test_adapters_go_into_named_encoders_too():
    for name, size in (("uni", 224), ("conch", 448)):
        backbone = build_backbone(name, tune="lora", image_size=size)
        trained = [key for key, parameter in backbone.named_parameters() if parameter.requires_grad]
        assert trained
        assert all("blocks.1.attn.qkv.lora" in key for key in trained)  # the last 11/24 of two blocks is one


@torch.no_grad()
def test_resnet50_takes_a_classifier_along(timm, tmp_path):
    whole = timm.create_model("resnet50", num_classes=10).eval()
    state = random_state(whole)
    whole.load_state_dict(state)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "resnet50.pth")
    backbone = build_backbone("resnet50", weights=str(tmp_path / "resnet50.pth"), image_size=64).eval()
    _, given = images(64)
    assert_same_features(backbone(given), whole.forward_head(whole.forward_features(given), pre_logits=True))
    for key in [key for key in state if key.endswith("num_batches_tracked")]:  # torchvision's oldest file has none
        del state[key]
    torch.save(state, tmp_path / "old.pth")
    assert torch.equal(build_backbone("resnet50", weights=str(tmp_path / "old.pth")).eval()(given), backbone(given))


@torch.no_grad()
def test_a_timm_network_is_built_as_the_configuration_says(timm, tmp_path):
    """UNI's fault in small: layer scales in the file, which the plain network has no place for."""
    kwargs = {"init_values": 1e-5, "mlp_layer": "SwiGLUPacked", **SMALL}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=32, init_values=1e-5,
                                mlp_layer=timm.layers.SwiGLUPacked, **SMALL).eval()  # fmt: skip
    state = random_state(network)
    network.load_state_dict(state)
    torch.save(state, tmp_path / "w.pt")
    name, options = "timm:vit_tiny_patch16_224", {"weights": str(tmp_path / "w.pt"), "image_size": 32}
    backbone = build_backbone(name, timm_kwargs=kwargs, **options).eval()
    pixels, given = images(32)
    assert declared_normalisation(name) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    expected = network.forward_head(network.forward_features(2 * pixels - 1), pre_logits=True)
    assert_same_features(backbone(given), expected)
    imagenet = build_backbone(name, timm_kwargs=kwargs, normalisation=(IMAGENET_MEAN, IMAGENET_STD), **options).eval()
    assert_same_features(imagenet(given), network.forward_head(network.forward_features(given), pre_logits=True))

    plain = {key: value for key, value in kwargs.items() if key != "init_values"}
    with pytest.raises(ValueError, match=r"w\.pt does not hold .*4 unexpected \(blocks\.0\.ls1\.gamma"):
        build_backbone(name, timm_kwargs=plain, **options)
    with pytest.raises(ValueError, match=r"1 of another shape \(pos_embed is \(1, 5, 24\), need \(1, 17, 24\)\)"):
        build_backbone(name, timm_kwargs=kwargs, **{**options, "image_size": 64})
    with pytest.raises(ValueError, match=r"neither timm\.layers nor torch\.nn has a layer 'Nonsense'"):
        build_backbone(name, timm_kwargs={"mlp_layer": "Nonsense"}, image_size=32)
    with pytest.raises(ValueError, match=r"cannot be built with .*no_such_argument"):
        build_backbone(name, timm_kwargs={"no_such_argument": 1}, image_size=32)
    with pytest.raises(ValueError, match="'uni' takes no timm_kwargs"):
        build_backbone("uni", timm_kwargs={"depth": 2})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("norm.bias"), r"1 missing \(norm\.bias\)"),
        (lambda state: state.update(extra=torch.ones(2)), r"1 unexpected \(extra\)"),
        (lambda state: state.update({"norm.bias": torch.ones(3)}), r"norm\.bias is \(3,\), need \(24,\)"),
        (lambda state: state["norm.bias"].fill_(torch.nan), r"1 with NaN or infinite values \(norm\.bias\)"),
        (lambda state: [state.pop(key) for key in list(state) if "ls1" in key], r"2 missing \(blocks\.0\.ls1\.gamma"),
    ],
)
def test_weights_that_differ_are_named(tmp_path, change, words):
    state = random_state(build_backbone("uni").model)
    change(state)
    torch.save(state, tmp_path / "w.bin")
    with pytest.raises(ValueError, match=words) as error:
        build_backbone("uni", weights=str(tmp_path / "w.bin"))
    assert str(tmp_path / "w.bin") in str(error.value)
    assert "'uni'" in str(error.value) or "weights of uni" in str(error.value)


@torch.no_grad()
def test_what_a_classifier_is_differs_between_networks(timm, tmp_path):
    """ConvNeXt keeps a norm of its features beside the classifier, MobileNetV3 a hidden layer."""
    for name, needed in (("convnext_atto", "head.norm.weight"), ("mobilenetv3_small_050", "conv_head.weight")):
        whole = timm.create_model(name).eval()
        torch.save(whole.state_dict(), tmp_path / "whole.pt")
        backbone = build_backbone(f"timm:{name}", weights=str(tmp_path / "whole.pt"), image_size=64).eval()
        pixels, given = images(64)
        own = normalised(pixels, declared_normalisation(f"timm:{name}"))
        assert_same_features(backbone(given), whole.forward_head(whole.forward_features(own), pre_logits=True))
        lacking = {key: value for key, value in whole.state_dict().items() if key != needed}
        torch.save(lacking, tmp_path / "lacking.pt")
        with pytest.raises(ValueError, match=rf"1 missing \({needed}\)"):
            build_backbone(f"timm:{name}", weights=str(tmp_path / "lacking.pt"), image_size=64)


def test_tokens_without_pooling_are_no_features(timm):
    del timm
    kwargs = {**SMALL, "global_pool": ""}
    backbone = build_backbone("timm:vit_tiny_patch16_224", timm_kwargs=kwargs, image_size=32)
    with pytest.raises(ValueError, match=r"features of shape \(2, 5, 24\)"):
        backbone(images(32)[1])


def test_conch_and_others_say_what_timm_is_needed_for(monkeypatch):
    monkeypatch.setattr(
        pretrained, "_import_timm", lambda: (_ for _ in ()).throw(ImportError("timm backbones need timm"))
    )
    with pytest.raises(ImportError, match="need timm"):
        build_backbone("conch", image_size=448)
