"""Predict a cohort: what is there is kept, what is not is shared among processes, and all of it told in a table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from hyperst.cohort.ranks import Ranks
from hyperst.cohort.slides import Options, Slide, SlideResult, SlideWorker, run_checksum, stored_result
from hyperst.cohort.tables import TABLE, require_own_tables, result_table, write_tables
from hyperst.data import SectionSource, distinct_names
from hyperst.data.readers.features import find_features
from hyperst.data.sources import refuse_image_of_image
from hyperst.device import choose_device
from hyperst.export import check_formats
from hyperst.files import require_writable
from hyperst.on_ray import run_on_ray
from hyperst.pool import Ended, run_in_processes
from hyperst.predict import check_options
from hyperst.processes import refuse_several, started_processes
from hyperst.run import load_run

__all__ = ["Cohort", "Engine", "predict_cohort"]

Engine = Literal["local", "ray"]

_LONGEST_NAME = 200  # bytes: file systems allow 255, with all that stands around a name


@dataclass(frozen=True)
class Cohort:
    """What came of the slides of a cohort.

    Attributes:
        results: of each slide, in the order in which they were given; in processes of torchrun or srun, on the first alone.
        folder: where the predictions, cohort.csv and cohort.h5ad are.
    """

    results: list[SlideResult]
    folder: Path

    @property
    def failures(self) -> dict[str, str]:
        """Why slides failed, by name."""
        return {result.slide: str(result.error) for result in self.results if result.status == "failed"}

    def table(self) -> pd.DataFrame:
        """A line for each slide, as in cohort.csv."""
        return result_table(self.results)


def predict_cohort(
    run_folder: str | Path,
    sources: Sequence[SectionSource],
    output: str | Path,
    options: Options | None = None,
    *,
    workers: int | None = None,
    engine: Engine = "local",
    device: str | None = None,
    again: bool = False,
    on_slide: Callable[[SlideResult, int, int], None] | None = None,
) -> Cohort:
    """Predict each slide at its spots, or on a grid over the tissue of an image, into ``output``/NAME.h5ad.

    A slide that fails stops no other. Called again, this predicts only the slides whose prediction is missing. Each call writes
    cohort.csv, a line for each slide, and cohort.h5ad, the mean predicted expression of each slide. With as many threads a
    process, and the same evaluations in the run, a slide has the same file, byte for byte, wherever it is predicted.

    Args:
        sources: as of :func:`hyperst.data.read_manifest`.
        workers: slides at a time, each in a process of its own; the processes share the threads that PyTorch has in this one.
            0 predicts one after another in this process. Default: one for each GPU, or one. In processes that torchrun or srun
            has started, which share the slides, it is the number for each of them, by default 0.
        engine: "local" for processes of this machine, "ray" for those of a Ray cluster, see :mod:`hyperst.on_ray`.
        device: by default processes take the GPUs in turn, if there are any; see :func:`hyperst.load_run`.
        again: predict slides once more that were predicted before, and replace their files.
        on_slide: called with each result, (slides done, slides in all).

    Raises:
        ValueError: options that do not go with the run, or numbers and names that cannot be.
        FileNotFoundError: no run, or no features of a slide.
        FileExistsError: a file that would be written is another one; see :func:`hyperst.cohort.slides.stored_result`.
        ImportError: no Ray where it is asked for.
        KeyboardInterrupt: interrupted; the same call goes on.
    """
    if engine not in ("local", "ray"):
        raise ValueError(f"engine (--engine): got {engine!r}, need local or ray")
    if workers is not None and workers < 0:
        raise ValueError(f"workers (--workers): got {workers}, need 0 or more")
    run_folder, output = Path(run_folder).absolute(), Path(output).absolute()
    variables = started_processes()
    if engine == "ray":
        refuse_several("a cohort on Ray, which has processes of its own (--engine),")
    ranks = Ranks(variables) if variables else None
    plan = partial(_plan, run_folder, sources, output, options or Options(), again=again)
    if device is not None and engine == "local":
        choose_device(device)
    slides, kept = plan() if ranks is None else ranks.from_first(plan)
    results: dict[str, SlideResult] = {}

    def tell(result: SlideResult) -> None:
        results[result.slide] = result
        if on_slide is not None:
            on_slide(result, len(results), len(slides))

    for result in kept:
        tell(result)
    waiting = [slide for slide in slides if slide.name not in results]
    worker = partial(SlideWorker, run_folder, checksum=slides[0].run)
    for result in _predicted(waiting, worker, workers, engine, device, ranks):
        tell(result)
    if ranks is not None and ranks.rank:
        return Cohort([], output)
    found = Cohort([results[slide.name] for slide in slides], output)
    write_tables(output, slides, found.results)
    return found


def _plan(
    run_folder: Path, sources: Sequence[SectionSource], output: Path, options: Options, *, again: bool
) -> tuple[list[Slide], list[SlideResult]]:
    """All slides, and the results of those that are there; raises what can be known before the work."""
    if not sources:
        raise ValueError("sources: got no slide, need at least one")
    sources = distinct_names(sources)
    for source in sources:
        refuse_image_of_image(source, f"slide {source.name}")
        if (length := len(os.fsencode(str(source.name)))) > _LONGEST_NAME:
            raise ValueError(
                f"slide {str(source.name)[:40]}... has a name of {length} bytes, and files are called after it: need at most "
                f"{_LONGEST_NAME}; give it another one in the table (name)"
            )
    run = load_run(run_folder, device="cpu")  # a GPU's memory is for those that predict
    check_options(run, options.mpp, options.features, options.niche_features, options.wider_features)
    checksum = run_checksum(run_folder)
    slides = []
    for source in sources:
        place = replace(source, path=source.path.absolute(), image=source.image and source.image.absolute())
        own = replace(
            options,
            features=_features_of(options.features, "--features", source, len(sources)),
            niche_features=_features_of(options.niche_features, "--niche-features", source, len(sources)),
            wider_features={
                level: found
                for level, given in options.wider_features.items()
                if (found := _features_of(given, "--level-features", source, len(sources))) is not None
            },
        )
        slides.append(Slide.of(place, own, output, checksum))
    require_own_tables(output, slides)
    require_writable(output / TABLE)
    check_formats(options.exports, run.genes)
    kept = []
    for number, slide in enumerate(slides):
        result = stored_result(slide, again=again)
        slide.exports.require_own(options.exports)
        if result is None:
            continue
        if slide.exports.missing(options.exports):
            slides[number] = replace(slide, stored=True)
        else:
            kept.append(result)
    return slides, kept


def _features_of(place: Path | None, option: str, source: SectionSource, n_slides: int) -> Path | None:
    if place is None:
        return None
    if place.is_file() and n_slides > 1:
        raise ValueError(
            f"features ({option}): {place} is one file for {n_slides} slides; give a folder with NAME.h5 for each"
        )
    return find_features(place, str(source.name)).absolute()


def _predicted(
    slides: list[Slide],
    worker: Callable[..., SlideWorker],
    workers: int | None,
    engine: Engine,
    device: str | None,
    ranks: Ranks | None,
) -> Iterator[SlideResult]:
    """Results of slides as they come, wherever they are predicted."""
    if engine == "ray":
        if slides:
            on_gpus = device is None or device.startswith("cuda")
            yield from _outcomes(run_on_ray(slides, partial(worker, device=device), workers, gpus=on_gpus))
        return
    gpus = torch.cuda.device_count() if device in (None, "cuda") else 0
    if ranks is None:
        number = max(1, gpus) if workers is None else workers
        yield from _local(
            slides, worker, [f"cuda:{n % gpus}" if gpus else device for n in range(max(1, number))], number
        )
    else:
        own = f"cuda:{ranks.local_rank % gpus}" if gpus else device
        yield from ranks.share(slides, lambda taken: _local(taken, worker, [own] * max(1, workers or 0), workers or 0))


def _local(
    slides: Iterable[Slide], worker: Callable[..., SlideWorker], devices: list[str | None], workers: int
) -> Iterator[SlideResult]:
    """Results of slides in processes of this machine, one on each of ``devices``; with 0 ``workers`` in this one."""
    if workers == 0:
        yield from map(worker(device=devices[0]), slides)
        return
    threads = max(1, torch.get_num_threads() // workers)
    yield from _outcomes(run_in_processes(slides, [partial(_begun, worker, each, threads) for each in devices]))


def _begun(worker: Callable[..., SlideWorker], device: str | None, threads: int) -> SlideWorker:
    torch.set_num_threads(threads)
    return worker(device=device)


def _outcomes(ended: Iterable[tuple[Slide, SlideResult | Ended]]) -> Iterator[SlideResult]:
    for slide, outcome in ended:
        yield outcome if isinstance(outcome, SlideResult) else SlideResult(slide.name, "failed", error=outcome.reason)
