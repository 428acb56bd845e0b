"""Figures for a paper: what is drawn is the data, at its true size, and every name says what it is of."""

from __future__ import annotations

import re
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from PIL import Image

from hyperst.plots import curves_figure, error_figure, expression_figure, tissue_of_prediction, tissue_of_section
from hyperst.plots.panels import nice_length
from hyperst.plots.run import plot_run

from .test_cli import call, failure

UNITS = "ln(1 + CP10k)"


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they are saved."""
    figures: list[Figure] = []
    usual = Figure.savefig

    def keep(figure, *arguments, **options):
        figures.append(figure)
        return usual(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.fixture(scope="module")
def expression(sections):
    """Names, prediction and measurement of four genes, the first called like the section; the last is predicted constant."""
    measured = np.log1p(sections[0].counts[:, :4].toarray().astype(np.float64))
    prediction = 0.5 * measured + np.random.default_rng(0).normal(scale=0.1, size=measured.shape)
    prediction[:, 3] = 1.0
    return [sections[0].name, *map(str, sections[0].genes[1:4])], prediction, measured


def panels(figure):
    return [axis for axis in figure.axes if axis.get_title()]


def spots(axis):
    (found,) = [each for each in axis.collections if isinstance(each, EllipseCollection)]
    return found


def texts_of_svg(path):
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())


def test_a_row_holds_image_measurement_prediction_and_error(expression, sections, tmp_path, drawn):
    names, prediction, measured = expression
    path = tmp_path / "f.png"
    assert (
        expression_figure(sections[0], names, prediction, measured, path, units=UNITS, genes=names[:1], n_best=0)
        == path
    )
    image, truth, ours, error = panels(drawn[0])
    assert [axis.get_title() for axis in (image, truth, ours, error)] == [
        "section S1, H&E", "gene S1, measured", "gene S1, predicted", "gene S1, error",
    ]  # fmt: skip
    np.testing.assert_allclose(spots(truth).get_array(), measured[:, 0])
    np.testing.assert_allclose(spots(ours).get_array(), prediction[:, 0])
    np.testing.assert_allclose(spots(error).get_array(), prediction[:, 0] - measured[:, 0])
    assert spots(truth).get_clim() == spots(ours).get_clim()
    low, high = spots(error).get_clim()
    assert low == -high
    assert ours.get_xlabel() == f"r = {np.corrcoef(prediction[:, 0], measured[:, 0])[0, 1]:.2f}"
    bars = [axis.get_ylabel() for axis in drawn[0].axes if not axis.get_title()]
    assert len(bars) == 2
    assert all(UNITS in label for label in bars)
    with Image.open(path) as picture:
        assert picture.width == 7.2 * 300
        assert len(picture.convert("P").getcolors()) > 50


def test_z_scores(expression, sections, tmp_path, drawn):
    names, prediction, measured = expression
    arguments = (sections[0], names, prediction, measured, tmp_path / "f.png")
    expression_figure(*arguments, units=UNITS, genes=[names[1], names[3]], n_best=0, scale="z-score", dpi=50)
    first, last = panels(drawn[0])[:4], panels(drawn[0])[4:]
    for axis in first[1:3]:
        values = spots(axis).get_array()
        np.testing.assert_allclose((values.mean(), values.std()), (0, 1), atol=1e-9)
    assert (spots(last[2]).get_array() == 0).all()  # a constant prediction has no spread
    assert last[2].get_xlabel() == "r undefined"
    assert f"z-score of {UNITS}" in [axis.get_ylabel() for axis in drawn[0].axes]


def test_spots_and_scale_bar_have_their_true_size(expression, sections, tmp_path, drawn):
    """In the coordinates of the slide, whatever the size of the figure."""
    _, prediction, measured = expression
    error_figure(sections[0], prediction, measured, tmp_path / "f.png", units=UNITS, dpi=50)
    image, size, mean = panels(drawn[0])
    for axis, expected in (
        (size, np.sqrt(((prediction - measured) ** 2).mean(1))),
        (mean, (prediction - measured).mean(1)),
    ):
        circles = spots(axis)
        np.testing.assert_allclose(circles.get_array(), expected)
        np.testing.assert_array_equal(circles.get_offsets(), sections[0].spot_px)
        np.testing.assert_allclose(2 * circles._widths, sections[0].spot_diameter_px)
        assert circles._units == "xy"
        assert axis.get_aspect() == 1
    (bar,) = image.lines
    (text,) = image.texts
    length = np.ptp(bar.get_xdata()) * sections[0].grid.um_per_px
    assert text.get_text() == f"{length:g} µm"
    assert length == pytest.approx(nice_length(length))
    assert image.images[0].get_extent() == pytest.approx([*image.get_xlim(), *image.get_ylim()])


def test_without_a_scale_or_an_image(expression, sections, tmp_path, drawn):
    _, prediction, measured = expression
    grid = replace(sections[0].grid, um_per_px=None, pitch_um=None)
    bare = replace(sections[0], grid=grid, image_path=None, spot_diameter_px=None)
    error_figure(bare, prediction, measured, tmp_path / "f.png", units=UNITS, dpi=50)
    image = panels(drawn[0])[0]
    assert image.texts[0].get_text().endswith(" px")
    assert not image.images
    assert len(spots(image).get_offsets()) == bare.n_spots


def test_the_picture_is_that_part_of_the_slide(sections):
    """Read at the slide, white beyond its edges; the same part of a thumbnail."""
    section = sections[0]
    tissue = tissue_of_section(section)
    left, top, right, bottom = tissue.box
    height, width = tissue.picture.shape[:2]
    assert (height, width) == (round(bottom - top), round(right - left))  # not finer than the slide
    with section.open_image() as image:
        whole = image.read(left, top, right - left, bottom - top, size=(height, width))
        np.testing.assert_array_equal(tissue.picture, whole)
        thumbnail = image.thumbnail(1000)
        scale = thumbnail.shape[1] / image.width
    adata = anndata.AnnData(np.zeros((section.n_spots, 1), np.float32))
    adata.obsm["spatial"] = section.spot_px
    factors = {"tissue_hires_scalef": scale, "spot_diameter_fullres": section.spot_diameter_px}
    adata.uns = {
        "hyperst": {"units": UNITS},
        "spatial": {"S1": {"images": {"hires": thumbnail}, "scalefactors": factors}},
    }
    part = tissue_of_prediction(adata, "S1").picture
    again = np.asarray(Image.fromarray(tissue.picture).resize(part.shape[1::-1], Image.Resampling.BOX), float)
    shifted = np.roll(again, 12, axis=1)
    assert np.abs(part - shifted).mean() > 2 * np.abs(part - again).mean()
    # the spacing is measured, not fitted: boxes differ in digits that rounding may show
    from_file = tissue_of_prediction(adata, "S1", section.image_path).picture
    assert np.abs(from_file.astype(int) - tissue.picture).max() <= 1
    far = replace(section, spot_px=section.spot_px - section.spot_px.min(axis=0))
    assert (tissue_of_section(far).picture[:20, :20] == 255).all()


def test_a_slide_is_read_in_bands(sections, monkeypatch):
    """As one: but for the last digit, where bands begin between pixels."""
    monkeypatch.setattr("hyperst.plots.tissue._LONGEST_SIDE", 500)
    whole = tissue_of_section(sections[0]).picture.astype(int)
    assert max(whole.shape) == 500
    monkeypatch.setattr("hyperst.data.images.base._BAND_PIXELS", 1 << 17)
    assert np.abs(tissue_of_section(sections[0]).picture - whole).max() <= 1


def test_text_stays_text_and_formats_are_named(expression, sections, tmp_path):
    names, prediction, measured = expression
    for ending, start in (("svg", b"<?xml"), ("pdf", b"%PDF")):
        path = expression_figure(
            sections[0], names, prediction, measured, tmp_path / f"f.{ending}", units=UNITS, n_best=1
        )
        assert path.read_bytes().startswith(start)
    said = texts_of_svg(tmp_path / "f.svg")
    assert "section S1: best predicted 1 of 4 genes" in said
    assert sum(text.endswith(", measured") for text in said) == 1
    with pytest.raises(ValueError, match=r"f\.tiff must end in one of \.pdf, \.svg, \.png"):
        error_figure(sections[0], prediction, measured, tmp_path / "f.tiff", units=UNITS)
    with pytest.raises(ValueError, match="NOT_A_GENE"):
        expression_figure(
            sections[0], names, prediction, measured, tmp_path / "g.png", units=UNITS, genes=["NOT_A_GENE"]
        )
    with pytest.raises(ValueError, match="genes: got none"):
        expression_figure(sections[0], names, prediction, None, tmp_path / "g.png", units=UNITS)


def test_curves(tmp_path, drawn):
    curves = pd.DataFrame(
        {"epoch": [1, 2], "training_mse": [2.0, 1], "validation_mse": [3.0, 2], "validation_pcc": [0.1, 0.2]}
    )
    curves_figure(curves, tmp_path / "c.svg", name="r", units=UNITS, best_epoch=2)
    error, correlation = drawn[0].axes
    assert UNITS in error.get_ylabel()
    assert [line.get_ydata()[-1] for line in error.lines[:2]] == [1, 2]
    assert list(correlation.lines[0].get_ydata()) == [0.1, 0.2]
    assert list(correlation.lines[1].get_xdata()) == [2, 2]
    with pytest.raises(ValueError, match="got no epoch"):
        curves_figure(curves[:0], tmp_path / "c.svg", name="r", units=UNITS)


def test_the_figures_of_a_run(evaluated, predicted, sections, tmp_path, drawn):
    names = [path.name for path in plot_run(evaluated, ending="svg", output=tmp_path)]
    assert names == ["training_curves.svg", "S3_expression.svg", "S3_error.svg"]
    (path,) = plot_run(evaluated, [predicted], ending="svg", output=tmp_path, image=sections[2].image_path)
    assert path.name == "S3_predicted.svg"
    # of a prediction alone the genes that evaluations found best
    scores = anndata.read_h5ad(predicted).var["held_out_pcc"].sort_values(ascending=False, kind="stable")
    titles = [axis.get_title() for axis in panels(drawn[-1])]
    assert titles == ["H&E", *(f"gene {gene}, predicted" for gene in scores.index[:3])]
    assert [axis.get_xlabel() for axis in panels(drawn[-1])[1:]] == [
        f"held-out r = {score:.2f}" for score in scores[:3]
    ]
    assert "section S3: predicted, not measured" in texts_of_svg(path)


def test_the_command(evaluated, predicted, tmp_path):
    gene = (evaluated / "genes.txt").read_text().split()[-1]
    command = ("plot", evaluated, predicted, "--gene", gene, "--format", "svg", "--scale", "z-score", "-o", tmp_path)
    for _ in range(2):  # an earlier figure is replaced
        result = call(*command)
        assert result.exit_code == 0, result.output
    assert result.output == f"written: {tmp_path / 'S3_predicted.svg'}\n"
    assert f"gene {gene}, predicted" in texts_of_svg(tmp_path / "S3_predicted.svg")
    (tmp_path / "S3_predicted.svg").write_text("mine")
    assert "is no figure of hyperst" in failure(*command)
    assert "gene GENE (--gene) is none of the 12 genes" in failure("plot", evaluated, "--gene", "GENE")
    assert "goes with one prediction, got 0" in failure("plot", evaluated, "--image", predicted)


def test_a_run_without_evaluation_has_curves_alone(trained, tmp_path):
    assert [path.name for path in plot_run(trained, ending="png", output=tmp_path)] == ["training_curves.png"]
    gene = (trained / "genes.txt").read_text().split()[0]
    assert "run `hyperst evaluate` first" in failure("plot", trained, "--gene", gene)
