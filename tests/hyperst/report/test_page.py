"""The page: complete, alone, small, and safe from the names in the files."""

from __future__ import annotations

import base64
import gzip
import json
import shlex
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

pytest.importorskip("plotly")
pytest.importorskip("jinja2")

from hyperst import report
from hyperst.data.manifest import read_manifest
from hyperst.report.again import train_again
from hyperst.report.embed import quantise
from hyperst.report.page import render
from hyperst.report.spots import read_spot_map
from hyperst.report.summary import collect
from hyperst.run import RunFolder

from ..test_cli import call, failure

LIMIT = 15_000_000
VOID = {"meta", "input", "link", "img", "br", "hr", "base"}


class Page(HTMLParser):
    """Elements, text outside scripts, and whatever is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.words += data


@pytest.fixture(scope="module")
def text(evaluated, predicted) -> str:
    return report.write_report(evaluated, [predicted]).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def data_of(page: Page) -> dict:
    return json.loads(page.scripts[0])


def test_elements_are_closed_and_links_lead_somewhere(page):
    assert page.open == []
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert len(links) > 5
    assert {link.removeprefix("#") for link in links} <= set(names)


def test_nothing_is_fetched(page):
    """No address in any attribute, and a policy that forbids what a script could ask for."""
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not {"srcset", "action", "data", "poster"} & attributes.keys()
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert not any("//" in (value or "") for name, value in attributes.items() if name.startswith(("href", "on")))
    policies = [each["content"] for _, each in page.elements if each.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0].startswith("default-src 'none';")
    assert "http" not in policies[0]
    for part in ("page.css", "page.js", "zoom.js", "space.js"):
        assert "//" not in (Path(report.__file__).parent / part).read_text().replace("// ", "")
    assert all(each["picture"].startswith("data:image/jpeg;base64,") for each in data_of(page)["maps"])


def test_figures_are_labelled_for_those_who_do_not_see_them(page):
    plots = [attributes for tag, attributes in page.elements if attributes.get("class") == "plot"]
    assert len(plots) == 5
    assert all(each["role"] == "img" and each["aria-label"] for each in plots)


def test_numbers_are_those_of_the_evaluation(evaluated, page):
    stored = json.loads((evaluated / "evaluation" / "S3" / "metrics.json").read_text())
    own = stored["intervals"]["pcc"]
    assert f"mean PCC {report.verdict.figure(own['mean'])} [{report.verdict.figure(own['low'])}" in page.words
    table = pd.read_csv(evaluated / "evaluation" / "S3" / "per_gene.csv", index_col="gene")
    shown = data_of(page)["maps"][0]
    for gene in shown["genes"]:
        assert gene["r"] == pytest.approx(
            table.loc[gene["name"], "pcc"], abs=1e-3
        )  # four places, of float32 expression
    assert [row["validation_mse"] for row in data_of(page)["curves"]] == list(
        pd.read_csv(evaluated / "metrics.csv")["validation_mse"]
    )


def test_maps_hold_the_expression(evaluated, page):
    stored = anndata.read_h5ad(evaluated / "evaluation" / "S3" / "expression.h5ad")
    shown = data_of(page)["maps"][0]
    positions = np.frombuffer(base64.b64decode(shown["positions"]), "<f4").reshape(-1, 2)
    np.testing.assert_array_equal(positions, stored.obsm["spatial"].astype(np.float32))
    for gene in shown["genes"]:
        for key, values in (("predicted", stored.X), ("measured", stored.layers["measured"])):
            column = values[:, stored.var_names.get_loc(gene["name"])]
            packed, low, high = gene[key]
            steps = np.frombuffer(base64.b64decode(packed), np.uint8)
            # half of a step, and rounding of the float32 ends
            np.testing.assert_allclose(low + steps / 255 * (high - low), column, atol=(high - low) / 510 * (1 + 1e-5))


def test_a_prediction_without_measurements_says_so(page):
    alone = data_of(page)["maps"][1]
    assert "predicted only, nothing was measured" in alone["title"]
    assert all(gene["measured"] is None and gene["r"] is None for gene in alone["genes"])


def test_doubt_is_on_the_page(evaluated, predicted, page):
    stored = anndata.read_h5ad(predicted)
    measured, alone = data_of(page)["maps"]
    for each in (measured, alone):
        widths = {gene["name"]: gene["half_width"] for gene in each["genes"]}
        assert widths == pytest.approx(dict(stored.var["half_width_90"]), abs=1e-4)
    packed, low, high = alone["applicability"]
    steps = np.frombuffer(base64.b64decode(packed), np.uint8)
    expected = stored.obs["applicability"].to_numpy()
    np.testing.assert_allclose(low + steps / 255 * (high - low), expected, atol=(high - low) / 510 * (1 + 1e-5))
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(alone["unlike"]), np.uint8), expected <= 0.05)
    doubt = json.loads((evaluated / "evaluation" / "S3" / "metrics.json").read_text())["doubt"]
    assert f"noise ceiling {report.verdict.figure(doubt['noise_ceiling'])}" in page.words
    assert f"{doubt['coverage']:.0%}" in page.words
    assert "this slide is like the training tissue" in page.words
    assert "Do not use these values" not in page.words


def test_a_slide_unlike_the_training_is_said_first(evaluated, predicted):
    spots = read_spot_map(predicted, collect(evaluated).genes)
    words = "this slide is unlike the training tissue: half"
    other = replace(spots, facts={**spots.facts, "unlike_slide": "True"}, doubt=(words,))
    assert words not in render(collect(evaluated), [spots], "")
    page = Page(render(collect(evaluated), [other], ""))
    verdict = page.words.index("Verdict\n")
    assert verdict < page.words.index(words) < page.words.index("mean PCC", verdict)


def test_predictions_of_other_weights_are_refused(evaluated, predicted, tmp_path):
    """And those that do not say are shown with a warning, as are evaluations that a longer training has left behind."""
    stored = anndata.read_h5ad(predicted)
    own = stored.uns["hyperst"]["checkpoint"]
    stored.uns["hyperst"]["checkpoint"] = "0" * 64
    stored.write_h5ad(tmp_path / "other.h5ad")
    message = failure("report", evaluated, tmp_path / "other.h5ad", "-o", tmp_path / "page.html")
    assert "other.h5ad was not predicted by the run in" in message
    assert "SHA-256 000000000000..., this one " + own[:12] in message
    del stored.uns["hyperst"]["checkpoint"]
    stored.write_h5ad(tmp_path / "old.h5ad")
    text = report.write_report(evaluated, [tmp_path / "old.h5ad"], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "does not say which weights made it" in Page(text).words
    summary = collect(evaluated)
    summary = replace(summary, checksums={**summary.checksums, "checkpoints/best.ckpt": "1" * 64})
    words = Page(render(summary, [read_spot_map(predicted, summary.genes)], "")).words
    assert "made with other weights than the run has now" in words


def test_the_script_is_plotlys_own(page):
    from plotly.offline import get_plotlyjs

    assert gzip.decompress(base64.b64decode(page.scripts[1])).decode() == get_plotlyjs()


def test_a_constant_is_exact():
    assert quantise(np.full(3, 2.5)) == ("AAAA", 2.5, 2.5)


EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(1)>'


def test_names_cannot_break_out(evaluated, predicted):
    """A gene, a section, a spot, a patient and a caveat that are markup stay text."""
    summary = collect(evaluated)
    (scores,) = summary.evaluations
    space = {**scores.space, "spots": [EVIL] * len(scores.space["spots"])}
    genes = [EVIL, *summary.genes[1:]]
    per_gene = scores.per_gene.rename(index={summary.genes[0]: EVIL})
    scores = replace(
        scores, section=EVIL, patient=EVIL, per_gene=per_gene, caveats=(EVIL,), excluded_spots=(EVIL,), space=space
    )
    spots = read_spot_map(predicted, summary.genes)
    spots = replace(
        spots,
        name=EVIL,
        title=EVIL,
        genes=genes,
        spot_ids=[EVIL] * len(spots.spot_ids),
        facts={EVIL: EVIL},
        doubt=(EVIL,),
        checkpoint=None,
    )
    page = Page(render(replace(summary, genes=genes, evaluations=(scores,)), [spots], EVIL))
    assert [tag for tag, _ in page.elements if tag in {"script", "img"}] == ["script"] * 3
    assert EVIL in page.words
    assert data_of(page)["maps"][0]["genes"][0]["name"] == EVIL
    assert page.open == []


@pytest.mark.parametrize("n_genes", [200, 700])
def test_20000_spots_stay_under_15_mb(evaluated, predicted, n_genes):
    """All of 200 genes; of more, those of the largest correlation, and how many there are."""
    random = np.random.default_rng(0)
    values = random.normal(size=(20_000, n_genes)).astype(np.float32)
    spots = replace(
        read_spot_map(predicted, collect(evaluated).genes),
        genes=[f"GENE{i}" for i in range(n_genes)],
        spot_ids=[f"ACGTACGTACGTACGT-{i}" for i in range(20_000)],
        positions=random.uniform(0, 1e4, (20_000, 2)).astype(np.float32),
        predicted=values,
        measured=values
        + np.linspace(3, 0, n_genes, dtype=np.float32) * random.normal(size=values.shape).astype(np.float32),
        picture="data:image/jpeg;base64," + "A" * 400_000,
        half_widths=np.ones(n_genes),
        applicability=random.uniform(size=20_000).astype(np.float32),
        nearest=None,
    )
    text = render(collect(evaluated), [spots], "hyperst report")
    assert len(text.encode()) < LIMIT
    (shown,) = data_of(Page(text))["maps"]
    assert len(shown["genes"]) == 200 if n_genes == 200 else 200 <= len(shown["genes"]) < n_genes
    assert shown["n_genes"] == n_genes
    assert shown["genes"][0]["name"] == f"GENE{n_genes - 1}"


def test_a_whole_slide_is_drawn_by_spots_evenly_spread(evaluated, predicted):
    """r is that of all spots; the page says how many it draws."""
    side, n_genes = 320, 200
    grid = np.stack([each.ravel() for each in np.meshgrid(np.arange(side), np.arange(side))], axis=1)
    random = np.random.default_rng(0)
    values = np.repeat(random.normal(size=(side**2, 1)).astype(np.float32), n_genes, axis=1)
    spots = replace(
        read_spot_map(predicted, collect(evaluated).genes),
        genes=[f"GENE{i}" for i in range(n_genes)],
        spot_ids=[f"slide_{i}" for i in range(side**2)],
        positions=(200.0 * grid + 100).astype(np.float32),
        predicted=values,
        measured=None,
        half_widths=None,
        applicability=random.uniform(size=side**2).astype(np.float32),
    )
    text = render(collect(evaluated), [spots], "hyperst report")
    assert len(text.encode()) < LIMIT
    (shown,) = data_of(Page(text))["maps"]
    assert shown["n_spots"] == side**2
    assert len(shown["spots"]) == (side // 2) ** 2
    assert len(shown["genes"]) == n_genes
    positions = np.frombuffer(base64.b64decode(shown["positions"]), "<f4").reshape(-1, 2)
    np.testing.assert_array_equal(positions, 400.0 * grid[(grid < side // 2).all(axis=1)] + 100)
    first = np.frombuffer(base64.b64decode(shown["genes"][0]["predicted"][0]), np.uint8)
    kept = values.reshape(side, side, n_genes)[::2, ::2, 0].ravel().astype(np.float64)
    np.testing.assert_array_equal(first, np.round((kept - kept.min()) / np.ptp(kept) * 255).astype(np.uint8))


def test_the_script_is_javascript():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    # one script on the page
    parts = [Path(report.__file__).parent / part for part in ("page.js", "zoom.js", "space.js")]
    subprocess.run([node, "--check", "-"], input="".join(part.read_text() for part in parts), text=True, check=True)


def test_the_run_can_be_trained_again(evaluated, tmp_path, monkeypatch):
    """The tables hold all that a section was read with; the command names validation sections and features."""
    summary = collect(evaluated)
    moved = [replace(each, patient="P, 7", features="/f/S1.h5") for each in summary.split.sections]
    split = replace(summary.split, sections=(*moved, replace(moved[0], name="V", role="validation")))
    (_, training), (_, validation), (_, command) = train_again(replace(summary, split=split))
    (tmp_path / "training.csv").write_text(training)
    read = read_manifest(tmp_path / "training.csv")
    assert [(str(each.path), each.name, str(each.image), each.mpp, each.patient) for each in read] == [
        (each.path, each.name, each.image, each.um_per_px, "P, 7") for each in moved
    ]
    assert validation.splitlines()[1].split(",")[1] == "V"
    assert "--validation-sections validation.csv" in command
    assert "--features /f " in command
    apart = replace(split, sections=(*moved, replace(moved[0], name="W", features="/g/W.h5")))
    assert train_again(replace(summary, split=apart)) == []  # no option names two folders
    monkeypatch.chdir(tmp_path)
    (_, training), (_, command) = train_again(summary)
    Path("training.csv").write_text(training)
    result = call(*shlex.split(command)[1:], "--epochs", "1")
    assert result.exit_code == 0, result.output
    again = RunFolder(Path("NEW_RUN")).read_split()
    assert [each.fingerprint for each in again.sections] == [each.fingerprint for each in summary.split.sections]


def test_the_means_of_a_cohort_are_no_prediction(evaluated, tmp_path):
    means = anndata.AnnData(np.ones((2, 3)), uns={"hyperst": {"content": "pseudo-bulk of predictions", "units": "u"}})
    means.write_h5ad(tmp_path / "cohort.h5ad")
    assert "holds the means of a cohort's slides" in failure("report", evaluated, tmp_path / "cohort.h5ad")


def test_the_command_writes_and_replaces_its_own_page_only(evaluated, predicted, tmp_path):
    path = tmp_path / "page.html"
    assert f"written: {path} (" in call("report", evaluated, predicted, "--output", path).output
    first = path.stat().st_mtime_ns
    call("report", evaluated, "--output", path)
    assert path.stat().st_mtime_ns > first
    assert list(tmp_path.iterdir()) == [path]
    path.write_text("mine")
    assert "is no report of `hyperst report`" in failure("report", evaluated, "--output", path)
    assert path.read_text() == "mine"


def test_what_is_no_run_or_no_prediction_is_named(evaluated, predicted, section_paths, tmp_path):
    assert "holds no run" in failure("report", tmp_path)
    assert "got 13 predictions, a page holds 12" in failure("report", evaluated, *[predicted] * 13)
    assert "no such file" in failure("report", evaluated, tmp_path / "none.h5ad")
    assert "none (--images) is no folder" in failure("report", evaluated, "--images", tmp_path / "none")
    assert "is no prediction" in failure("report", evaluated, section_paths[0])
    (tmp_path / "torn.h5ad").write_bytes(predicted.read_bytes()[:1000])
    assert "torn.h5ad is no readable .h5ad" in failure("report", evaluated, tmp_path / "torn.h5ad")
    for name, words in (("other", "is none of the run's 12 genes"), ("nan", "not finite")):
        stored = anndata.read_h5ad(predicted)
        if name == "other":
            stored.var_names = ["XIST", *stored.var_names[1:]]
        else:
            stored.X[0, 0] = np.nan
        stored.write_h5ad(tmp_path / f"{name}.h5ad")
        assert words in failure("report", evaluated, tmp_path / f"{name}.h5ad")
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_evaluation_is_named(evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path / "run")
    results = tmp_path / "run" / "evaluation" / "S3"
    (results / "metrics.json").write_text('{"section": "S3"}')
    assert "metrics.json is damaged (KeyError: 'methods'); evaluate the section again" in failure(
        "report", tmp_path / "run"
    )
    shutil.copy(evaluated / "evaluation" / "S3" / "metrics.json", results)
    (results / "per_gene.csv").write_text("gene,mse\nNA,1\n")
    assert "per_gene.csv is damaged (it has no column pcc)" in failure("report", tmp_path / "run")
    (results / "per_gene.csv").write_text("gene,pcc\nA,much\n")
    assert "per_gene.csv cannot be read" in failure("report", tmp_path / "run")
    whole = (evaluated / "evaluation" / "S3" / "per_gene.csv").read_text()
    for left in (whole[:-2], "".join(whole.splitlines(keepends=True)[:-1])):
        (results / "per_gene.csv").write_text(left)
        assert "per_gene.csv is cut short" in failure("report", tmp_path / "run")


def test_spots_without_an_image_or_a_scale_have_a_map(evaluated, predicted, tmp_path):
    stored = anndata.read_h5ad(predicted)
    del stored.uns["spatial"], stored.uns["hyperst"]["um_per_px"], stored.obs["tissue_fraction"]
    stored.write_h5ad(tmp_path / "features.h5ad")
    page = Page(report.write_report(evaluated, [tmp_path / "features.h5ad"], tmp_path / "page.html").read_text("utf-8"))
    shown = data_of(page)["maps"][1]
    assert (shown["name"], shown["picture"], shown["um_per_px"]) == ("features", None, None)
    spacing = np.diff(np.unique(stored.obsm["spatial"][:, 0])).min()
    assert 0 < shown["diameter_px"] < 2 * spacing


def test_a_run_without_evaluation_has_a_page(trained, tmp_path):
    page = Page(report.write_report(trained, output=tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "nothing here says whether to believe" in page.words
    assert data_of(page)["maps"] == []
    assert not any(attributes.get("id") == "panels" for _, attributes in page.elements)


def test_sections_without_room_for_a_map_are_counted(evaluated, predicted, tmp_path):
    path = report.write_report(evaluated, [predicted] * 12, tmp_path / "page.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "1 more evaluated sections have no room" in page.words
    assert len(data_of(page)["maps"]) == 12


def test_without_the_extra_the_command_names_it(evaluated, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly", None)
    assert "pip install 'hyperst-kernels[report]'" in failure("report", evaluated)
