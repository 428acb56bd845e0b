"""Which sections a list of files, folders and manifests names, and what each is called."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hyperst.data.image_files import image_stem, is_image
from hyperst.data.readers import reader_of
from hyperst.data.readers.legacy import is_count_table
from hyperst.data.readers.spaceranger_files import bins_of, choose_bin, is_spaceranger, outputs_in
from hyperst.data.sections import Section, read_section

__all__ = ["SectionSource", "distinct_names", "find_sections", "list_sections", "refuse_image_of_image"]


@dataclass(frozen=True)
class SectionSource:
    """A section that is not read yet.

    Attributes:
        path: file or folder.
        name: what it is called; None for the name that its reader gives it.
        patient, image, mpp, kind: as for :func:`hyperst.data.read_section`; None where nobody says.
    """

    path: Path
    name: str | None = None
    patient: str | None = None
    image: Path | None = None
    mpp: float | None = None
    kind: str | None = None

    def read(
        self,
        *,
        image: str | Path | None = None,
        images_dir: str | Path | None = None,
        mpp: float | None = None,
        gene_names: str | None = None,
        require_image: bool = True,
        require_counts: bool = True,
    ) -> Section:
        """Read the section; what the source says of it comes before ``image`` and ``mpp``. Errors: see ``read_section``."""
        return read_section(
            self.path,
            image=self.image if self.image is not None else image,
            images_dir=None if self.image is not None else images_dir,
            mpp=self.mpp if self.mpp is not None else mpp,
            name=self.name,
            patient=self.patient,
            kind=self.kind,
            gene_names=gene_names,
            require_image=require_image,
            require_counts=require_counts,
        )


def refuse_image_of_image(source: SectionSource, where: str) -> None:
    """Raise ValueError, which begins with ``where``, for an image with an ``image`` or a ``kind``: those are of sections."""
    for name, given in (("image", source.image), ("kind", source.kind)):
        if given is not None and is_image(source.path):
            raise ValueError(
                f"{where}: {name} is given ({given}) for {source.path}, which is itself an image; put a section there, or "
                f"leave {name} out"
            )


def list_sections(
    paths: str | Path | Iterable[str | Path],
    *,
    bin_um: int | None = None,
    refused: list[tuple[Path, Exception]] | None = None,
) -> list[SectionSource]:
    """Sections that files, folders and manifests (.csv) stand for, each once.

    A folder that is no Space Ranger output stands for the .h5ad files in it (or else in ``h5ad`` or ``st`` under it); without
    any, for the legacy count tables in it or its ``counts``; without any, for the Space Ranger folders, or GEO's matrices, in
    it. Files whose names begin with a dot are passed over, and so are texts that are no tables.

    Args:
        bin_um: which binning of a Visium HD tissue, whose folder holds several; other sections have none to choose.
        refused: takes down what cannot be listed and why, and the others are listed; None raises.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no section.
        ValueError: a Visium HD folder without the binning ``bin_um``, or with several where none is chosen; a wrong manifest.
    """
    from hyperst.data.manifest import is_manifest, read_manifest

    found: list[SectionSource] = []
    for entry in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(entry)
        with _taken_down(path, refused):
            if not path.exists():
                raise FileNotFoundError(f"section {path} does not exist")
            listed = read_manifest(path) if is_manifest(path) else [SectionSource(each) for each in _inside(path)]
            for source in listed:
                with _taken_down(source.path, refused):
                    is_binned = source.path.is_dir() and bool(bins_of(source.path))
                    found.append(replace(source, path=choose_bin(source.path, bin_um)) if is_binned else source)
    return _once(found)


@contextmanager
def _taken_down(path: Path, refused: list[tuple[Path, Exception]] | None) -> Iterator[None]:
    """Add what is raised to ``refused``, if that is given."""
    try:
        yield
    except (OSError, ValueError) as error:
        if refused is None:
            raise
        refused.append((path, error))


def find_sections(paths: str | Path | Iterable[str | Path], *, bin_um: int | None = None) -> list[Path]:
    """Paths of the sections that :func:`list_sections` finds."""
    return [source.path for source in list_sections(paths, bin_um=bin_um)]


def distinct_names(sources: Sequence[SectionSource]) -> list[SectionSource]:
    """The sources with names; those of one name get the folder in front in which they differ: A/S3.h5ad is A_S3.

    Raises:
        ValueError: names that stay the same, such as a name of a manifest that another section has.
    """
    given = {number for number, source in enumerate(sources) if source.name is not None}
    names = [source.name or _usual_name(source) for source in sources]
    for name in [name for name, times in Counter(names).items() if times > 1]:
        alike = [number for number, other in enumerate(names) if other == name and number not in given]
        for number, folder in zip(alike, _folders([sources[number].path for number in alike]), strict=True):
            names[number] = f"{folder}_{name}" if folder else name
    for name, times in Counter(names).items():
        if times > 1:
            files = " and ".join(str(sources[number].path) for number, other in enumerate(names) if other == name)
            raise ValueError(
                f"sections {files} would both be called {name}; give each a name of its own in a manifest (a .csv with columns "
                "section, name)"
            )
    return [replace(source, name=name) for source, name in zip(sources, names, strict=True)]


def _usual_name(source: SectionSource) -> str:
    """The name that a section's reader, or an image's file, gives it."""
    if source.kind is None and is_image(source.path):
        return image_stem(source.path)
    return reader_of(source.path, source.kind).name(source.path)


def _folders(paths: Sequence[Path]) -> list[str]:
    """The nearest folders above that tell all paths apart; joined from there on where none does alone."""
    parents = [[parent.name for parent in path.resolve().parents] for path in paths]
    deepest = max((len(names) for names in parents), default=0)
    levels = [[names[level] if level < len(names) else "" for names in parents] for level in range(deepest)]
    for level in levels:
        if len(set(level)) == len(paths):
            return level
    first = next((number for number, level in enumerate(levels) if len(set(level)) > 1), 0)
    for last in range(first + 1, deepest + 1):
        joined = ["_".join(filter(None, reversed(names[first:last]))) for names in parents]
        if len(set(joined)) == len(paths):
            return joined
    return ["" for _ in paths]


def _once(sources: list[SectionSource]) -> list[SectionSource]:
    """Each file once, whatever the ways it was named in; the first stands, and what a manifest says of it."""
    kept: dict[Path, SectionSource] = {}
    for source in sources:
        place = source.path.resolve()
        if place in kept:
            warnings.warn(f"section {source.path} is named twice; it is used once", stacklevel=3)
            said_nothing, says_nothing = (each == SectionSource(each.path) for each in (kept[place], source))
            if said_nothing and not says_nothing:
                kept[place] = source
        else:
            kept[place] = source
    return list(kept.values())


def _inside(path: Path) -> list[Path]:
    """The section that ``path`` is, or those in the folder that it is."""
    if not path.is_dir() or is_spaceranger(path) or bins_of(path):
        return [path]
    inside = _sections_in(path)
    if not inside:
        raise FileNotFoundError(f"{path}: no section in this folder (.h5ad, Space Ranger output, counts .tsv.gz)")
    return inside


def _sections_in(folder: Path) -> list[Path]:
    for place in (folder, folder / "h5ad", folder / "st"):
        if place.is_dir() and (files := [each for each in _visible(place) if each.suffix.lower() == ".h5ad"]):
            return files
    if several := outputs_in(folder):
        return [outputs.matrix for outputs in several]
    for place in (folder, folder / "counts"):
        if place.is_dir() and (tables := [each for each in _visible(place) if is_count_table(each)]):
            return tables
    return [each for each in _visible(folder) if each.is_dir() and (is_spaceranger(each) or bins_of(each))]


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, without dotfiles such as macOS's ``._NAME``."""
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
