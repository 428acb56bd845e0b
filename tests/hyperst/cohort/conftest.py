"""Twenty small slides of which one is damaged, a run on two other sections, and the cohort predicted in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hyperst.cohort import predict_cohort
from hyperst.data import read_manifest, read_section
from hyperst.synthetic import write_tissue
from hyperst.train import fit

SIZE = {"n_rows": 6, "n_cols": 6, "n_genes": 40, "um_per_px": 2.8}
DAMAGED = "T07"


@pytest.fixture(scope="package")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of the slides: images but for T00, a section with spots of its own."""
    folder = tmp_path_factory.mktemp("slides")
    rows = ["section,name,patient,mpp"]
    for number in range(20):
        path = write_tissue(folder, seed=100 + number, name=f"T{number:02}", **SIZE)
        image = f"images/{path.stem}.png"
        rows.append(f"{path.name if number == 0 else image},{path.stem},P{number // 2},2.8")
    (folder / "images" / f"{DAMAGED}.png").write_bytes(b"no image")
    (folder / "slides.csv").write_text("\n".join(rows))
    return folder / "slides.csv"


@pytest.fixture(scope="package")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_config) -> Path:
    """Folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("run")
    sections = [read_section(write_tissue(folder, seed=seed, **SIZE)) for seed in (1, 2)]
    fit(replace(tiny_config, training=replace(tiny_config.training, epochs=1)), sections, folder / "run")
    return folder / "run"


@pytest.fixture(scope="package")
def found(run, manifest, tmp_path_factory):
    """The cohort, one slide after another."""
    return predict_cohort(run, read_manifest(manifest), tmp_path_factory.mktemp("cohort"), workers=0)
