"""Sections as a PyTorch dataset: the crops of each spot, or its features, and its expression, at every level."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from scipy import sparse
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from hyperst.data.crops import CropConfig, crop_widths, read_spot_crops
from hyperst.data.feature_rows import FeatureTable, in_memory
from hyperst.data.features import common_width, level_features
from hyperst.data.genes import align_genes, gene_columns
from hyperst.data.images import SlideImage
from hyperst.data.kept_crops import KeptCrops
from hyperst.data.niches import level_members, mean_counts
from hyperst.data.sections import Section
from hyperst.data.targets import TARGETS, Target, transform

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "SpotDataset", "block_ids", "collate", "normalise_image"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_OPEN_IMAGES = 4


class SpotDataset(Dataset):
    """One item per spot, over several sections.

    Args:
        sections: read with :func:`hyperst.data.read_section`.
        genes: names of the genes to predict; each must be in every section.
        crop: widths and side of the crops.
        target: scale of the expression, see :mod:`hyperst.data.targets`.
        augment: turn and mirror all crops of a spot by one random element of the square's symmetry group (torch's generator).
        feature_key: use precomputed image features instead of crops: ``KEY_spot`` and ``KEY_niche`` of obsm or of
            :func:`hyperst.data.attach_features`; if there is only ``KEY``, it is the spot's and the niche's is its mean over
            the niche's spots. Wider levels likewise.
        indices: (section, spot) pairs to keep, in this order; default all.
        cache_bytes: crops are read once and kept as uint8 if they fit into this much memory; else each item reads its own
            regions, which for JPEG and PNG means keeping whole decoded images (at most 4) in memory. Features likewise: those
            that do not fit are read from their file batch by batch.
        kept: crops that other datasets have read, which are used whatever ``cache_bytes``, and to which others are added.
        on_crops: called, while crops are read to be kept, with numbers of spots that add up to all.
        counts: False leaves the expression entries out (prediction; ``genes`` may be empty).
        raw_counts: True adds counts and library_size.

    Items are dicts:

    - spot_image, niche_image: float32 (3 s s), ImageNet-normalised; or, with ``feature_key``, spot_features (w,) and
      niche_features (w,) float32. The same for each level of ``crop.wider_um``.
    - spot_expression, niche_expression: float32 (gene,) on the target scale; the niche's is the transform of mean raw
      counts (and mean library size) over its present spots, a wider level's over the spots in its crop. target: the same as
      spot_expression.
    - counts: float32 (gene,), raw; library_size: float32 (), total count of the spot over all measured genes.
    - section, spot: int64, position in ``sections`` and in the section.
    - block_id: int64, shared by spots of the same block of 2 x 2 pitches of one section: false negatives of each other.

    Raises:
        ValueError: no sections or no spots, missing genes, an index out of range, crops that cannot be sized, or features that
            are missing, not finite or of several widths.
        FileNotFoundError: a section without image.
    """

    def __init__(
        self,
        sections: Sequence[Section],
        genes: Sequence[str] | np.ndarray,
        crop: CropConfig | None = None,
        target: Target = "log2",
        *,
        augment: bool = False,
        feature_key: str | None = None,
        indices: Sequence[tuple[int, int]] | np.ndarray | None = None,
        cache_bytes: int = 2 << 30,
        counts: bool = True,
        raw_counts: bool = False,
        kept: KeptCrops | None = None,
        on_crops: Callable[[int], None] | None = None,
    ) -> None:
        if not sections:
            raise ValueError("sections: got none, need at least one")
        if target not in TARGETS:
            raise ValueError(f"target: got {target!r}, need one of {', '.join(TARGETS)}")
        self.sections = list(sections)
        self.genes = np.asarray(genes, dtype=str)
        self.crop = CropConfig() if crop is None else crop
        self.target = target
        self.augment = augment
        self.feature_key = feature_key
        self.indices = _checked_indices(self.sections, indices)
        self._blocks = [block_ids(section, number) for number, section in enumerate(self.sections)]
        self._expression = [self._expressions(section) for section in self.sections] if counts else None
        self._raw = [self._raw_counts(section) for section in self.sections] if raw_counts else None
        self._features = None
        if feature_key is not None:
            self._features = _feature_tables(self.sections, feature_key, self.crop, cache_bytes)
        self._images: OrderedDict[int, SlideImage] = OrderedDict()
        self._cache: dict[int, np.ndarray] = {}  # of each section, where crops are kept
        if feature_key is None:
            self._widths = [crop_widths(section, self.crop) for section in self.sections]
            kept = KeptCrops() if kept is None else kept
            numbers = np.unique(self.indices[:, 0]).tolist()
            chosen = [
                (self.sections[number], self.crop, self.indices[self.indices[:, 0] == number, 1]) for number in numbers
            ]
            size = len(self.indices) * len(self.crop.levels) * 3 * self.crop.image_size**2
            if size <= cache_bytes or all(kept.holds(*each) for each in chosen):
                self._cache = {number: kept.read(*each, on_crops) for number, each in zip(numbers, chosen, strict=True)}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        if self._features is not None:
            return {name: values[0] for name, values in self._batch([item]).items()}
        number, spot = (int(value) for value in self.indices[item])
        out: dict[str, Tensor] = {
            "section": torch.tensor(number),
            "spot": torch.tensor(spot),
            "block_id": torch.tensor(int(self._blocks[number][spot])),
        }
        crops = self._cache[number][spot] if self._cache else self._read_one(number, spot)
        if self.augment:
            crops = _dihedral(crops, int(torch.randint(8, ())))
        for level, crop in zip(self.crop.levels, normalise_image(crops), strict=True):
            out[f"{level}_image"] = crop
        if self._expression is not None:
            for level, values in self._expression[number].items():
                out[f"{level}_expression"] = torch.from_numpy(values[spot])
            out["target"] = out["spot_expression"]
        if self._raw is not None:
            out |= {name: torch.as_tensor(values[spot]) for name, values in self._raw[number].items()}
        return out

    def __getitems__(self, items: list[int]) -> list[dict[str, Tensor]] | dict[str, Tensor]:
        """What a DataLoader asks for: one dict of the whole batch where there is nothing to decode, see :func:`collate`."""
        return [self[item] for item in items] if self._features is None else self._batch(items)

    def _batch(self, items: list[int]) -> dict[str, Tensor]:
        """Features and expression of several spots, each (item, ...)."""
        assert self._features is not None
        numbers, spots = self.indices[items].T
        tables: dict[str, list[Any]] = {
            "block_id": self._blocks,
            **{f"{level}_features": [of[level].read for of in self._features] for level in self.crop.levels},
        }
        if self._expression is not None:
            for level in self.crop.levels:
                tables[f"{level}_expression"] = [of[level] for of in self._expression]
        if self._raw is not None:
            tables |= {name: [of[name] for of in self._raw] for name in self._raw[0]}
        out = {"section": torch.from_numpy(numbers.copy()), "spot": torch.from_numpy(spots.copy())}
        order = np.argsort(numbers, kind="stable")
        places = np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)
        for name, of_sections in tables.items():
            parts = [_read(of_sections[numbers[place[0]]], spots[place]) for place in places]
            values = np.empty((len(items), *parts[0].shape[1:]), parts[0].dtype)
            values[order] = np.concatenate(parts)
            out[name] = torch.from_numpy(values)
        if self._expression is not None:
            out["target"] = out["spot_expression"]
        return out

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without open images: a DataLoader worker opens its own."""
        return {**self.__dict__, "_images": OrderedDict()}

    def _expressions(self, section: Section) -> dict[str, np.ndarray]:
        """Expression of each level on the target scale, float32 (spot gene)."""
        counts = sparse.csr_array(section.counts[:, gene_columns(section, self.genes)])
        found = {"spot": transform(align_genes(section, self.genes), section.library_size, self.target)}
        for level in self.crop.levels[1:]:
            members = level_members(section, level, self.crop)
            mean = mean_counts(members, counts)
            mean_library = (members @ section.library_size) / np.diff(members.indptr)
            found[level] = transform(mean.toarray(), mean_library.astype(np.float32), self.target)
        return found

    def _raw_counts(self, section: Section) -> dict[str, np.ndarray]:
        library_size = np.asarray(section.library_size, dtype=np.float32)
        return {"counts": align_genes(section, self.genes), "library_size": library_size}

    def _read_one(self, number: int, spot: int) -> np.ndarray:
        section = self.sections[number]
        if number not in self._images:
            while len(self._images) >= _OPEN_IMAGES:
                self._images.popitem(last=False)[1].close()
            self._images[number] = section.open_image()
        self._images.move_to_end(number)
        return read_spot_crops(self._images[number], section.spot_px[spot], self._widths[number], self.crop.image_size)


def normalise_image(image: np.ndarray) -> Tensor:
    """uint8 (... h w 3) to float32 (... 3 h w) with ImageNet mean and standard deviation."""
    pixels = rearrange(torch.from_numpy(np.array(image, copy=True)), "... h w rgb -> ... rgb h w").float() / 255
    mean, std = (rearrange(torch.tensor(values), "rgb -> rgb 1 1") for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std


def block_ids(section: Section, number: int, pitches: int = 2) -> np.ndarray:
    """int64 (spot,): spots in the same square block of ``pitches`` x ``pitches`` of section ``number`` share a value."""
    pitch = section.grid.pitch_px
    if pitch is None:
        return (np.int64(number) << 40) + np.arange(section.n_spots, dtype=np.int64)
    from_corner = section.spot_px - section.spot_px.min(axis=0)
    block = np.floor((from_corner / pitch + 0.5) / pitches).astype(np.int64)
    return (np.int64(number) << 40) + (block[:, 1] << 20) + block[:, 0]


def collate(items: list[dict[str, Tensor]] | dict[str, Tensor]) -> dict[str, Tensor]:
    """What a DataLoader makes of the items of a :class:`SpotDataset`: each entry (item, ...)."""
    return items if isinstance(items, dict) else default_collate(items)


def _dihedral(crops: np.ndarray, element: int) -> np.ndarray:
    """Element 0..7 of the square's symmetry group applied to (level s s 3): quarter turns, then a mirror."""
    turned = np.rot90(crops, element % 4, axes=(1, 2))
    return turned[:, :, ::-1] if element >= 4 else turned


def _checked_indices(sections: list[Section], indices: Sequence[tuple[int, int]] | np.ndarray | None) -> np.ndarray:
    if indices is None:
        every = [np.arange(section.n_spots) for section in sections]
        pairs = np.concatenate(
            [np.stack([np.full_like(spots, number), spots], 1) for number, spots in enumerate(every)]
        )
    else:
        pairs = np.array([(int(number), int(spot)) for number, spot in indices], dtype=np.int64)
    if not len(pairs):
        raise ValueError("indices: no spots are left; need at least one (section, spot) pair")
    for number, spot in () if indices is None else pairs:
        if not (0 <= number < len(sections) and 0 <= spot < sections[number].n_spots):
            raise ValueError(f"indices: ({number}, {spot}) is not a (section, spot) of the {len(sections)} sections")
    return pairs


def _feature_tables(
    sections: list[Section], key: str, crop: CropConfig, cache_bytes: int
) -> list[dict[str, FeatureTable]]:
    """Features of each section at each level, all of one width; in memory if all of them fit into ``cache_bytes``."""
    tables = [level_features(section, key, crop) for section in sections]
    common_width(sections, tables)
    size = sum(4 * table.shape[0] * table.shape[1] for levels in tables for table in levels.values())
    if size > cache_bytes:
        return tables
    return [{level: in_memory(table) for level, table in levels.items()} for levels in tables]


def _read(table: Any, spots: np.ndarray) -> np.ndarray:
    return table(spots) if callable(table) else table[spots]
