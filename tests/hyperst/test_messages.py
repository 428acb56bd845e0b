"""What goes wrong on the command line is one message that names the file, what it holds and the remedy, before the work."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from rich.console import Console

from hyperst.cli.console import make_console, print_error, print_sections
from hyperst.data import fingerprint, read_section
from hyperst.evaluation import OURS, evaluate
from hyperst.evaluation_inputs import check_folder, check_unseen
from hyperst.predict import predict_values
from hyperst.run import SectionRecord, load_run

from .data.section_formats import MADE, hd, write_image
from .test_cli import SMALL, call, failure


@pytest.fixture
def copied(section_paths, tmp_path):
    """A function that copies a section and its image to a folder, under a name."""

    def copy(number, folder, name):
        place = tmp_path / folder
        (place / "images").mkdir(parents=True, exist_ok=True)
        source = section_paths[number]
        shutil.copy(source, place / f"{name}.h5ad")
        shutil.copy(source.parent / "images" / f"{source.stem}.png", place / f"{name}.png")
        return place / f"{name}.h5ad"

    return copy


def test_a_training_section_is_known_again_under_another_name(trained, copied):
    message = failure("evaluate", trained, copied(0, "new", "patient7"))
    assert "patient7 took part in the training" in message
    assert "as S1" in message
    assert not (trained / "evaluation").exists()


def test_another_section_of_a_training_sections_name_is_evaluated(trained, sections):
    run = load_run(trained, device="cpu")
    check_unseen(run, replace(sections[2], name="S1"))
    with pytest.raises(ValueError, match=r"S2 took part in the training of .* as S1"):
        check_unseen(run, replace(sections[0], name="S2"))


def test_a_run_without_fingerprints_compares_with_the_training_sections(trained, copied, tmp_path):
    """Runs of earlier versions: by content where the training sections can be read, else by name."""
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    split = json.loads((old / "split.json").read_text())
    for record in split["sections"]:
        del record["fingerprint"], record["gene_names"], record["kind"]
    (old / "split.json").write_text(json.dumps(split))
    assert "took part" in failure("evaluate", old, copied(0, "new", "patient7"))
    (old / "split.json").write_text(json.dumps(split).replace(".h5ad", ".gone"))
    assert "took part" in failure("evaluate", old, copied(2, "new", "S2"))


def test_one_section_in_training_and_validation_is_refused(copied, section_paths, tmp_path):
    copy = copied(0, "new", "copy")
    message = failure("train", section_paths[0], "--validation-sections", copy, "-o", tmp_path / "run", *SMALL)
    assert "hold the same spots" in message
    message = failure("train", copy, "--validation-sections", copy, "-o", tmp_path / "run", *SMALL)
    assert "more than once" in message
    assert not (tmp_path / "run").exists()


def test_sections_of_two_patients_with_one_file_name(copied, tmp_path):
    """They train under the names of their folders."""
    training = [copied(0, "P1", "slide"), copied(1, "P2", "slide")]
    result = call("train", *training, "-o", tmp_path / "run", *SMALL)
    assert result.exit_code == 0, result.output
    assert [record.name for record in load_run(tmp_path / "run").split.sections] == ["P1_slide", "P2_slide"]
    assert "took part" in failure("evaluate", tmp_path / "run", training[1])


def test_results_of_another_section_of_the_same_name_are_not_overwritten(sections, tmp_path):
    check_folder(tmp_path / "slide", sections[2])
    stored = {"file": "P3/slide.h5ad", "fingerprint": list(fingerprint(sections[2]).counts)}
    (tmp_path / "slide").mkdir()
    (tmp_path / "slide" / "metrics.json").write_text(json.dumps(stored))
    check_folder(tmp_path / "slide", sections[2])  # the same section again
    with pytest.raises(FileExistsError, match=r"another section named S1 \(P3/slide\.h5ad\); choose another --output"):
        check_folder(tmp_path / "slide", sections[0])
    del stored["fingerprint"]  # of an earlier version
    (tmp_path / "slide" / "metrics.json").write_text(json.dumps(stored))
    check_folder(tmp_path / "slide", sections[0])


@pytest.mark.parametrize(
    ("stored", "seen"), [({"stain": "macenko"}, "macenko"), ({"stain": "none"}, "none"), ({}, "none")]
)
def test_results_with_another_stain_are_not_overwritten(stored, seen, sections, tmp_path):
    """Earlier versions, which could match no stain, recorded none."""
    (tmp_path / "metrics.json").write_text(json.dumps(stored))
    check_folder(tmp_path, sections[2], stain=seen)
    with pytest.raises(
        FileExistsError, match=f"of S3 with --stain {seen}, which .* than with --stain match; choose another --output"
    ):
        check_folder(tmp_path, sections[2], stain="match")


def test_a_manifest_names_sections_patients_and_images(copied, tmp_path):
    paths = [copied(number, f"P{number}", "slide") for number in range(3)]
    image = paths[0].with_suffix(".png").rename(tmp_path / "X17.png")
    rows = ["section,name,patient,image,mpp", f"P0/slide.h5ad,first,patient A,{image.name},1.4", "P1/slide.h5ad,,,,"]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    assert "2 of 2 sections can be used" in call("check", tmp_path / "train.csv").output
    result = call("train", tmp_path / "train.csv", "-o", tmp_path / "run", *SMALL)
    assert result.exit_code == 0, result.output
    first, second = load_run(tmp_path / "run").split.sections
    assert (first.name, first.patient, first.image) == ("first", "patient A", str(image))
    assert (second.name, second.patient) == ("slide", "P2")

    (tmp_path / "test.csv").write_text("section,name\nP2/slide.h5ad,third\n")
    assert call("evaluate", tmp_path / "run", tmp_path / "test.csv").exit_code == 0
    assert (tmp_path / "run" / "evaluation" / "third" / "metrics.json").is_file()

    (tmp_path / "predict.csv").write_text("section,name,mpp\nP2/slide.h5ad,spots,\nP2/slide.png,tiles,1.4\n")
    arguments = ("predict", tmp_path / "run", tmp_path / "predict.csv", "-o", tmp_path / "predicted", "--workers", 0)
    assert (result := call(*arguments)).exit_code == 0, result.output
    spots, tiles = (anndata.read_h5ad(tmp_path / "predicted" / f"{name}.h5ad") for name in ("spots", "tiles"))
    assert list(spots.obs_names) == list(anndata.read_h5ad(paths[2]).obs_names)
    assert tiles.n_obs > 10
    assert "spots: 81 spots, predicted before" in call(*arguments).output
    assert "spots.h5ad exists" in failure(*arguments, "--stain", "match")


def test_a_section_of_a_run_is_read_again_as_it_was_read(tmp_path):
    """By the same reader, with the same names of genes, from one matrix among several in a folder."""
    path = MADE["ensembl"](tmp_path).rename(tmp_path / "A.adata")
    section = read_section(path, kind="h5ad", gene_names="gene_symbols", patient="P7")
    again = SectionRecord.of(section, "training").read()
    assert (list(again.genes), again.patient, again.image_path) == (list(section.genes), "P7", section.image_path)
    assert again.genes[0] == "ACTB"
    folder = MADE["geo_several"](tmp_path / "geo")
    section = read_section(folder / "GSM2_B_matrix.mtx.gz")
    assert SectionRecord.of(section, "training").read().image_path == section.image_path


def test_visium_hd_needs_a_choice_of_bin(tmp_path):
    folder = hd(tmp_path)
    message = failure("train", folder, "-o", tmp_path / "run", *SMALL)
    assert "one tissue in 2 binnings" in message
    assert "--bin-um 8 or 16" in message
    both = [folder / "outs" / "binned_outputs" / f"square_{size}um" for size in ("008", "016")]
    message = failure("train", *both, "-o", tmp_path / "run", "--n-genes", 2, *SMALL[2:])
    assert "same" in message
    checked = call("check", folder, "--bin-um", 16).output
    assert "square_016um" in checked
    assert "9 spots, " in checked
    assert call("check", both[0], "--bin-um", 16).exit_code == 2


@pytest.fixture
def fewer(trained, copied):
    """A section without the first two genes of the run, and the run."""
    path = copied(2, "new", "fewer")
    run = load_run(trained, device="cpu")
    adata = anndata.read_h5ad(path)
    adata[:, [gene for gene in adata.var_names if gene not in run.genes[:2]]].copy().write_h5ad(path)
    return path, run


def test_genes_that_a_section_has_not_measured_are_dropped_and_named(trained, fewer, tmp_path):
    path, run = fewer
    result = call("evaluate", trained, path, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"has not measured 2 of the 12 genes of the run ({run.genes[0]}, {run.genes[1]})" in result.output
    assert "over the other 10" in result.output
    stored = json.loads((tmp_path / "out" / "fewer" / "metrics.json").read_text())
    assert (stored["missing_genes"], stored["n_genes"]) == (run.genes[:2], 10)
    message = failure("evaluate", trained, path, "-o", tmp_path / "out", "--missing", "error")
    assert f"10 of the 12 wanted genes are measured; missing {run.genes[0]}, {run.genes[1]}" in message
    assert call("evaluate", trained, path, "--missing", "guess").exit_code == 2


def test_genes_that_a_file_left_out_because_they_were_never_seen(fewer, tmp_path):
    path, run = fewer
    found = evaluate(run, read_section(path), missing="zero", output=tmp_path)
    assert set(found.per_gene.index) == set(run.genes)
    assert (found.per_gene.loc[run.genes[:2], ["measured_mean", "measured_fraction_nonzero"]] == 0).all(axis=None)
    assert found.missing_genes == tuple(run.genes[:2])
    assert "taken as measured and never seen" in found.caveats[0]


def test_scores_on_shared_genes_are_those_of_these_genes(trained, sections, tmp_path):
    run, whole = load_run(trained, device="cpu"), sections[2]
    keep = ~np.isin(whole.genes, run.genes[3:5])
    fewer = replace(whole, counts=whole.counts[:, keep], genes=whole.genes[keep])  # the library size stays
    found = evaluate(run, fewer, training_sections=sections[:1], output=tmp_path)
    all_of_them = evaluate(run, whole, training_sections=sections[:1], output=tmp_path / "all")
    columns = ["pcc", "pcc_ridge_own", "pcc_ridge_stain", "mse", "measured_mean"]
    for name in set(run.genes) - set(run.genes[3:5]):
        np.testing.assert_allclose(
            found.per_gene.loc[name, columns], all_of_them.per_gene.loc[name, columns], rtol=1e-6
        )
    shared = all_of_them.per_gene.drop(index=run.genes[3:5])
    assert found.scores[OURS].mse == pytest.approx(shared["mse"].mean(), rel=1e-6)
    assert predict_values(run, fewer).shape == (whole.n_spots, 12)


def test_a_gene_to_draw_is_looked_for_before_the_work(trained, section_paths, tmp_path):
    run = load_run(trained, device="cpu")
    near = run.genes[0]
    message = failure("evaluate", trained, section_paths[2], "--gene", f"{near}X", "-o", tmp_path / "out")
    assert f"gene {near}X (--gene) is none of the 12 genes of the run; did you mean" in message
    assert near in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["foo", "cuda:99", "cpu:x", "meta"])
def test_a_device_that_is_not_there(trained, section_paths, device):
    message = failure("predict", trained, section_paths[2], "--device", device)
    assert f"device {device!r} (--device) cannot be used here" in message
    assert "opengl" not in message  # PyTorch's list of kinds
    assert "choose cpu" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(trained, section_paths):
    assert "device 'cuda' (--device) cannot be used" in failure(
        "evaluate", trained, section_paths[2], "--device", "cuda"
    )


def test_features_that_are_not_there(section_paths, tmp_path):
    message = failure("train", section_paths[0], "-o", tmp_path / "run", "--feature-key", "nope", *SMALL[:4])
    assert "nope" in message
    assert "features found: spatial" in message
    assert not message.startswith('error: "')


@pytest.mark.parametrize(
    ("wrong", "right", "words"),
    [
        (["--n-genes", "500"], ["--n-genes", "12"], "only"),
        (["--precision", "17-true"], [], "training.precision"),
        (["--feature-key", "nope"], [], "nope"),
        (["--config", "gpu.yaml"], [], "training.accelerator 'gpu'"),
        (["--backbone", "timm:no_such_network"], [], "timm"),
    ],
)
def test_a_failed_start_leaves_nothing(wrong, right, words, section_paths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if wrong[0] == "--config" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "gpu.yaml").write_text("training: {accelerator: gpu}\n")
    assert words in failure("train", section_paths[0], "-o", tmp_path / "run", *SMALL, *wrong)
    assert not (tmp_path / "run").exists()
    result = call("train", section_paths[0], "-o", tmp_path / "run", *SMALL, *right)
    assert result.exit_code == 0, result.output


def test_a_failure_in_the_first_epoch_leaves_the_folder_to_the_corrected_command(
    sections, tiny_config, tmp_path, monkeypatch
):
    from hyperst.train import fit, step

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")

    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(step.TrainingStep, "training_step", fail)
        with pytest.raises(MemoryError, match="--batch-size"):
            fit(tiny_config, sections[:1], tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    assert fit(tiny_config, sections[:1], tmp_path / "run").epochs == 3


@pytest.mark.parametrize("name", ["a[b]", "a[/b]", "[red]a", "a[link=x]"])
def test_names_of_files_are_no_markup(name, copied, tmp_path):
    path = copied(0, name.replace("/", "_"), name.replace("/", "_"))
    result = call("check", path)
    assert result.exit_code == 0, result.output
    assert str(path) in result.output
    missing = tmp_path / f"{name}.h5ad"
    checked = call("check", missing)
    assert checked.exit_code == 1
    assert f"{missing} does not exist" in checked.output
    assert f"{missing} does not exist" in failure("train", missing, "-o", tmp_path / "run")


def test_an_error_on_a_terminal_shows_markup_as_it_is(capsys, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(
        "hyperst.cli.console.make_console",
        lambda **_: Console(file=shown, force_terminal=True, width=100, markup=False),
    )
    print_error(ValueError("no file x[/b].h5ad"))
    assert "x[/b].h5ad" in shown.getvalue()


def test_the_median_of_an_even_number_of_spots(sections):
    section = replace(
        sections[0], library_size=np.array([1, 2, 5, 100], dtype=np.float32), spot_px=sections[0].spot_px[:4]
    )
    console = make_console()
    console.file = io.StringIO()
    print_sections(console, [section], "sections")
    assert " 4 │" in console.file.getvalue()  # (2 + 5) / 2 = 3.5, to an even whole number
    section.library_size = np.array([1, 2, 6, 100], dtype=np.float32)
    console.file = io.StringIO()
    print_sections(console, [section], "sections")
    assert " 4 │" in console.file.getvalue()  # the upper of the two would be 6


def test_an_image_folder_without_the_image(section_paths, tmp_path):
    write_image(tmp_path / "slides" / "other.tif")
    message = failure("train", section_paths[0], "--images", tmp_path / "slides", "-o", tmp_path / "run", *SMALL)
    assert "(--images), which holds other.tif" in message
    assert "image=PATH" not in message


def test_no_markup_is_shown(trained, section_paths, copied, tmp_path):
    """The console reads no markup, so that what is styled must be styled otherwise."""
    path = copied(2, "new", "shown")
    results = [
        call("check", *section_paths[:2]),
        call("check", section_paths[0]),
        call("check", tmp_path / "new" / "shown.png"),
    ]
    results += [call("predict", trained, path, "-o", tmp_path / "p.h5ad")]
    for result in results:
        assert result.output
        for markup in ("[/", "[bold", "[red", "[yellow", "[green", "[cyan"):
            assert markup not in result.output + result.stderr


def test_a_folder_of_sections_is_no_image(trained, section_paths, tmp_path):
    message = failure("predict", trained, section_paths[0].parent, "-o", tmp_path / "p.h5ad")
    assert f"is a folder of 3 .h5ad files, where one section is needed: name one, such as {section_paths[0]}" in message
    assert "manifest" in message
