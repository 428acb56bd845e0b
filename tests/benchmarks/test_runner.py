"""The runner on tiny sizes: rows, tables and figures; missing and failing peers; the green gate. No time is looked at."""

from __future__ import annotations

import math
import re
import shutil

import matplotlib.image
import pytest
import torch

from benchmarks import blocked, contrastive, distance, gate, measure, peers, recall, results, run
from benchmarks import tables as t
from benchmarks.markdown import replace_between
from benchmarks.problem import OURS
from benchmarks.results import REPOSITORY, Row

TINY = run.Suite(
    row_wise=(32, 8),
    pairwise=(16, 8),
    blocked=(16, 8),
    losses=(20, 8),
    losses_budget=0,
    errors=(8, 4),
    operator_budget=0,
    loss_shapes=((48, 32),),
    keops_shape=(40, 32),
    loss_budget=0,
    scaling_dim=8,
    scaling_batches=(32, 64),
    widths=(4, 16),
    width_batch=24,
    threads_shape=(28, 8),
    threads=(1, 2),
    training_batches=(4, 8),
    crops_batch=4,
    recall_batches=(8, 16),
    recall_steps=1,
    radii=(0.1, 10.0),
    separations=(1e-3, 1.0),
    scales=(5.0, 14.0),
    pair_separations=(1e-3, 1.0),
    gated=False,
)
ABOUT = {"operation": "distance", "n": 8, "d": 4, "dtype": "float32"}


def alone(family, operation, provider, n, d, repeats):
    """In place of a process: eager runs out of memory at the larger size."""
    what = {"operation": operation, "provider": provider, "n": n, "d": d, "dtype": "float32"}
    if provider == peers.EAGER and n == 64:
        return [Row(**what, metric=metric, note=measure.OUT_OF_MEMORY) for metric in ("peak bytes", "alone both s")]
    return [Row.of([n * 100.0], **what, metric="peak bytes"), Row.of([n * 1e-3], **what, metric="alone both s")]


@pytest.fixture(scope="module", name="written")
def _written(tmp_path_factory):
    """The pages and results of a tiny run, nothing compiled and no process started."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "docs").mkdir()
    for page in ("README.md", "docs/benchmarks.md"):
        shutil.copy(REPOSITORY / page, folder / page)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "compiled", lambda function: function)
        patch.setattr(measure, "isolated", alone)
        usual = torch.get_num_threads()
        torch.set_num_threads(1)  # enough here, and quicker on a machine with other work
        run.measure_all(TINY, folder / "results.csv")
        torch.set_num_threads(usual)
    rows, about = results.read_last(folder / "results.csv")
    run.pages(rows, about, TINY, folder)
    return folder, rows, about


def test_rows_say_where_they_come_from(written):
    _, rows, about = written
    assert about["device"].endswith("1 threads")
    assert f"torch {torch.__version__}" in about["versions"]
    assert about["commit"]
    for phase in measure.PHASES:
        row = t.find(rows, operation="contrastive_loss", provider=peers.PRODUCTS, n=48, metric=f"{phase} s")
        assert row.p20 <= row.median <= row.p80
        assert row.repeats == 5
    assert {row.operation for row in rows} >= {"exp_map0", "distance", "entailment_loss", "HyperST step", recall.RECALL}


def test_the_pages_have_every_table(written):
    folder, rows, about = written
    page = (folder / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page.count("| ---") >= 10
    assert measure.OUT_OF_MEMORY in page
    assert about["commit"] in page
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| {measure.AGAIN} |" in readme
    assert "| B = 20, D = 8 | ours, ms |" in readme
    for operation in (run.LOSS, *blocked.OPERATIONS):
        assert re.search(rf"^\| {operation} \|( [^|]+ \|){{5}}$", readme, re.M)
    before = page
    run.pages(rows, about, TINY, folder)
    assert (folder / "docs" / "benchmarks.md").read_text(encoding="utf-8") == before
    with pytest.raises(ValueError, match="no place for the table 'lost'"):
        replace_between(folder / "README.md", "lost", "")


def test_every_figure_of_the_page_is_drawn(written):
    folder = written[0]
    page = (folder / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    drawn = sorted((folder / "docs" / "figures").glob("*.png"))
    assert len(drawn) == 5
    for path in drawn:
        assert f"(figures/{path.name})" in page
        assert matplotlib.image.imread(path).std() > 0.05


def test_a_row_survives_the_file(tmp_path):
    row = Row.of([1.0, 2.0, 4.0], **ABOUT, provider=OURS, metric="both s", setting="radius=0.5 scale=3")
    missing = Row(**ABOUT, provider="other", metric="both s", note="not installed: other")
    results.append([row], tmp_path / "a.csv", "first")
    results.append([row, missing], tmp_path / "a.csv", "second")
    rows, about = results.read_last(tmp_path / "a.csv")
    assert about["run"] == "second"
    assert rows[0] == row
    assert rows[0].settings == {"radius": 0.5, "scale": 3.0}
    assert rows[1].note == missing.note
    assert math.isnan(rows[1].median)


def absent():
    raise ImportError("No module named 'absent'", name="absent")


def failing():
    return lambda u, v: torch.zeros(3) + torch.zeros(4)


def test_a_peer_that_is_missing_or_fails_is_a_row():
    problem = distance.setup("distance", 8, 4)
    problem.factories = {OURS: problem.factories[OURS], "absent": absent, "failing": failing}
    rows = measure.speed(problem, ABOUT, budget=0, green=True)
    assert t.find(rows, provider="absent", metric="both s").note == "not installed: absent"
    assert t.find(rows, provider="failing", metric="both s").note.startswith("failed: RuntimeError")
    problem.factories[OURS] = absent
    with pytest.raises(ImportError):
        measure.speed(problem, ABOUT, budget=0, green=True)


def test_no_ratio_without_green_tests(tmp_path):
    (tmp_path / "test_red.py").write_text("def test_red():\n    assert False\n", encoding="utf-8")
    (tmp_path / "test_green.py").write_text("def test_green():\n    pass\n", encoding="utf-8")
    assert gate.green(str(tmp_path / "test_green.py"))
    assert not gate.green(str(tmp_path / "test_red.py"))
    rows = measure.speed(contrastive.setup("contrastive_loss", 8, 32), {**ABOUT, "operation": "contrastive_loss", "d": 32},
                         budget=0, green=False, providers=[OURS, peers.EAGER])  # fmt: skip
    assert not any("ratio" in row.metric for row in rows)
    assert t.RED in t.loss_table(rows, 8, 32)


def test_a_process_of_its_own_measures_its_peak():
    ours, eager = (
        measure.isolated("contrastive", "contrastive_loss", name, 1024, 16, repeats=1) for name in (OURS, peers.EAGER)
    )
    assert eager[0].median > 12 * 4 * 1024**2  # a dozen matrices are saved
    assert 0 < ours[0].median < eager[0].median
    assert ours[-1].metric == "alone both s"


def test_running_out_of_memory_is_a_row():
    """The textbook formula wants 3 TiB here."""
    rows = measure.isolated("contrastive", "contrastive_loss", peers.EAGER, 1 << 18, 2, repeats=1)
    assert [row.note for row in rows] == [measure.OUT_OF_MEMORY] * 2


def test_exponents_are_those_of_a_power():
    assert t.exponent((n, 3e-9 * n**2) for n in (64, 128, 256, 512)) == pytest.approx(2)
    assert math.isnan(t.exponent([(64, 1.0)]))


def test_a_hierarchy_is_worth_its_terms():
    problem = contrastive.setup(contrastive.HIERARCHY, 16, 8)
    together, apart = (problem.step(name).forward() for name in (OURS, contrastive.ONE_BY_ONE))
    torch.testing.assert_close(together, apart)
