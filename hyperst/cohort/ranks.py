"""A cohort among the processes that torchrun or srun has started: each takes the next slide that is left."""

from __future__ import annotations

import base64
import itertools
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from hyperst.cohort.slides import Slide, SlideResult

__all__ = ["Ranks"]

Plan = TypeVar("Plan")
_COHORTS = itertools.count()  # of one program that predicts several
_LOOK = timedelta(seconds=60)  # between two looks at a key that is waited for without end


class Ranks:
    """The processes, as one of them sees them. They share a store, and no group: none waits for another's slide but the first.

    Args:
        variables: see :func:`hyperst.processes.started_processes`.
    """

    def __init__(self, variables: dict[str, str]) -> None:
        os.environ.update(variables)
        store, self.rank, self.size = next(dist.rendezvous("env://"))
        self.local_rank = int(variables["LOCAL_RANK"])
        self.store = dist.PrefixStore(f"hyperst/cohort/{next(_COHORTS)}", store)

    def from_first(self, plan: Callable[[], Plan]) -> Plan:
        """Return what ``plan`` gives on rank 0, which alone makes it.

        Raises:
            SystemExit: on other ranks, where it fails on rank 0, which says why.
        """
        if self.rank:
            content = self._get("plan")
            if not content:
                raise SystemExit(1)
            return _from_text(content)
        try:
            made = plan()
        except BaseException:
            self.store.set("plan", "")
            raise
        self.store.set("plan", _text(made))
        return made

    def share(
        self, slides: Sequence[Slide], predict: Callable[[Iterator[Slide]], Iterator[SlideResult]]
    ) -> Iterator[SlideResult]:
        """Yield the results of the slides that this rank takes, and on rank 0 those of all others in the end.

        Args:
            predict: gives the results of slides, of which it takes the next when it is free for it.
        """
        own = set()
        for result in predict(self._claimed(slides)):
            own.add(result.slide)
            if self.rank:
                self.store.set(f"slide/{result.slide}", _text(result))
            yield result
        if self.rank:
            self.store.set(f"left/{self.rank}", "1")
            return
        for slide in slides:
            if slide.name not in own:
                yield _from_text(self._get(f"slide/{slide.name}"))
        for rank in range(1, self.size):  # the store may be in this process: it stays until all have left
            self._get(f"left/{rank}")

    def _claimed(self, slides: Sequence[Slide]) -> Iterator[Slide]:
        while (number := self.store.add("next", 1) - 1) < len(slides):
            yield slides[number]

    def _get(self, key: str) -> bytes:
        while True:
            with suppress(dist.DistStoreError):
                self.store.wait([key], _LOOK)
                return self.store.get(key)


def _text(value: Any) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()


def _from_text(content: bytes) -> Any:
    return pickle.loads(base64.b64decode(content))
