"""Where the time of a training goes: every moment of :func:`hyperst.train.fit` belongs to one named span.

Lightning tells its profiler when a part of its loop begins and ends; the parts of this package are called through wrappers that do
the same. Of nested spans the innermost counts, so that the times add up. The backward pass of a part begins with the gradient of
what it has returned and ends where that of another begins: on a CPU autograd works through the graph in the reverse of the order in
which it was made, in the thread of the step.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any
from unittest import mock

import lightning
from lightning.pytorch.profilers import Profiler
from torch import Tensor, nn
from torch.utils.data import DataLoader

import hyperst.data.dataset
import hyperst.train.step
from hyperst.data.kept_crops import KeptCrops
from hyperst.model.backbones.small import ConvolutionalAndStain
from hyperst.train.step import TrainingStep

BEFORE, AFTER = "sections, genes, split and model", "closed-form head, intervals and training spots"
DECODING = "crops read from the images"
LOOP, BATCH, STEP = "Lightning's loop", "crops or features and expression from memory", "training step, the rest"
BACKWARD, JOINED = "backward: ", "losses joined"
VALIDATION, CHECKPOINTS = "validation", "checkpoints and metrics.csv"
OF_EPOCH = (VALIDATION, CHECKPOINTS)
OF_RUN = (BEFORE, DECODING, AFTER)
_WHOLE = (*OF_EPOCH, AFTER)

_HOOKS = {
    "train_dataloader_next": "loader",
    "training_step": STEP,
    "backward": BACKWARD + JOINED,
    "configure_gradient_clipping": "gradients clipped",
    "optimizer_zero_grad": "optimizer",
    "optimizer_step": "optimizer",
    "on_train_batch_end": "moving average of the weights",
}
_LAYERS = {
    "image_projectors": "image encoders",
    "image_encoders": "image encoders",
    "image_projection": "image encoders",
    "gene_projectors": "gene encoders",
    "gene_encoders": "gene encoders",
    "gene_projection": "gene encoders",
    "head": "prediction head",
    "output": "prediction head",
}

Times = dict[str, tuple[float, float]]
"""Seconds by name of the span: wall time and processor time."""


class Spans(Profiler):
    """A stack of names; what passes counts for the one on top. Validation, checkpoints and the end have no parts."""

    def __init__(self) -> None:
        super().__init__()
        self._times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._stack: list[str] = [BEFORE]
        self._last = self._now()

    def start(self, action_name: str) -> None:
        """Begin what Lightning calls ``action_name``."""
        hook = action_name.rpartition(".")[2]
        if action_name.startswith("[Callback]"):
            self.push(CHECKPOINTS if hook == "on_train_epoch_end" else LOOP)
        else:
            self.push(_HOOKS.get(hook, LOOP))

    def stop(self, action_name: str) -> None:
        """End it."""
        self.pop()

    def push(self, name: str) -> None:
        self._count()
        top = self._stack[-1]
        self._stack.append(top if top in _WHOLE else name)

    def pop(self) -> None:
        self._count()
        self._stack.pop()

    def backward_of(self, part: str, gradient: Tensor) -> None:
        """From here on the backward pass is that of ``part``."""
        if self._stack[-1].startswith(BACKWARD):
            self._count()
            self._stack[-1] = BACKWARD + part

    def rest_is(self, name: str) -> None:
        """From here on what lies in no span is called ``name``."""
        self._count()
        self._stack[0] = name

    def taken(self) -> Times:
        """Times since the last call."""
        self._count()
        found: Times = {name: (wall, cpu) for name, (wall, cpu) in self._times.items()}
        self._times.clear()
        return found

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.push(name)
        try:
            yield
        finally:
            self.pop()

    def of(self, name: str, function: Callable[..., Any], backward: str | None = None) -> Callable[..., Any]:
        """``function`` inside a span; ``backward`` is the part whose backward pass begins with the gradient of its result."""

        @wraps(function)
        def traced(*arguments: Any, **options: Any) -> Any:
            with self.span(name):
                result = function(*arguments, **options)
                if backward is not None:
                    for tensor in _tensors(result):
                        if tensor.requires_grad:
                            tensor.register_hook(partial(self.backward_of, backward))
            return result

        return traced

    def _count(self) -> None:
        now = self._now()
        times = self._times[self._stack[-1]]
        times[0] += now[0] - self._last[0]
        times[1] += now[1] - self._last[1]
        self._last = now

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


@contextmanager
def before_training(prepare: Callable[[lightning.Trainer, TrainingStep, DataLoader], None]) -> Iterator[None]:
    """Have ``prepare`` see trainer, module and loader of the training spots before the first step of a ``fit`` inside."""
    original = lightning.Trainer.fit

    def fit(trainer: lightning.Trainer, module: TrainingStep, loader: DataLoader, *rest: Any, **options: Any) -> None:
        prepare(trainer, module, loader)
        original(trainer, module, loader, *rest, **options)

    with mock.patch.object(lightning.Trainer, "fit", fit):
        yield


@contextmanager
def traced() -> Iterator[Spans]:
    """Yield the spans of the one :func:`hyperst.train.fit` that is called inside."""
    spans = Spans()

    def prepare(trainer: lightning.Trainer, module: TrainingStep, loader: DataLoader) -> None:
        trainer.profiler = spans  # type: ignore[attr-defined]
        validation = trainer.fit_loop.epoch_loop.val_loop
        _replace(validation, "run", spans.of(VALIDATION, validation.run))
        _trace_batches(spans, loader)
        _trace_step(spans, module)
        spans.rest_is(LOOP)

    def decoding(kept: KeptCrops, *arguments: Any) -> Any:
        with spans.span(DECODING):
            return read(kept, *arguments)

    read = KeptCrops.read
    patches = [
        mock.patch.object(KeptCrops, "read", decoding),
        mock.patch.object(hyperst.data.dataset, "_dihedral", spans.of("orientation", hyperst.data.dataset._dihedral)),
        mock.patch.object(
            hyperst.data.dataset,
            "normalise_image",
            spans.of("crops as normalised numbers", hyperst.data.dataset.normalise_image),
        ),
        mock.patch.object(
            hyperst.train.step, "jitter_stain", spans.of("stain jitter", hyperst.train.step.jitter_stain)
        ),
    ]
    with patches[0], patches[1], patches[2], patches[3], before_training(prepare):
        yield spans


def _trace_batches(spans: Spans, loader: DataLoader) -> None:
    dataset: Any = loader.dataset
    _replace(dataset, "__getitems__", spans.of(BATCH, dataset.__getitems__))
    _replace(dataset, "_read_one", spans.of(DECODING, dataset._read_one))
    loader.collate_fn = spans.of("items put together", loader.collate_fn)


def _trace_step(spans: Spans, module: TrainingStep) -> None:
    model = module.model
    for name, part in _LAYERS.items():
        child = model.get_submodule(name)
        for layer in child.values() if isinstance(child, nn.ModuleDict) else [child]:
            _forward(spans, layer, part)
    backbone = model.backbone
    if isinstance(backbone, ConvolutionalAndStain):
        _forward(spans, backbone.learnt, "convolutional backbone")
        _forward(spans, backbone.stain, "stain features")
    _forward(spans, backbone, "backbone")
    _forward(spans, module.alignment, "alignment")
    _replace(module, "_error", spans.of("forward: prediction error", module._error, "prediction error"))
    _replace(module, "log_dict", spans.of("metrics added up", module.log_dict))


def _forward(spans: Spans, layer: nn.Module, part: str) -> None:
    _replace(layer, "forward", spans.of(f"forward: {part}", layer.forward, part))


def _replace(owner: Any, name: str, value: Any) -> None:
    """Set an attribute of this object alone, whatever its class says of attributes."""
    object.__setattr__(owner, name, value)


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from _tensors(value)
    elif isinstance(result, tuple):
        for value in result:
            yield from _tensors(value)
