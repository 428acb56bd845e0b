"""Tasks on a Ray cluster, or on the machine that Ray starts one on. Ray is imported here alone, when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from hyperst.pool import Ended

__all__ = ["run_on_ray"]

Task = TypeVar("Task")


def run_on_ray(
    tasks: Iterable[Task], maker: Callable[[], Callable[[Task], Any]], workers: int | None, *, gpus: bool = True
) -> Iterator[tuple[Task, Any]]:
    """Yield each task with what came of it, as it ends: what its process returned, or :class:`~hyperst.pool.Ended`.

    The cluster is the one that ``RAY_ADDRESS`` names or that runs on this machine, else one is started on this machine for as
    long as this lasts. Every machine needs this library, and the files of the tasks under the same paths.

    Args:
        maker: picklable; called once in each of Ray's processes, it returns what does a task and raises nothing.
        workers: how many processes; None: one for each GPU of the cluster, or one for each machine where there is none.
        gpus: whether each process has a GPU of its own where the cluster has any.

    Raises:
        ImportError: Ray is not installed.
        ValueError: no ``workers``, or more than the cluster has GPUs or cores for.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers (--workers): got {workers}, need at least 1 on Ray")
    ray = _import_ray()
    own = not ray.is_initialized()
    if own:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    running: dict[Any, tuple[Task, Any]] = {}
    actors: list[Any] = []
    try:
        count, needs = _shares(ray, workers, gpus)
        kind = ray.remote(**needs, max_restarts=0, max_task_retries=0)(_Worker)
        waiting = iter(tasks)
        places = count
        free: list[Any] = []
        while True:
            while (free or places) and (task := next(waiting, None)) is not None:
                if not free:
                    places -= 1
                    actors.append(actor := kind.remote(maker, max(1, needs["num_cpus"])))
                    free.append(actor)
                actor = free.pop()
                running[actor.do.remote(task)] = (task, actor)
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1)[0]:
                task, actor = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                    free.append(actor)
                except ray.exceptions.RayError as error:  # the process has ended: another one takes its place
                    outcome = Ended(f"its process on the cluster ended before it was done: {_first_line(error)}")
                    actors.remove(actor)
                    ray.kill(actor)
                    places += 1
                yield task, outcome
    finally:
        for actor in actors:
            ray.kill(actor)
        if own:
            ray.shutdown()


class _Worker:
    """What a process of Ray holds."""

    def __init__(self, maker: Callable[[], Callable[[Any], Any]], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.work = maker()

    def do(self, task: Any) -> Any:
        """Do a task."""
        return self.work(task)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "Ray (--engine ray) is not installed: pip install 'hyperst-kernels[cluster]', or leave --engine out"
        ) from error
    return ray


def _shares(ray: Any, workers: int | None, gpus: bool) -> tuple[int, dict[str, Any]]:
    """How many processes there are, and what each needs of a machine: every machine has room for its part of them."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    per_node = [int(node.get("GPU", 0)) for node in nodes] if gpus else []
    if any(per_node):
        count = sum(per_node) if workers is None else workers
        if count > sum(per_node):
            raise ValueError(f"workers (--workers): got {count}, but the cluster has {sum(per_node)} GPUs")
        cores = min(int(node.get("CPU", 0)) // n for node, n in zip(nodes, per_node, strict=True) if n)
        return count, {"num_cpus": cores, "num_gpus": 1}
    cpus = [n for node in nodes if (n := int(node.get("CPU", 0))) > 0]
    if not cpus:
        raise ValueError("the Ray cluster (--engine ray) has no cores; start its machines with ray start --num-cpus")
    count = len(cpus) if workers is None else workers
    if count > sum(cpus):
        raise ValueError(f"workers (--workers): got {count}, but the cluster has {sum(cpus)} cores")
    cores = next(n for n in range(max(cpus), 0, -1) if sum(each // n for each in cpus) >= count)
    return count, {"num_cpus": cores, "num_gpus": 0}


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().partition("\n")[0].split())
