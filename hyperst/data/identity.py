"""Whether two sections are one, whatever their files are called: compared by counts, positions and image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from hyperst.data.sections import Section

__all__ = ["Fingerprint", "check_distinct", "fingerprint", "same_section", "sampled_hash"]

_KEPT = 64
_FEWEST_GENES = 5  # spots with fewer expressed genes are alike by chance
_SHARED = 0.05  # of the spots of the smaller section: above it two sections share spots
_SHARED_GENES, _FEWEST_SHARED = 0.5, 8  # of the genes that are compared; two sections share none of them by chance
_TELLING_SPOTS, _TELLING_COUNT = 20, 8  # a gene is compared if so many spots have it, one of them so often
_SAMPLE = 1 << 20  # bytes at each of three places of an image


@dataclass(frozen=True)
class Fingerprint:
    """A sample of a section's spots that is the same wherever the section is copied or renamed, or loses spots.

    Of a copy without some of the genes the image and the positions on it are the same, or the counts of the genes that are left:
    where spots are left out too and the image is another one, nothing here tells the two apart from two sections.

    Attributes:
        counts: the 64 smallest hashes (hexadecimal) of the spots' genes and counts; two sections of which one holds spots of
            the other share those of the shared spots.
        positions: the same of the spots' positions, rounded to pixels.
        image: hash of the image's size and of three pieces of its file, None without an image.
        genes: the 64 smallest hashes of how often each count occurs in a gene, whatever it is called, of genes with many
            different counts; empty in runs of earlier versions.
    """

    counts: tuple[str, ...]
    positions: tuple[str, ...]
    image: str | None
    genes: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Fingerprint:
        """The fingerprint that ``dataclasses.asdict`` and JSON have made plain."""
        return cls(tuple(stored["counts"]), tuple(stored["positions"]), stored["image"], tuple(stored.get("genes", ())))


def fingerprint(section: Section) -> Fingerprint:
    """Fingerprint of a section as it was read.

    >>> import tempfile
    >>> from hyperst.data import read_section
    >>> from hyperst.synthetic import write_tissue
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = write_tissue(folder, seed=0, n_rows=5, n_cols=5)
    ...     same_section(fingerprint(read_section(path)), fingerprint(read_section(path, name="another")))
    True
    """
    x, y = np.rint(section.spot_px).astype(np.int64).astype(np.uint64).T
    image = None if section.image_path is None else sampled_hash(Path(section.image_path))
    positions = _smallest(_mix(_mix(x) + y))
    return Fingerprint(_smallest(_count_hashes(section)), positions, image, _smallest(_gene_hashes(section)))


def same_section(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two sections share over 5 % of their spots, by counts or positions on one image, or half of their genes' counts."""
    if _share(one.counts, other.counts) or _share(one.genes, other.genes, _SHARED_GENES, _FEWEST_SHARED):
        return True
    return one.image is not None and one.image == other.image and _share(one.positions, other.positions)


def check_distinct(sections: Sequence[Section]) -> None:
    """Raise where two sections are one tissue: a copy under another name, or two binnings of one place on one image.

    Raises:
        ValueError: the message names both files.
    """
    prints = [fingerprint(section) for section in sections]
    for number, one in enumerate(sections):
        for other, print_of_other in zip(sections[:number], prints[:number], strict=True):
            if same_section(prints[number], print_of_other):
                raise ValueError(
                    f"sections {other.name} ({other.path}) and {one.name} ({one.path}) hold the same spots: one is a copy of "
                    "the other, and would stand on both sides of a split or count twice; leave one out"
                )
            if (
                prints[number].image is not None
                and prints[number].image == print_of_other.image
                and _overlap(one, other)
            ):
                raise ValueError(
                    f"sections {other.name} ({other.path}) and {one.name} ({one.path}) lie on the same place of image "
                    f"{one.image_path}: either they are one tissue (two binnings of it), or one has another image. Leave "
                    "one out, or name each one's image in a manifest"
                )


def _count_hashes(section: Section) -> np.ndarray:
    """One uint64 per spot with enough expressed genes: a sum over its (gene, count) pairs, whatever the genes' order."""
    counts = section.counts
    genes = np.asarray([_text_hash(str(gene)) for gene in section.genes], dtype=np.uint64)
    pairs = _mix(genes[counts.indices] + counts.data.astype(np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(pairs, dtype=np.uint64)])
    return (sums[counts.indptr[1:]] - sums[counts.indptr[:-1]])[np.diff(counts.indptr) >= _FEWEST_GENES]


def _gene_hashes(section: Section) -> np.ndarray:
    """One uint64 per telling gene: a sum over its counts, whatever the spots' order and the gene's name."""
    counts = section.counts.tocsc()
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mix(counts.data.astype(np.uint64)), dtype=np.uint64)])
    spots = np.diff(counts.indptr)
    columns = np.flatnonzero(spots >= _TELLING_SPOTS)
    if not len(columns):
        return np.empty(0, np.uint64)
    largest = np.asarray(counts.max(axis=0).todense()).ravel()[columns]
    columns = columns[largest >= _TELLING_COUNT]
    return sums[counts.indptr[columns + 1]] - sums[counts.indptr[columns]]


def _text_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def sampled_hash(path: Path) -> str:
    """Hash of a file's size and of three pieces of it, as hexadecimal digits: of a slide of gigabytes in no time."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        for start in (0, max(0, size // 2), max(0, size - _SAMPLE)):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: neighbouring numbers become unrelated ones."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _smallest(hashes: np.ndarray) -> tuple[str, ...]:
    return tuple(f"{int(value):016x}" for value in np.unique(hashes)[:_KEPT])


def _share(one: Sequence[str], other: Sequence[str], share: float = _SHARED, least: int = 2) -> bool:
    """Whether over ``share`` of what is sampled of the smaller section is in the other, estimated where both samples reach."""
    reach = min((sample[-1] for sample in (one, other) if len(sample) == _KEPT), default="~")
    a, b = ({value for value in sample if value <= reach} for sample in (one, other))
    common, fewest = len(a & b), min(len(a), len(b))
    return common >= min(least, fewest) and common > share * fewest


def _overlap(one: Section, other: Section) -> bool:
    """Whether over 5 % of the spots of the smaller section lie within half a pitch of a spot of the other."""
    small, large = sorted((one, other), key=lambda section: section.n_spots)
    pitch = max(section.grid.pitch_px or 0.0 for section in (one, other))
    distance, _ = cKDTree(large.spot_px).query(small.spot_px)
    return bool((distance <= pitch / 2).mean() > _SHARED)
