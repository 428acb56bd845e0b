"""Run folders whose files were damaged, swapped or are of an older version: one message each, or the same predictions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperst.checkpoint import IDENTITY, load_checkpoint
from hyperst.data import read_section
from hyperst.predict import predict_values
from hyperst.run import RunFolder, load_run
from hyperst.train import fit


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of the run, to be damaged."""
    shutil.copytree(trained, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def expected(trained, sections):
    return predict_values(load_run(trained, device="cpu"), sections[2])


def rewrite(path, change):
    """The checkpoint with ``change`` applied to what it holds."""
    checkpoint = torch.load(path, weights_only=True)
    changed = change(checkpoint)
    torch.save(checkpoint if changed is None else changed, path)


@given(data=st.data())
@settings(max_examples=40)
def test_no_damage_to_a_checkpoint_passes_or_gives_a_traceback(trained, tmp_path_factory, data):
    """Cut anywhere, or with any byte changed, it is refused by name: its checksums are compared."""
    whole = (trained / "checkpoints" / "best.ckpt").read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    if data.draw(st.booleans()):
        damaged = damaged[:place]
    else:
        damaged[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "best.ckpt"
    path.write_bytes(damaged)
    try:
        found, message = load_checkpoint(path)["state_dict"], ""
    except ValueError as error:
        found, message = {}, str(error)
    if message:
        assert "best.ckpt is damaged" in message
        assert "\n" not in message
    else:  # a byte that no reader looks at, such as a date in the table of contents
        stored = load_checkpoint(trained / "checkpoints" / "best.ckpt")["state_dict"]
        assert found.keys() == stored.keys()
        assert all(torch.equal(found[name], value) for name, value in stored.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda stored: {}, "holds no state_dict and epoch"),
        (lambda stored: [1, 2], "holds no state_dict and epoch"),
        (lambda stored: stored.pop("epoch") and None, "holds no state_dict and epoch"),
        (lambda stored: stored.update(epoch="three"), "holds no state_dict and epoch"),
        (lambda stored: stored.update(state_dict={"a": 1}), "holds no state_dict and epoch"),
        (lambda stored: stored["state_dict"].clear(), "does not fit"),
        (lambda stored: stored["state_dict"].update({"averaged.module.output.bias": torch.zeros(3)}), "does not fit"),
        (
            lambda stored: stored["state_dict"].update(
                {"averaged.module.image_projectors.spot.weight": torch.zeros(())}
            ),
            "does not fit",
        ),
    ],
)
def test_checkpoints_of_something_else(run_folder, change, words):
    rewrite(run_folder.best, change)
    with pytest.raises(ValueError, match=words) as error:
        load_run(run_folder.path, device="cpu")
    assert str(run_folder.best) in str(error.value)


@pytest.mark.parametrize(
    "history", [lambda stored: stored.pop("callbacks") and None, lambda stored: stored.update(callbacks={})]
)
def test_a_checkpoint_that_cannot_be_resumed(run_folder, tiny_config, sections, history):
    run_folder.summary.unlink()
    rewrite(run_folder.last, history)
    with pytest.raises(ValueError, match=r"last\.ckpt holds no history to go on from"):
        fit(tiny_config, sections[:2], run_folder.path, resume=True)


def test_genes_of_another_run_are_refused(run_folder, tiny_config, sections):
    genes = run_folder.read_genes()
    swapped = [*genes[:4], "OTHER", *genes[5:]]
    run_folder.write_genes(swapped)
    words = rf"genes\.txt is not the list .*best\.ckpt was trained on: line 5 is 'OTHER', not '{genes[4]}'"
    with pytest.raises(ValueError, match=words):
        load_run(run_folder.path, device="cpu")
    run_folder.write_genes([genes[1], genes[0], *genes[2:]])
    with pytest.raises(ValueError, match=f"line 1 is '{genes[1]}', not '{genes[0]}'"):
        load_run(run_folder.path, device="cpu")
    run_folder.write_genes(genes[:-1])
    with pytest.raises(ValueError, match="it names 11 genes, not 12"):
        load_run(run_folder.path, device="cpu")
    run_folder.summary.unlink()
    run_folder.write_genes(swapped[:4] + list(sections[0].genes[:1]) + genes[5:])
    with pytest.raises(ValueError, match=r"last\.ckpt was trained on: line 5"):
        fit(tiny_config, sections[:2], run_folder.path, resume=True)


def test_a_run_that_does_not_record_its_genes_still_loads(run_folder, sections, expected):
    """As those of before did; split.json had no features either."""
    for path in (run_folder.best, run_folder.last):
        rewrite(path, lambda stored: stored.pop(IDENTITY) and None)
    split = json.loads(run_folder.split.read_text())
    for entry in split["sections"]:
        for key in ("features", "niche_features", "own_niche"):
            del entry[key]
    run_folder.split.write_text(json.dumps(split))
    config = run_folder.config.read_text()
    lines = [
        line
        for line in config.splitlines()
        if line.split(":")[0].strip() not in {"timm_kwargs", "image_mean", "image_std"}
    ]
    assert len(lines) == len(config.splitlines()) - 3
    run_folder.config.write_text("\n".join(lines))
    np.testing.assert_array_equal(predict_values(load_run(run_folder.path, device="cpu"), sections[2]), expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "sections: Field required"),
        ("[]", "the whole"),
        ('{"sections": [], "validation_spots": {}}', "names no training section"),
        ('{"sections": [{"name": "A"}], "validation_spots": {}}', r"sections\.0\.patient: Field required"),
        ('{"sections": 3, "validation_spots": {}}', "sections: "),
        ("{", "damaged"),
        ("\x00", "damaged"),
    ],
)
def test_a_split_that_is_none(run_folder, text, words):
    run_folder.split.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        load_run(run_folder.path, device="cpu")
    assert f"{run_folder.split} is damaged" in str(error.value)
    assert "restore it, or train again" in str(error.value)


@pytest.mark.parametrize("name", ["genes.txt", "split.json"])
def test_files_that_are_missing_or_no_text(run_folder, name):
    (run_folder.path / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="damaged"):
        load_run(run_folder.path, device="cpu")
    (run_folder.path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing from the run; restore it"):
        load_run(run_folder.path, device="cpu")


@pytest.mark.parametrize("text", ["", "\n", "A\nA\n", "A\n\nB\n"])
def test_a_list_of_genes_that_is_none(run_folder, text):
    run_folder.genes.write_text(text)
    with pytest.raises(ValueError, match=r"genes\.txt is damaged"):
        run_folder.read_genes()


def test_a_summary_that_is_none(run_folder, tiny_config, sections):
    for text in ("{}", "[]"):
        run_folder.summary.write_text(text)
        with pytest.raises(ValueError, match=r"summary\.json is damaged"):
            fit(tiny_config, sections[:2], run_folder.path, resume=True)


ONE_LINE = st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp", "Cs"])


@given(genes=st.lists(st.text(ONE_LINE, min_size=1).filter(str.strip), min_size=1, unique=True))
@settings(max_examples=30)
def test_every_gene_name_of_one_line_comes_back(tmp_path_factory, genes):
    place = RunFolder(tmp_path_factory.mktemp("run"))
    place.write_genes(genes)
    assert place.read_genes() == genes


def test_a_gene_name_of_two_lines_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"gene 'HLA\\nA' has no name of one line"):
        RunFolder(tmp_path).write_genes(["HLA\nA"])
    assert list(tmp_path.iterdir()) == []


def test_genes_with_spaces_in_their_names_train_and_predict(section_paths, tiny_config, tmp_path):
    paths = []
    for path in section_paths[:2]:
        adata = anndata.read_h5ad(path)
        adata.var_names = [f"HLA {name}" for name in adata.var_names]
        paths.append(tmp_path / path.name)
        adata.write_h5ad(paths[-1])
    config = replace(tiny_config, training=replace(tiny_config.training, epochs=1))
    first, second = (
        read_section(path, image=source.parent / "images" / f"{path.stem}.png")
        for path, source in zip(paths, section_paths[:2], strict=True)
    )
    fit(config, [first], tmp_path / "run")
    run = load_run(tmp_path / "run", device="cpu")
    assert len(run.genes) == 12
    assert all(name.startswith("HLA GENE") for name in run.genes)
    assert predict_values(run, second).shape == (81, 12)


def test_nothing_is_left_of_a_run_that_cannot_start(sections, tiny_config, tmp_path):
    """Too few spots, a backbone that is none: the corrected command can use the folder."""
    broken = replace(tiny_config, model=replace(tiny_config.model, backbone="nothing"))
    with pytest.raises(ValueError, match="backbone must be one of"):
        fit(broken, sections[:2], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("target: log1p_cp10k", "target: log2", "data.target is 'log2', not 'log1p_cp10k'"),
        ("image_size: ", "image_size: 1", "crop.image_size is 1"),
    ],
)
def test_a_configuration_of_other_units_or_crops_is_refused(run_folder, before, after, words):
    text = run_folder.config.read_text(encoding="utf-8")
    assert before in text
    run_folder.config.write_text(text.replace(before, after), encoding="utf-8")
    with pytest.raises(ValueError, match=f"is not the configuration that .*best.ckpt was trained with: {words}"):
        load_run(run_folder.path, device="cpu")
