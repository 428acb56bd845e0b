"""One small section in every format that the reference page lists; nine spots, and the counts that must be read."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy import sparse
from scipy.io import mmwrite

GENES = ["ACTB", "MT-CO1", "RPL3", "VIM"]
IDS = ["ENSG00000075624", "ENSG00000198804", "ENSG00000100316", "ENSG00000026025"]
COUNTS = np.arange(36).reshape(9, 4) % 7 + np.eye(9, 4, dtype=int) * 20
ROW, COLUMN = (index.ravel() for index in np.indices((3, 3)))
PIXELS = np.stack([COLUMN, ROW], axis=1) * 30.0 + 20.0  # x, y
BARCODES = [f"AAAC{number}-1" for number in range(9)]
SCALEFACTORS = {"spot_diameter_fullres": 16.5, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1}


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(90, 200, (120, 120, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, format="tiff" if "tif" in path.suffix.lower() else None)
    return path


def section(**parts: object) -> anndata.AnnData:
    """The section as AnnData; parts replace those of the constructor."""
    obs = pd.DataFrame({"array_row": ROW, "array_col": COLUMN}, index=BARCODES)
    given: dict[str, object] = {
        "X": sparse.csr_matrix(COUNTS.astype(np.float32)),
        "obs": obs,
        "var": pd.DataFrame(index=GENES),
        "obsm": {"spatial": PIXELS},
        "uns": {"spatial": {"A": {"scalefactors": {"spot_diameter_fullres": 16.5}, "metadata": {"mpp": 2.0}}}},
    }
    return anndata.AnnData(**{**given, **parts})


def h5ad(folder: Path, change: Callable[[anndata.AnnData], anndata.AnnData | None] = lambda adata: None) -> Path:
    write_image(folder / "A.tif")
    adata = section()
    adata = change(adata) or adata
    adata.write_h5ad(folder / "A.h5ad")
    return folder / "A.h5ad"


def normalised(adata: anndata.AnnData) -> None:
    adata.X = sparse.csr_matrix(np.log1p(COUNTS).astype(np.float32))


def with_layer(name: str) -> Callable[[anndata.AnnData], None]:
    def change(adata: anndata.AnnData) -> None:
        adata.layers[name] = adata.X.copy()
        normalised(adata)

    return change


def empty_x(adata: anndata.AnnData) -> None:
    adata.layers["counts"] = adata.X.copy()
    adata.X = None


def in_raw(adata: anndata.AnnData) -> anndata.AnnData:
    """Normalised values of two genes, raw counts of all four, and a spot beside the tissue."""
    adata.raw = adata.copy()
    normalised(adata)
    return adata[:, GENES[:2]].copy()


def fuller_raw(adata: anndata.AnnData) -> anndata.AnnData:
    adata.raw = adata.copy()
    return adata[:, GENES[:2]].copy()


def x_spatial(adata: anndata.AnnData) -> None:
    adata.obsm["X_spatial"] = adata.obsm.pop("spatial")


def obs_columns(x: str, y: str, values: np.ndarray = PIXELS) -> Callable[[anndata.AnnData], None]:
    def change(adata: anndata.AnnData) -> None:
        del adata.obsm["spatial"]
        adata.obs[x], adata.obs[y] = values.T

    return change


def leftovers(adata: anndata.AnnData) -> None:
    adata.uns["spatial"] |= {"is_single": np.bool_(True), "B": {}, "C": {"images": {}, "scalefactors": {}}}


def ensembl(adata: anndata.AnnData) -> None:
    adata.var = pd.DataFrame({"gene_symbols": GENES}, index=IDS)


def renamed(names: list[str]) -> Callable[[anndata.AnnData], None]:
    def change(adata: anndata.AnnData) -> None:
        adata.var_names = names

    return change


def spatial(value: object) -> Callable[[anndata.AnnData], None]:
    def change(adata: anndata.AnnData) -> None:
        adata.uns["spatial"] = value

    return change


def zero(adata: anndata.AnnData) -> None:
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)


def text_array(adata: anndata.AnnData) -> None:
    adata.obs["array_row"] = [*(str(row) for row in ROW[:-1]), "left"]


def write_10x(file: Path, barcodes: list[str] = BARCODES, counts: np.ndarray = COUNTS) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    matrix = sparse.csr_matrix(counts)
    with h5py.File(file, "w") as handle:
        group = handle.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = matrix.data, matrix.indices, matrix.indptr
        group["shape"] = np.array([matrix.shape[1], matrix.shape[0]])
        group["barcodes"] = np.array(barcodes, dtype="S")
        features = group.create_group("features")
        features["id"], features["name"] = np.array(IDS, dtype="S"), np.array(GENES, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * len(GENES), dtype="S")


def positions(barcodes: list[str] = BARCODES, in_tissue: object = 1) -> pd.DataFrame:
    y, x = PIXELS[:, 1], PIXELS[:, 0]
    columns = {"barcode": barcodes, "in_tissue": in_tissue, "array_row": ROW, "array_col": COLUMN}
    return pd.DataFrame({**columns, "pxl_row_in_fullres": y, "pxl_col_in_fullres": x})


def write_spatial(folder: Path, factors: object = SCALEFACTORS, table: pd.DataFrame | None = None) -> None:
    (folder / "spatial").mkdir(parents=True, exist_ok=True)
    (positions() if table is None else table).to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))


def visium(folder: Path) -> Path:
    write_10x(folder / "A" / "outs" / "filtered_feature_bc_matrix.h5")
    write_spatial(folder / "A" / "outs")
    write_image(folder / "A" / "A.tif")
    return folder / "A"


def write_mtx(folder: Path, prefix: str = "", packed: bool = True, features: str = "features.tsv") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mmwrite(folder / f"{prefix}matrix.mtx", sparse.coo_matrix(COUNTS.T))
    rows = [
        f"{id_}\t{name}" + ("\tGene Expression" if features == "features.tsv" else "")
        for id_, name in zip(IDS, GENES, strict=True)
    ]
    (folder / f"{prefix}{features}").write_text("\n".join(rows) + "\n")
    (folder / f"{prefix}barcodes.tsv").write_text("\n".join(BARCODES) + "\n")
    if packed:
        for name in ("matrix.mtx", features, "barcodes.tsv"):
            pack(folder / f"{prefix}{name}")


def pack(file: Path) -> None:
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()


def mtx(folder: Path) -> Path:
    write_mtx(folder / "A" / "filtered_feature_bc_matrix", packed=False, features="genes.tsv")
    write_spatial(folder / "A")
    write_image(folder / "A" / "A.Tif")
    return folder / "A"


def raw_matrix(folder: Path) -> Path:
    beside = np.vstack([COUNTS, np.full((1, 4), 3)])  # a tenth barcode, beside the tissue
    write_10x(folder / "A" / "raw_feature_bc_matrix.h5", [*BARCODES, "GGGG-1"], beside)
    table = positions()
    table.loc[9] = ["GGGG-1", 0, 3, 3, 110.0, 110.0]
    write_spatial(folder / "A", table=table)
    write_image(folder / "A.ome.tif")
    return folder / "A"


def geo(folder: Path, prefixes: tuple[str, ...] = ("GSM1_A_",)) -> Path:
    place = folder / "A"
    for prefix in prefixes:
        write_mtx(place, prefix)
        positions().to_csv(place / f"{prefix}tissue_positions_list.csv", index=False, header=False)
        (place / f"{prefix}scalefactors_json.json").write_text(json.dumps(SCALEFACTORS))
        for name in ("tissue_positions_list.csv", "scalefactors_json.json"):
            pack(place / f"{prefix}{name}")
        write_image(place / f"{prefix.rstrip('_')}.tif")
    if len(prefixes) == 1:
        write_image(folder / "A.tif")
    return place


def hd(folder: Path, bins: tuple[int, ...] = (8, 16)) -> Path:
    outs = folder / "A" / "outs"
    for size in bins:
        place = outs / "binned_outputs" / f"square_{size:03d}um"
        write_10x(place / "filtered_feature_bc_matrix.h5", counts=COUNTS if size == 16 else COUNTS[::-1])
        write_spatial(place, {**SCALEFACTORS, "bin_size_um": float(size), "microns_per_pixel": size / 30})
    (outs / "spatial").mkdir(exist_ok=True)
    write_image(folder / "A" / "A.tif")
    return folder / "A"


def segmented(folder: Path) -> Path:
    place = folder / "A" / "outs" / "segmented_outputs"
    barcodes = [f"cellid_{number + 1:09d}-1" for number in range(9)]
    write_10x(place / "filtered_feature_cell_matrix.h5", barcodes)
    (place / "spatial").mkdir()
    (place / "spatial" / "scalefactors_json.json").write_text(json.dumps({"microns_per_pixel": 0.5}))
    corner = np.array(
        [[-4, -4], [4, -4], [4, 4], [0, 4], [-4, 4], [-4, -4]]
    )  # a corner more on one side moves no centroid
    outlines = [
        {
            "type": "Feature",
            "properties": {"cell_id": number + 1},
            "geometry": {"type": "Polygon", "coordinates": [(corner + centre).tolist()]},
        }
        for number, centre in enumerate(PIXELS)
    ]
    collection = {"type": "FeatureCollection", "features": outlines[::-1]}
    (place / "cell_segmentations.geojson").write_text(json.dumps(collection))
    write_image(folder / "A" / "A.tif")
    return place


def no_scalefactors(folder: Path) -> Path:
    path = visium(folder)
    (path / "outs" / "spatial" / "scalefactors_json.json").unlink()
    return path


def text_positions(folder: Path) -> Path:
    path = visium(folder)
    table = positions().astype({"array_row": object})
    table.loc[4, "array_row"] = "left"
    write_spatial(path / "outs", table=table)
    return path


def mtx_mismatch(folder: Path) -> Path:
    path = mtx(folder)
    (path / "filtered_feature_bc_matrix" / "genes.tsv").write_text("ENSG00000075624\tACTB\n")
    return path


def mtx_pattern(folder: Path) -> Path:
    path = mtx(folder)
    mmwrite(path / "filtered_feature_bc_matrix" / "matrix.mtx", sparse.coo_matrix(COUNTS.T), field="pattern")
    return path


def mtx_commas(folder: Path) -> Path:
    path = mtx(folder)
    genes = path / "filtered_feature_bc_matrix" / "genes.tsv"
    genes.write_text(genes.read_text().replace("\t", ","))
    return path


def table(folder: Path, cell: object = None, selection: bool = True) -> Path:
    spots = [f"{column + 1}x{row + 1}" for row, column in zip(ROW, COLUMN, strict=True)]
    counts = pd.DataFrame(COUNTS, index=spots, columns=GENES)
    if cell is not None:
        counts = counts.astype(object)
        counts.loc["2x2", "VIM"] = cell
    (folder / "counts").mkdir()
    counts.to_csv(folder / "counts" / "A.tsv.gz", sep="\t")
    if selection:
        (folder / "spots").mkdir()
        columns = {"x": COLUMN + 1, "y": ROW + 1, "pixel_x": PIXELS[:, 0], "pixel_y": PIXELS[:, 1]}
        pd.DataFrame(columns).to_csv(folder / "spots" / "A_selection.tsv", sep="\t", index=False)
    write_image(folder / "images" / "A.tif")
    return folder / "counts" / "A.tsv.gz"


def cohort(folder: Path) -> Path:
    """A folder of one section, with what else lies in such folders."""
    place = folder / "cohort"
    place.mkdir()
    path = table(place)
    shutil.copy(place / "spots" / "A_selection.tsv", path.parent)
    (path.parent / "README.txt").write_text("What these counts are,\nand whose.\n")
    (path.parent / "._A.tsv.gz").write_bytes(b"\0\5\x16\7")
    return place


def manifest(folder: Path) -> Path:
    (folder / "sections").mkdir()
    h5ad(folder / "sections").rename(folder / "sections" / "first.h5ad")
    write_image(folder / "slides" / "X17.tif")
    rows = ["section;name;patient;image;mpp;kind", "sections/first.h5ad;A;P1;slides/X17.tif;2,0;h5ad"]
    (folder / "sections.csv").write_text("\ufeff" + "\r\n".join(rows) + "\r\n", encoding="utf-8")
    return folder / "sections.csv"


def bad_manifest(folder: Path) -> Path:
    (folder / "sections.csv").write_text("file,patient\nA.h5ad,P1\n")
    return folder / "sections.csv"


def one_name(folder: Path) -> Path:
    for patient in ("P1", "P2"):
        (folder / "all" / patient).mkdir(parents=True)
        h5ad(folder / "all" / patient)
    rows = ["section", "P1/A.h5ad", "P2/A.h5ad"]
    (folder / "all" / "sections.csv").write_text("\n".join(rows))
    return folder / "all" / "sections.csv"


MADE: dict[str, Callable[[Path], Path]] = {
    "h5ad": h5ad,
    "counts_layer": lambda folder: h5ad(folder, with_layer("counts")),
    "other_layer": lambda folder: h5ad(folder, with_layer("raw_counts")),
    "empty_x": lambda folder: h5ad(folder, empty_x),
    "raw": lambda folder: h5ad(folder, in_raw),
    "fuller_raw": lambda folder: h5ad(folder, fuller_raw),
    "x_spatial": lambda folder: h5ad(folder, x_spatial),
    "obs_x_y": lambda folder: h5ad(folder, obs_columns("x", "y")),
    "leftovers": lambda folder: h5ad(folder, leftovers),
    "ensembl": lambda folder: h5ad(folder, ensembl),
    "ensembl_only": lambda folder: h5ad(folder, renamed(IDS)),
    "array_in_obs": lambda folder: h5ad(folder, obs_columns("x", "y", PIXELS // 30)),
    "no_positions": lambda folder: h5ad(folder, lambda adata: adata.obsm.clear()),
    "no_counts": lambda folder: h5ad(folder, normalised),
    "unknown_layer": lambda folder: h5ad(folder, with_layer("spliced")),
    "no_genes": lambda folder: h5ad(folder, lambda adata: adata[:, []].copy()),
    "all_zero": lambda folder: h5ad(folder, zero),
    "two_libraries": lambda folder: h5ad(folder, spatial({n: {"metadata": {"mpp": 2.0}} for n in "AB"})),
    "text_library": lambda folder: h5ad(folder, spatial("slide 3")),
    "list_factors": lambda folder: h5ad(folder, spatial({"A": {"scalefactors": np.array([1.0, 2.0])}})),
    "text_array": lambda folder: h5ad(folder, text_array),
    "visium": visium,
    "mtx": mtx,
    "raw_matrix": raw_matrix,
    "geo": geo,
    "geo_several": lambda folder: geo(folder, ("GSM1_A_", "GSM2_B_")),
    "hd_bin": lambda folder: hd(folder) / "outs" / "binned_outputs" / "square_016um",
    "hd_root": hd,
    "hd_unchosen": hd,
    "segmented": segmented,
    "no_scalefactors": no_scalefactors,
    "text_positions": text_positions,
    "mtx_mismatch": mtx_mismatch,
    "mtx_pattern": mtx_pattern,
    "mtx_commas": mtx_commas,
    "table": table,
    "text_in_table": lambda folder: table(folder, "many"),
    "no_selection": lambda folder: table(folder, selection=False),
    "cohort": cohort,
    "manifest": manifest,
    "bad_manifest": bad_manifest,
    "one_name": one_name,
}
"""A section in each format; the path is what a user names."""

REFUSED = {
    "ensembl_only": ["ENSG00000075624", "--gene-names"],
    "array_in_obs": ["A.h5ad", "positions on the array", "obsm['spatial']"],
    "no_positions": ["A.h5ad", "obsm['spatial']"],
    "no_counts": ["A.h5ad", "raw counts", "not whole numbers", "layers['counts']"],
    "unknown_layer": ["'spliced'", "rename"],
    "no_genes": ["A.h5ad", "no genes"],
    "all_zero": ["A.h5ad", "no count above 0"],
    "two_libraries": ["A, B", "one .h5ad per section"],
    "text_library": ["A.h5ad", "slide 3", "delete"],
    "list_factors": ["scalefactors", "[1., 2.]", "restore"],
    "text_array": ["A.h5ad", "array_row", "'left'", "AAAC8-1"],
    "hd_unchosen": ["one tissue", "square_008um, square_016um", "--bin-um 8 or 16"],
    "no_scalefactors": ["scalefactors_json.json"],
    "text_positions": ["tissue_positions.csv", "array_row", "'left'", "AAAC4-1"],
    "mtx_mismatch": ["matrix.mtx", "4 genes and 9 spots", "1 genes and 9 spots"],
    "mtx_pattern": ["matrix.mtx holds no counts", "'pattern'", "export it again"],
    "mtx_commas": ["genes.tsv", "separated by commas (ENSG", "tabs"],
    "text_in_table": ["A.tsv.gz", "VIM", "'many'", "2x2"],
    "no_selection": ["A_selection.tsv"],
    "bad_manifest": ["sections.csv", "no column section", "file, patient"],
}
"""What the message of a refused one says: the file, what it holds, the remedy."""
