"""What files, folders and manifests stand for; no section twice, no image of another place, no name for two."""

from __future__ import annotations

import shutil

import anndata
import pytest

from hyperst.data import distinct_names, find_sections, list_sections, read_manifest, read_section
from hyperst.data.readers import READERS
from hyperst.data.readers.spaceranger_files import sample_folder

from .section_formats import h5ad, hd, visium, write_image

KINDS = ", ".join(reader.key for reader in READERS)


@pytest.fixture
def one(tmp_path):
    (tmp_path / "P1").mkdir()
    return h5ad(tmp_path / "P1")


def test_a_file_named_in_two_ways_is_one_section(one, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.h5ad").symlink_to(one)
    with pytest.warns(UserWarning, match="is named twice"):
        found = find_sections([one, "P1/../P1/A.h5ad", "P1", "link.h5ad"])
    assert found == [one]


def test_dotfiles_and_texts_of_a_cohort_folder_are_passed_over(one):
    folder = one.parent
    for name in ("._A.h5ad", ".A.x81k.h5ad", ".DS_Store", "README.txt"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert find_sections(folder) == [one]


def test_sections_of_one_name_are_called_by_the_folders_that_differ(tmp_path):
    paths = [tmp_path / place / "h5ad" / "A.h5ad" for place in ("P1", "P2")]
    paths += [tmp_path / "P3" / "h5ad" / "B.h5ad"]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    assert [source.name for source in distinct_names(list_sections(paths))] == ["P1_A", "P2_A", "B"]
    (tmp_path / "P1" / "raw").mkdir()
    (tmp_path / "P1" / "raw" / "A.h5ad").touch()  # no single level of folders tells these three apart
    paths = [paths[0], tmp_path / "P1" / "raw" / "A.h5ad", paths[1]]
    assert [source.name for source in distinct_names(list_sections(paths))] == ["P1_h5ad_A", "P1_raw_A", "P2_h5ad_A"]


def test_a_name_of_a_manifest_stays(one, tmp_path):
    shutil.copytree(one.parent, tmp_path / "P2")
    (tmp_path / "s.csv").write_text("section,name\nP1/A.h5ad,first\nP2/A.h5ad,\n")
    assert [source.name for source in distinct_names(list_sections(tmp_path / "s.csv"))] == ["first", "A"]
    (tmp_path / "s.csv").write_text("section,name\nP1/A.h5ad,A\nP2/A.h5ad,\n")
    assert [source.name for source in distinct_names(list_sections(tmp_path / "s.csv"))] == ["A", "P2_A"]
    (tmp_path / "s.csv").write_text("section,name\nP1/A.h5ad,A\n")
    (tmp_path / "t.csv").write_text("section,name\nP2/A.h5ad,A\n")
    with pytest.raises(ValueError, match="both be called A; give each a name"):
        distinct_names(list_sections([tmp_path / "s.csv", tmp_path / "t.csv"]))
    with pytest.warns(UserWarning, match="is named twice"):
        (source,) = list_sections([one, tmp_path / "s.csv"])
    assert source.name == "A"  # what the manifest says of a file that is named beside it counts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column section, its first line is empty"),
        ("section,pateint\nP1/A.h5ad,P1\n", "unknown column 'pateint', did you mean 'patient'"),
        ("section,mpp\nP1/A.h5ad,half\n", "row 2: mpp is 'half'"),
        ("section,mpp\nP1/A.h5ad,nan\n", "row 2: mpp is 'nan'; histology images have 0.05 to 20 um per pixel"),
        ("section,mpp\nP1/A.h5ad,-1\n", "row 2: mpp is '-1'; histology"),
        ("section\nP1/A.h5ad\nP9/A.h5ad\n", "row 3: section P9/A.h5ad does not exist"),
        ("section,image\nP1/A.h5ad,none.tif\n", "row 2: image none.tif does not exist"),
        ("section,patient\n,P1\n", "row 2: no section"),
        ("section,kind\nP1/A.h5ad,visium\n", f"row 2: kind is 'visium'; need one of {KINDS}"),
        ("section,mpp,image\nP1/A.tif,0.5,P1/A.h5ad\n", "row 2: image is given"),
        ("section,kind\nP1/A.tif,h5ad\n", "row 2: kind is given"),
        ("section\nP1/A.h5ad\nP1/../P1/A.h5ad\n", "is there twice"),
        ("section,name\nP1/A.h5ad,../x\n", "row 2: name '../x'"),
        ("section\nP1/A.h5ad,P1\n", "row 2: 2 cells for 1 columns"),
        ("section,section\nP1/A.h5ad,P1\n", "a column is there twice"),
        ("section\n\n", "names no section"),
    ],
)
def test_a_wrong_manifest_is_refused_by_row(one, tmp_path, text, words):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_manifest(tmp_path / "s.csv")
    assert "s.csv" in str(caught.value)
    assert words in str(caught.value)


def test_a_manifest_written_on_windows(one, tmp_path):
    (tmp_path / "s.csv").write_bytes(b"\xef\xbb\xbfsection;image\r\nP1\\A.h5ad;P1\\A.tif\r\n")
    (source,) = read_manifest(tmp_path / "s.csv")
    assert (source.path, source.image) == (one, one.with_name("A.tif"))
    (tmp_path / "s.csv").write_bytes("section\nP1/A.h5ad\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"s\.csv is no text in UTF-8; save the manifest as 'CSV UTF-8'"):
        read_manifest(tmp_path / "s.csv")


def test_a_folder_of_images_without_the_image_is_no_reason_to_take_another(one, tmp_path):
    write_image(tmp_path / "slides" / "B.tif")
    with pytest.raises(FileNotFoundError) as caught:
        read_section(one, images_dir=tmp_path / "slides")
    for words in ("named A (.tif", "slides (--images)", "which holds B.tif", f"to use {one.parent / 'A.tif'}"):
        assert words in str(caught.value)
    found = write_image(tmp_path / "slides" / "A.PNG")
    assert read_section(one, images_dir=tmp_path / "slides").image_path == found


def test_a_name_of_another_machine_that_cannot_be_looked_at_is_passed_over(one):
    stored = anndata.read_h5ad(one)
    (library,) = stored.uns["spatial"].values()
    library["metadata"] = {**library.get("metadata", {}), "source_image_path": f"/{'x' * 300}.svs"}
    stored.write_h5ad(one)
    assert read_section(one).image_path == one.with_name("A.tif")
    assert read_section(one, images_dir=one.parent).image_path == one.with_name("A.tif")


def test_no_image_anywhere_is_one_short_sentence(one):
    one.with_name("A.tif").unlink()
    (one.parent / "._A.tif").write_bytes(b"\0\5\x16\7")
    with pytest.raises(FileNotFoundError) as caught:
        read_section(one)
    assert str(caught.value).count(str(one.parent)) == 2  # the section's and the folder's, no list of eight paths
    assert "--image FILE" in str(caught.value)
    assert "image=PATH" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["A.tif", "A.Tif", "A.ome.tif", "A.OME.TIFF", "images/A.jpg", "../images/A.PNG", "../wsis/A.tiff"]
)
def test_places_and_endings_of_images(name, one):
    one.with_name("A.tif").unlink()
    image = write_image(one.parent / name)
    assert read_section(one).image_path.resolve() == image.resolve()


@pytest.mark.parametrize("place", ["A/outs/A.tif", "A/A.ome.tif", "A.tif", "A/outs/images/A.tif"])
def test_images_of_space_ranger_beside_and_above_outs(place, tmp_path):
    visium(tmp_path)
    (tmp_path / "A" / "A.tif").unlink()
    image = write_image(tmp_path / place)
    assert read_section(tmp_path / "A").image_path == image


def test_an_image_above_all_bins_of_visium_hd(tmp_path):
    folder = hd(tmp_path)
    path = folder / "outs" / "binned_outputs" / "square_008um"
    assert read_section(path).image_path == folder / "A.tif"
    assert sample_folder(path) == folder
    with pytest.raises(ValueError, match="choose one: --bin-um 8 or 16"):
        find_sections(tmp_path)
    assert find_sections([tmp_path], bin_um=8) == [path]
    assert find_sections(hd(tmp_path / "single", (8,))) == [tmp_path / "single/A/outs/binned_outputs/square_008um"]
