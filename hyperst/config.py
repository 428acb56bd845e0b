"""One run's configuration: what is predicted, what the model sees, how it learns; read from and written to YAML.

The four parts live with the code they steer (:class:`~hyperst.data.CropConfig`, :class:`~hyperst.model.ModelConfig`,
:class:`~hyperst.model.alignment.AlignmentConfig`) or here (:class:`DataConfig`, :class:`TrainingConfig`);
:class:`RunConfig` puts them together. Presets give a starting point, a YAML file or command-line options change it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from hyperst.data import CropConfig, Target
from hyperst.data.quality import MIN_COUNTS
from hyperst.files import write_text_atomic
from hyperst.model import ModelConfig
from hyperst.model.alignment import ABLATION_FIELDS, AlignmentConfig
from hyperst.validation import STRICT, Count, NonNegative, Positive, Real, friendly

__all__ = [
    "PRESETS",
    "DataConfig",
    "RunConfig",
    "TrainingConfig",
    "preset",
    "read_config",
    "read_run_config",
    "update",
    "with_ablation",
    "write_config",
]

GeneSelection = Literal["hmhvg", "hvg"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """What is predicted and from which data.

    Attributes:
        target: ``"log1p_cp10k"``, log(1 + 10^4 count / library size), removes a spot's sequencing depth;
            ``"log2"``, log2(1 + count), is the paper's and lets depth make most of the correlation.
        n_genes: how many genes are selected, on the training sections only.
        min_counts: least total count (UMI) of a spot in selection, training and evaluation; 0 keeps all. On the scale of
            log1p_cp10k one count of a spot that has only one is 9.2. Bins of a few um may need less.
        gene_selection: ``"hmhvg"`` (high mean and high variance, the paper's) or ``"hvg"`` (variance of log1p_cp10k).
        feature_key: name of the precomputed image features: ``obsm`` entries, or ``"file"`` for those of ``--features``; set
            together with the ``"precomputed"`` backbone. None: crops of the image are used.
        stain_mean: mean optical density (red, green, blue) of the training tissue, which training measures and records.
        stain_std: its standard deviation, likewise.
        cache_gib: memory for decoded crops, in GiB, of each training process; beyond it crops are read from the image each time.
    """

    target: Target = "log1p_cp10k"
    n_genes: Count = 200
    min_counts: Annotated[int, Field(ge=0)] = MIN_COUNTS
    gene_selection: GeneSelection = "hmhvg"
    feature_key: str | None = None
    stain_mean: tuple[Real, Real, Real] | None = None
    stain_std: tuple[Positive, Positive, Positive] | None = None
    cache_gib: NonNegative = 2.0


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """How the model learns.

    Attributes:
        epochs: most passes over the training spots.
        batch_size: spots per step, over all processes; also the number of candidates in the contrastive terms.
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
        workers: processes that prepare batches, of each training process; 0 does it in that process.
        validation_fraction: part of the training sections' spots, in spatial blocks, held out to choose the
            checkpoint; not used when whole validation sections are given.
        seed: fixes the split, the initial weights, the order of the spots, augmentation and dropout.
    """

    epochs: Count = 40
    batch_size: Annotated[int, Field(ge=2)] = 32
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.01
    gradient_clip: NonNegative = 1.0
    averaging: Annotated[Real, Field(ge=0, lt=1)] = 0.98
    stain_jitter: Annotated[Real, Field(ge=0, le=1)] = 0.2
    patience: Count = 10
    precision: Precision = "32-true"
    accelerator: str = "auto"
    workers: Annotated[int, Field(ge=0)] = 0
    validation_fraction: Annotated[Real, Field(gt=0, lt=0.9)] = 0.15
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


@dataclass(frozen=True, config=STRICT)
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
        self.model.head_levels(self.crop.levels)
        if (self.model.backbone == "precomputed") != (self.data.feature_key is not None):
            raise ValueError(
                f"model.backbone is {self.model.backbone!r} and data.feature_key is {self.data.feature_key!r}: "
                "precomputed features need both, backbone 'precomputed' and the name of the obsm entries as feature_key"
            )
        if self.model.average != "none" and self.data.feature_key is not None:
            raise ValueError(
                f"model.average is {self.model.average!r}, which turns crops, and precomputed features were made of crops as they "
                "are; make it 'none' (--average none)"
            )


_RUN_CONFIG = TypeAdapter(RunConfig)


def _paper() -> RunConfig:
    """The published configuration; `model.weights` must still be pointed at a file of the backbone's weights."""
    return RunConfig(
        data=DataConfig(target="log2"),
        crop=CropConfig(image_size=224),
        model=ModelConfig(backbone="uni", tune="lora", width=1024, dropout=0.1, head="network", networks=1),
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
#: published configuration (UNI with LoRA, width 1024, log2(1 + count); needs UNI's weights and a GPU).
PRESETS = {"cpu": RunConfig, "paper": _paper}


def preset(name: str) -> RunConfig:
    """The configuration called ``name``; see :data:`PRESETS`.

    Raises:
        ValueError: no such preset.

    >>> preset("paper").training.batch_size
    128
    """
    _require_known("preset", name, PRESETS)
    return PRESETS[name]()


def with_ablation(config: RunConfig, name: str) -> RunConfig:
    """``config`` with what a row of the paper's ablation is about, one network alone as head, and everything else as it was.

    Raises:
        ValueError: no such row, or one that does not go with the rest of the alignment.

    >>> with_ablation(RunConfig(), "spot_head").model.head_inputs
    ('spot',)
    """
    _require_known("ablation", name, ABLATION_FIELDS)
    alignment = dict(ABLATION_FIELDS[name])
    head_inputs = alignment.pop("head_inputs", config.model.head_inputs)
    return replace(
        config,
        alignment=replace(config.alignment, **alignment),
        model=replace(config.model, head_inputs=head_inputs, head="network", networks=1),
    )


def read_config(path: str | Path, base: RunConfig | None = None) -> RunConfig:
    """Read a YAML configuration; keys that the file does not name keep their value in ``base`` (default: ``"cpu"``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown key (the nearest known one is named), or a value that cannot be.
        TypeError: a value of the wrong kind.
    """
    path = Path(path)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"configuration file {path} {what}; leave --config out for the defaults")
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a YAML file: it is no text in UTF-8") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    try:
        return update(base or RunConfig(), mapping or {})
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error


def read_run_config(path: str | Path) -> RunConfig:
    """Read a run's ``config.yaml``.

    One without ``min_counts``, ``head`` or ``networks`` is of an older version, which used every spot and one network alone: it
    goes on so.
    """
    return read_config(path, RunConfig(data=DataConfig(min_counts=0), model=ModelConfig(head="network", networks=1)))


def write_config(config: RunConfig, path: str | Path) -> Path:
    """Write ``config`` as YAML, atomically; :func:`read_config` gives the same configuration back."""
    return write_text_atomic(path, yaml.safe_dump(_RUN_CONFIG.dump_python(config, mode="json"), sort_keys=False))


def update(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return a copy of ``config`` with the nested ``changes`` applied and checked.

    Raises:
        ValueError: an unknown key (the nearest known one is named), or a value that cannot be.
        TypeError: a value of the wrong kind.

    >>> update(RunConfig(), {"training": {"epochs": 3}}).training.epochs
    3
    """
    if not isinstance(changes, Mapping):
        raise TypeError(f"the configuration must be a mapping of keys to values, got {changes!r}")
    known = asdict(config)
    changed = {
        name: {**known[name], **_of_today(name, section)} if name in known and isinstance(section, Mapping) else section
        for name, section in changes.items()
    }
    try:
        # as JSON, where a list stands for a tuple and a mapping for a section although the types are strict
        return _RUN_CONFIG.validate_json(json.dumps({**known, **changed}, default=str))
    except ValidationError as error:
        raise friendly(error, known) from error


def _of_today(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """A section of a configuration as it is written now: ``model.lora`` of older ones is ``model.tune``."""
    section = dict(section)
    if name == "model" and "lora" in section:
        lora = section.pop("lora")
        if not isinstance(lora, bool):
            raise TypeError(f"model.lora is {lora!r}, need true or false; model.tune takes its place")
        section.setdefault("tune", "lora" if lora else "frozen")
    return section


def _require_known(what: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ValueError(f"{what} is {name!r}; choose one of {', '.join(map(repr, known))}")
