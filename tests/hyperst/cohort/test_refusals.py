"""What a cohort refuses before it looks at the run."""

from __future__ import annotations

import pytest

from hyperst.cohort import predict_cohort
from hyperst.data import SectionSource

from ..test_cli import failure


def test_a_manifest_that_is_not_there(tmp_path):
    for output in ("cohort", "cohort.h5ad"):
        message = failure("predict", tmp_path, tmp_path / "nosuch.csv", "-o", tmp_path / output, "--workers", 0)
        assert message.startswith(f"error: manifest {tmp_path / 'nosuch.csv'} does not exist")
    (tmp_path / "folder.csv").mkdir()
    assert "folder.csv is no file" in failure("predict", tmp_path, tmp_path / "folder.csv")


def test_an_image_with_an_image_or_a_kind_is_refused(tmp_path):
    """As in a manifest, whose reader names the row."""
    image = tmp_path / "A.png"
    image.touch()
    for column, given in (("image", tmp_path / "B.png"), ("kind", "h5ad")):
        with pytest.raises(ValueError, match=rf"slide A: {column} is given .* which is itself an image"):
            predict_cohort(tmp_path, [SectionSource(image, **{column: given})], tmp_path, workers=0)
