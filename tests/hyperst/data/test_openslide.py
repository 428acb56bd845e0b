"""Scanner formats through openslide: an Aperio and a DICOM slide made here, damaged ones, and what is said where it cannot."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from einops import rearrange

from hyperst.data import open_image
from hyperst.data.images import DamagedTiles
from tests.hyperst.data import image_formats as formats
from tests.hyperst.data.test_damaged_images import CORRUPT, TILE, WHERE, corrupt


def write_svs(path: Path) -> Path:
    """A slide that openslide takes for Aperio's."""
    description = (
        f"Aperio Image Library v1\r\n{formats.WIDTH}x{formats.HEIGHT} (96x96) JPEG/RGB Q=95|AppMag = 20|MPP = 0.5"
    )
    options = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 95}, "tile": (TILE, TILE)}
    tifffile.imwrite(path, formats.PIXELS, description=description, metadata=None, **options)
    return path


def test_openslide(tmp_path):
    pytest.importorskip("openslide", reason="the extra openslide is not installed")
    path = write_svs(tmp_path / "slide.svs")
    with open_image(path) as image:
        assert (image.width, image.height) == (formats.WIDTH, formats.HEIGHT)
        assert image.mpp == pytest.approx(0.5)
        whole = image.read(0, 0, formats.WIDTH, formats.HEIGHT)
        np.testing.assert_array_equal(image.read(101, 57, 90, 30), whole[57:87, 101:191])
    # two JPEG decoders may round and upsample chroma differently, by a few grey levels
    assert np.abs(whole.astype(int) - formats.PIXELS).mean() < 3
    corrupt(path, CORRUPT)
    with open_image(path) as image:
        with pytest.raises(ValueError, match=r"slide\.svs: level 0 cannot be decoded .*--skip-damaged"):
            image.read(0, 0, formats.WIDTH, formats.HEIGHT)
        np.testing.assert_array_equal(image.read(200, 0, 100, 80), whole[:80, 200:300])  # also after an error
    damaged = DamagedTiles()
    with open_image(path, damaged=damaged) as image:
        for _ in range(2):
            pixels = image.read(0, 0, formats.WIDTH, formats.HEIGHT)
    expected = whole.copy()
    expected[WHERE] = 255
    np.testing.assert_array_equal(pixels, expected)
    assert len(damaged) == 1
    assert damaged.touched(np.array([[144.0, 144.0], [80.0, 144.0]]), width=20).tolist() == [True, False]


def test_openslide_is_named_where_it_is_missing(tmp_path, monkeypatch):
    (tmp_path / "slide.dcm").write_bytes(b"x" * 200)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(ImportError, match=r'slide\.dcm needs openslide: pip install "hyperst-kernels\[openslide\]"'):
        open_image(tmp_path / "slide.dcm")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("slide.mrxs", "the folder of the same name belongs beside it"), ("slide.dcm", r"every \.dcm file of the slide")],
)
def test_companion_files_are_named(name, hint, tmp_path):
    pytest.importorskip("openslide", reason="the extra openslide is not installed")
    (tmp_path / name).write_bytes(b"x" * 200)
    with pytest.raises(ValueError, match=rf"{name} .*{hint}"):
        open_image(tmp_path / name)


def write_dicom(path: Path) -> None:
    """A whole-slide image of DICOM: uncompressed tiles of `TILE` px, 0.0005 mm per pixel."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom, which writes the slide, is not installed")
    down, across = -(-formats.HEIGHT // TILE), -(-formats.WIDTH // TILE)
    padded = np.full((down * TILE, across * TILE, 3), 255, np.uint8)
    padded[: formats.HEIGHT, : formats.WIDTH] = formats.PIXELS
    tiles = rearrange(padded, "(down h) (across w) rgb -> (down across) h w rgb", h=TILE, w=TILE)
    slide, spacing, shared = (pydicom.Dataset() for _ in range(3))
    slide.file_meta = pydicom.dataset.FileMetaDataset()
    slide.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    slide.SOPClassUID = slide.file_meta.MediaStorageSOPClassUID = pydicom.uid.VLWholeSlideMicroscopyImageStorage
    slide.SOPInstanceUID = slide.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    slide.SeriesInstanceUID, slide.StudyInstanceUID = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    slide.Modality, slide.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.DimensionOrganizationType, slide.TotalPixelMatrixFocalPlanes, slide.NumberOfOpticalPaths = "TILED_FULL", 1, 1
    slide.TotalPixelMatrixColumns, slide.TotalPixelMatrixRows = formats.WIDTH, formats.HEIGHT
    slide.Rows = slide.Columns = TILE
    slide.NumberOfFrames, slide.SamplesPerPixel, slide.PlanarConfiguration = len(tiles), 3, 0
    slide.PhotometricInterpretation, slide.PixelRepresentation = "RGB", 0
    slide.BitsAllocated, slide.BitsStored, slide.HighBit = 8, 8, 7
    spacing.PixelSpacing = [0.0005, 0.0005]
    shared.PixelMeasuresSequence = [spacing]
    slide.SharedFunctionalGroupsSequence = [shared]
    slide.PixelData = tiles.tobytes()
    slide.save_as(path, enforce_file_format=True)


def test_dicom(tmp_path):
    pytest.importorskip("openslide", reason="the extra openslide is not installed")
    write_dicom(tmp_path / "slide.dcm")
    with open_image(tmp_path / "slide.dcm") as image:
        assert image.mpp == pytest.approx(0.5)
        np.testing.assert_array_equal(image.read(0, 0, image.width, image.height), formats.PIXELS)
