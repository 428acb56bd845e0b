"""`hyperst check` foretells, in its own words, what `hyperst train` refuses before it starts."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anndata
import pytest
from typer.testing import CliRunner, Result

from hyperst.cli import app
from hyperst.data import read_section
from hyperst.plan import foretell, plan_run, require_new
from hyperst.synthetic import write_tissue

from .data.section_formats import IDS, hd, table


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def tissue(folder: Path, name: str, change: Callable[[anndata.AnnData], anndata.AnnData | None] | None = None) -> Path:
    path = write_tissue(folder, seed=sum(map(ord, name)), name=name, patient="P", n_rows=9, n_cols=9)
    if change is not None:
        adata = anndata.read_h5ad(path)
        adata = change(adata) or adata
        adata.write_h5ad(path)
    return path


def identifiers(kind: str) -> Callable[[anndata.AnnData], None]:
    def change(adata: anndata.AnnData) -> None:
        adata.var_names = [kind.format(number) for number in range(adata.n_vars)]

    return change


def few_spots(adata: anndata.AnnData) -> anndata.AnnData:
    return adata[:2].copy()


def other_names(adata: anndata.AnnData) -> None:
    adata.var_names = [f"other{number}" for number in range(adata.n_vars)]


def no_scale(adata: anndata.AnnData) -> None:
    del adata.uns["spatial"]


def scattered(adata: anndata.AnnData) -> anndata.AnnData:
    """One spot: nothing tells a pitch."""
    adata = adata[:1].copy()
    del adata.uns["spatial"]
    return adata


def refusal(paths: list[Path], folder: Path) -> str:
    """What train says, without the hint."""
    result = call("train", *paths, "--n-genes", 12, "-o", folder / "run")
    assert result.exit_code == 1, result.output
    assert not (folder / "run").exists()
    found = re.fullmatch(r"error: (.*) \(run `hyperst --debug .*\)", result.stderr.splitlines()[-1])
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (identifiers("ENSG{:011d}"), "--gene-names COLUMN"),
        (identifiers("{}"), "--gene-names COLUMN"),
        (identifiers("NM_{}.2"), "--gene-names COLUMN"),
        (identifiers("MT-{}"), "only 0 genes"),
        (few_spots, "too few spots (2)"),
        (scattered, "spacing of the spots is unknown"),
    ],
)
def test_what_training_refuses_of_one_section(change, words, tmp_path):
    path = tissue(tmp_path, "A", change)
    said = refusal([path], tmp_path)
    assert words in said
    assert "A" in said
    result = call("check", path)
    assert result.exit_code == 1
    shown = " ".join(result.output.split())
    # without --n-genes check asks for the usual number
    assert said.replace("got 12,", "got 200,") in shown
    assert "0 of 1 sections can be used" in result.output


@pytest.mark.parametrize(("change", "words"), [(other_names, "no gene in common"), (no_scale, "um/px of section B")])
def test_what_training_refuses_of_two_sections(change, words, tmp_path):
    paths = [tissue(tmp_path, "A"), tissue(tmp_path, "B", change)]
    said = refusal(paths, tmp_path)
    assert words in said
    result = call("check", *paths)
    assert result.exit_code == 1
    assert "2 of 2 sections can be used" in result.output  # each alone
    assert result.output.index("all sections together") < result.output.index(f"training would refuse: {said}")


def test_a_copy_is_foretold(tmp_path):
    one = tissue(tmp_path, "A")
    two = one.with_name("B.h5ad")
    two.write_bytes(one.read_bytes())
    said = refusal([one, two], tmp_path)
    assert "one is a copy" in said
    assert f"training would refuse: {said}" in call("check", tmp_path).output


def test_fewer_genes_are_a_warning_with_the_number_to_ask_for(sections):
    (found,) = foretell(sections)
    assert (found.level, found.remedy) == ("warning", "--n-genes 120")
    assert "find 120 genes" in found.message


def test_the_remedy_for_identifiers_goes_with_the_kind_of_file(tmp_path):
    path = table(tmp_path)
    counts = path.parent.parent / "counts.txt"
    counts.write_text("\t".join(["", *IDS]) + "\n" + "".join(f"{x}x{y}\t1\t2\t3\t4\n" for x in (1, 2) for y in (1, 2)))
    (tmp_path / "counts_selection.tsv").write_bytes((tmp_path / "spots" / "A_selection.tsv").read_bytes())
    section = read_section(counts, image=tmp_path / "images" / "A.tif", require_image=False)
    (found,) = foretell([section], min_counts=0)
    assert found.level == "error"
    assert "write the symbols in place of the identifiers in the first line" in found.message
    assert "--gene-names" not in found.message  # such a table has no column to choose
    assert str(counts) in found.message


def test_one_refused_folder_hides_no_other(tmp_path):
    """Among the samples of a folder one has two binnings and none is chosen."""
    hd(tmp_path)
    single = hd(tmp_path / "other", (16,))
    single.rename(tmp_path / "B")
    result = call("check", tmp_path)
    assert result.exit_code == 1
    rows = [line.split() for line in result.output.splitlines() if line.startswith("│")]
    assert [(row[1], row[-2]) for row in rows][-1] == ("A", "error")
    assert rows[0][1] == "B_square_016um"
    assert rows[0][5] == "9"  # its spots
    assert f"{tmp_path / 'A'} holds one tissue in 2 binnings" in result.output
    assert "choose one: --bin-um 8 or 16" in result.output


def test_names_that_stay_the_same_hide_no_section(tmp_path):
    for folder in ("P1", "P2"):
        tissue(tmp_path / folder, "A")
        (tmp_path / f"{folder}.csv").write_text(f"section,name\n{folder}/A.h5ad,X\n")
    result = call("check", tmp_path / "P1.csv", tmp_path / "P2.csv")
    assert result.exit_code == 1
    assert "2 of 3 sections can be used" in result.output
    assert "would both be called X" in result.output


def test_one_validation_spot_is_refused(sections, tiny_config):
    one = replace(
        sections[2],
        counts=sections[2].counts[[0]],
        spot_ids=sections[2].spot_ids[:1],
        spot_px=sections[2].spot_px[:1],
        array_index=None,
        library_size=sections[2].library_size[:1],
    )
    with pytest.raises(ValueError, match="1 spot of S1, S3 is left to choose the checkpoint on"):
        plan_run(tiny_config, sections[:1], [one])


def test_spots_without_a_count_are_told_by_every_command(tmp_path):
    def emptied(adata: anndata.AnnData) -> None:
        counts = adata.X.toarray()
        counts[3:6] = 0
        adata.X = counts

    path = tissue(tmp_path, "A", emptied)
    with pytest.warns(UserWarning, match=r"A\.h5ad: 3 of 81 spots have no count at all \(.*\); .* leave them out"):
        section = read_section(path)
    assert (section.library_size[3:6] == 0).all()
    assert call("check", path).output.count("3 of 81 spots have no count at all") == 1


def test_check_says_once_that_crops_cannot_be_sized(tmp_path):
    result = call("check", tissue(tmp_path, "A", scattered))
    assert result.output.count("the spacing of the spots is unknown") == 1
    assert "--config" in result.output


@pytest.mark.parametrize(
    "name",
    [
        "genes.txt",
        "split.json",
        "versions.json",
        "metrics.csv",
        "summary.json",
        "calibration.npz",
        "checkpoints/best.ckpt",
    ],
)
def test_training_replaces_no_file_of_a_folder_without_a_run(tmp_path, name):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    result = call("train", tissue(tmp_path, "A"), "--n-genes", 12, "-o", tmp_path / "run")
    assert result.exit_code == 1, result.output
    assert f"run holds {'checkpoints/' if '/' in name else name}, which a run writes" in result.stderr
    assert file.read_text() == "mine"
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [file]


def test_a_new_run_may_lie_beside_other_files(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    require_new(tmp_path)
    (tmp_path / "config.yaml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match=r"holds config\.yaml, which a run writes"):
        require_new(tmp_path)
