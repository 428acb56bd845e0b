"""Real sections are read right, and bad files are refused with the file and the remedy."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
from PIL import Image

from hyperst.data import CropConfig, SpotDataset, check_section, niche_members, read_section, select_genes
from hyperst.synthetic import write_tissue


@pytest.fixture
def tissue(tmp_path):
    return write_tissue(tmp_path, 5, n_rows=6, n_cols=6)


def rewrite(path, change):
    adata = anndata.read_h5ad(path)
    adata = change(adata) or adata
    adata.write_h5ad(path)


def negative(adata):
    adata.X = adata.X.copy()
    adata.X.data[0] = -1


def fractions(adata):
    adata.X = adata.X * 0.5


def doubled(adata):
    adata.var_names = ["SAME", "SAME", *adata.var_names[2:]]


def outside(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"] * 10


def scale(adata):
    name = next(iter(adata.uns["spatial"]))
    adata.uns["spatial"][name]["metadata"] |= {"mpp": 5.0, "spot_pitch_um": 100.0}


@pytest.mark.parametrize(
    ("change", "words"),
    [(negative, "negative"), (fractions, "whole|integer"), (doubled, "SAME"), (outside, "outside"), (scale, "um/px")],
)
def test_bad_content_is_refused(tissue, change, words):
    rewrite(tissue, change)
    with pytest.raises(ValueError, match=words) as caught:
        read_section(tissue)
    assert tissue.name in str(caught.value) or "S5" in str(caught.value)
    assert check_section(tissue)[0].level == "error"


def test_missing_image_says_where_it_looked(tissue):
    (tissue.parent / "images" / "S5.png").unlink()
    with pytest.raises(FileNotFoundError, match="images"):
        read_section(tissue)


def test_hires_image_instead_of_the_full_resolution(tissue, tmp_path):
    with Image.open(tissue.parent / "images" / "S5.png") as image:
        image.resize((image.width // 4, image.height // 4)).save(tmp_path / "hires.png")
    with pytest.raises(ValueError, match="outside"):
        read_section(tissue, image=tmp_path / "hires.png")


def test_truncated_file(tissue):
    tissue.write_bytes(tissue.read_bytes()[:5000])
    with pytest.raises((OSError, ValueError), match=r"S5\.h5ad"):
        read_section(tissue)


def test_edge_spots_are_kept_and_niches_masked(tissue):
    section = read_section(tissue)
    sizes = np.asarray(niche_members(section).sum(axis=1)).ravel()
    assert len(sizes) == 36
    assert sizes.max() == 7
    assert sizes.min() >= 3
    dataset = SpotDataset([section], list(section.genes[:3]), CropConfig(image_size=32), "log2", augment=True)
    item = dataset[0]
    assert item["spot_image"].shape == (3, 32, 32)
    expected = np.log2(1 + section.counts[[0], :3].toarray()[0])
    np.testing.assert_allclose(item["target"].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["C2", "C3", "C4", "C5"])
def test_legacy_tables_are_the_same_section(real_data, name):
    h5ad = read_section(real_data / "her2st" / "h5ad" / f"{name}.h5ad")
    table = read_section(real_data / "her2st" / "counts" / f"{name}.tsv.gz")
    assert h5ad.grid.kind == table.grid.kind == "square"
    assert 0.68 < h5ad.grid.um_per_px < 0.70
    order = np.argsort(h5ad.spot_px[:, 0] * 1e5 + h5ad.spot_px[:, 1])
    other = np.argsort(table.spot_px[:, 0] * 1e5 + table.spot_px[:, 1])
    np.testing.assert_allclose(h5ad.spot_px[order], table.spot_px[other], atol=0.01)
    column = {gene: number for number, gene in enumerate(table.genes)}
    genes = [column[gene] for gene in h5ad.genes]
    assert (h5ad.counts[order] != table.counts[other][:, genes]).nnz == 0


def test_other_scales_and_grids(real_data):
    small = read_section(real_data / "her2st" / "h5ad" / "A1.h5ad")
    assert small.grid.um_per_px == pytest.approx(3.19, rel=0.02)
    mob = read_section(real_data / "mob" / "h5ad" / "MOB1.h5ad")
    assert (mob.grid.kind, mob.n_spots, mob.grid.um_per_px) == ("hexagonal", 379, None)
    genes = select_genes([small], 200, "hmhvg")
    assert len(genes) == 200
    assert not any(gene.startswith(("MT-", "RPL", "RPS")) for gene in genes)


@pytest.mark.parametrize("rounding", [np.floor, np.ceil])
@pytest.mark.parametrize("step", [2, 7.3, 20])
def test_an_image_of_another_size_than_the_downscaled_one_is_refused(tissue, rounding, step):
    file = tissue.parent / "images" / "S5.png"
    with Image.open(file) as image:
        whole = image.convert("RGB")

    def downscaled(adata):
        library = next(iter(adata.uns["spatial"].values()))
        width, height = (int(rounding(side / step)) for side in whole.size)
        library["images"] = {"hires": np.zeros((height, width, 3), np.uint8)}
        library["scalefactors"]["tissue_hires_scalef"] = 1 / step

    rewrite(tissue, downscaled)
    assert read_section(tissue).n_spots == 36
    for grown in ((1.2, 1), (1, 1.2), (2, 2)):
        size = tuple(round(side * more) for side, more in zip(whole.size, grown, strict=True))
        whole.resize(size).save(file)
        with pytest.raises(
            ValueError, match=rf"S5\.png has {size[0]} x {size[1]} px, but the downscaled image of .*S5\.h5ad"
        ):
            read_section(tissue)


def test_spots_wider_than_their_pitch_are_said(tissue):
    def wide(share):
        def change(adata):
            library = next(iter(adata.uns["spatial"].values()))
            library["metadata"].pop("spot_diameter_um", None)
            library["scalefactors"]["spot_diameter_fullres"] = share * 100 / 1.4

        return change

    rewrite(tissue, wide(1))
    assert read_section(tissue).spot_diameter_px == pytest.approx(100 / 1.4)
    rewrite(tissue, wide(1.1))
    told = r"S5\.h5ad: spots of 78\.57 px \(spot_diameter_fullres\) lie 71\.\d+ px apart"
    with pytest.warns(UserWarning, match=told):
        read_section(tissue)
