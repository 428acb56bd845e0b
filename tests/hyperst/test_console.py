"""What is seen of long work: bars with the time left on a terminal, nothing of them elsewhere."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from hyperst.cli.console import EpochProgress, SpotProgress, print_training, working
from hyperst.predict import predict_section
from hyperst.progress import Count
from hyperst.run import load_run
from hyperst.train import TrainingSummary, fit

ROW = {"epoch": 1.0, "validation_mse": 0.5, "validation_pcc": 0.1, "training_mse": 0.6}


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    return Console(file=io.StringIO(), force_terminal=True, width=120, highlight=False)


def seen(console):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_spots_have_a_bar_once_their_number_is_known(terminal):
    with SpotProgress(terminal, "spots", before="tissue is found", after="scores") as progress:
        progress.bar.refresh()
        assert "tissue is found" in seen(terminal)
        assert "?" not in seen(terminal)
        progress(0, 40)
        progress(10, 40)
        progress.bar.refresh()
        assert "10/40" in seen(terminal)
        assert re.search(r"10/40 +[0-9:]+ +[0-9:-]+ left +spots", seen(terminal))
        progress(40, 40)
        progress.bar.refresh()
    assert seen(terminal).rstrip().endswith("scores")


def test_the_time_left_is_that_of_the_spots(terminal):
    """Not that of what came before them."""
    with SpotProgress(terminal, "spots") as progress:
        progress.bar.get_time = lambda: 42.0
        progress(0, 40)
        assert progress.bar.tasks[0].start_time == 42


def test_reading_crops_is_seen_before_the_first_epoch(terminal):
    with EpochProgress(terminal, 18) as progress:
        progress.crops(0, 30)
        progress.crops(20, 30)
        progress.bar.refresh()
        assert "20/30" in seen(terminal)
        assert "crops are read" in seen(terminal)
        assert "first epoch" not in seen(terminal)
        progress.crops(30, 30)
        progress.bar.refresh()
        assert "0/18" in seen(terminal)
        assert "first epoch" in seen(terminal)
        progress(ROW, 1)
        progress.bar.refresh()
        assert "1/18" in seen(terminal)
    assert "validation MSE 0.5000" in seen(terminal)


@pytest.mark.parametrize("ci", [True, False])
def test_logs_have_no_bars(monkeypatch, ci):
    """Neither files nor the terminals that a CI pretends to be; epochs are lines there."""
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", "true")
    console = Console(file=io.StringIO(), force_terminal=ci, width=120, highlight=False)
    with SpotProgress(console, "spots") as progress, working(console, "loading"):
        progress(0, 2)
        progress(2, 2)
    with EpochProgress(console, 18) as epochs:
        epochs.crops(0, 3)
        epochs.crops(3, 3)
        assert console.file.getvalue() == ""
        epochs(ROW, 1)
    assert console.file.getvalue().startswith("  epoch 1 of at most 18: validation MSE 0.5000")


@pytest.mark.parametrize(
    ("networks", "head", "words"),
    [
        (1, "network", ""),
        (6, "network", " of the first network alone"),
        (1, "both", " of the network alone, with which a closed-form head is mixed"),
        (6, "both", " of the first network alone, with which a closed-form head is mixed"),
        (1, "closed-form", " of the network alone, in whose place a closed-form head predicts"),
    ],
)
def test_a_training_says_whose_figures_it_closes_with(networks, head, words):
    console = Console(file=io.StringIO(), width=1000)
    print_training(console, TrainingSummary(3, 2, 0.5, 0.1, 7.0, False), networks, head)
    assert console.file.getvalue().endswith(f"kept epoch 2: validation MSE 0.5000, mean PCC +0.100{words}\n")


def test_training_tells_of_its_crops(sections, tiny_config, tmp_path):
    """All spots, from none to all, once; without crops to read the end alone."""
    told = []
    config = replace(tiny_config, training=replace(tiny_config.training, epochs=1))
    fit(config, sections[:1], tmp_path / "run", on_crops=lambda *count: told.append(count))
    total = sections[0].n_spots
    assert told == [*((done, total) for done in range(total + 1)), (total, total)]
    told.clear()
    uncached = replace(config, data=replace(config.data, cache_gib=0))
    fit(uncached, sections[:1], tmp_path / "other", on_crops=lambda *count: told.append(count))
    assert told == [(0, total), (total, total)]


def test_prediction_tells_how_many_spots_first(trained, sections):
    told = []
    predict_section(load_run(trained, device="cpu"), sections[2], on_progress=lambda *count: told.append(count))
    assert told[0] == (0, sections[2].n_spots)
    assert told[-1] == (sections[2].n_spots, sections[2].n_spots)


def test_nobody_is_told():
    count = Count(None, 3)
    count.add(2)
    count.finish()
    assert count.done == 3
