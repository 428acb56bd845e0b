"""Files of weights: read without running code, renamed where they are laid out otherwise, and loaded strictly."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SUFFIXES", "load_known_weights", "load_weights", "read_weights"]

SUFFIXES = (".bin", ".pt", ".pth", ".safetensors")

_BYTES_SHOWN = 64
_WRAPPERS = ("state_dict", "model")
_DINOV2 = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (r"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.", r"blocks.\1.\2."),
    (r"layernorm\.", "norm."),
)
_DINOV2_QUERY = re.compile(r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)")

_LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
_EFFICIENTNET_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")
_LITE0_LAYERS = (
    {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
    {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    },
)
_LITE0_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights by name, on the CPU; no code in the file is run.

    A state inside "state_dict" or "model" is taken out, and the "module." of parallel training is dropped.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a .safetensors file without the library.
        ValueError: another kind of file, damaged, or something else than tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights file {path} does not exist; give a local file (nothing is downloaded)")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"weights file {path} is no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"weights file {path} holds no plain table of names and tensors; give the state of the network"
        )
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}


def load_weights(
    model: nn.Module, path: str | Path, *, name: str, layout: str = "timm", left_over: Sequence[str] = ()
) -> None:
    """Fill ``model`` with the weights of a file, every one of them.

    Args:
        name: of the encoder, for the error.
        layout: how the file names its weights, see :class:`~hyperst.model.backbones.encoders.Encoder`.
        left_over: first parts of the names of a classifier and the like, which may be in the file and are not needed.

    Raises:
        FileNotFoundError, ImportError, ValueError: see :func:`read_weights`.
        ValueError: a weight is missing, unexpected, of another shape or not finite; the message names it.
    """
    problems, state = _compare(model, path, layout, left_over)
    if problems:
        raise ValueError(
            f"{path} does not hold the weights of {name} ({len(model.state_dict())} tensors): {'; '.join(problems)}. "
            "Give the file that belongs to the encoder, or the encoder that belongs to the file"
        )
    model.load_state_dict(state, strict=False)  # what may be missing or left over has been looked at


def load_known_weights(model: nn.Module, path: str | Path, *, name: str, left_over: Sequence[str] = ()) -> None:
    """Load as runs of before the strict rule did: what the network has no place for is dropped, with a warning.

    Raises:
        FileNotFoundError, ImportError, ValueError: see :func:`load_weights`; an unexpected weight is no error.
    """
    state = read_weights(path)
    unexpected = [key for key in state if key not in model.state_dict() and not key.startswith(tuple(left_over))]
    if unexpected:
        warnings.warn(
            f"this run is of an older version, which left {len(unexpected)} weights of {path} unused ({_some(unexpected)}): "
            f"its features are not those of the encoder. Train again, with a named encoder such as 'uni' in place of {name!r}",
            stacklevel=2,
        )
    load_weights(model, path, name=name, left_over=(*left_over, *unexpected))


def _compare(
    model: nn.Module, path: str | Path, layout: str, left_over: Sequence[str]
) -> tuple[list[str], dict[str, Tensor]]:
    """What differs between file and network, in words, and the state to load."""
    kept = {key: value for key, value in read_weights(path).items() if not key.startswith(tuple(left_over))}
    state = _LAYOUTS[layout](kept)
    expected = model.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shared = [key for key in state if key in expected]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, need {tuple(expected[key].shape)}"
        for key in shared
        if state[key].shape != expected[key].shape
    ]
    broken = [key for key in shared if not torch.isfinite(state[key]).all()]
    problems = [
        f"{len(keys)} {what} ({_some(keys)})"
        for keys, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (shapes, "of another shape"),
            (broken, "with NaN or infinite values"),
        )
        if keys
    ]
    return problems, state


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _from_conch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower of CONCH, without the name of the tower."""
    return {key.removeprefix("visual."): value for key, value in state.items()}


def _from_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of timm for the weights of transformers' Dinov2Model; query, key and value become one matrix."""
    state = dict(state)
    renamed: dict[str, Tensor] = {}
    for key in list(state):
        if found := _DINOV2_QUERY.fullmatch(key):
            three = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if all(part in state for part in three):
                renamed[f"blocks.{found[1]}.attn.qkv.{found[2]}"] = torch.cat([state.pop(part) for part in three])
    for key, value in state.items():
        for pattern, replacement in _DINOV2:
            changed, times = re.subn(f"^{pattern}", replacement, key)
            if times:
                key = changed
                break
        renamed[key] = value
    return renamed


def _from_efficientnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of timm for the weights of EfficientNet-Lite0 in efficientnet_pytorch's layout, whose blocks are numbered through."""
    stages = [f"{stage}.{block}" for stage, blocks in enumerate(_LITE0_BLOCKS) for block in range(blocks)]
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        found = _EFFICIENTNET_BLOCK.fullmatch(key)
        if found and int(found[1]) < len(stages):
            number, layer, rest = int(found[1]), found[2], found[3]
            # the first block does not widen its channels and so has one convolution less
            key = f"blocks.{stages[number]}.{_LITE0_LAYERS[number > 0].get(layer, layer)}.{rest}"
        else:
            layer, _, rest = key.partition(".")
            key = f"{_LITE0_ENDS.get(layer, layer)}.{rest}"
        renamed[key] = value
    return renamed


_LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "timm": dict,
    "dinov2": _from_dinov2,
    "conch": _from_conch,
    "efficientnet": _from_efficientnet,
}


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError('.safetensors files need safetensors: pip install "hyperst-kernels[timm]"') from error
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_pickle(path: Path) -> Any:
    with path.open("rb"):  # a file without permission is no damaged one
        pass
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # PyTorch does not compare checksums as it reads
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    """What to do about a file of weights, from its first bytes: libraries tell of their own insides."""
    with path.open("rb") as file:
        start = file.read(_BYTES_SHOWN).lstrip().lower()
    if not start:
        return ValueError(f"weights file {path} is empty; download it again and compare its size")
    if start.startswith(b"version https://git-lfs"):
        return ValueError(
            f"weights file {path} is a pointer of Git LFS, not the weights themselves; fetch them with: git lfs pull"
        )
    if start.startswith((b"<!doctype", b"<html", b"{")):
        return ValueError(
            f"weights file {path} is a web page or message, not the weights; ask for access where the authors publish them, and "
            "download the file again"
        )
    if isinstance(error, pickle.UnpicklingError):
        return ValueError(
            f"weights file {path} cannot be read: it holds more than tensors and plain values, such as a whole network, or it is "
            "damaged; give the state of the network (torch.save(network.state_dict(), FILE)), or download it again"
        )
    return ValueError(
        f"weights file {path} cannot be read: it is cut short, damaged or of another kind; download it again and compare its size"
    )
