"""Crops that several datasets share are read once, and are those that each would read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hyperst.data import CropConfig, SpotDataset
from hyperst.data.kept_crops import KeptCrops

CROP = CropConfig(image_size=16)


def test_what_one_dataset_has_read_another_reads_no_more(sections, crops_read):
    kept, told = KeptCrops(), []
    indices = [[(0, 3), (1, 0), (0, 1)], [(1, 5), (0, 3), (0, 2), (1, 0)]]
    for chosen in indices:
        shared = SpotDataset(sections[:2], (), CROP, indices=chosen, counts=False, kept=kept, on_crops=told.append)
        alone = SpotDataset(sections[:2], (), CROP, indices=chosen, counts=False, cache_bytes=0)
        for item, expected in zip(shared, alone, strict=True):
            for name, value in expected.items():
                assert torch.equal(item[name], value)
    names = [section.name for section in sections]
    assert sorted(crops_read) == sorted((names[number], spot) for number, spot in {*indices[0], *indices[1]})
    assert sum(told) == len(indices[0]) + len(indices[1])


def test_crops_of_other_widths_places_or_sizes_are_others(sections, crops_read):
    kept, section = KeptCrops(), sections[0]
    moved = replace(section, spot_px=section.spot_px + 2.0)
    wide = replace(CROP, niche_um=300.0)
    small = replace(CROP, image_size=8)
    for each, crop in ((section, CROP), (moved, CROP), (section, wide), (section, small)):
        crops = kept.read(each, crop, np.array([4]))
        assert crops.shape == (section.n_spots, 2, crop.image_size, crop.image_size, 3)
        expected = SpotDataset([each], (), crop, indices=[(0, 4)], counts=False, cache_bytes=0)
        shared = SpotDataset([each], (), crop, indices=[(0, 4)], counts=False, kept=kept)
        assert torch.equal(shared[0]["niche_image"], expected[0]["niche_image"])
    assert crops_read == [(section.name, 4)] * 4
