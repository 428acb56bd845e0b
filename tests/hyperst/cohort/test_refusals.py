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


def test_a_name_that_no_file_can_have_is_refused(tmp_path):
    image = tmp_path / "A.png"
    image.touch()
    for name in ("n" * 201, "µ" * 101):
        with pytest.raises(
            ValueError, match=rf"slide {name[:40]}\.\.\. has a name of 20[12] bytes, .* need at most 200"
        ):
            predict_cohort(tmp_path, [SectionSource(image, name=name)], tmp_path, workers=0)
    with pytest.raises(FileNotFoundError, match="holds no run"):  # which is what comes next
        predict_cohort(tmp_path, [SectionSource(image, name="n" * 200)], tmp_path, workers=0)
