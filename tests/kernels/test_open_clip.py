"""open_clip's models, losses, metrics and its own training program, by distance. Without open_clip these tests are left out."""

from __future__ import annotations

import copy
import inspect
import json
import math
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import nn

from benchmarks.torchvision_of_another_build import prepare_torchvision
from hyperst_kernels import contrastive_loss, pairwise_distance
from tests.kernels import ranks

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
PAIRS = 16


@pytest.fixture(name="clip")
def _clip():
    """The module under test, also beside a torchvision of another build than PyTorch; on one thread, as all is tiny."""
    prepare_torchvision()
    pytest.importorskip("open_clip", reason="open_clip is not installed; `make loops` runs these tests with it")
    from hyperst_kernels.interop import open_clip

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield open_clip
    torch.set_num_threads(threads)


def make(kind: str = "CLIP", **options) -> nn.Module:
    import open_clip

    torch.manual_seed(0)
    return getattr(open_clip, kind)(**TINY, output_dict=True, **options)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(4, 3, 32, 32), torch.randint(1, 49407, (4, 16))


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


KINDS = pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])


# -------------------------------------------------------------------------------------------------------------- model


@KINDS
def test_features_are_lifted_and_not_normalised(clip, kind):
    plain = make(kind).eval()
    model = clip.hyperbolic(copy.deepcopy(plain), 0.5)
    image, text = batch()
    out = model(image, text)
    assert isinstance(model, type(plain))
    assert sorted(out) == ["image_features", "logit_scale", "text_features"]
    torch.testing.assert_close(out["image_features"], plain.encode_image(image) / 4)  # alpha begins at ln(16) / -2
    torch.testing.assert_close(out["text_features"], plain.encode_text(text) / 4)
    assert torch.equal(model.encode_text(text, normalize=True), out["text_features"])
    alone = model(image=image)
    assert alone["text_features"] is None
    assert torch.equal(alone["image_features"], out["image_features"])
    assert float(model.curvature) == pytest.approx(0.5)
    logits = -out["logit_scale"] * pairwise_distance(out["image_features"], out["text_features"], 0.5, input="tangent")
    torch.testing.assert_close(model.get_logits(image, text), (logits, logits.T), rtol=1e-4, atol=1e-4)
    if hasattr(plain, "forward_intermediates"):
        found = model.forward_intermediates(image, text)
        assert torch.equal(found["image_features"], out["image_features"])
        with pytest.raises(ValueError, match="get_logits"):
            model.forward_intermediates(image, text, output_logits=True)


@KINDS
def test_a_model_keeps_its_abilities(clip, kind):
    """Checkpointing, locked towers, the clamp of the logit scale, tuples, copies and checkpoints."""
    model = clip.hyperbolic(make(kind))
    image, text = batch()
    loss = clip.HyperbolicClipLoss()
    assert not model.lift.log_curvature.requires_grad
    plain = gradients(model, loss(**model(image, text)))
    model.set_grad_checkpointing()
    torch.testing.assert_close(gradients(model, loss(**model(image, text))), plain)
    with torch.no_grad():
        model.logit_scale.fill_(9.0).clamp_(0, math.log(100))
    assert model(image, text)["logit_scale"].item() == pytest.approx(100)
    model.lock_image_tower()
    loss(**model(image, text)).backward()
    assert not any(p.requires_grad for p in model.visual.parameters())
    assert model.lift.log_alpha["image"].grad is not None
    twin = clip.hyperbolic(make(kind))
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin.eval()(image, text), copy.deepcopy(model).eval()(image, text))
    model.output_dict = False
    assert len(model(image, text)) == 3


def test_siglips_bias_starts_where_distances_need_it(clip):
    options = {"init_logit_scale": math.log(10), "init_logit_bias": -10}
    assert clip.hyperbolic(make(**options)).logit_bias.item() == pytest.approx(10)
    assert clip.hyperbolic(make(**options), logit_bias=3.0).logit_bias.item() == 3
    model = clip.hyperbolic(make(**options, nonscalar_logit_scale=True))
    image, text = batch()
    out = model(image, text)
    logits = model.get_logits(image, text)[0]
    want = nn.functional.softplus(torch.where(torch.eye(4).bool(), -logits, logits)).sum() / 4
    args = arguments(siglip=True, loss_dist_impl=None)
    torch.testing.assert_close(clip.create_loss(args)(**out), want, rtol=1e-4, atol=1e-4)


def test_other_models_are_refused(clip):
    class CoCa(nn.Module):
        pass

    for model, said in (
        (CoCa(), "got CoCa, .* add its caption loss to HyperbolicContrastiveLoss"),
        (nn.DataParallel(make()), r"got DataParallel: call hyperbolic\(model\) before"),
        (clip.hyperbolic(make()), "not hyperbolic yet, got HyperbolicCLIP"),
    ):
        with pytest.raises(TypeError, match=said):
            clip.hyperbolic(model)
    for curvature in (-1.0, 0.0):
        with pytest.raises(ValueError, match=r"^curvature must be"):
            clip.hyperbolic(make(), curvature)


# --------------------------------------------------------------------------------------------------------------- loss


def arguments(**changes) -> SimpleNamespace:
    """What ``open_clip.create_loss`` reads of the arguments of the training program."""
    plain = {"local_loss": False, "gather_with_grad": False, "rank": 0, "world_size": 1, "horovod": False}
    return SimpleNamespace(**{"distill": False, "model": "ViT-B-32", **plain, **changes})


def test_the_loss_is_made_and_called_as_open_clips(clip):
    import open_clip

    theirs = list(inspect.signature(open_clip.ClipLoss).parameters.values())
    ours = list(inspect.signature(clip.HyperbolicClipLoss).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]
    theirs = list(inspect.signature(open_clip.ClipLoss.forward).parameters.values())
    ours = list(inspect.signature(clip.HyperbolicClipLoss.forward).parameters.values())
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [(p.name, p.default) for p in theirs]
    loss = clip.create_loss(arguments(local_loss=True, gather_with_grad=True, rank=1, world_size=2))
    assert (loss.local_loss, loss.gather_with_grad, loss.rank, loss.world_size) == (True, True, 1, 2)
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    found = clip.create_loss(arguments(), curvature=0.5)(x, y, 5.0, output_dict=True)
    torch.testing.assert_close(found, {"contrastive_loss": contrastive_loss(x, y, 0.5, 5.0)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distill": True}, "args.distill must be False"),
        ({"model": "coca_ViT-B-32"}, "args.model must be no CoCa, got 'coca_ViT-B-32'"),
        ({"horovod": True}, "use_horovod must be False"),
    ],
)
def test_what_is_not_supported_says_so(clip, changes, said):
    with pytest.raises(ValueError, match=said):
        clip.create_loss(arguments(**changes))


# --------------------------------------------------------------------------------------------------------- evaluation


def test_retrieval_metrics_are_open_clips_with_distances_for_dot_products(clip, monkeypatch):
    from hyperst_kernels.interop.open_clip import evaluation

    monkeypatch.setattr(evaluation, "_BLOCK", 16)
    torch.manual_seed(0)
    x = torch.randn(50, 4)
    y = x + 0.7 * torch.randn(50, 4)
    found = clip.retrieval_metrics(x, y, 0.7)
    ranking = pairwise_distance(x.double(), y.double(), 0.7, input="tangent")
    for name, matrix in (("image_to_text", ranking), ("text_to_image", ranking.T)):
        ranks = (matrix < matrix.diagonal()[:, None]).sum(1)
        assert found[f"{name}_mean_rank"] == pytest.approx(float(ranks.double().mean()) + 1)
        assert found[f"{name}_median_rank"] == math.floor(sorted(ranks)[24] / 2 + sorted(ranks)[25] / 2) + 1
        for k in (1, 5, 10):
            assert found[f"{name}_R@{k}"] == pytest.approx(float((ranks < k).double().mean()))
    try:
        from open_clip_train.train import get_clip_metrics
    except ImportError:
        return
    assert list(found) == list(get_clip_metrics(x, y, 1.0))


def test_features_that_are_alike_find_nothing(clip):
    found = clip.retrieval_metrics(torch.ones(20, 3), torch.ones(20, 3))
    assert found["image_to_text_R@10"] == found["text_to_image_R@1"] == 0
    with pytest.raises(ValueError, match="one row for each pair, got 3 and 2"):
        clip.retrieval_metrics(torch.ones(3, 2), torch.ones(2, 2))


def test_long_features_are_found_by_distance_and_not_by_dot_product(clip):
    """Texts of one direction and several lengths: the longest has the largest dot product with every image."""
    x = torch.tensor([[1.0, 0.1]]) * torch.arange(1, 6)[:, None]
    assert clip.retrieval_metrics(x, x, k=(1,))["image_to_text_R@1"] == 1
    assert (x @ x.T).argmax(1).tolist() == [4] * 5


def test_a_zero_shot_classifier_is_the_mean_of_its_templates(clip):
    import open_clip

    model = clip.hyperbolic(make()).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    names, templates = ["spleen", "bone", "liver"], ["a photo of a {}.", lambda name: f"the {name}"]
    found = clip.zero_shot_classifier(model, tokenizer, names, templates, num_classes_per_batch=2)
    texts = tokenizer(["a photo of a liver.", "the liver"])
    torch.testing.assert_close(found[2], model.encode_text(texts).mean(0))
    assert found.shape == (3, 16)
    with pytest.raises(ValueError, match="classnames and templates"):
        clip.zero_shot_classifier(model, tokenizer, [], templates)


def test_zero_shot_accuracy_is_that_of_distances(clip, monkeypatch, tmp_path):
    import open_clip

    names = ["tench", "goldfish", "shark", "ray", "cock", "hen", "ostrich"]
    monkeypatch.setattr(open_clip, "IMAGENET_CLASSNAMES", names)
    monkeypatch.setattr(
        open_clip, "OPENAI_IMAGENET_TEMPLATES", [lambda name: f"a {name}.", lambda name: f"the {name}."]
    )
    model = clip.hyperbolic(make(), 0.7).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    torch.manual_seed(2)
    batches = [(torch.randn(5, 3, 32, 32), torch.randint(7, (5,))), (torch.randn(3, 3, 32, 32), torch.randint(7, (3,)))]
    args = SimpleNamespace(rank=0, device="cpu", precision="fp32", epochs=1, zeroshot_frequency=2, val_frequency=1)
    args.__dict__.update(save_logs=True, checkpoint_path=str(tmp_path), wandb=False)
    logged = {}
    writer = SimpleNamespace(add_scalar=lambda name, value, step: logged.update({name: value}))
    data = {"imagenet-v2": SimpleNamespace(dataloader=batches)}
    found = clip.evaluate(model, data, 1, args, writer, tokenizer)  # the last epoch, hence due
    with torch.no_grad():
        texts = [model.encode_text(tokenizer([f"a {name}.", f"the {name}."])).mean(0) for name in names]
        images = model.encode_image(torch.cat([image for image, _ in batches]))
    ranking = pairwise_distance(images.double(), torch.stack(texts).double(), 0.7, input="tangent").argsort(1)
    right = ranking == torch.cat([target for _, target in batches])[:, None]
    want = {f"imagenetv2-zeroshot-val-top{k}": float(right[:, :k].any(1).double().mean()) for k in (1, 5)}
    assert found == pytest.approx(want)
    assert logged == pytest.approx({f"val/{name}": value for name, value in want.items()})
    assert json.loads((tmp_path / "results.jsonl").read_text()) == found
    args.epochs = 3
    assert clip.evaluate(model, data, 1, args) == {}
    args.rank = 1
    assert clip.evaluate(model, data, 2, args) == {}


# --------------------------------------------------------------------------------------------- the training program


@pytest.fixture(name="pairs")
def _pairs(tmp_path) -> Path:
    """A table of images and captions, and the configuration of a tiny model beside it."""
    from PIL import Image

    rows = ["filepath\ttitle"]
    for i in range(PAIRS):
        colour = (40 + 13 * i, 250 - 15 * i, 16 * (i % 4))
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{i}.png")
        rows.append(f"{tmp_path / f'{i}.png'}\ta patch of colour {' '.join(map(str, colour))}")
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    torch.manual_seed(0)
    return tmp_path


def train(folder: Path, name: str, *more: str) -> None:
    """Run open_clip's own program for two epochs over the pairs of ``folder``."""
    pytest.importorskip("open_clip_train.main", reason="open_clip's training program does not import here")
    import open_clip

    from hyperst_kernels.interop.open_clip.__main__ import main

    open_clip.add_model_config(folder / "tiny.json")
    options = ["--train-data", str(folder / "pairs.tsv"), "--val-data", str(folder / "pairs.tsv"), "--device", "cpu"]
    options += ["--dataset-type", "csv", "--model", "tiny", "--batch-size", "4", "--workers", "0", "--epochs", "2"]
    options += ["--lr", "1e-2", "--warmup", "1", "--logs", str(folder), "--name", name, "--save-frequency", "99"]
    with patch("open_clip_train.main.setup_logging"):  # which changes every logger there is
        main([*options, *more])


def results(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name / "checkpoints" / "results.jsonl").read_text().splitlines()]


LEARNS = ("--batch-size", "8", "--lr", "1e-3", "--lr-scheduler", "const", "--epochs", "24", "--val-frequency", "12")


@pytest.mark.parametrize(
    "more",
    [
        ("--precision", "fp32", "--grad-checkpointing", *LEARNS),
        ("--precision", "amp_bf16", "--accum-freq", "2"),
        ("--precision", "fp32", "--siglip", "--lr", "1e-3"),
    ],
    ids=["fp32", "amp_bf16", "siglip"],
)
def test_open_clips_program_trains_and_evaluates_by_distance(clip, pairs, more):
    train(pairs, "run", *more)
    first, last = results(pairs, "run")
    assert last["clip_val_loss"] < first["clip_val_loss"]
    if "--epochs" in more:
        assert last["clip_val_loss"] < 0.9 * math.log(8)  # that of features which are all alike; CLIP's own gets as far
    (checkpoint,) = (pairs / "run" / "checkpoints").glob("*.pt")
    saved = torch.load(checkpoint)["state_dict"]
    assert float(saved["lift.log_alpha.image"]) != pytest.approx(-math.log(16) / 2, abs=1e-6)
    # what is logged is what the saved weights give
    model = clip.hyperbolic(make(**({"init_logit_bias": 0.0} if "--siglip" in more else {}))).eval()
    model.load_state_dict(saved)
    assert last["num_samples"] == PAIRS
    if more[1] == "fp32":
        assert recall(model, pairs) == pytest.approx([last["image_to_text_R@5"], last["text_to_image_R@5"]])


@torch.no_grad()
def recall(model: nn.Module, folder: Path) -> list[float]:
    """Recall@5 both ways from the reference's distances."""
    import open_clip
    from PIL import Image

    rows = [line.split("\t") for line in (folder / "pairs.tsv").read_text().splitlines()[1:]]
    look = open_clip.image_transform(32, is_train=False)
    image = model.encode_image(torch.stack([look(Image.open(path)) for path, _ in rows])).double()
    text = model.encode_text(open_clip.SimpleTokenizer(context_length=16)([title for _, title in rows])).double()
    distances = pairwise_distance(image, text, 1.0, input="tangent")
    own = distances.diagonal()
    return [float(((d < own[:, None]).sum(1) < 5).double().mean()) for d in (distances, distances.T)]


def one_rank(rank: int, folder: Path, port: int, more: tuple[str, ...]) -> None:
    """The program as torchrun starts it; saves what this rank has learnt."""
    torch.set_num_threads(1)
    prepare_torchvision()
    place = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    parallel, wrapped = nn.parallel.DistributedDataParallel, []

    def on_a_cpu(model, device_ids):  # open_clip names a device, which DDP refuses on a CPU
        wrapped.append(parallel(model))
        return wrapped[0]

    nn.parallel.DistributedDataParallel = on_a_cpu
    flags = ("--precision", "fp32", "--local-loss", "--gather-with-grad", "--dist-backend", "gloo")
    train(folder, "two", *flags, *more)
    torch.save(wrapped.pop().module.state_dict(), folder / f"{rank}.pt")
    ranks.leave()


def two_processes(folder: Path, *more: str) -> list[dict[str, torch.Tensor]]:
    """What each of two processes has learnt."""
    pytest.importorskip("open_clip_train.main", reason="open_clip's training program does not import here")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_rank, (folder, port, more), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_train_one_model(clip, pairs):
    one, other = two_processes(pairs)
    first, last = results(pairs, "two")
    assert last["clip_val_loss"] < first["clip_val_loss"]
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["logit_scale"], make().logit_scale)


def test_two_processes_learn_what_one_does_of_the_doubled_batch(clip, pairs):
    """Ten steps of all pairs. The large eps of Adam keeps it from making a step of the sign of a rounding."""
    steps = ("--epochs", "10", "--val-frequency", "99", "--lr", "1e-2", "--lr-scheduler", "const", "--eps", "1e-2")
    train(pairs, "one", "--precision", "fp32", "--batch-size", str(PAIRS), *steps)
    (checkpoint,) = (pairs / "one" / "checkpoints").glob("*.pt")
    alone = torch.load(checkpoint)["state_dict"]
    start = clip.hyperbolic(make()).state_dict()
    two, _ = two_processes(pairs, "--batch-size", str(PAIRS // 2), *steps)
    moved = {name: (x - start[name]).norm() for name, x in alone.items() if x.is_floating_point()}
    for name, far in moved.items():  # what is not learnt, as the curvature, is as it was
        assert (two[name] - alone[name]).norm() <= 1e-4 * far, name
    assert {name for name, far in moved.items() if far == 0} == {"lift.log_curvature"}
