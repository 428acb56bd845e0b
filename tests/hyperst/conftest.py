"""Small synthetic sections, one small trained run, its evaluation and a prediction, shared by the tests of what comes after."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the networks here are tiny, and test machines are shared

os.environ["TERMINAL_WIDTH"] = "400"  # messages of the command line stand in one line, however long a path is


@pytest.fixture(scope="session")
def section_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three small synthetic sections, .h5ad with images beside them: two patients."""
    from hyperst.synthetic import write_tissue

    folder = tmp_path_factory.mktemp("sections")
    return [
        write_tissue(folder, seed=seed, name=f"S{seed}", patient=patient, n_rows=9, n_cols=9)
        for seed, patient in ((1, "P1"), (2, "P2"), (3, "P1"))
    ]


@pytest.fixture(scope="session")
def sections(section_paths):
    """The same, read."""
    from hyperst.data import read_section

    return [read_section(path) for path in section_paths]


@pytest.fixture(scope="session")
def tiny_config():
    """A configuration that trains in seconds."""
    from hyperst.config import RunConfig

    config = RunConfig()
    return replace(
        config,
        data=replace(config.data, n_genes=12),
        crop=replace(config.crop, image_size=32),
        model=replace(config.model, width=16, networks=1),
        training=replace(config.training, epochs=3, batch_size=16, patience=3),
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_config, sections) -> Path:
    """Folder of a finished run on the first two sections."""
    from hyperst.train import fit

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    fit(tiny_config, sections[:2], folder)
    return folder


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


@pytest.fixture(name="crops_read")
def _crops_read(monkeypatch):
    """Section and number of each spot whose crops have been read from an image, in order."""
    from hyperst.data import kept_crops

    spots = []

    def read_crops(section, crop, indices):
        spots.extend((section.name, int(spot)) for spot in indices)
        return real(section, crop, indices)

    real = kept_crops.read_crops
    monkeypatch.setattr(kept_crops, "read_crops", read_crops)
    return spots
