"""um/px: one rule for every source, every unit read right, and contradictions told."""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings

import anndata
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hyperst.data import SectionSource, check_section, image_section, open_image, read_section
from hyperst.data.images.scale import (
    PLAUSIBLE_UM_PER_PX,
    RecordedScale,
    check_mpp,
    recorded_scale,
    scale_conflict,
    um_per_unit,
)
from hyperst.synthetic import write_tissue

LOW, HIGH = PLAUSIBLE_UM_PER_PX
IMPLAUSIBLE = [0, -1, math.nan, math.inf, 1.4e-6, 0.049, 20.1, 1400]
RULE = r"um per pixel; the pixels of a histology image measure 0\.05 to 20 um"


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    """A section of 1.4 um/px without a known spacing of its spots."""
    return write_tissue(tmp_path_factory.mktemp("tissue"), seed=0, name="S", n_rows=4, n_cols=4)


def changed(tissue, folder, change):
    """A copy of the section and its image, with ``change`` made to the section."""
    (folder / "images").mkdir()
    shutil.copy(tissue.parent / "images" / "S.png", folder / "images" / "S.png")
    adata = anndata.read_h5ad(tissue)
    change(adata.uns["spatial"]["S"])
    adata.write_h5ad(folder / "S.h5ad")
    return folder / "S.h5ad"


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_the_rule(value):
    if LOW <= value <= HIGH:
        assert check_mpp(value, "a") == value
        assert recorded_scale(value, value, "b") == RecordedScale(value, "b")
    else:
        with pytest.raises(ValueError, match=RULE):
            check_mpp(value, "a")
        recorded = recorded_scale(value, value, "b")
        assert recorded.mpp is None
        assert recorded.problem


@pytest.mark.parametrize(("value", "unit"), [(1.4e-6, "m"), (0.0014, "mm"), (1400, "nm")])
def test_a_value_in_another_unit_is_recognised(value, unit):
    with pytest.raises(ValueError, match=rf"Is it in {unit}\? Then it is 1\.4 um"):
        check_mpp(value, "--mpp")


UNITS = {"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25_400.0, "inch": 25_400.0, "Inch": 25_400.0}
UNITS |= dict.fromkeys(
    ["\u00b5m", "\u03bcm", "um", "micron", "Micron", "\\u00B5m"], 1.0
)  # both signs, and ImageJ's spelling


@given(st.floats(LOW * 1.001, HIGH * 0.999), st.sampled_from(sorted(UNITS)))
def test_a_length_is_the_same_in_every_unit(um, unit):
    assert um_per_unit(unit) == UNITS[unit]
    assert recorded_scale(um / UNITS[unit] * um_per_unit(unit), um, "x").mpp == pytest.approx(um)


@pytest.mark.parametrize("unit", ["pixel", "reference frame", "", "px", "parsec"])
def test_what_is_no_length_is_none(unit):
    assert um_per_unit(unit) is None


@pytest.mark.parametrize("value", IMPLAUSIBLE)
def test_um_per_px_as_given(value, tissue):
    image = tissue.parent / "images" / "S.png"
    with pytest.raises(ValueError, match=RULE):
        read_section(tissue, mpp=value)
    with pytest.raises(ValueError, match=RULE):
        image_section(image, np.array([[50.0, 50.0], [90.0, 50.0]]), mpp=value)
    (finding,) = check_section(tissue, mpp=value)
    assert finding.level == "error"
    assert "0.05 to 20 um" in finding.message


@pytest.mark.parametrize("value", [value for value in IMPLAUSIBLE if math.isfinite(value)])
@pytest.mark.parametrize("place", ["metadata mpp", "scalefactors microns_per_pixel"])
def test_um_per_px_of_the_section_file(place, value, tissue, tmp_path):
    def change(library):
        part, key = place.split()
        library["metadata"].pop("mpp")
        library[part][key] = float(value)

    path = changed(tissue, tmp_path, change)
    with pytest.raises(ValueError, match=rf"S\.h5ad: .*{place.split()[1]} (says|is) .*{RULE}.*--mpp"):
        read_section(path)
    assert read_section(path, mpp=1.4).grid.um_per_px == 1.4  # what the message asks for


def test_um_per_px_that_the_section_file_leaves_open(tissue, tmp_path):
    path = changed(tissue, tmp_path, lambda library: library["metadata"].update(mpp=math.nan))
    assert read_section(path).grid.um_per_px is None


def test_um_per_px_of_space_ranger(real_data, tmp_path):
    folder = tmp_path / "outs"
    shutil.copytree(real_data / "fixtures" / "spaceranger_v1", folder, copy_function=shutil.copyfile)
    for each in (folder, *folder.rglob("*")):
        each.chmod(0o755)
    (file,) = folder.rglob("scalefactors_json.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"microns_per_pixel": 1400}))
    with pytest.raises(ValueError, match=rf"microns_per_pixel says 1400 {RULE}"):
        read_section(folder, require_image=False)


def test_um_per_px_of_the_spot_grid(tissue, tmp_path):
    """A spacing of 5 mm on an image is a mistake in the spacing, or of the positions."""

    def change(library):
        library["metadata"].pop("mpp")
        library["metadata"]["spot_pitch_um"] = 5000.0

    with pytest.raises(ValueError, match=rf"the spot grid \(pitch 71\.4\d? px for 5000 um\) says 70 {RULE}"):
        read_section(changed(tissue, tmp_path, change))


def with_recorded(tissue, folder, um_per_px, change=lambda library: None):
    """The section with its image as a TIFF that records ``um_per_px``."""
    path = changed(tissue, folder, change)
    pixels = np.asarray(Image.open(folder / "images" / "S.png"))
    per_cm = 10_000 / um_per_px
    tifffile.imwrite(
        folder / "S.tif", pixels, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", photometric="rgb"
    )
    return path, folder / "S.tif"


def test_an_image_that_contradicts_what_is_used_is_told(tissue, tmp_path):
    path, image = with_recorded(tissue, tmp_path, 0.5)
    told = r"S\.tif: its resolution tags say 0\.5 um/px, but 1\.4 um/px are used"
    with pytest.warns(UserWarning, match=told):
        assert read_section(path, image=image).grid.um_per_px == 1.4
    spots = np.array([[50.0, 50.0], [90.0, 50.0]])
    with pytest.warns(UserWarning, match=told):
        assert image_section(image, spots, mpp=1.4).grid.um_per_px == 1.4
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of this library
        assert image_section(image, spots).grid.um_per_px == pytest.approx(0.5)
        assert image_section(image, spots, mpp=0.54).grid.um_per_px == 0.54  # 8 % apart is the accuracy of such values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        findings = check_section(path, image=image)
    (conflict,) = [finding for finding in findings if "0.5 um/px, but 1.4" in finding.message]
    assert conflict.level == "warning"
    assert conflict.remedy


def test_screen_resolution_is_ignored_and_told_where_nothing_else_is_known(tissue, tmp_path):
    path, image = with_recorded(tissue, tmp_path, 25_400 / 72, lambda library: library["metadata"].pop("mpp"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of this library
        assert read_section(path, image=image).grid.um_per_px is None
        assert read_section(path, image=image, mpp=1.4).grid.um_per_px == 1.4
    told = "um/px is not recorded (its resolution tags say 352.8 um/px, which no histology image has)"
    assert told in [finding.message for finding in check_section(path, image=image)]
    assert told not in [finding.message for finding in check_section(path, image=image, mpp=1.4)]
    with open_image(image) as opened:
        assert scale_conflict(1.4, opened.scale, image) == ""


@pytest.mark.parametrize("value", [0.7, 1.35, 1.45])
def test_a_given_scale_that_is_not_the_files_is_told_with_both(tissue, value):
    told = f"metadata mpp says 1.4 um/px, but mpp (--mpp, or a manifest) says {value:g}, which is used"
    with pytest.warns(UserWarning, match=re.escape(told)):
        assert read_section(tissue, mpp=value).grid.um_per_px == value
    with pytest.warns(UserWarning, match=re.escape(told)):  # the column mpp of a manifest
        SectionSource(tissue, mpp=value).read()
    (warning,) = [finding for finding in check_section(tissue, mpp=value) if told in finding.message]
    assert warning.level == "warning"


def test_a_given_scale_that_is_the_files_says_nothing(tissue):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_section(tissue, mpp=1.41).grid.um_per_px == 1.41


@pytest.mark.parametrize("text", ["1,4", "1.4 um"])
def test_um_per_px_as_text_is_told(text, tissue, tmp_path):
    path = changed(tissue, tmp_path, lambda library: library["metadata"].update(mpp=text))
    with pytest.warns(
        UserWarning, match=rf"S\.h5ad: .* metadata mpp is '{text}', which is no number, so it is not used"
    ):
        assert read_section(path).grid.um_per_px is None


@pytest.mark.parametrize(("text", "um_per_px"), [("1.4", 1.4), ("unknown", None), ("", None)])
def test_um_per_px_as_text_that_says_a_number_or_nothing(text, um_per_px, tissue, tmp_path):
    path = changed(tissue, tmp_path, lambda library: library["metadata"].update(mpp=text))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert read_section(path).grid.um_per_px == um_per_px
