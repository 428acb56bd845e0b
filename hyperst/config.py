"""One run's configuration: what is predicted, what the model sees, how it learns; read from and written to YAML.

The four parts live with the code they steer (:class:`~hyperst.data.CropConfig`, :class:`~hyperst.model.ModelConfig`,
:class:`~hyperst.model.alignment.AlignmentConfig`) or here (:class:`DataConfig`, :class:`TrainingConfig`);
:class:`RunConfig` puts them together. Presets give a starting point, a YAML file or command-line options change it.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml

from hyperst.data import CropConfig, Target
from hyperst.files import write_text_atomic
from hyperst.model import ModelConfig
from hyperst.model.alignment import ABLATIONS, AlignmentConfig

__all__ = [
    "PRESETS",
    "DataConfig",
    "RunConfig",
    "TrainingConfig",
    "preset",
    "read_config",
    "update",
    "with_ablation",
    "write_config",
]

GeneSelection = Literal["hmhvg", "hvg"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig:
    """What is predicted and from which data.

    Attributes:
        target: ``"log1p_cp10k"``, log(1 + 10^4 count / library size), removes a spot's sequencing depth;
            ``"log2"``, log2(1 + count), is the paper's and lets depth make most of the correlation.
        n_genes: how many genes are selected, on the training sections only.
        gene_selection: ``"hmhvg"`` (high mean and high variance, the paper's) or ``"hvg"`` (variance of log1p_cp10k).
        feature_key: name of the ``obsm`` entries with precomputed image features; set together with the
            ``"precomputed"`` backbone. None: crops of the image are used.
        cache_gib: memory for decoded crops, in GiB; beyond it crops are read from the image each time.
    """

    target: Target = "log1p_cp10k"
    n_genes: int = 200
    gene_selection: GeneSelection = "hmhvg"
    feature_key: str | None = None
    cache_gib: float = 2.0

    def __post_init__(self) -> None:
        _require_choice("data.target", self.target, get_args(Target))
        _require_choice("data.gene_selection", self.gene_selection, get_args(GeneSelection))
        _require("data.n_genes", self.n_genes, self.n_genes >= 1, "at least 1 gene")
        _require("data.cache_gib", self.cache_gib, self.cache_gib >= 0, "0 or more GiB")


@dataclass(frozen=True)
class TrainingConfig:
    """How the model learns.

    Attributes:
        epochs: most passes over the training spots.
        batch_size: spots per step; also the number of candidates in the contrastive terms.
        learning_rate: AdamW's step size.
        weight_decay: AdamW's decay, on weight matrices only (never on biases, norms, curvature, scales, temperature).
        gradient_clip: largest gradient norm; 0 switches clipping off.
        averaging: validation and prediction use an exponential moving average of the weights, which keeps this part of
            itself per step; 0 uses the weights as they are (the paper). With few spots the average errs clearly less.
        stain_jitter: strength of random staining in training, see :func:`hyperst.train.augmentation.jitter_stain`; 0 switches
            it off (the paper). Between slides stained apart it decides whether a model is of use.
        patience: epochs without a better validation error before training stops.
        precision: Lightning's name: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``, ``"64-true"``.
        accelerator: Lightning's name: ``"auto"``, ``"cpu"``, ``"gpu"``.
        workers: processes that prepare batches; 0 does it in the training process.
        validation_fraction: part of the training sections' spots, in spatial blocks, held out to choose the
            checkpoint; not used when whole validation sections are given.
        seed: fixes the split, the initial weights, the order of the spots, augmentation and dropout.
    """

    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    averaging: float = 0.98
    stain_jitter: float = 0.2
    patience: int = 10
    precision: Precision = "32-true"
    accelerator: str = "auto"
    workers: int = 0
    validation_fraction: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        _require("training.epochs", self.epochs, self.epochs >= 1, "at least 1")
        _require("training.batch_size", self.batch_size, self.batch_size >= 2, "at least 2 (contrastive terms)")
        _require("training.learning_rate", self.learning_rate, self.learning_rate > 0, "a positive number")
        _require("training.weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        _require("training.gradient_clip", self.gradient_clip, self.gradient_clip >= 0, "0 (off) or a positive norm")
        _require("training.averaging", self.averaging, 0 <= self.averaging < 1, "0 (off) or a fraction below 1")
        _require("training.stain_jitter", self.stain_jitter, 0 <= self.stain_jitter <= 1, "between 0 (off) and 1")
        _require("training.patience", self.patience, self.patience >= 1, "at least 1 epoch")
        _require_choice("training.precision", self.precision, get_args(Precision))
        _require("training.workers", self.workers, self.workers >= 0, "0 or more processes")
        fraction = self.validation_fraction
        _require("training.validation_fraction", fraction, 0 < fraction < 0.9, "a fraction between 0 and 0.9")
        _require("training.seed", self.seed, 0 <= self.seed < 2**32, "a whole number in [0, 2^32)")


@dataclass(frozen=True)
class RunConfig:
    """Everything that, with the sections and the seed, determines a run.

    >>> RunConfig().data.target
    'log1p_cp10k'
    """

    data: DataConfig = field(default_factory=DataConfig)
    crop: CropConfig = field(default_factory=lambda: CropConfig(image_size=96))
    model: ModelConfig = field(default_factory=ModelConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if (self.model.backbone == "precomputed") != (self.data.feature_key is not None):
            raise ValueError(
                f"model.backbone is {self.model.backbone!r} and data.feature_key is {self.data.feature_key!r}: "
                "precomputed features need both, backbone 'precomputed' and the name of the obsm entries as feature_key"
            )


def _paper() -> RunConfig:
    """The published configuration; `model.weights` must still be pointed at a file of the backbone's weights."""
    return RunConfig(
        data=DataConfig(target="log2"),
        crop=CropConfig(image_size=224),
        model=ModelConfig(backbone="timm:vit_large_patch16_224", lora=True, width=1024, dropout=0.1),
        training=TrainingConfig(
            epochs=200,
            batch_size=128,
            learning_rate=1e-4,
            averaging=0.0,
            stain_jitter=0.0,
            patience=10,
            precision="bf16-mixed",
            workers=8,
        ),
    )


#: Named starting points: ``"cpu"`` trains a small convolutional encoder in minutes on two cores, ``"paper"`` is the
#: published configuration (ViT-L/16 with LoRA, width 1024, log2(1 + count); needs the backbone's weights and a GPU).
PRESETS = {"cpu": RunConfig, "paper": _paper}


def preset(name: str) -> RunConfig:
    """The configuration called ``name``; see :data:`PRESETS`.

    Raises:
        ValueError: no such preset.

    >>> preset("paper").training.batch_size
    128
    """
    _require_choice("preset", name, tuple(PRESETS))
    return PRESETS[name]()


def with_ablation(config: RunConfig, name: str) -> RunConfig:
    """``config`` with the alignment and the inputs of the head of a row of the paper's ablation.

    Raises:
        ValueError: no such row.

    >>> with_ablation(RunConfig(), "spot_head").model.head_inputs
    ('spot',)
    """
    _require_choice("ablation", name, tuple(ABLATIONS))
    alignment, head_inputs = ABLATIONS[name]
    return replace(config, alignment=alignment, model=replace(config.model, head_inputs=head_inputs))


def read_config(path: str | Path, base: RunConfig | None = None) -> RunConfig:
    """Read a YAML configuration; keys that the file does not name keep their value in ``base`` (default: ``"cpu"``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown key (the nearest known one is named), or a value that cannot be.
        TypeError: a value of the wrong kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"configuration file {path} does not exist; leave --config out for the defaults")
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    try:
        return update(base or RunConfig(), mapping or {})
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error


def write_config(config: RunConfig, path: str | Path) -> Path:
    """Write ``config`` as YAML, atomically; :func:`read_config` gives the same configuration back."""
    return write_text_atomic(path, yaml.safe_dump(_plain(asdict(config)), sort_keys=False))


def update(config: T, changes: Mapping[str, Any], where: str = "") -> T:
    """A copy of the dataclass ``config`` with the (nested) ``changes`` applied and checked.

    >>> update(RunConfig(), {"training": {"epochs": 3}}).training.epochs
    3
    """
    if not isinstance(changes, Mapping):
        raise TypeError(f"{where or 'the configuration'} must be a mapping of keys to values, got {changes!r}")
    assert is_dataclass(config)
    assert not isinstance(config, type)
    kinds = typing.get_type_hints(type(config))
    known = [entry.name for entry in fields(config)]
    values: dict[str, Any] = {}
    for key, value in changes.items():
        label = f"{where}.{key}" if where else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"unknown configuration key {label!r}; {hint}known here: {', '.join(known)}")
        current = getattr(config, key)
        values[key] = update(current, value, label) if is_dataclass(current) else _convert(label, value, kinds[key])
    try:
        return replace(config, **values)
    except (ValueError, TypeError) as error:
        if where and where not in str(error):
            raise type(error)(f"{where}: {error}") from error
        raise


def _convert(label: str, value: Any, kind: Any) -> Any:
    """``value`` as the annotated ``kind``: YAML reads 1e-4 as text and tuples as lists."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(label, value, next(entry for entry in arguments if entry is not type(None)))
    if origin is typing.Literal:
        _require_choice(label, value, arguments)
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise TypeError(f"{label} must be a list, got {value!r}")
        return origin(value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise TypeError(f"{label} must be a number, got {value!r}") from None
    if isinstance(kind, type) and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):
        raise TypeError(f"{label} must be of type {kind.__name__}, got {value!r}")
    return value


def _plain(value: Any) -> Any:
    """Tuples as lists, so that safe YAML can hold them."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def _require(label: str, value: Any, holds: bool, needed: str) -> None:
    if not holds:
        raise ValueError(f"{label} is {value!r}; it must be {needed}")


def _require_choice(label: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{label} is {value!r}; choose one of {', '.join(map(repr, choices))}")
