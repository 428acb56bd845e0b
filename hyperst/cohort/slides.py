"""One slide of a cohort: what it is predicted from and with, whether that is done, and doing it."""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from hyperst.cohort.exports import SlideExports, content
from hyperst.data import SectionSource
from hyperst.data.identity import sampled_hash
from hyperst.data.images import IMAGE_SUFFIXES
from hyperst.export import image_of, write_export
from hyperst.files import anndata_elements, write_text_atomic
from hyperst.predict_file import SlideValues, image_into_part, section_into_part
from hyperst.prediction_notes import prediction_notes
from hyperst.run import Run, load_run, run_checksum
from hyperst.stain import Stain
from hyperst_kernels import __version__

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Options", "Slide", "SlideResult", "SlideWorker", "run_checksum", "stored_result"]

_LONGEST = 4000  # characters of an error


@dataclass(frozen=True)
class Options:
    """How slides are predicted, see :func:`hyperst.predict.predict_image`; of a cohort, ``features`` are folders with NAME.h5.

    ``mpp`` is for slides whose row of the table names none, ``min_tissue`` for those that are images; ``exports`` are endings of
    files beside each prediction, see :func:`hyperst.export.write_export`; ``readers`` are processes for each slide.
    """

    mpp: float | None = None
    features: Path | None = None
    niche_features: Path | None = None
    skip_damaged: bool = False
    stain: Stain = "none"
    min_tissue: float | None = None
    exports: tuple[str, ...] = ()
    wider_features: Mapping[str, Path] = field(default_factory=dict)
    readers: int = 0


@dataclass(frozen=True)
class Slide:
    """What one prediction is made of.

    Attributes:
        source: with a name; paths are absolute.
        options: with the files of this slide's features.
        output: the .h5ad.
        run: checksum of the run.
        identity: hash of all that is known of the prediction before the slide is opened.
        stored: the prediction is there, and exports are not.
    """

    source: SectionSource
    options: Options
    output: Path
    run: str
    identity: str
    stored: bool = False

    @classmethod
    def of(cls, source: SectionSource, options: Options, output: Path, run: str) -> Slide:
        """The slide of a row of a table, in the folder ``output``."""
        facts: list[Any] = [
            run,
            __version__,
            [str(source.name), source.mpp, source.kind],
            [content(path) for path in (source.path, source.image, options.features, options.niche_features)],
            [options.mpp, options.skip_damaged, options.stain, options.min_tissue],
        ]
        if options.wider_features:
            facts.append({level: content(path) for level, path in options.wider_features.items()})
        identity = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return cls(source, options, output / f"{source.name}.h5ad", run, identity)

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.source.name)

    @property
    def exports(self) -> SlideExports:
        """What lies beside the .h5ad in other formats."""
        return SlideExports(self.output, self.log.with_name(f"{self.name}.exports.json"))

    @property
    def log(self) -> Path:
        """Where a failure is described."""
        return self.output.parent / "logs" / f"{self.name}.txt"


@dataclass(frozen=True)
class SlideResult:
    """What came of a slide.

    Attributes:
        status: "predicted"; "kept", from an earlier call; or "failed".
        spots: how many were predicted.
        tissue_mm2: area of tissue on its image, None where um/px or image are unknown.
        unlike_share, unlike_slide: see :func:`hyperst.doubt.add_doubt`; None where the run has not measured that.
        seconds: that the prediction took, None of one that was kept.
        error: why it failed, in one line.
        notes: what one has to know of the prediction.
    """

    slide: str
    status: Literal["predicted", "kept", "failed"]
    spots: int | None = None
    tissue_mm2: float | None = None
    unlike_share: float | None = None
    unlike_slide: bool | None = None
    seconds: float | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()


def _result(
    slide: Slide,
    status: Literal["predicted", "kept"],
    spots: int,
    facts: Mapping[str, Any],
    seconds: float | None = None,
    notes: tuple[str, ...] = (),
) -> SlideResult:
    """What came of a slide whose prediction has ``uns["hyperst"]`` ``facts``."""
    unlike = facts.get("unlike_slide")
    return SlideResult(
        slide.name,
        status,
        spots,
        facts.get("tissue_mm2"),
        facts.get("unlike_share"),
        None if unlike is None else bool(unlike),
        seconds,
        notes=notes,
    )


def stored_result(slide: Slide, *, again: bool = False) -> SlideResult | None:
    """The result of a slide that was predicted before; None if it has to be predicted, as all are ``again``.

    Raises:
        FileExistsError: the file is another one: not of a cohort, or of another run, other options or other input.
    """
    if not os.path.lexists(slide.output):
        return None
    facts = _stored_facts(slide.output)
    if facts is None:
        raise FileExistsError(
            f"{slide.output} exists, is no prediction of a cohort or damaged, and is not overwritten; choose another --output, "
            "or remove it"
        )
    if again:
        return None
    image = facts.get("image_place")
    same_image = image is None or _same_image(slide.source.path.parent / image, facts["image_checksum"])
    if facts["identity"] != slide.identity or not same_image:
        raise FileExistsError(
            f"{slide.output} exists: predicted by another run or version, with other options, or from other files than now. Choose "
            "another --output, remove it, or predict all slides once more with --again"
        )
    return _result(slide, "kept", int(facts["spots"]), facts)


class SlideWorker:
    """Predicts one slide after another with a run, which it loads for the first one; its errors are results.

    Args:
        device: as of :func:`hyperst.run.load_run`.
        checksum: of the run; another one is an error, as of a run that is trained on meanwhile.
    """

    def __init__(self, folder: Path, device: str | None, checksum: str) -> None:
        self.folder, self.device, self.checksum = folder, device, checksum
        self.run: Run | None = None

    def __call__(self, slide: Slide) -> SlideResult:
        started = time.perf_counter()
        with warnings.catch_warnings(record=True) as warned:
            try:
                predicted = self._predict(slide)
            except Exception as error:  # one slide's failure, of any kind, stops no other
                return _failed(slide, error, time.perf_counter() - started)
        for each in warned:
            if each.category is not UserWarning:  # of a library, not about the slide
                warnings.showwarning(each.message, each.category, each.filename, each.lineno)
        said = dict.fromkeys(str(each.message) for each in warned if each.category is UserWarning)
        with suppress(OSError):  # there is none, of most
            slide.log.unlink()
        status: Literal["predicted", "kept"] = "kept" if slide.stored else "predicted"
        notes = (*said, *prediction_notes(predicted))
        facts, seconds = predicted.uns["hyperst"], time.perf_counter() - started
        result = _result(slide, status, predicted.n_obs, facts, seconds, notes)
        predicted.file.close()
        return result

    def _predict(self, slide: Slide) -> AnnData:
        if self.run is None:
            if run_checksum(self.folder) != self.checksum:
                raise ValueError(f"the run in {self.folder} has changed since the cohort began; begin again")
            self.run = load_run(self.folder, device=self.device)
        import anndata

        if slide.stored:
            predicted = anndata.read_h5ad(slide.output, backed="r")
            _write_exports(slide, predicted)
            return predicted
        with _predicted(self.run, slide) as values:
            facts, image = values.predicted.uns["hyperst"], values.section.image_path
            facts.pop("created", None)  # the same slide gives the same file
            facts |= {"identity": slide.identity, "run_checksum": slide.run, "spots": values.section.n_spots}
            facts |= {"predicted_with": __version__, "predicted_with_torch": str(torch.__version__)}
            if values.section.patient is not None:
                facts["section_patient"] = str(values.section.patient)
            if image is not None:
                place = Path(os.path.relpath(image, slide.source.path.parent))
                facts |= {"image_place": place.as_posix(), "image_checksum": sampled_hash(image)}
            _remove_exports(slide)
            values.write(slide.output)
        predicted = anndata.read_h5ad(slide.output, backed="r")
        _write_exports(slide, predicted)
        return predicted


def _remove_exports(slide: Slide) -> None:
    """Those of the prediction that is replaced, and tell of those that are not made again."""
    removed, left = slide.exports.remove()
    for path in removed:
        if path.suffix[1:] not in slide.options.exports:
            warnings.warn(f"{path.name} was of the prediction before this one, and is removed", stacklevel=2)
    for path in left:
        warnings.warn(
            f"{path.name} is left: it is not as the cohort has written it, and may be of another prediction",
            stacklevel=2,
        )


def _write_exports(slide: Slide, predicted: AnnData) -> None:
    """Those that are not there."""
    for ending in slide.exports.missing(slide.options.exports):
        image = image_of(slide.source) if ending == "zarr" else None
        write = partial(write_export, predicted, image=image, skip_damaged=slide.options.skip_damaged)
        slide.exports.write(ending, write)


def _predicted(run: Run, slide: Slide) -> AbstractContextManager[SlideValues]:
    """The prediction of a slide, to be written."""
    source = slide.source
    common = asdict(slide.options)
    mpp, min_tissue, _ = (common.pop(name) for name in ("mpp", "min_tissue", "exports"))
    if source.path.suffix.lower() in IMAGE_SUFFIXES:
        um_per_px = source.mpp if source.mpp is not None else mpp
        return image_into_part(run, source.path, slide.output, mpp=um_per_px, min_tissue=min_tissue, **common)
    need_image = run.config.data.feature_key is None
    own = replace(source, patient=None)  # what a table says of it may change; the section does not
    section = own.read(mpp=mpp, require_counts=False, require_image=need_image)
    return section_into_part(run, section, slide.output, **common)


def _failed(slide: Slide, error: Exception, seconds: float) -> SlideResult:
    with suppress(OSError):  # of a full disk: the error is told all the same
        write_text_atomic(slide.log, "".join(traceback.format_exception(error)))
    message = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
    return SlideResult(slide.name, "failed", seconds=seconds, error=message)


def _same_image(path: Path, checksum: str) -> bool:
    return path.is_file() and sampled_hash(path) == checksum


def _stored_facts(path: Path) -> dict[str, Any] | None:
    """What a prediction of a cohort records; None of any other file."""
    import h5py

    try:
        with h5py.File(path) as file:
            facts = anndata_elements().read_elem(file["uns/hyperst"])
    except (OSError, KeyError, RuntimeError):
        return None
    return facts if isinstance(facts, dict) and {"identity", "run_checksum"} <= facts.keys() else None
