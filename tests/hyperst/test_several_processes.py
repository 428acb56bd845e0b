"""A training in several processes is that of one: the same curve, one run folder, one error, and one end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import start_processes

from hyperst.config import with_ablation
from hyperst.cv import cross_validate
from hyperst.data import dataset
from hyperst.data.genes import TooFewGenesError
from hyperst.demo import run_demo
from hyperst.processes import started_processes
from hyperst.run import RunFolder, load_checkpoint, load_run
from hyperst.train import fit
from hyperst.train.batch_norm import synchronise_batch_norms
from hyperst.train.interruption import Interruption
from hyperst.train.launch import launch
from hyperst.train.loaders import EpochOrder, make_loaders
from hyperst.train.together import Processes, _tell, first_error, joined

# In 64-true, the alignment still sees features in float32. A step of AdamW divides a gradient by its own size, so that the
# rounding of a small one is not small in the weights; a thousand roundings leave a factor of ten to what is seen here.
TOLERANCE = 1000 * torch.finfo(torch.float32).eps
ABLATIONS = ("meru", "no_hca_hea")  # parameters without a gradient; no features to exchange
SMALL = ["--n-genes", "12", "--width", "16", "--image-size", "32", "--networks", "1"]


@pytest.fixture(scope="module")
def exact(tiny_config):
    """Nothing at random but the order of spots, and a batch that two processes cannot halve."""
    return replace(
        tiny_config,
        model=replace(tiny_config.model, dropout=0.0),
        training=replace(tiny_config.training, stain_jitter=0.0, batch_size=15, precision="64-true"),
    )


def rows(rank: int) -> torch.Tensor:
    """Images of one rank, unequally many; far from zero, where a difference of squares would lose the variance."""
    n = 3 + 2 * rank
    return 1e4 + torch.rand(n, 4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))


def norm_step(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch norm returns in training, and the gradient of a sum over it with ``weight``."""
    x.requires_grad_()
    y = layer(x)
    (y * weight).sum().backward()
    return y.detach(), x.grad


def norm_over_ranks(folder: Path) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4)).double()
    synchronise_batch_norms(model, "cpu")
    with joined() as processes:
        found = norm_step(model, rows(processes.rank), rows(processes.rank).cos())
        torch.save((*found, model.state_dict()), folder / f"norm{processes.rank}.pt")


def train_all(exact, sections, folder, send):
    """What the two processes do, one thing after another."""
    dataset._dihedral = lambda crops, element: crops
    fit(exact, sections, folder / "two")
    fit(exact, sections, folder / "resumed", resume=True)
    fit(replace(exact, training=replace(exact.training, epochs=2)), sections, folder / "shorter")
    for name in ABLATIONS:
        fit(with_ablation(exact, name), sections, folder / f"{name}_two")
    norm_over_ranks(folder)


@pytest.fixture(scope="module")
def runs(exact, sections, tmp_path_factory) -> Path:
    """Folder of runs in one process and in two."""
    folder = tmp_path_factory.mktemp("several")

    def interrupt(row, best):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "_dihedral", lambda crops, element: crops)
        fit(exact, sections[:2], folder / "one")
        for name in ABLATIONS:
            fit(with_ablation(exact, name), sections[:2], folder / f"{name}_one")
        with pytest.raises(KeyboardInterrupt):
            fit(exact, sections[:2], folder / "resumed", on_epoch=interrupt)
        launch(2, partial(train_all, exact, sections[:2], folder), print)
        (folder / "shorter" / "summary.json").unlink()
        config = folder / "shorter" / "config.yaml"
        config.write_text(config.read_text().replace("epochs: 2", "epochs: 3"))
        fit(exact, sections[:2], folder / "shorter", resume=True)
    return folder


def assert_same_curve(first: Path, second: Path) -> None:
    left, right = (pd.read_csv(folder / "metrics.csv") for folder in (first, second))
    pd.testing.assert_frame_equal(left, right, check_dtype=False, rtol=TOLERANCE, atol=TOLERANCE)
    assert len(left) == 3
    weights = [load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (first, second)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def test_two_processes_reach_the_loss_curve_of_one(runs):
    assert_same_curve(runs / "one", runs / "two")


@pytest.mark.parametrize("name", ABLATIONS)
def test_rows_of_the_ablation_do_too(runs, name):
    assert_same_curve(runs / f"{name}_one", runs / f"{name}_two")


@pytest.mark.parametrize("name", ["resumed", "shorter"])
def test_a_run_goes_on_in_another_number_of_processes(runs, name):
    """Begun in one and resumed in two, and the other way round."""
    assert_same_curve(runs / "one", runs / name)


def test_one_run_folder_is_written(runs):
    one, two = (sorted(path.relative_to(runs / name) for path in (runs / name).rglob("*")) for name in ("one", "two"))
    assert one == two
    assert RunFolder(runs / "one").read_split() == RunFolder(runs / "two").read_split()


def test_batch_norm_is_over_the_rows_of_all(runs):
    everything = torch.cat([rows(0), rows(1)])
    layer = nn.Sequential(nn.BatchNorm2d(4)).double()
    y, gradient = norm_step(layer, everything, torch.cat([rows(0), rows(1)]).cos())
    (y0, g0, state), (y1, g1, other) = (torch.load(runs / f"norm{rank}.pt") for rank in (0, 1))
    # variances near 1 / 12 of values near 1e4: what rounding of the values leaves, relative to the deviations
    tolerance = {"rtol": 0, "atol": 1e4 * 100 * torch.finfo(torch.float64).eps}
    torch.testing.assert_close(torch.cat([y0, y1]), y, **tolerance)
    torch.testing.assert_close(torch.cat([g0, g1]), gradient, **tolerance)
    for name, value in layer.state_dict().items():
        assert torch.equal(state[name], other[name]), name
        torch.testing.assert_close(state[name], value, rtol=1e-12, atol=0)


def test_joint_layers_cannot_be_synchronised():
    class WithActivation(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="layer 1 is a WithActivation"):
        synchronise_batch_norms(nn.Sequential(nn.Conv2d(3, 3, 1), WithActivation(3)), "cpu")


@pytest.mark.parametrize(("n", "batch_size", "size"), [(17, 5, 2), (12, 4, 4), (9, 9, 4), (7, 3, 3)])
def test_every_spot_of_a_batch_has_one_process(n, batch_size, size):
    orders = [EpochOrder(n, batch_size, 3, Processes(rank, size, size)) for rank in range(size)]
    alone = list(EpochOrder(n, batch_size, 3))
    shares = [iter(order) for order in orders]
    for start in range(0, len(alone), batch_size):
        batch = [next(share) for order, share in zip(orders, shares, strict=True) for _ in range(order.own)]
        assert batch == alone[start : start + batch_size]
    assert [list(share) for share in shares] == [[]] * size
    assert sum(map(len, orders)) == len(alone) == n // batch_size * batch_size
    assert len({order.generator.initial_seed() for order in orders}) == size


def test_fewer_spots_than_processes(tiny_config, sections, runs):
    place = RunFolder(runs / "one")
    config = replace(tiny_config, training=replace(tiny_config.training, batch_size=2))
    arguments = (config, place.read_genes(), place.read_split(), sections[:2], ())
    with pytest.raises(ValueError, match=r"2 spots a step .* cannot be divided among 3 processes"):
        make_loaders(*arguments, Processes(0, 3, 3))


@pytest.mark.parametrize("devices", [0, -1, 1.0, True])
def test_numbers_of_processes_that_cannot_be(tiny_config, sections, tmp_path, devices):
    with pytest.raises(ValueError, match=r"devices .* whole number of at least 1"):
        fit(tiny_config, sections[:2], tmp_path / "run", devices=devices)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "one of 2 .* RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT are not set"),
        ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "2,1"},
         "3 processes are not equally many"),
    ],
)  # fmt: skip
def test_places_that_cannot_be(environment, message):
    with pytest.raises(ValueError, match=message):
        started_processes(environment)


def test_devices_beside_torchrun(tiny_config, sections, tmp_path, monkeypatch):
    place = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "x", "MASTER_PORT": 1}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match=r"devices .* is 4, but 2 processes have been started"):
        fit(tiny_config, sections[:2], tmp_path / "run", devices=4)
    with pytest.raises(ValueError, match="the demonstration is started once, without torchrun"):
        run_demo(tmp_path / "demo")
    with pytest.raises(ValueError, match=r"a cross-validation, .* is started once"):
        cross_validate(sections, {"tiny": tiny_config}, [], [0], tmp_path / "cv")
    assert not list(tmp_path.iterdir())


def test_more_processes_than_gpus(tiny_config, sections, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="this machine has 1 GPUs"):
        fit(tiny_config, sections[:2], tmp_path / "run", devices=2)


def broken_on_rank_1(config, sections, folder, send):
    """The second process cannot read a spot in the second epoch; what each raises is kept beside the run."""
    original, rank, reads = dataset.SpotDataset.__getitem__, os.environ["RANK"], []

    def read(self, item):
        reads.append(item)
        if rank == "1" and self.augment and len(reads) > len(self):
            raise ValueError("tile 7 of the image cannot be decoded")
        return original(self, item)

    dataset.SpotDataset.__getitem__ = read
    try:
        fit(config, sections, folder)
    except ValueError as error:
        folder.with_name(f"error{rank}").write_text(str(error))
        raise


def test_an_error_of_one_process_is_that_of_all(tiny_config, sections, tmp_path):
    with pytest.raises(ValueError, match="tile 7 of the image cannot be decoded"):
        launch(2, partial(broken_on_rank_1, tiny_config, sections[:2], tmp_path / "run"), print)
    assert {(tmp_path / f"error{rank}").read_text() for rank in (0, 1)} == {"tile 7 of the image cannot be decoded"}
    assert len(pd.read_csv(tmp_path / "run" / "metrics.csv")) >= 1
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")["epoch"] >= 0


class WithLock(OSError):
    """An error of a library: it wants two arguments, and holds what cannot be pickled."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.lock = Lock()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TooFewGenesError("n_genes: got 200", 120), TooFewGenesError),
        (FileNotFoundError(2, "No such file", "S1.h5ad"), FileNotFoundError),
        (WithLock("disk 7 is full", 7), OSError),
    ],
)
def test_an_error_reaches_other_processes_with_its_kind_and_message(error, kind):
    store = dist.HashStore()
    assert _tell(error, store) is error
    assert repr(_tell(ValueError("a later one"), store)) == repr(first_error(store))
    told = first_error(store)
    assert type(told) is kind
    assert str(told) == str(error)
    assert getattr(told, "usable", None) == getattr(error, "usable", None)


def launched() -> list[psutil.Process]:
    """The processes that this one has started to train in, by rank."""
    children = sorted(psutil.Process().children(), key=lambda child: child.pid)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.parametrize("receiver", ["parent", "rank 1"])
def test_sigterm_ends_all_and_leaves_nothing_half_written(tiny_config, sections, tmp_path, receiver):
    config = replace(tiny_config, training=replace(tiny_config.training, epochs=1000, patience=1000))
    usual = signal.getsignal(signal.SIGTERM)

    def terminate(row, best):
        assert isinstance(signal.getsignal(signal.SIGTERM), Interruption)
        if row["epoch"] == 1:
            os.kill(os.getpid() if receiver == "parent" else launched()[1].pid, signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match=r"interrupted after epoch [0-9]+ of at most 1000"):
        fit(config, sections[:2], tmp_path / "run", on_epoch=terminate, devices=2)
    assert launched() == []
    assert signal.getsignal(signal.SIGTERM) is usual
    written = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert written == {
        "config.yaml",
        "genes.txt",
        "split.json",
        "versions.json",
        "metrics.csv",
        "best.ckpt",
        "last.ckpt",
    }
    assert np.isfinite(pd.read_csv(tmp_path / "run" / "metrics.csv")["validation_mse"]).all()


def test_ctrl_c_while_processes_start_is_told_once(monkeypatch, capfd):
    """Before their imports are done they cannot end without a traceback by themselves."""

    def start(*arguments, **options):
        started = start_processes(*arguments, **options)
        os.kill(os.getpid(), signal.SIGINT)
        return started

    monkeypatch.setattr("hyperst.train.launch.start_processes", start)
    with pytest.raises(KeyboardInterrupt):
        launch(2, print, print)
    assert launched() == []
    assert capfd.readouterr() == ("", "")


def command(*arguments: object, **environment: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in environment.items()}},
    )


def test_a_killed_process_ends_the_others_and_the_run_can_go_on(section_paths, sections, tiny_config, tmp_path):
    run = tmp_path / "run"
    options = [*SMALL, "--epochs", 1000, "--patience", 1000, "--devices", 2]
    process = command("hyperst", "train", *section_paths[:2], "--output", run, *options)
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if "epoch 1 of" in line:
            break
    ranks = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(ranks) == 2, seen
    ranks[1].send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the process of rank 1 was ended by SIGKILL" in output
    assert "--resume" in output
    assert "Traceback" not in output
    assert not psutil.pid_exists(ranks[0].pid)
    done = len(pd.read_csv(run / "metrics.csv"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 1000", f"epochs: {done + 1}"))
    summary = fit(tiny_config, sections[:2], run, resume=True)
    assert done <= summary.epochs - 1 <= done + 1  # the row of the last epoch may have been lost with its writer


def test_torchrun(section_paths, tmp_path):
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m"]
    options = [*SMALL, "--epochs", 1, "--output", tmp_path / "run"]
    process = command(*torchrun, "hyperst", "train", *section_paths[:2], *options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("kept epoch 1") == 1
    assert output.count("epoch 1 of at most 1") == 1
    assert "arning" not in output
    assert RunFolder(tmp_path / "run").read_summary()["epochs"] == 1


def tasks(section_paths, output, firsts, *options):
    """Two of srun's tasks, each with the sections from its first on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1], "SLURM_STEP_TASKS_PER_NODE": "2"}
    return [
        command(
            "hyperst", "train", *section_paths[first:2], "--output", output, *SMALL, *options,
            SLURM_STEP_NUM_TASKS=2, SLURM_PROCID=rank, SLURM_LOCALID=rank, **place,
        )
        for rank, first in enumerate(firsts)
    ]  # fmt: skip


def test_srun_trains_one_network_after_another(section_paths, tmp_path):
    """Rank 0 serves the place where all meet, and keeps it: others come to the next meeting before it does."""
    started = tasks(section_paths, tmp_path / "run", (0, 0), "--epochs", 1, "--networks", 2)
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert load_run(tmp_path / "run").others[0].folder == tmp_path / "run" / "networks" / "2"


def test_srun_with_other_sections_on_one_task(section_paths, tmp_path):
    """No launcher tells these processes of each other's end: they agree before they start."""
    started = tasks(section_paths, tmp_path / "run", (0, 1))
    for process in started:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 1, output
        assert "rank 1 cannot join: the run was started with (section, role, spots)" in output
    assert not (tmp_path / "run").exists()
