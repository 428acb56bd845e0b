"""How much of an encoder with weights is trained: nothing, its last block, low-rank adapters, or all of it."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

__all__ = ["Tune", "set_trained_mode", "tuned"]

Tune = Literal["frozen", "last-block", "lora", "full"]


def tuned(network: nn.Module, tune: Tune) -> nn.Module:
    """``network`` with the parameters that are to be trained, and no others, requiring a gradient.

    Args:
        tune: "frozen"; "last-block", the last block of a vision transformer or stage of a convolutional network, and what comes
            after it; "lora", see :func:`with_lora`; or "full".

    Raises:
        ImportError: peft is missing. ValueError: the network has no such blocks.

    >>> blocks = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> network = tuned(nn.ModuleDict({"stem": nn.Linear(2, 2), "blocks": blocks, "norm": nn.LayerNorm(2)}), "last-block")
    >>> [name for name, weight in network.named_parameters() if weight.requires_grad]
    ['blocks.1.weight', 'blocks.1.bias', 'norm.weight', 'norm.bias']
    """
    network.requires_grad_(tune == "full")
    if tune == "last-block" and not _unfreeze_last_block(network):
        raise ValueError("model.tune 'last-block' needs a network of blocks or stages in a row; this one has none")
    return with_lora(network) if tune == "lora" else network


def set_trained_mode(module: nn.Module, mode: bool) -> None:
    """Set training mode where something is trained, evaluation mode elsewhere: statistics of frozen layers must not move."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
        return
    module.training = mode
    for child in module.children():
        set_trained_mode(child, mode)


def with_lora(network: nn.Module) -> nn.Module:
    """Add adapters (rank 8, alpha 16, dropout 0.1) to the qkv of the last 11/24 of a vision transformer's blocks.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022; ranks and blocks those of HyperST.

    Raises:
        ImportError: peft is missing. ValueError: no such blocks.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError('LoRA needs peft: pip install "hyperst-kernels[st]"') from error
    names = [name for name, _ in network.named_modules() if re.fullmatch(r"(.+\.)?blocks\.\d+\.attn\.qkv", name)]
    if not names:
        raise ValueError(
            "model.tune 'lora' needs a vision transformer with blocks.N.attn.qkv; this model has none: choose 'last-block' or "
            "'full'"
        )
    last = names[-max(1, round(len(names) * 11 / 24)) :]
    return inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=last), network)


def _unfreeze_last_block(network: nn.Module) -> bool:
    """Whether there is a row of blocks; its last one, and the layers after it, then require a gradient."""
    children = list(network.children())
    for place in reversed(range(len(children))):
        child = children[place]
        blocks = [block for block in child.children() if any(True for _ in block.parameters())]
        in_a_row = isinstance(child, (nn.Sequential, nn.ModuleList)) and bool(blocks)
        if in_a_row:
            blocks[-1].requires_grad_(True)
        if in_a_row or _unfreeze_last_block(child):
            for after in children[place + 1 :]:
                after.requires_grad_(True)
            return True
    return False
