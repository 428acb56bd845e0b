"""Training keeps what it promises: determinism, resumption, the best epoch, and outputs that survive a full disk."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hyperst.config import read_config
from hyperst.data import select_genes
from hyperst.model import Alignment
from hyperst.run import RunFolder, build_model, load_checkpoint
from hyperst.train import checkpoints, fit, parameter_groups
from hyperst.train.step import TrainingStep


def weights(folder: Path, name: str = "best") -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"{name}.ckpt")["state_dict"]


def assert_same_run(first: Path, second: Path) -> None:
    for name in ("best", "last"):
        left, right = weights(first, name), weights(second, name)
        assert left.keys() == right.keys()
        for key in left:
            assert torch.equal(left[key], right[key]), key
    pd.testing.assert_frame_equal(pd.read_csv(first / "metrics.csv"), pd.read_csv(second / "metrics.csv"))


def test_a_run_folder_holds_everything(trained, tiny_config, sections):
    place = RunFolder(trained)
    for file in (
        place.config,
        place.genes,
        place.split,
        place.versions,
        place.metrics,
        place.summary,
        place.best,
        place.last,
    ):
        assert file.is_file(), file
    stored = read_config(place.config)
    data = replace(stored.data, stain_mean=None, stain_std=None)
    assert replace(stored, crop=tiny_config.crop, data=data) == tiny_config
    assert stored.crop.niche_um > stored.crop.spot_um >= 112  # fixed from the training sections, to be used anywhere
    assert place.read_genes() == list(select_genes(sections[:2], tiny_config.data.n_genes, "hmhvg"))
    assert {"python", "torch", "lightning", "hyperst-kernels"} <= place.read_versions().keys()


def test_validation_spots_are_blocks_of_the_training_sections(trained, sections, tiny_config):
    split = RunFolder(trained).read_split()
    assert [record.name for record in split.role("training")] == ["S1", "S2"]
    assert split.role("validation") == []
    for section in sections[:2]:
        chosen = np.isin(section.spot_ids, split.validation_spots[section.name])
        assert chosen.sum() == len(split.validation_spots[section.name])
        assert (
            0.5 * tiny_config.training.validation_fraction
            < chosen.mean()
            < 2 * tiny_config.training.validation_fraction
        )
        # blocks: a held-out spot's nearest neighbour is held out far more often than chance would have it
        distance = np.linalg.norm(section.spot_px[:, None] - section.spot_px[None], axis=-1)
        np.fill_diagonal(distance, np.inf)
        assert chosen[distance[chosen].argmin(axis=1)].mean() > 2 * chosen.mean()


def test_metrics_are_finite_and_the_best_epoch_is_kept(trained):
    metrics = pd.read_csv(trained / "metrics.csv")
    assert list(metrics["epoch"]) == [1, 2, 3]
    assert np.isfinite(metrics.to_numpy()).all()
    assert {"training_loss", "training_mse", "contrastive", "entailment", "validation_mse", "validation_pcc"} <= set(
        metrics
    )
    summary = RunFolder(trained).read_summary()
    best = metrics.loc[metrics["validation_mse"].idxmin()]
    assert summary["best_epoch"] == best["epoch"]
    assert math.isclose(summary["validation_mse"], best["validation_mse"], rel_tol=1e-5)
    assert load_checkpoint(trained / "checkpoints" / "best.ckpt")["epoch"] + 1 == best["epoch"]


def test_the_prediction_starts_at_the_training_mean(trained):
    """An untrained output layer would give a first error far above the spread of the target."""
    first = pd.read_csv(trained / "metrics.csv").iloc[0]
    assert first["training_mse"] < 4 * first["validation_mse"]


def test_training_is_deterministic(trained, tiny_config, sections, tmp_path):
    fit(tiny_config, sections[:2], tmp_path / "again")
    assert_same_run(trained, tmp_path / "again")


def test_another_seed_gives_another_run(trained, tiny_config, sections, tmp_path):
    other = replace(tiny_config, training=replace(tiny_config.training, seed=1, epochs=1))
    fit(other, sections[:2], tmp_path / "other")
    left, right = RunFolder(trained).read_split(), RunFolder(tmp_path / "other").read_split()
    assert left.validation_spots != right.validation_spots


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_run_resumes_to_the_same_end(trained, tiny_config, sections, tmp_path, after):
    def interrupt(row, best_epoch):
        if row["epoch"] == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=f"after epoch {after} of at most 3"):
        fit(tiny_config, sections[:2], tmp_path / "run", on_epoch=interrupt)
    assert len(pd.read_csv(tmp_path / "run" / "metrics.csv")) == after
    seen = []
    fit(tiny_config, sections[:2], tmp_path / "run", resume=True, on_epoch=lambda row, best: seen.append(row["epoch"]))
    assert seen == list(range(after + 1, 4))
    assert_same_run(trained, tmp_path / "run")


def test_ctrl_c_keeps_working_after_an_interruption(tiny_config, sections, tmp_path):
    """Lightning ignores SIGINT from then on; a notebook must not."""

    def interrupt(row, best_epoch):
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_config, sections[:2], tmp_path / "run", on_epoch=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_interruption_before_the_first_epoch_resumes_too(trained, tiny_config, sections, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hyperst.train.step.TrainingStep.training_step", interrupt)
        with pytest.raises(KeyboardInterrupt, match="after epoch 0"):
            fit(tiny_config, sections[:2], tmp_path / "run")
    fit(tiny_config, sections[:2], tmp_path / "run", resume=True)
    assert_same_run(trained, tmp_path / "run")


def test_resuming_a_finished_run_changes_nothing(trained, tiny_config, sections):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    summary = fit(tiny_config, sections[:2], trained, resume=True)
    assert summary.epochs == 3
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_a_run_killed_before_its_summary_is_finished_without_another_epoch(trained, tiny_config, sections, tmp_path):
    fit(tiny_config, sections[:2], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    seen = []
    summary = fit(tiny_config, sections[:2], tmp_path / "run", resume=True, on_epoch=lambda *row: seen.append(row))
    assert (seen, summary.epochs) == ([], 3)


def test_a_second_run_needs_its_own_folder(trained, tiny_config, sections):
    with pytest.raises(FileExistsError, match="--resume"):
        fit(tiny_config, sections[:2], trained)


def test_nothing_to_resume(tiny_config, sections, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        fit(tiny_config, sections[:2], tmp_path, resume=True)


def test_resuming_with_other_sections_is_refused(trained, tiny_config, sections):
    with pytest.raises(ValueError, match="cannot resume"):
        fit(tiny_config, sections[1:], trained, resume=True)


def test_patience_ends_the_training(tiny_config, sections, tmp_path, monkeypatch):
    settings = replace(tiny_config.training, epochs=50, patience=2, learning_rate=1e-12)
    errors = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    original = checkpoints.Recorder.on_train_epoch_end

    def scripted(self, trainer, module):
        trainer.callback_metrics["validation_mse"] = torch.tensor(next(errors))
        original(self, trainer, module)

    monkeypatch.setattr(checkpoints.Recorder, "on_train_epoch_end", scripted)
    summary = fit(replace(tiny_config, training=settings), sections[:2], tmp_path / "run")
    assert (summary.epochs, summary.best_epoch, summary.stopped_early) == (4, 2, True)


def test_whole_validation_sections(tiny_config, sections, tmp_path):
    config = replace(tiny_config, training=replace(tiny_config.training, epochs=1))
    fit(config, sections[:1], tmp_path / "run", validation_sections=sections[1:2])
    split = RunFolder(tmp_path / "run").read_split()
    assert [(record.name, record.role) for record in split.sections] == [("S1", "training"), ("S2", "validation")]
    assert split.validation_spots == {}


def test_a_section_has_one_role(tiny_config, sections, tmp_path):
    with pytest.raises(ValueError, match="S1 is given more than once"):
        fit(tiny_config, sections[:1], tmp_path / "run", validation_sections=sections[:1])


def test_checkpoints_load_without_running_code(trained):
    for name in ("best", "last"):
        assert "state_dict" in torch.load(trained / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    torch.save({"state_dict": threading.Thread}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt is damaged or not of this library"):
        load_checkpoint(tmp_path / "evil.ckpt")


def test_a_truncated_checkpoint_is_named(trained, tmp_path):
    data = (trained / "checkpoints" / "best.ckpt").read_bytes()
    (tmp_path / "best.ckpt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"best\.ckpt is damaged"):
        load_checkpoint(tmp_path / "best.ckpt")


def test_a_full_disk_leaves_the_checkpoints_and_the_run_can_go_on(
    trained, tiny_config, sections, tmp_path, monkeypatch
):
    save, calls = torch.save, []

    def full(checkpoint, file):
        calls.append(None)
        if len(calls) > 2:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(checkpoint, file)

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(OSError, match=r"no space left while writing .*\.ckpt"):
        fit(tiny_config, sections[:2], tmp_path / "run")
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    fit(tiny_config, sections[:2], tmp_path / "run", resume=True)
    assert_same_run(trained, tmp_path / "run")


def test_a_loss_that_breaks_stops_the_run_with_a_remedy(tiny_config, sections, tmp_path):
    config = replace(tiny_config, training=replace(tiny_config.training, learning_rate=1e30, gradient_clip=0.0))
    with pytest.raises(FloatingPointError, match="--learning-rate"):
        fit(config, sections[:2], tmp_path / "run")


@pytest.mark.parametrize("limit", [None, 1e-3, 1.0, 1e3])
def test_gradients_are_clipped_as_by_pytorch(tiny_config, limit):
    ours, theirs = (torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(5, 3)) for _ in range(2))
    for layers in (ours, theirs):
        random = torch.Generator().manual_seed(0)
        for parameter in list(layers.parameters())[:-1]:  # the last has no gradient
            parameter.grad = torch.randn(parameter.shape, generator=random)
    if limit is not None:
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    step = TrainingStep(*models(tiny_config), tiny_config, [], batch_size=2, n_validation=1)
    step.configure_gradient_clipping(torch.optim.SGD(ours.parameters()), limit)
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine.grad, their.grad) if their.grad is not None else mine.grad is None


def test_half_precision_trains(tiny_config, sections, tmp_path):
    training = replace(tiny_config.training, precision="bf16-mixed", epochs=1)
    fit(replace(tiny_config, training=training), sections[:2], tmp_path / "run")
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert np.isfinite(metrics[["training_loss", "validation_mse"]]).all(axis=None)


def models(config):
    """The network and its alignment."""
    return build_model(config, 12), Alignment(config.alignment, config.model.width)


def test_no_weight_decay_on_scales_and_temperature(tiny_config):
    model = torch.nn.ModuleList(models(tiny_config))
    decayed, plain = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    plain_names = {names[id(parameter)] for parameter in plain["params"]}
    assert decayed_names
    assert all(name.endswith("weight") for name in decayed_names)
    assert any("curvature" in name for name in plain_names)
    assert any("logit_scale" in name for name in plain_names)
    assert all(name in plain_names for name in names.values() if name.endswith("bias"))


def test_sigint_ends_the_command_and_resume_finishes_it(section_paths, tmp_path):
    """The whole way: a process that gets SIGINT mid-training, then --resume."""
    command = [
        sys.executable,
        "-m",
        "hyperst",
        "train",
        *map(str, section_paths[:2]),
        "--output",
        str(tmp_path / "run"),
    ]
    options = [
        "--n-genes",
        "12",
        "--width",
        "16",
        "--image-size",
        "32",
        "--epochs",
        "400",
        "--patience",
        "400",
        "--networks",
        "1",
    ]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # a test run in the background of a shell inherits that SIGINT is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "epoch 1 of" in line:
            break
    process.send_signal(signal.SIGINT)
    output = process.stdout.read()
    assert process.wait(timeout=120) == 130, output
    assert "--resume" in output
    assert "Traceback" not in output
    done = len(pd.read_csv(tmp_path / "run" / "metrics.csv"))
    assert 1 <= done < 400
    config = tmp_path / "run" / "config.yaml"  # a shorter end, so that the test is
    config.write_text(config.read_text().replace("epochs: 400", f"epochs: {done + 2}"))
    finished = subprocess.run(
        [sys.executable, "-m", "hyperst", "train", "--resume", "--output", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert list(pd.read_csv(tmp_path / "run" / "metrics.csv")["epoch"]) == list(range(1, done + 3))
