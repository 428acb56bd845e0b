"""Random staining changes what a stain changes, and nothing else."""

from __future__ import annotations

import pytest
import torch

from hyperst.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from hyperst.train.augmentation import jitter_stain

MEAN, STD = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))


def density(image):
    return -torch.log(image * STD + MEAN)


def test_densities_change_by_one_gain_and_shift_per_channel_alike_in_all_crops_of_a_spot():
    torch.manual_seed(0)
    images = [(0.2 + 0.3 * torch.rand(5, 3, size, size) - MEAN) / STD for size in (8, 4)]
    before = torch.cat([density(image).flatten(2) for image in images], 2)
    after = torch.cat([density(image).flatten(2) for image in jitter_stain(images, 0.2)], 2)
    low, high = before.argmin(2, keepdim=True), before.argmax(2, keepdim=True)
    rise, run = (x.gather(2, high) - x.gather(2, low) for x in (after, before))
    gain = rise / run
    shift = after.gather(2, low) - gain * before.gather(2, low)
    assert torch.allclose(after, gain * before + shift, atol=1e-5)
    assert (abs(gain - 1) <= 0.2 + 1e-5).all()
    assert (abs(shift) <= 0.1 + 1e-5).all()
    assert len(gain.unique()) == 15  # every spot and channel its own


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_stay_colours(value):
    torch.manual_seed(0)
    (changed,) = jitter_stain([((value - MEAN) / STD).expand(20, 3, 2, 2)], 1.0)
    colours = changed * STD + MEAN
    assert (colours > -1e-6).all()
    assert (colours < 1 + 1e-6).all()


def test_no_strength_changes_nothing():
    image = torch.randn(1, 3, 2, 2)
    assert jitter_stain([image], 0.0)[0] is image
