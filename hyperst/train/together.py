"""Processes that train one run together: how they meet, what the first decides for all, and how an error ends them all."""

from __future__ import annotations

import base64
import functools
import itertools
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from hyperst.processes import started_processes
from hyperst.train.interruption import interruptible

__all__ = ["ALONE", "Processes", "first_error", "joined"]

Result = TypeVar("Result")
_FIRST_ERROR = "hyperst/error"
_MEETINGS = itertools.count()  # of one program that trains several runs


@dataclass(frozen=True)
class Processes:
    """The processes of a training, as one of them sees them.

    Attributes:
        rank: number of this one, from 0.
        size: how many there are.
        local_size: how many of them are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    def from_first(self, work: Callable[[], Result]) -> Result:
        """Return on every rank what ``work`` gives on rank 0, which alone does it; its error is raised on every rank."""
        if self.size == 1:
            return work()
        told: list[Any] = [None]
        error = None
        if self.rank == 0:
            value, error = _outcome(work)
            told = [(value, error and _pack(error))]
        dist.broadcast_object_list(told)
        value, failure = told[0]
        if failure is not None:
            raise _unpack(failure) from error
        return value

    def each(self, work: Callable[[], Result]) -> Result:
        """Return what ``work`` gives on this rank. An error of any rank is raised on every rank, of several the lowest rank's."""
        if self.size == 1:
            return work()
        value, error = _outcome(work)
        told: list[str | None] = [None] * self.size
        dist.all_gather_object(told, error and _pack(error))
        if failures := [failure for failure in told if failure is not None]:
            raise _unpack(failures[0]) from error
        return cast(Result, value)


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Yield the processes that torchrun, srun or :mod:`hyperst.train.launch` has started, when all have come; or this one alone.

    An error inside the block is told to the others: each ends with the error of the process that was the first to have one.
    """
    variables = started_processes()
    if dist.is_initialized():
        raise ValueError(
            "torch.distributed is initialised already; leave that to the training, which does it for its processes"
        )
    if not variables:
        yield ALONE
        return
    os.environ.update(variables)
    store, rank, size = _meeting_point(tuple(variables.items()))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    meeting = dist.PrefixStore(f"hyperst/{next(_MEETINGS)}", store)
    dist.init_process_group(backend, store=meeting, rank=rank, world_size=size)
    with interruptible():
        try:
            yield Processes(rank, size, int(variables["LOCAL_WORLD_SIZE"]))
        except BaseException as error:
            # the group is left alone: others may wait in it, and hear of the end when this process has ended
            first = _tell(error, store)
            if first is error:
                raise
            raise first from error
    dist.destroy_process_group()


@functools.cache
def _meeting_point(variables: tuple[tuple[str, str], ...]) -> tuple[dist.Store, int, int]:
    """Store, rank and size. Where rank 0 serves the store, others come to the next meeting before it has left the last one."""
    return next(dist.rendezvous("env://"))


def first_error(store: dist.Store) -> BaseException | None:
    """The error of the process that was the first to have one, if any had."""
    return _unpack(store.get(_FIRST_ERROR)) if store.check([_FIRST_ERROR]) else None


def _tell(error: BaseException, store: dist.Store) -> BaseException:
    """Keep ``error`` in the store if it is the first, and return the first."""
    error = _lost(error) or error
    own = _pack(error)
    try:
        first = store.compare_set(_FIRST_ERROR, "", own)
    except RuntimeError:  # the process that holds the store has ended
        return error
    return error if first == own.encode() else _unpack(first)


def _lost(error: BaseException) -> ConnectionError | None:
    """What an error of the connection between processes means, in words; None if ``error`` is another."""
    if not isinstance(error, dist.DistError) and not (isinstance(error, RuntimeError) and "gloo" in str(error)):
        return None
    return ConnectionError(
        f"another process of this training has ended or cannot be reached ({str(error).splitlines()[0]}). Nothing of the finished "
        "epochs is lost: go on with --resume"
    )


def _outcome(work: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


def _pack(error: BaseException) -> str:
    """Return ``error`` as text for the store, of its own kind and with its attributes where it can be, else its message alone."""
    kind = type(error)
    builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    content = b""
    # an error's __init__ may want more than the message that pickle gives it, and an error of a library may hold anything
    forms: tuple[object, ...] = (error, (kind, error.args, vars(error)), (builtin, (str(error),), {}))
    for candidate in forms:
        try:
            content = pickle.dumps(candidate)
            _made(pickle.loads(content))
        except Exception:
            continue
        break
    return base64.b64encode(content).decode()


def _unpack(content: str | bytes) -> BaseException:
    return _made(pickle.loads(base64.b64decode(content)))


def _made(packed: BaseException | tuple[type[BaseException], tuple[Any, ...], dict[str, Any]]) -> BaseException:
    """Return an error, without its ``__init__`` where it is packed in parts."""
    if isinstance(packed, BaseException):
        return packed
    kind, arguments, attributes = packed
    error = kind.__new__(kind, *arguments)
    vars(error).update(attributes)
    return error
