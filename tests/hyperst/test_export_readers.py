"""Each export in the program that it is for. `make test` is without squidpy and spatialdata; `make exports` runs these tests."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from hyperst.data import open_image
from hyperst.export import write_export
from hyperst.export.spots import spots_of

from .test_cli import call

HOWTO = Path(__file__).parents[2] / "docs" / "howto" / "exports.md"


def reader(name):
    return pytest.importorskip(name, reason=f"{name} is not installed; `make exports` runs these tests with it")


@pytest.fixture(scope="module")
def adata(predicted):
    return anndata.read_h5ad(predicted)


@pytest.fixture(scope="module")
def image(section_paths):
    return section_paths[2].parent / "images" / "S3.png"


@pytest.fixture(scope="module")
def folder(adata, image, tmp_path_factory):
    """Where the .zarr is."""
    reader("spatialdata")
    return write_export(adata, tmp_path_factory.mktemp("zarr") / "slide.zarr", image=image).parent


@pytest.fixture(scope="module")
def written(folder):
    """The .zarr, read."""
    return reader("spatialdata").read_zarr(folder / "slide.zarr")


def example(section):
    """The Python of a section of docs/howto/exports.md, but for its last line, which opens a window."""
    text = HOWTO.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    *lines, _ = text.split("```python\n")[1].split("```")[0].strip().splitlines()
    return "\n".join(lines)


def test_squidpy_draws_what_is_printed(evaluated, section_paths, tmp_path):
    squidpy = reader("squidpy")
    import matplotlib
    import scanpy

    matplotlib.use("Agg")
    result = call("predict", evaluated, section_paths[2], "-o", tmp_path / "p.h5ad")
    (line,) = [line for line in result.output.splitlines() if line.startswith("or in Python: ")]
    program = line.removeprefix("or in Python: ").replace("...", repr(str(tmp_path / "p.h5ad")))
    names = {"scanpy": scanpy, "squidpy": squidpy}
    exec(program, names)
    axis = matplotlib.pyplot.gca()
    assert axis.get_title() == names["adata"].var_names[0]
    assert len(axis.collections[0].get_paths()) == names["adata"].n_obs
    matplotlib.pyplot.close("all")


def test_spots_and_table_of_spatialdata_belong_together(written, adata):
    spatialdata = reader("spatialdata")
    assert set(written.coordinate_systems) == {"global"}
    spots, table = spatialdata.join_spatialelement_table(
        sdata=written, spatial_element_names="spots", table_name="table", match_rows="left"
    )
    assert list(table.obs_names) == list(adata.obs_names) == list(spots["spots"].index)
    np.testing.assert_array_equal(table.X, adata.X)
    np.testing.assert_array_equal(table.obsm["spatial"], adata.obsm["spatial"])
    np.testing.assert_array_equal(spots["spots"].geometry.x, adata.obsm["spatial"][:, 0])
    np.testing.assert_allclose(spots["spots"]["radius"], spots_of(adata).diameter_px / 2)
    assert table.uns["hyperst"]["units"] == adata.uns["hyperst"]["units"]
    assert list(table.var.columns) == list(adata.var.columns)
    assert "spatial" in adata.uns  # what is exported stays as it was


def test_the_pyramid_is_the_image(written, image):
    levels = [np.asarray(written["image"][name]["image"]) for name in written["image"].children]
    assert len(levels) > 1
    with open_image(image) as slide:
        assert levels[0].shape == (3, slide.height, slide.width)
        for number, pixels in enumerate(levels):
            rows, columns = pixels.shape[1:]
            whole = slide.read(0, 0, columns * 2**number, rows * 2**number, size=(rows, columns))
            np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), whole)


@pytest.mark.parametrize("with_image", [True, False])
def test_a_smaller_picture_lies_where_the_slide_does(with_image, adata, image, tmp_path, monkeypatch):
    """Of a slide that is too large, and of the thumbnail."""
    spatialdata = reader("spatialdata")
    monkeypatch.setattr("hyperst.export.spatial_data._LONGEST_SIDE", 600)
    path = write_export(adata, tmp_path / "p.zarr", image=image if with_image else None)
    stored = spatialdata.read_zarr(path)
    box = spatialdata.get_extent(stored["image"])
    with open_image(image) as slide:
        longest = max(stored["image"]["scale0"]["image"].shape)
        assert longest == 600 if with_image else longest <= 1000
        pixel = max(slide.width, slide.height) / longest
        np.testing.assert_allclose(box["x"], (0, slide.width), atol=pixel)
        np.testing.assert_allclose(box["y"], (0, slide.height), atol=pixel)


def test_another_image_is_refused_and_nothing_left(adata, image, tmp_path):
    reader("spatialdata")
    from PIL import Image

    with Image.open(image) as picture:
        picture.resize((300, 200)).save(tmp_path / "other.png")
    with pytest.raises(ValueError, match=r"other\.png has 300 x 200 px.*give the image that was predicted"):
        write_export(adata, tmp_path / "p.zarr", image=tmp_path / "other.png")
    assert [path.name for path in tmp_path.iterdir()] == ["other.png"]


def test_the_command_line_takes_the_image_of_a_section(evaluated, section_paths, image, tmp_path, recwarn):
    spatialdata = reader("spatialdata")
    result = call("predict", evaluated, section_paths[2], "-o", tmp_path / "p.h5ad", "--export", "zarr")
    assert result.exit_code == 0, result.output
    assert not [each for each in recwarn if "autosharding" in str(each.message)]
    with open_image(image) as slide:
        stored = spatialdata.read_zarr(tmp_path / "p.zarr")
        assert stored["image"]["scale0"]["image"].shape == (3, slide.height, slide.width)


def test_geopandas_reads_the_detections(adata, tmp_path):
    """As QuPath does: a ring marked isEllipse is the ellipse within its bounds, measurements are a name and a number each."""
    geopandas = reader("geopandas")
    shapes = geopandas.read_file(write_export(adata, tmp_path / "p.geojson")).set_crs(
        None, allow_override=True
    )  # pixels
    assert list(shapes["name"]) == list(adata.obs_names)
    assert shapes.geometry.is_valid.all()
    assert (shapes.geometry.geom_type == "Polygon").all()
    assert set(shapes["objectType"]) == {"detection"}
    low, high = np.split(shapes.geometry.bounds.to_numpy(), 2, axis=1)
    np.testing.assert_allclose((low + high) / 2, adata.obsm["spatial"], atol=0.01)  # px are written with two decimals
    diameter = spots_of(adata).diameter_px
    np.testing.assert_allclose(high - low, diameter, atol=0.01)
    corners = len(shapes.geometry[0].exterior.coords) - 1
    area = corners / 2 * np.sin(2 * np.pi / corners) * (diameter / 2) ** 2
    # each corner is moved by 0.01 px at most
    np.testing.assert_allclose(shapes.geometry.area, area, atol=0.01 * np.pi * diameter)
    classes, measurements = (
        [json.loads(each) if isinstance(each, str) else each for each in shapes[name]]  # by version
        for name in ("classification", "measurements")
    )
    for each in classes:
        assert ":" not in each["name"]  # which parts a class from a class that is derived of it
        assert len(each["color"]) == 3
        assert all(isinstance(value, int) and 0 <= value <= 255 for value in each["color"])
    table = pd.DataFrame(measurements, index=adata.obs_names)
    assert set(table) == {*spots_of(adata).facts.columns, *adata.var_names}
    np.testing.assert_allclose(table[list(adata.var_names)], adata.X, rtol=1e-6)  # seven digits are written
    np.testing.assert_allclose(table["tissue_fraction"], adata.obs["tissue_fraction"], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Extra installs are necessary:UserWarning")  # of widgets
def test_vitessce_finds_what_its_configuration_names(folder, written, adata, tmp_path, monkeypatch):
    """And finds there what its loaders of SpatialData take: Vitessce itself runs in a browser."""
    vitessce = reader("vitessce")
    zarr = reader("zarr")
    pyarrow = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(example("Vitessce"), names)
    config = names["config"]
    site = "https://localhost/data"
    found = config.export(to="files", base_url=site, out_dir=str(tmp_path))
    assert vitessce.VitessceConfig.from_dict(found).to_dict(base_url=site) == found
    (file,) = found["datasets"][0]["files"]
    served, options = tmp_path / file["url"].removeprefix(f"{site}/"), file["options"]
    files = [path.relative_to(folder / "slide.zarr") for path in (folder / "slide.zarr").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert (served / path).read_bytes() == (folder / "slide.zarr" / path).read_bytes()
    store = zarr.open_group(served, mode="r")
    np.testing.assert_array_equal(store[options["obsFeatureMatrix"]["path"]][:], adata.X)
    spots = options["obsSpots"]
    assert spots["coordinateSystem"] in written.coordinate_systems
    table = store[spots["tablePath"]]
    assert table.attrs["region"] == spots["region"]
    assert list(table["obs"][table.attrs["instance_key"]][:]) == list(adata.obs_names)
    assert store[spots["path"]].attrs["spatialdata_attrs"]["version"] in ("0.2", "0.3")
    shapes = pyarrow.read_schema(served / spots["path"] / "shapes.parquet")
    assert shapes.field("geometry").metadata[b"ARROW:extension:name"] == b"geoarrow.wkb"
    assert "radius" in shapes.names
    picture = store[options["image"]["path"]]
    ome = picture.attrs.get("ome", picture.attrs)  # the latter in Zarr 2
    (scales,) = ome["multiscales"]
    assert [axis["name"] for axis in scales["axes"]] == ["c", "y", "x"]
    assert len(ome["omero"]["channels"]) == 3
    for level in scales["datasets"]:
        assert picture[level["path"]].dtype == np.uint8


def test_napari_places_spots_and_image(folder, image, adata, monkeypatch):
    """Its layers without its window, which needs OpenGL. Its packages are large: `make exports` leaves them out."""
    pytest.importorskip("napari_spatialdata", reason="needs pip install 'napari-spatialdata[all]'")
    from napari.components import ViewerModel
    from napari.utils.events import EventedList
    from napari_spatialdata._viewer import SpatialDataViewer

    monkeypatch.chdir(folder)
    names: dict = {}
    exec(example("napari"), names)
    viewer, stored = ViewerModel(), names["slide"]
    made = SpatialDataViewer(viewer, EventedList([stored]))
    picture = viewer.add_layer(made.get_sdata_image(stored, "image", "global", False))
    spots = viewer.add_layer(made.get_sdata_circles(stored, "spots", "global", False))
    with open_image(image) as slide:
        # from centre to centre of the outer pixels
        outer = [[0.5, 0.5], [slide.height - 0.5, slide.width - 0.5]]
    np.testing.assert_allclose(picture.extent.world, outer)
    assert picture.rgb
    np.testing.assert_allclose(spots.data, adata.obsm["spatial"][:, ::-1])
    np.testing.assert_allclose(spots.size, spots_of(adata).diameter_px)
    assert list(spots.metadata["adata"].obs_names) == list(adata.obs_names)
