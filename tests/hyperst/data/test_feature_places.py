"""Patches that lie elsewhere than the spots: another slide's, exchanged or scaled coordinates."""

from __future__ import annotations

import warnings
from dataclasses import replace

import h5py
import numpy as np
import pytest

from hyperst.data import attach_features


def write(path, corners, side, barcodes=None, **attributes):
    with h5py.File(path, "w") as file:
        file["features"] = np.arange(2 * len(corners), dtype=np.float32).reshape(-1, 2)
        file["coords"] = corners
        file["coords"].attrs.update({"patch_size_level0": side, **attributes})
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


def size_of(section):
    with section.open_image() as image:
        return image.width, image.height


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("exchanged", [True, False])
def test_a_slide_of_another_size_is_another_slide(exchanged, named, section, tmp_path):
    """Wherever its patches lie, and whatever they are called; positions that fit when exchanged may be another grid's."""
    corners, barcodes = section.spot_px - 20.0, section.spot_ids if named else None
    width, height = size_of(section)
    right = write(tmp_path / "f.h5", corners, 40, barcodes, level0_width=width, level0_height=height, name="S1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attach_features(section, right).n_spots == section.n_spots
    corners = corners[:, ::-1] if exchanged else corners
    wrong = write(tmp_path / "g.h5", corners, 40, barcodes, level0_width=width + 7, level0_height=height, name="C3")
    with pytest.raises(
        ValueError,
        match=rf"g\.h5: it is of a slide, C3, of {width + 7} x {height} px, and the image of section S1 has {width} x {height} px "
        r"\(.*S1\.png\). Give the file of this section",
    ):
        attach_features(section, wrong)
    without = replace(section, image_path=None)  # whose size nobody knows
    assert attach_features(without, right).n_spots == section.n_spots


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("change", "size", "words"),
    [
        (lambda corners: corners / 4, lambda size: (size[0] // 4, size[1] // 4), "Multiplying coords by 4"),
        (lambda corners: corners[:, ::-1], lambda size: size[::-1], "Exchanging x and y in coords"),
    ],
)
def test_a_coarser_or_turned_slide_is_said_to_be_one(named, change, size, words, section, tmp_path):
    width, height = size(size_of(section))
    corners, barcodes = change(section.spot_px - 20.0), section.spot_ids if named else None
    path = write(tmp_path / "f.h5", corners, 40, barcodes, level0_width=width, level0_height=height)
    with pytest.raises(
        ValueError,
        match=rf"of a slide of {width} x {height} px, and the image of section S1 has .* {words} .*would put 100 %",
    ):
        attach_features(section, path)


@pytest.mark.parametrize("name", ["S1", "slide S1", None])
def test_other_barcodes_of_another_slide_are_an_error(name, section, tmp_path):
    barcodes = [f"x{number}" for number in range(section.n_spots)]
    path = write(tmp_path / "f.h5", section.spot_px - 20.0, 40, barcodes, **({} if name is None else {"name": name}))
    if name == "slide S1":
        with pytest.raises(
            ValueError,
            match=r"f\.h5: it says that it is of slide S1, not of section S1, and no barcode is a spot .*x0, not S1_0x0",
        ):
            attach_features(section, path)
        # TRIDENT's name is the image's
        section = replace(section, name="renamed", image_path=tmp_path / "slide S1.png")
    with pytest.warns(UserWarning, match="no barcode is a spot of section .*found by their position"):
        assert attach_features(section, path).n_spots == section.n_spots


def test_patches_on_fewer_than_half_of_the_spots_are_an_error(section, tmp_path):
    corners = section.spot_px - 20.0
    for number, share in ((40, 49), (10, 12)):
        path = write(tmp_path / f"{number}.h5", corners[:number], 40)
        with pytest.raises(
            ValueError,
            match=rf"{number}\.h5: only {share} % of the spots of section S1 lie in a patch. At least half must",
        ):
            attach_features(section, path)
    with pytest.warns(UserWarning, match="40 of 81 spots have no features"):
        assert attach_features(section, write(tmp_path / "f.h5", corners[:41], 40)).n_spots == 41


def test_a_file_that_has_another_name_is_told(section, tmp_path):
    path = write(tmp_path / "f.h5", section.spot_px - 20.0, 40, section.spot_ids, name="C3")
    with pytest.warns(UserWarning, match=r"f\.h5: it says that it is of C3, not of section S1, whose barcodes it has"):
        assert attach_features(section, path).n_spots == section.n_spots
