"""Where the files of a Space Ranger output are: a folder as Space Ranger leaves it, flat as GEO keeps it, or Visium HD's bins."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "POSITIONS",
    "OutputFiles",
    "bins_of",
    "choose_bin",
    "is_matrix_file",
    "is_spaceranger",
    "outputs_in",
    "sample_folder",
    "spaceranger_name",
]

POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
_FILTERED, _CELLS, _RAW = "filtered_feature_bc_matrix", "filtered_feature_cell_matrix", "raw_feature_bc_matrix"
_MTX = ("matrix.mtx", "matrix.mtx.gz")
_BIN = re.compile(r"square_(\d+)um")
_BIN_PARENT, SEGMENTED = "binned_outputs", "segmented_outputs"


@dataclass(frozen=True)
class OutputFiles:
    """The files of one section.

    Attributes:
        root: folder that holds the matrix.
        matrix: HDF5 file, ``matrix.mtx(.gz)``, or the folder that holds the latter.
        prefix: what the names of its files begin with, as on GEO: "GSM123_A1_"; "" in a folder as Space Ranger leaves it.
        raw: whether the matrix is that of all barcodes, also beside the tissue.
        cells: whether the matrix is of segmented cells instead of spots.
    """

    root: Path
    matrix: Path
    prefix: str = ""
    raw: bool = False
    cells: bool = False

    def find(self, names: tuple[str, ...]) -> Path | None:
        """The first of ``names`` in ``spatial`` or beside the matrix, with or without prefix and ``.gz``."""
        for folder in (self.root / "spatial", self.root / f"{self.prefix}spatial", self.root):
            for name in names:
                for file in (folder / f"{self.prefix}{name}", folder / name):
                    for found in (file, file.with_name(f"{file.name}.gz")):
                        if found.is_file():
                            return found
        return None

    @property
    def sample(self) -> str:
        """The prefix without what joins it to the file's name."""
        return self.prefix.rstrip("_.- ")


def is_spaceranger(folder: Path) -> bool:
    """Whether ``folder`` (or its ``outs``) holds the output of Space Ranger for one section."""
    return len(outputs_in(folder)) == 1


def is_matrix_file(path: Path) -> bool:
    """Whether a file is the matrix of a section among others in one folder."""
    return path.is_file() and _as_matrix(path) is not None


def outputs_in(path: Path) -> list[OutputFiles]:
    """Every section of a folder (or of its ``outs``), or the one whose matrix is ``path``; filtered before raw matrices."""
    if path.is_file():
        found = _as_matrix(path)
        return [] if found is None else [found]
    for folder in (path, path / "outs"):
        if not folder.is_dir():
            continue
        kept: dict[str, OutputFiles] = {}
        places = [found for entry in sorted(folder.iterdir()) if (found := _as_matrix(entry)) is not None]
        for place in sorted(places, key=lambda place: (place.raw, len(place.matrix.name))):
            if place.cells or place.find(POSITIONS) is not None or (folder / "spatial").is_dir():
                kept.setdefault(place.prefix, place)
        if kept:  # a matrix without a prefix is that of the folder, whatever else lies beside it
            return [kept[""]] if "" in kept else list(kept.values())
    return []


def _as_matrix(path: Path) -> OutputFiles | None:
    """The files of the section whose matrix is ``path``, or None where it is no matrix."""
    if path.name.startswith("."):
        return None
    name = path.name
    for kind in (_FILTERED, _CELLS, _RAW):
        if name.endswith(f"{kind}.h5") and path.is_file():
            return OutputFiles(path.parent, path, name[: -len(f"{kind}.h5")], kind == _RAW, kind == _CELLS)
        if name.endswith(kind) and path.is_dir() and any((path / mtx).is_file() for mtx in _MTX):
            return OutputFiles(path.parent, path, name[: -len(kind)], kind == _RAW, kind == _CELLS)
    for mtx in _MTX:
        if name.endswith(mtx) and path.is_file():
            prefix = name[: -len(mtx)]
            if path.parent.name.endswith((_FILTERED, _CELLS, _RAW)) and not prefix:
                return _as_matrix(path.parent)
            return OutputFiles(path.parent, path, prefix)
    return None


def bins_of(folder: Path) -> dict[str, Path]:
    """Visium HD's binnings (and segmented cells) of one tissue under ``folder``, by name; {} where it is none."""
    found: dict[str, Path] = {}
    for parent in (folder, folder / _BIN_PARENT, folder / "outs" / _BIN_PARENT):
        if parent.is_dir() and not found:
            found = {p.name: p for p in sorted(parent.iterdir()) if _BIN.fullmatch(p.name) and is_spaceranger(p)}
    for parent in (folder, folder / "outs"):
        if found and (cells := parent / SEGMENTED).is_dir() and is_spaceranger(cells):
            found[SEGMENTED] = cells
    return found


def choose_bin(folder: Path, bin_um: int | None) -> Path:
    """One binning of a Visium HD tissue.

    Raises:
        ValueError: several and none chosen, or none of the chosen size; they are one tissue and must not be several sections.
    """
    found = bins_of(folder)
    chosen = found.get(f"square_{bin_um:03d}um") if bin_um is not None else None
    if bin_um is None and len(found) == 1:
        chosen = next(iter(found.values()))
    if chosen is None:
        sizes = [str(int(match.group(1))) for name in found if (match := _BIN.fullmatch(name))]
        wanted = "" if bin_um is None else f" and none of {bin_um} um"
        raise ValueError(
            f"{folder} holds one tissue in {len(found)} binnings ({', '.join(found)}){wanted}; choose one: --bin-um "
            f"{' or '.join(sizes)}, or give the path of its folder"
        )
    return chosen


def spaceranger_name(path: Path) -> str:
    """Name of the section: the sample's folder, with the bin size for Visium HD; of a matrix file its prefix."""
    outputs = outputs_in(path)
    if path.is_file() and outputs and outputs[0].sample:
        return outputs[0].sample
    root = (outputs[0].root if outputs else path).resolve()
    sample = sample_folder(root)
    return sample.name if root.name == "outs" or root == sample else f"{sample.name}_{root.name}"


def sample_folder(root: Path) -> Path:
    """The folder of the sample above the folders that Space Ranger makes: outs, binned_outputs, square_016um ..."""
    sample = root
    while sample.name in {"outs", _BIN_PARENT, SEGMENTED} or _BIN.fullmatch(sample.name):
        sample = sample.parent
    return sample
