"""Damaged files through the command line: whatever is wrong with them, an exit code and a message, never a traceback."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hyperst.cli import app

from .data.section_formats import h5ad, hd, manifest, segmented, visium

FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text("ab[/]. ", max_size=4))
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2)
)
DAMAGE = st.tuples(st.sampled_from(["cut", "flip", "insert"]), st.floats(0, 1), st.binary(min_size=1, max_size=8))


def damaged(data: bytes, how: tuple[str, float, bytes]) -> bytes:
    """The bytes cut short, with others in one place, or with others between."""
    kind, place, other = how
    at = int(place * len(data))
    return {
        "cut": data[:at],
        "flip": data[:at] + other + data[at + len(other) :],
        "insert": data[:at] + other + data[at:],
    }[kind]


def survives(*arguments: object) -> None:
    """The command ends in 0, or in 1 with a message; anything else is what this file looks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (0, 1)
    if result.exit_code == 1:
        assert "error" in result.output + result.stderr


def commands(path: Path, folder: Path) -> None:
    """Reading as ``check`` does, which turns errors into findings, and as ``train`` does (which stops before it trains)."""
    survives("check", path)
    survives("train", path, "-o", folder / "run", "--n-genes", "100000")
    assert not (folder / "run").exists()


@pytest.fixture
def place(tmp_path_factory):
    """A function that makes an empty folder; hypothesis calls a test many times."""
    return lambda: tmp_path_factory.mktemp("fuzz")


@FEW
@given(how=DAMAGE)
def test_bytes_of_an_h5ad(how, place):
    path = h5ad(folder := place())
    path.write_bytes(damaged(path.read_bytes(), how))
    commands(path, folder)


@FEW
@given(
    data=st.data(), value=st.one_of(st.none(), st.sampled_from(["text", "number", "empty", "nan", "list", "shorter"]))
)
def test_entries_of_an_h5ad(data, value, place):
    """An entry of the file is missing, or holds something else."""
    path = h5ad(folder := place())
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = data.draw(st.sampled_from(sorted(names)))
        old = file[name]
        shorter = old[: len(old) // 2] if isinstance(old, h5py.Dataset) and old.shape else 0
        attributes = dict(old.attrs) if isinstance(old, h5py.Dataset) else {}
        del file[name]
        other: dict[str, Any] = {"text": "[/b]", "number": -1, "empty": np.zeros(0), "nan": np.full((9, 2), np.nan)}
        other |= {"list": np.arange(9.0), "shorter": shorter}
        if value is not None:
            file[name] = other[value]
            file[name].attrs.update(attributes)
    commands(path, folder)


@FEW
@given(
    content=st.dictionaries(
        st.sampled_from(
            [
                *("spot_diameter_fullres", "tissue_hires_scalef", "microns_per_pixel", "bin_size_um"),
                *("pixel_size_um_estimated", "inter_spot_dist", "spot_diameter"),  # HEST's
            ]
        ),
        JSON,
        max_size=3,
    )
    | JSON,
    of_hest=st.booleans(),
)
def test_scale_factors(content, of_hest, place):
    path = visium(folder := place())
    (path / "outs" / "spatial" / "scalefactors_json.json").write_text(json.dumps(content))
    commands(path, folder)
    if of_hest:
        section = h5ad(folder)
        (folder / "metadata").mkdir()
        hest = folder / "st"
        hest.mkdir()
        shutil.move(section, hest / "A.h5ad")
        (folder / "metadata" / "A.json").write_text(json.dumps(content))
        commands(hest / "A.h5ad", folder)


@FEW
@given(
    row=st.integers(0, 9),
    column=st.integers(0, 5),
    cell=st.text('a1[/]",\n -.N', max_size=5),
    how=DAMAGE,
    raw=st.booleans(),
)
def test_positions_of_space_ranger(row, column, cell, how, raw, place):
    path = visium(folder := place())
    file = path / "outs" / "spatial" / "tissue_positions.csv"
    if raw:
        file.write_bytes(damaged(file.read_bytes(), how))
    else:
        rows = [line.split(",") for line in file.read_text().splitlines()]
        rows[row][column] = cell
        file.write_text("\n".join(",".join(cells) for cells in rows))
    commands(path, folder)


@FEW
@given(
    row=st.integers(0, 1),
    column=st.integers(0, 5),
    cell=st.text('aA1[/];",\n -.', max_size=6),
    how=DAMAGE,
    raw=st.booleans(),
)
def test_manifests(row, column, cell, how, raw, place):
    path = manifest(folder := place())
    if raw:
        path.write_bytes(damaged(path.read_bytes(), how))
    else:
        rows = [line.split(";") for line in path.read_text(encoding="utf-8-sig").splitlines()]
        rows[row][column] = cell
        path.write_text("\n".join(";".join(cells) for cells in rows))
    commands(path, folder)


@FEW
@given(how=DAMAGE, which=st.sampled_from(["matrix", "outlines"]))
def test_matrices_and_outlines_of_cells(how, which, place):
    path = segmented(folder := place())
    file = path / ("filtered_feature_cell_matrix.h5" if which == "matrix" else "cell_segmentations.geojson")
    file.write_bytes(damaged(file.read_bytes(), how))
    commands(path, folder)


@FEW
@given(how=DAMAGE, bin_um=st.sampled_from([8, 16]))
def test_images(how, bin_um, place):
    folder = hd(place())
    image = folder / "A.tif"
    image.write_bytes(damaged(image.read_bytes(), how))
    survives("check", folder, "--bin-um", bin_um)
