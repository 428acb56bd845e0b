"""A run that was evaluated, and a prediction of its without measurements."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def evaluated(trained, sections, tmp_path_factory) -> Path:
    """Folder of a run with the evaluation of S3, and with intervals, which the few spots that it has held out cannot give."""
    from hyperst.calibration import calibrate
    from hyperst.evaluation import evaluate
    from hyperst.run import RunFolder, load_run

    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(trained, folder)
    run = load_run(folder, device="cpu")
    calibrate(run, sections[:2], sections[1:2]).write(RunFolder(folder).calibration)
    evaluate(run, sections[2], training_sections=sections[:2])
    return folder


@pytest.fixture(scope="session")
def predicted(evaluated, section_paths) -> Path:
    """A prediction from an image alone."""
    from hyperst.files import write_h5ad_atomic
    from hyperst.predict import predict_image
    from hyperst.run import load_run

    image = section_paths[2].parent / "images" / "S3.png"
    mpp = load_run(evaluated, device="cpu").split.sections[0].um_per_px
    return write_h5ad_atomic(predict_image(load_run(evaluated, device="cpu"), image, mpp=mpp), evaluated / "alone.h5ad")
