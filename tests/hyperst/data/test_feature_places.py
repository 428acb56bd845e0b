"""Patches that lie elsewhere than the spots: another section's with the same barcodes, exchanged or scaled coordinates."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest

from hyperst.data import attach_features


def write(path, corners, side, barcodes=None):
    with h5py.File(path, "w") as file:
        file["features"] = np.arange(2 * len(corners), dtype=np.float32).reshape(-1, 2)
        file["coords"] = corners
        file["coords"].attrs["patch_size_level0"] = side
        if barcodes is not None:
            file["barcode"] = [str(barcode) for barcode in barcodes]
    return path


@pytest.fixture
def section(sections):
    """On a wide part of the image: exchanged positions are others."""
    return replace(sections[0], spot_px=sections[0].spot_px + np.array([400.0, 0.0]))


def tiles(section, side=40):
    """A slide cut into patches wherever there is tissue, corners (patch 2)."""
    low, high = section.spot_px.min(axis=0), section.spot_px.max(axis=0)
    x, y = (np.arange(low[axis] - 2 * side, high[axis] + 2 * side, side) for axis in (0, 1))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


EXCHANGED, COARSER = (
    "Exchanging x and y in coords would put",
    r"Multiplying coords by 4 \(they are in pixels of a coarser resolution\) would put",
)


@pytest.mark.parametrize(("change", "words"), [(lambda c: c[:, ::-1], EXCHANGED), (lambda c: c / 4, COARSER)])
@pytest.mark.parametrize("place", ["tiles", "spots"])
def test_coordinates_that_fit_after_a_change_are_an_error(change, words, place, section, tmp_path):
    corners = tiles(section) if place == "tiles" else section.spot_px - 20.0
    right = attach_features(section, write(tmp_path / "right.h5", corners, 40))
    assert right.n_spots == section.n_spots
    path = write(tmp_path / "wrong.h5", change(corners), 40)
    with pytest.raises(
        ValueError, match=rf"wrong\.h5: only \d+ % of the spots of section S1 lie in a patch. {words} 100 %"
    ):
        attach_features(section, path)


def test_some_spots_without_a_patch_are_no_exchange(section, tmp_path):
    corners = tiles(section)
    corners = corners[corners[:, 0] < np.quantile(section.spot_px[:, 0], 0.6)]
    with pytest.warns(UserWarning, match="have no features"):
        found = attach_features(section, write(tmp_path / "half.h5", corners, 40))
    assert 0.5 * section.n_spots < found.n_spots < section.n_spots


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda corners: corners + np.array([900, -300]), "It is the file of another section"),
        (lambda corners: corners[:, ::-1], "Exchanging x and y"),
        (lambda corners: corners / 8, "Multiplying coords by 8"),
    ],
)
def test_barcodes_are_the_same_on_every_slide(change, words, section, tmp_path):
    """Visium's barcodes say nothing of the section: the patches must lie on its spots."""
    corners = section.spot_px - 20.0
    path = write(tmp_path / "f.h5", change(corners), 40, section.spot_ids)
    with pytest.raises(
        ValueError, match=rf"f\.h5: its patches with the barcodes of section S1 lie \d+ px away .* {words}"
    ):
        attach_features(section, path)
    right = write(tmp_path / "g.h5", corners, 40, section.spot_ids)
    np.testing.assert_array_equal(
        attach_features(section, right).load_features("file")[:, 0], 2 * np.arange(section.n_spots)
    )
