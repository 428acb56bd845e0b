"""What the processes of a group agree on before they exchange tensors, on the host, outside of what torch.compile traces."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import NoReturn

import torch

from hyperst_kernels.distributed import Check, Checked, Ranks, Sizes

_ERRORS = {error.__name__: error for error in (TypeError, ValueError, RuntimeError)}


@torch.compiler.disable(reason="ranks agree on the host what they exchange: leave out fullgraph=True")
def agree(ranks: Ranks, check: Check[Checked]) -> tuple[Checked, list[Sizes]]:
    """Return what ``check`` gives, and the sizes of every rank.

    ``check`` gives (anything, facts that must be alike on every rank, the own sizes), or raises. One exchange of five
    integers, which the host waits for. Raises on every rank what any rank's check has raised, and ValueError for facts that
    differ.
    """
    checked, sizes, error = None, (0, 0, 0), None
    facts: Mapping[str, object] = {}
    try:
        checked, facts, sizes = check()
    except Exception as caught:  # whatever it is, the others must not wait
        error = caught
    own = [int(error is not None), zlib.crc32(repr(sorted(facts.items())).encode()), *sizes]
    header = torch.tensor(own, dtype=torch.int64, device=_device(ranks))
    shards = [torch.empty_like(header) for _ in range(ranks.size)]
    torch.distributed.all_gather(shards, header, group=ranks.group)
    found = torch.stack(shards).tolist()
    if any(failed for failed, *_ in found) or len({digest for _, digest, *_ in found}) > 1:
        _explain(ranks, error, facts)
    return checked, [tuple(sizes) for _, _, *sizes in found]  # type: ignore[return-value]


def _device(ranks: Ranks) -> torch.device:
    """Where small messages go: the CPU if the group's backend reaches it, which no GPU has to wait for."""
    on_cpu = "cpu" in torch.distributed.get_backend_config(ranks.group)
    accelerator = None if on_cpu else torch.accelerator.current_accelerator()
    return torch.device("cpu") if accelerator is None else accelerator


def _explain(ranks: Ranks, error: Exception | None, facts: Mapping[str, object]) -> NoReturn:
    """Raise the same error on every rank."""
    told = None
    if error is not None:
        name = next((name for name, known in _ERRORS.items() if isinstance(error, known)), "RuntimeError")
        told = (name, str(error) if isinstance(error, _ERRORS[name]) else repr(error))
    everything: list = [None] * ranks.size
    torch.distributed.all_gather_object(everything, (told, dict(facts)), group=ranks.group)
    for rank, (failure, _) in enumerate(everything):
        if failure is not None:
            raise _ERRORS[failure[0]](f"rank {rank}: {failure[1]}") from error
    (_, first), *others = everything
    rank, name = next(
        (rank, name)
        for rank, (_, other) in enumerate(others, 1)
        for name in (*first, *other)
        if repr(first.get(name)) != repr(other.get(name))  # as in the digest
    )
    raise ValueError(
        f"{name} must be the same on every rank, got {first.get(name)} on rank 0 and {everything[rank][1].get(name)} on rank "
        f"{rank}"
    )
