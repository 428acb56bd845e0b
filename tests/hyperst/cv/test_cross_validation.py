"""Cells: run once, gone on with after a kill, independent of each other's failures; and the tables of them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import hyperst.cv.processes
import hyperst.cv.scores
import hyperst.train
from hyperst.baselines import training_mean
from hyperst.cli import app
from hyperst.config import with_ablation, write_config
from hyperst.cv import Fold, ablation_rows, cross_validate
from hyperst.cv.cells import Cell, run_cell
from hyperst.cv.processes import run_cells
from hyperst.cv.run import _alone
from hyperst.cv.tables import Comparison
from hyperst.data import attach_features, read_section, select_genes, transform
from hyperst.data.features import FILE_KEY
from hyperst.data.genes import align_genes
from hyperst.intervals import Interval
from hyperst.metrics import mse
from hyperst.model.alignment import ABLATION_FIELDS
from hyperst.plan import plan_run
from hyperst.pool import Ended
from hyperst.run import SectionRecord
from hyperst.train.start import check_same_sections

from .ends import cells_that_end_as_told

FOLDS = [Fold("a", ("S1", "S2"), (), ("S3",)), Fold("b", ("S2",), (), ("S1", "S3"))]


@pytest.fixture(scope="module")
def rows(tiny_config):
    model = replace(tiny_config.model, networks=2)
    quick = replace(tiny_config, model=model, training=replace(tiny_config.training, epochs=1))
    return {"full": quick, "no_hca_hea": with_ablation(quick, "no_hca_hea")}


@pytest.fixture(scope="module")
def found(rows, sections, tmp_path_factory):
    return cross_validate(sections, rows, FOLDS, (0, 1), tmp_path_factory.mktemp("cv"))


@pytest.fixture
def fits(monkeypatch):
    """The folders that are trained in."""
    seen, fit = [], hyperst.train.fit

    def counted(config, sections, folder, **options):
        seen.append((Path(folder).parent.name, options["resume"]))
        return fit(config, sections, folder, **options)

    monkeypatch.setattr("hyperst.train.fit", counted)
    return seen


def test_every_fold_seed_and_row_has_a_line_for_every_metric(found):
    scores = pd.read_csv(found.folder / "scores.csv")
    assert list(scores) == ["fold", "seed", "row", "metric", "value"]
    assert not scores.duplicated(["fold", "seed", "row", "metric"]).any()
    metrics = {"pcc", "pcc_pooled", "pcc_10", "mse", "mae", "rvd", "jsd", "moran_pcc", "moran_mae"}
    null = {"pcc_pooled_null", "pcc_10_null"}
    for row, expected in {"full": metrics | null, "ridge_stain": metrics, "noise_ceiling": {"pcc"}}.items():
        lines = scores[scores["row"] == row]
        assert set(lines["metric"]) == expected
        assert lines.groupby("metric").size().eq(4).all()
    assert list(scores["row"].unique()) == [
        "full", "no_hca_hea", "network", "stain_match", "ridge_own", "ridge_stain", "retrieval", "training_mean",
        "noise_ceiling",
    ]  # fmt: skip
    each = pd.read_csv(found.folder / "sections.csv").query(
        "row == 'full' and metric == 'pcc' and fold == 'b' and seed == 1"
    )
    assert list(each["section"]) == ["S1", "S3"]
    (mean,) = scores.query("row == 'full' and metric == 'pcc' and fold == 'b' and seed == 1")["value"]
    assert mean == pytest.approx(each["value"].mean(), rel=1e-5)


def test_the_training_mean_is_that_of_the_fold(found, sections, rows):
    (result,) = [json.loads((found.folder / "cells" / "b__full__seed0" / "scores.json").read_text())]
    genes = (found.folder / "cells" / "b__full__seed0" / "run" / "genes.txt").read_text().split()
    values = [transform(align_genes(each, genes), each.library_size, "log1p_cp10k") for each in sections]
    tested = np.concatenate([values[0], values[2]])
    assert result["scores"]["training_mean"][""]["mse"] == pytest.approx(
        mse(training_mean(values[1], len(tested)), tested)
    )


def test_the_summary_is_of_means_over_seeds(found):
    values = found.scores.query("row == 'no_hca_hea' and metric == 'mse'").pivot(
        index="fold", columns="seed", values="value"
    )
    other = found.scores.query("row == 'full' and metric == 'mse'").pivot(index="fold", columns="seed", values="value")
    (line,) = found.summary.query("row == 'no_hca_hea' and metric == 'mse'").to_dict("records")
    assert line["n_cells"] == 4
    assert line["mean"] == pytest.approx(values.mean(axis=1).mean())
    assert line["sd_folds"] == pytest.approx(values.mean(axis=1).std(ddof=1))
    assert line["sd_seeds"] == pytest.approx(np.sqrt(values.var(axis=1, ddof=1).mean()))
    assert line["difference"] == pytest.approx((values - other).mean(axis=1).mean())
    assert line["low"] <= line["difference"] <= line["high"]


def test_the_report_says_better_only_where_the_interval_does(found):
    text = (found.folder / "report.md").read_text()
    assert {(each.row, each.metric) for each in found.comparisons} == {
        *(
            (row, metric)
            for row in ("no_hca_hea", "network", "stain_match", "ridge_own", "ridge_stain", "retrieval")
            for metric in ("pcc", "mse")
        ),
        ("training_mean", "mse"),
    }
    for each in found.comparisons:
        assert each.sentence() in text
        assert ("no difference" in each.sentence()) != each.interval.excludes_zero
    assert "In 1 of 2 folds a patient of the test sections has training sections too" in text
    assert "Some sections are tested in several folds" in text
    assert "(null " in text


@pytest.mark.parametrize(
    ("metric", "interval", "words"),
    [
        ("pcc", Interval(0.03, 0.01, 0.05), "PCC: it is better than full, +0.0300 [+0.0100, +0.0500]."),
        ("pcc", Interval(-0.03, -0.05, -0.01), "PCC: it is worse than full, -0.0300 [-0.0500, -0.0100]."),
        ("mse", Interval(-0.03, -0.05, -0.01), "MSE: it is better than full, -0.0300 [-0.0500, -0.0100]."),
        ("mse", Interval(0.03, 0.01, 0.05), "MSE: it is worse than full, +0.0300 [+0.0100, +0.0500]."),
        ("pcc", Interval(0.03, 0.0, 0.05), "PCC: no difference of it and full is shown, +0.0300 [+0.0000, +0.0500]."),
        (
            "pcc",
            Interval(0.03, None, None),
            "is +0.0300 in the only fold that both have: nothing can be said of others.",
        ),
        ("pcc", None, "PCC of it and full have no fold and seed in common."),
    ],
)
def test_which_is_better_is_said_only_where_it_is_shown(metric, interval, words):
    assert Comparison("it", "full", metric, interval).sentence().endswith(words)


def test_finished_cells_are_not_run_again(found, rows, sections, fits):
    again = cross_validate(sections, rows, FOLDS, (0, 1), found.folder)
    assert fits == []
    pd.testing.assert_frame_equal(again.scores, found.scores)
    changed = {"full": replace(rows["full"], training=replace(rows["full"].training, epochs=2))}
    with pytest.raises(FileExistsError, match="a__full__seed0 was run with another configuration"):
        cross_validate(sections, changed, FOLDS, (0,), found.folder)
    assert fits == []


def with_random_features(sections, folder, seed, niche=False):
    """The sections with features from files; all niches of a folder have the same ones."""
    for section in sections:
        folder.mkdir(exist_ok=True)
        with h5py.File(folder / f"{section.name}.h5", "w") as file:
            numbers = np.random.default_rng(seed).standard_normal((section.n_spots, 6), dtype=np.float32)
            file["features"], file["barcode"] = numbers, [str(name) for name in section.spot_ids]
    return [attach_features(section, folder, folder if niche else None) for section in sections]


def test_a_cell_on_other_features_scale_or_weights_is_another(rows, sections, tmp_path):
    config = replace(
        rows["full"],
        data=replace(rows["full"].data, feature_key=FILE_KEY),
        model=replace(rows["full"].model, backbone="precomputed"),
    )

    def identity(some, config=config):
        records = tuple(SectionRecord.of(each, "section", config.data.feature_key, config.crop) for each in some)
        return Cell(FOLDS[0], "full", config, records, tmp_path).identity()

    first = with_random_features(sections, tmp_path / "first", 1)
    assert identity(first) == identity(with_random_features(sections, tmp_path / "copy", 1))
    others = [
        with_random_features(sections, tmp_path / "other", 2),
        with_random_features(sections, tmp_path / "niche", 1, niche=True),
        [replace(each, grid=replace(each.grid, um_per_px=2 * each.grid.um_per_px)) for each in first],
    ]
    assert len({identity(some) for some in (first, *others)}) == 4
    weights = tmp_path / "weights.pt"
    trained = replace(rows["full"], model=replace(rows["full"].model, backbone="uni", weights=str(weights)))
    found = set()
    for content in (b"some", b"more"):
        weights.write_bytes(content)
        found.add(identity(sections, trained))
    assert len(found) == 2


def test_features_that_were_exchanged_are_not_gone_on_with(rows, sections, fits, tmp_path):
    config = replace(
        rows["full"],
        data=replace(rows["full"].data, feature_key=FILE_KEY),
        model=replace(rows["full"].model, backbone="precomputed", networks=1),
    )
    first, other = (with_random_features(sections, tmp_path / f"{seed}", seed) for seed in (1, 2))
    cross_validate(first, {"full": config}, FOLDS[:1], (0,), tmp_path / "cv")
    with pytest.raises(FileExistsError, match="on other data"):
        cross_validate(other, {"full": config}, FOLDS[:1], (0,), tmp_path / "cv")
    split = plan_run(config, first[:2], []).split
    check_same_sections(config, split, first[:2], [], "cannot resume")
    with pytest.raises(ValueError, match=r"cannot resume: the features of section S1 \(.*S1.h5\) are not those"):
        check_same_sections(config, split, other[:2], [], "cannot resume")


def test_a_level_of_one_row_counts_for_its_cells(rows, sections, monkeypatch, tmp_path):
    """Features of a level that the first row does not have."""
    plain = replace(
        rows["full"],
        data=replace(rows["full"].data, feature_key=FILE_KEY),
        model=replace(rows["full"].model, backbone="precomputed"),
    )
    seen = []

    def nothing(cells, workers, engine):
        seen.append({cell.row: cell.identity() for cell in cells})
        return [(cell, "not run") for cell in cells]

    monkeypatch.setattr("hyperst.cv.run.run_cells", nothing)
    compared = {"plain": plain, "wider": replace(plain, crop=replace(plain.crop, wider_um={"region": 600.0}))}
    for shift in (0, 1):
        read = with_random_features(sections, tmp_path / "features", 1)
        regions = {f"{FILE_KEY}_region": np.full((sections[0].n_spots, 6), shift, dtype=np.float32)}
        read = [replace(each, features={**each.features, **regions}) for each in read]
        with pytest.raises(RuntimeError, match="none of the 2 cells could be finished; the first: not run"):
            cross_validate(read, compared, FOLDS[:1], (0,), tmp_path / "cv")
    first, second = seen
    assert first["plain"] == second["plain"]
    assert first["wider"] != second["wider"]


def test_one_process_at_a_time(rows, sections, fits, tmp_path):
    with _alone(tmp_path), pytest.raises(BlockingIOError, match="another cross-validation works there"):
        cross_validate(sections, rows, FOLDS, (0,), tmp_path)
    assert fits == []


def test_a_folder_without_scores_is_told_before_a_training(rows, sections, fits, tmp_path):
    (tmp_path / "cells" / "a__full__seed0").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"scores\.json is missing or damaged .*; remove"):
        cross_validate(sections, rows, FOLDS, (0,), tmp_path)
    assert fits == []


def test_an_interrupted_cross_validation_goes_on(found, rows, sections, fits, monkeypatch, tmp_path):
    """Killed after the training of the second cell: the first is not run again, the second not trained again."""
    usual, calls = hyperst.cv.scores.fold_scores, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return usual(*arguments)

    monkeypatch.setattr("hyperst.cv.scores.fold_scores", interrupted)
    only = {"full": rows["full"]}
    with pytest.raises(KeyboardInterrupt):
        cross_validate(sections, only, FOLDS, (0,), tmp_path)
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == [".b__full__seed0", "a__full__seed0"]
    assert not (tmp_path / "scores.csv").exists()
    result = cross_validate(sections, only, FOLDS, (0,), tmp_path)
    assert fits == [(".a__full__seed0", False), (".b__full__seed0", False), (".b__full__seed0", True)]
    assert [path.name for path in (tmp_path / "cells").glob(".*")] == []
    assert not list((tmp_path / "cells").rglob("*.ckpt"))
    expected = found.scores.query("row != 'no_hca_hea' and seed == 0").reset_index(drop=True)
    pd.testing.assert_frame_equal(result.scores.reset_index(drop=True), expected)


def test_what_another_configuration_left_half_done_is_not_gone_on_with(rows, sections, fits, tmp_path):
    records = tuple(SectionRecord.of(section, "section") for section in sections)
    cell = Cell(FOLDS[0], "full", rows["full"], records, tmp_path)
    (cell.work / "run").mkdir(parents=True)
    (cell.work / "identity").write_text("of another")
    (cell.work / "run" / "config.yaml").write_text("training: {epochs: 7}")
    assert run_cell(cell)["epochs"] == 1
    assert fits == [(".a__full__seed0", False)]


def test_a_failure_stops_no_other_and_is_named(rows, sections, monkeypatch, tmp_path):
    usual, seen = hyperst.cv.scores.fold_scores, []

    def failing(run, training, test, genes):
        if len(test) == 1:
            raise ValueError("no luck\nwith it")
        return usual(run, training, test, genes)

    monkeypatch.setattr("hyperst.cv.scores.fold_scores", failing)
    only = {"full": rows["full"]}
    result = cross_validate(
        sections, only, FOLDS, (0,), tmp_path, on_cell=lambda cell, *rest: seen.append((cell.name, *rest))
    )
    assert seen == [("a__full__seed0", "no luck with it", 1, 2), ("b__full__seed0", None, 2, 2)]
    assert result.failures == {"a__full__seed0": "no luck with it"}
    assert set(result.scores["fold"]) == {"b"}
    assert "- a__full__seed0: no luck with it" in (tmp_path / "report.md").read_text()
    with pytest.raises(RuntimeError, match="none of the 1 cells could be finished; the first: no luck with it"):
        cross_validate(sections, only, FOLDS[:1], (0,), tmp_path / "other")


def test_a_process_that_is_killed_ends_no_other(monkeypatch, tmp_path):
    monkeypatch.setattr(hyperst.cv.processes, "_cells_of_process", cells_that_end_as_told)
    monkeypatch.setattr(hyperst.cv.processes.os, "cpu_count", lambda: 6)
    rows = ("killed", "done", "failed", "done again")
    cells = [SimpleNamespace(row=row.split()[0], name=row, cells=tmp_path / "cells") for row in rows]
    outcome = {cell.name: error for cell, error in run_cells(cells, workers=2)}
    assert outcome["done"] is outcome["done again"] is None
    assert outcome["failed"] == "no luck with 3 threads"
    assert "ended with exit code 9 before it was done" in outcome["killed"]
    assert outcome["killed"].endswith(f"see {tmp_path / 'logs' / 'killed.txt'}")


def test_cells_on_ray_keep_logs_and_those_whose_process_ends_have_failed(rows, monkeypatch, tmp_path):
    def on_cluster(cells, maker, workers):
        assert workers is None
        assert all(cell.folder.is_absolute() for cell in cells)
        do = maker()
        yield cells[0], do(cells[0])
        yield cells[1], Ended("out of memory")

    monkeypatch.setattr(hyperst.cv.processes, "run_on_ray", on_cluster)
    monkeypatch.setattr(hyperst.cv.processes, "run_cell", lambda cell: print("said on the way"))
    monkeypatch.chdir(tmp_path)
    cells = [Cell(fold, "full", rows["full"], (), Path("cells")) for fold in FOLDS]
    assert [error for _, error in run_cells(cells, None, "ray")] == [None, "out of memory"]
    assert (tmp_path / "logs" / "a__full__seed0.txt").read_text() == "said on the way\n"


def test_a_process_tells_what_went_wrong_and_keeps_a_log(rows, monkeypatch, tmp_path):
    def broken(cell):
        print("said on the way")
        raise ValueError("no luck")

    monkeypatch.setattr(hyperst.cv.processes, "run_cell", broken)
    cell = Cell(FOLDS[0], "full", rows["full"], (), tmp_path / "cells")
    assert hyperst.cv.processes._cells_of_process(1)(cell) == "no luck"
    log = (tmp_path / "logs" / "a__full__seed0.txt").read_text()
    assert log.startswith("said on the way\nTraceback")
    assert log.endswith("ValueError: no luck\n")


def test_genes_and_spots_that_are_missing_are_counted(rows, section_paths, tmp_path):
    """A table leaves out what it has not seen: the fold is scored on the other genes."""
    (tmp_path / "images").mkdir()
    for path in section_paths:
        shutil.copy(path.parent / "images" / f"{path.stem}.png", tmp_path / "images")
    genes = select_genes([read_section(path) for path in section_paths[:2]], 12)
    adata = anndata.read_h5ad(section_paths[2])
    counts = adata.X.toarray()
    counts[[4, 5]] = 0
    adata.X = counts
    adata[:, [name for name in adata.var_names if name not in genes[:2]]].write_h5ad(tmp_path / "S3.h5ad")
    paths = [shutil.copy(path, tmp_path) for path in section_paths[:2]]
    with pytest.warns(UserWarning, match="2 of 81 spots have no count at all"):
        read = [read_section(path) for path in (*paths, tmp_path / "S3.h5ad")]
    found = cross_validate(read, {"full": rows["full"]}, FOLDS[:1], (0,), tmp_path / "cv")
    stored = json.loads((tmp_path / "cv" / "cells" / "a__full__seed0" / "scores.json").read_text())
    assert stored["missing_genes"] == {"S3": [str(gene) for gene in genes[:2]]}
    assert (stored["n_genes"], stored["n_spots"]) == (10, {"S3": 79})
    text = " ".join(found.notes)
    assert "left out of all scores of its fold: 2 in S3 (fold a)." in text
    assert "Spots left out for too few counts (--min-counts): 2 of S3." in text
    assert "There is one fold" in text


def test_rows_that_cannot_be_compared(rows, sections, tmp_path):
    other = replace(rows["full"], data=replace(rows["full"].data, target="log2"))
    for changed, words in (
        (
            {"rows": {"full": rows["full"], "depth": other}},
            "data.target is 'log1p_cp10k' in row full and 'log2' in row depth",
        ),
        ({"rows": {"ridge_own": other}}, "a row is called ridge_own"),
        ({"rows": {}}, "rows: got none"),
        ({"engine": "slurm"}, r"engine \(--engine\): got 'slurm'"),
        ({"seeds": (1, 1)}, "need numbers that differ"),
        (
            {"against": "noise_ceiling"},
            "no row is called 'noise_ceiling'; choose one of full, no_hca_hea, network, stain_match, ridge_own",
        ),
        ({"folds": [FOLDS[0], replace(FOLDS[1], name="a")]}, "two cells would both be called a__full__seed0"),
        ({"sections": [replace(sections[0], path=None)]}, "S1 was not read from a file"),
    ):
        given = {
            "sections": sections,
            "rows": rows,
            "folds": FOLDS,
            "seeds": (0,),
            "output": tmp_path / "cv",
            **changed,
        }
        with pytest.raises(ValueError, match=words):
            cross_validate(**given)
    assert not (tmp_path / "cv").exists()


def test_all_ablations_are_the_rows_of_the_paper(tiny_config):
    assert list(ablation_rows({"x": tiny_config}, ["all"])) == list(ABLATION_FIELDS)
    assert list(ablation_rows({"x": tiny_config, "y": tiny_config}, ["clip", "clip"])) == ["x+clip", "y+clip"]
    assert ablation_rows({"x": tiny_config}, []) == {"x": tiny_config}
    with pytest.raises(ValueError, match="ablation is 'nothing'"):
        ablation_rows({"x": tiny_config}, ["nothing"])


def test_the_command(rows, section_paths, tmp_path, monkeypatch):
    config = write_config(rows["full"], tmp_path / "mine.yaml")
    folds = tmp_path / "folds.csv"
    folds.write_text("fold,section,role\na,S1,train\na,S3,test\nb,S3,train\nb,S1,test\n")
    arguments = ["cv", *section_paths, "--config", config, "--folds", folds, "--epochs", 1, "--workers", 0]
    arguments += ["--against", "ridge_stain", "-o", tmp_path / "cv"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "2 folds x 1 seeds x 1 rows: mine" in result.output
    assert "[2/2] mine, fold b, seed 0" in result.output
    assert re.search(r"MSE: .*mine.* ridge_stain.*, [+-]", result.output)
    assert (tmp_path / "cv" / "report.md").is_file()

    def failing(*_):
        raise ValueError("no luck")

    monkeypatch.setattr("hyperst.cv.scores.fold_scores", failing)
    result = CliRunner().invoke(app, list(map(str, [*arguments, "--seeds", 2])))
    assert result.exit_code == 1
    assert "[3/4] mine, fold a, seed 1: failed, no luck" in result.output
    assert "failed a__mine__seed1: no luck" in result.output
    elsewhere = list(map(str, [*arguments, "--output", tmp_path / "none"]))
    result = CliRunner().invoke(app, elsewhere)
    assert result.exit_code == 1
    assert "error: none of the 2 cells could be finished; the first: no luck" in result.output


def test_an_interrupted_command_says_what_is_kept(rows, section_paths, tmp_path, monkeypatch):
    config = write_config(rows["full"], tmp_path / "mine.yaml")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hyperst.cv.scores.fold_scores", interrupted)
    arguments = ["cv", *section_paths[:2], "--config", config, "--workers", 0, "-o", tmp_path / "cv"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 130, result.output
    assert "error: interrupted; cells that are finished are kept, folders of unfinished ones stay, and" in result.stderr
    assert "nothing half-written is left" not in result.stderr
    assert [path.name for path in (tmp_path / "cv" / "cells").iterdir()] == [".S1__mine__seed0"]
