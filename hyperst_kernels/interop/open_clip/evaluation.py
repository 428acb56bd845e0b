"""Retrieval and zero-shot classification by distance, under the names of open_clip's metrics. Dot products rank wrongly here."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor

from hyperst_kernels.distance import pairwise_distance
from hyperst_kernels.modules import HyperbolicContrastiveLoss
from hyperst_kernels.retrieval import topk

_BLOCK = 1024
_AUTOCAST = {"amp": torch.float16, "amp_bf16": torch.bfloat16, "amp_bfloat16": torch.bfloat16}


def retrieval_metrics(
    image_features: Tensor, text_features: Tensor, c: float | Tensor = 1.0, *, k: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Return recall@k, mean and median rank of each image's own text by distance, and of each text's own image.

    Tangent vectors (n, d); row i of one belongs to row i of the other. Names are those of open_clip's ``get_clip_metrics``:
    "image_to_text_R@1", "text_to_image_mean_rank" and so on. A key at the same distance as one's own counts as nearer, so that
    features which are all alike find nothing. Memory is O(n). Raises ValueError where the numbers of rows differ.

    >>> found = retrieval_metrics(torch.eye(4), 2 * torch.eye(4), k=(1,))
    >>> found["image_to_text_R@1"], found["text_to_image_mean_rank"]
    (1.0, 1.0)
    """
    if len(image_features) != len(text_features):
        got = f"{len(image_features)} and {len(text_features)}"
        raise ValueError(f"image_features and text_features must have one row for each pair, got {got}")
    metrics: dict[str, float] = {}
    both = {"image_to_text": (image_features, text_features), "text_to_image": (text_features, image_features)}
    for name, (queries, keys) in both.items():
        ranks = _ranks(queries.detach(), keys.detach(), c).double()
        metrics[f"{name}_mean_rank"] = ranks.mean().item()
        metrics[f"{name}_median_rank"] = ranks.quantile(0.5).floor().item()
        metrics.update({f"{name}_R@{each}": (ranks <= each).double().mean().item() for each in k})
    return metrics


def _ranks(queries: Tensor, keys: Tensor, c: float | Tensor) -> Tensor:
    """The rank of each query's own key, from 1; half precision would tie neighbours."""
    wide = torch.float64 if queries.dtype == torch.float64 else torch.float32
    ranks = []
    for start in range(0, len(queries), _BLOCK):
        block = pairwise_distance(queries[start : start + _BLOCK].to(wide), keys.to(wide), c, input="tangent")
        own = block.diagonal(start)
        ranks.append((~(block > own[:, None])).sum(1))  # NaN is no farther than anything
    return torch.cat(ranks)


@torch.no_grad()
def zero_shot_classifier(
    model: Any,
    tokenizer: Callable,
    classnames: Sequence[str],
    templates: Sequence[Callable | str],
    num_classes_per_batch: int | None = 10,
    device: str | torch.device = "cpu",
    use_tqdm: bool = False,
) -> Tensor:
    """Return a tangent vector for each class, (classes, d): the mean of those of its templates.

    The arguments are those of ``open_clip.build_zero_shot_classifier``, whose classes are columns of unit vectors. Classify by
    ``topk(image_features, classifier, 1, model.curvature, input="tangent")``. ``use_tqdm`` is accepted for compatibility.

    Source: templates are averaged in the tangent space by Desai et al. 2023.
    """
    if not classnames or not templates:
        raise ValueError("classnames and templates must hold at least one each")
    size = num_classes_per_batch or len(classnames)
    classes = []
    for start in range(0, len(classnames), size):
        batch = classnames[start : start + size]
        texts = [t.format(name) if isinstance(t, str) else t(name) for name in batch for t in templates]
        features = model.encode_text(tokenizer(texts).to(device))
        classes.append(features.reshape(len(batch), len(templates), -1).mean(1))
    return torch.cat(classes)


def evaluate(model: Any, data: dict, epoch: int, args: Any, tb_writer: Any = None, tokenizer: Any = None) -> dict:
    """Return and log what ``open_clip_train.train.evaluate`` does, by distance; its arguments and the names of its metrics.

    "clip_val_loss" is the loss of this library on each batch. Only rank 0 evaluates; others get an empty dictionary.
    """
    if args.rank != 0:
        return {}
    model = getattr(model, "module", model)
    model.eval()
    metrics: dict[str, float] = {}
    device = torch.device(args.device)
    precision = torch.autocast(device.type, _AUTOCAST.get(args.precision), enabled=args.precision in _AUTOCAST)
    with torch.no_grad(), precision:
        if _due(args.zeroshot_frequency, epoch, args):
            metrics.update(_zero_shot(model, data, args, tokenizer))
        if "val" in data and _due(args.val_frequency, epoch, args):
            metrics.update(_validation(model, data["val"].dataloader, args))
            metrics["epoch"] = epoch
    if metrics:
        _log(metrics, epoch, data, args, tb_writer)
    return metrics


def _due(frequency: int, epoch: int, args: Any) -> bool:
    return bool(frequency) and (epoch % frequency == 0 or epoch == args.epochs)


def _images(images: Tensor, args: Any) -> Tensor:
    return images.to(device=args.device, dtype=open_clip.get_input_dtype(args.precision))


def _validation(model: Any, loader: Iterable, args: Any) -> dict[str, float]:
    """Metrics of all pairs, which wait on the CPU, and the mean loss of batches."""
    loss = HyperbolicContrastiveLoss(model.curvature, loss="sigmoid" if getattr(args, "siglip", False) else "softmax")
    images, texts, total = [], [], 0.0
    for image, text in loader:
        out = model(_images(image, args), text.to(args.device))
        if not isinstance(out, dict):
            out = dict(zip(("image_features", "text_features", "logit_scale", "logit_bias"), out, strict=False))
        total += loss(**out).item() * len(image)
        images.append(out["image_features"].cpu())
        texts.append(out["text_features"].cpu())
    image, text = torch.cat(images), torch.cat(texts)
    found = retrieval_metrics(image, text, model.curvature.cpu())
    return {**found, "clip_val_loss": total / len(image), "num_samples": len(image)}


def _zero_shot(model: Any, data: dict, args: Any, tokenizer: Any) -> dict[str, float]:
    """Accuracy on ImageNet, of the sets that there are."""
    sets = {"imagenet-val": "imagenet-zeroshot-val", "imagenet-v2": "imagenetv2-zeroshot-val"}
    if not any(name in data for name in sets):
        return {}
    tokenizer = open_clip.get_tokenizer(args.model) if tokenizer is None else tokenizer
    names, templates = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    classifier = zero_shot_classifier(model, tokenizer, names, templates, device=args.device)
    metrics = {}
    for name in sets.keys() & data.keys():
        hits, seen = torch.zeros(2), 0
        for images, target in data[name].dataloader:
            features = model.encode_image(_images(images, args))
            nearest = topk(features.float(), classifier.float(), 5, model.curvature, input="tangent")[1].cpu()
            right = nearest == target[:, None]
            hits += torch.stack([right[:, 0].sum(), right.sum()])
            seen += len(target)
        metrics[f"{sets[name]}-top1"], metrics[f"{sets[name]}-top5"] = (hits / seen).tolist()
    return metrics


def _log(metrics: dict[str, float], epoch: int, data: dict, args: Any, tb_writer: Any) -> None:
    """Where open_clip's training program logs them."""
    logging.info(f"Eval Epoch: {epoch} " + "\t".join(f"{name}: {value:.4f}" for name, value in metrics.items()))
    if args.save_logs:
        with open(os.path.join(args.checkpoint_path, "results.jsonl"), "a+") as results:
            results.write(json.dumps(metrics) + "\n")
        for name, value in metrics.items() if tb_writer is not None else ():
            tb_writer.add_scalar(f"val/{name}", value, epoch)
    if args.wandb:
        import wandb

        step = data["train"].dataloader.num_batches // args.accum_freq * epoch if "train" in data else None
        wandb.log({f"val/{name}": value for name, value in metrics.items()} | {"epoch": epoch}, step=step)
