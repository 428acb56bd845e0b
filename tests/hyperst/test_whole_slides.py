"""Whole slides: predicted into a file tile by tile, in memory that does not grow with spots, gone on with after SIGKILL."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import anndata
import numpy as np
import psutil
import pytest
import tifffile

from hyperst import locks
from hyperst.closed_form import blocks_with_closed_form, with_closed_form
from hyperst.data import open_image
from hyperst.data.images import tiff
from hyperst.data.reading_order import reading_order
from hyperst.files import write_h5ad_in_blocks
from hyperst.part_file import PartFile
from hyperst.predict import predict_image
from hyperst.predict_file import image_into_part, part_path
from hyperst.run import load_run
from hyperst.synthetic_slide import write_slide

SIDE, MPP, TILE = 2400, 1.4, 128
KILLED = """
import os, signal, sys
from hyperst.cli.commands import main
from hyperst.part_file import PartFile

write, left = PartFile._write, int(sys.argv.pop())

def write_or_die(self, place, content):
    global left
    left -= 1
    if left == 0:
        write(self, place, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, place, content)

PartFile._write = write_or_die
main()
"""
STUCK = """
import sys, threading
from pathlib import Path
import psutil
from hyperst.image_batches import _Collate

collate, place, calls = _Collate.__call__, Path(sys.argv.pop()), []

def once(self, items):
    calls.append(1)
    if len(calls) > 1:  # a reader whose first images are read, and which never comes to ask for its parent
        threading.Event().wait()
    place.joinpath(str(psutil.Process().pid)).touch()
    return collate(self, items)

_Collate.__call__ = once
"""


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return write_slide(tmp_path_factory.mktemp("slide") / "slide.tif", SIDE, um_per_px=MPP, tile=TILE)


@pytest.fixture(scope="module")
def run(evaluated):
    return load_run(evaluated, device="cpu")


@pytest.fixture(scope="module")
def in_memory(run, slide):
    return predict_image(run, slide)


def into_file(run, slide, path, **options):
    with image_into_part(run, slide, path, **options) as values:
        values.write(path)
    return anndata.read_h5ad(path)


def assert_same(one, other):
    np.testing.assert_array_equal(one.X, other.X)
    for part in ("obs", "obsm"):
        assert set(getattr(one, part)) == set(getattr(other, part))
        for name in getattr(one, part):  # text is categories in a file
            np.testing.assert_array_equal(np.asarray(getattr(one, part)[name]), np.asarray(getattr(other, part)[name]))
    assert one.var.equals(other.var)
    assert list(one.uns) == list(other.uns)
    facts = [{**each.uns["hyperst"], "created": ""} for each in (one, other)]
    assert facts[0] == facts[1]


@pytest.mark.parametrize("readers", [0, 2])
def test_the_file_holds_the_bits_that_memory_gives(run, slide, in_memory, tmp_path, readers):
    told = []
    found = into_file(run, slide, tmp_path / "p.h5ad", readers=readers, on_progress=lambda *count: told.append(count))
    assert_same(found, in_memory)
    assert found.X.dtype == np.float32
    assert told[0] == (0, found.n_obs)
    assert told[-1] == (found.n_obs, found.n_obs)
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad"]


def test_a_slide_larger_than_the_cache_is_read_in_columns(run, slide, in_memory, tmp_path, monkeypatch):
    for module in ("hyperst.data.reading_order", "hyperst.data.images.tiff"):
        monkeypatch.setattr(f"{module}.CACHE_BYTES", 1 << 20)
    again = predict_image(run, slide)
    assert_same(into_file(run, slide, tmp_path / "p.h5ad"), again)
    # other spots are in a batch with each, which changes how sums are rounded
    np.testing.assert_allclose(again.X, in_memory.X, rtol=1e-4, atol=1e-5)


def count_decoded(monkeypatch):
    """Which tile is decoded, each time one is."""
    decoded, segment = [], tiff.TiffImage._segment

    def counted(self, level, plane, page, index, box):
        if (level, plane, index) not in self._cache:
            decoded.append((level, index))
        return segment(self, level, plane, page, index, box)

    monkeypatch.setattr(tiff.TiffImage, "_segment", counted)
    return decoded


def grid(pitch):
    steps = np.arange(pitch / 2, SIDE, pitch)
    return np.stack([each.ravel() for each in np.meshgrid(steps, steps)], axis=1)


def test_each_tile_is_decoded_about_once(slide, monkeypatch):
    decoded = count_decoded(monkeypatch)
    monkeypatch.setattr("hyperst.data.reading_order.CACHE_BYTES", 5 << 19)
    monkeypatch.setattr(tiff, "CACHE_BYTES", 5 << 19)  # of 16 MiB
    centres, widths, size = grid(125.0), [100.0, 220.0], 64

    def read(order):
        decoded.clear()
        with open_image(slide) as image:
            for x, y in centres[order]:
                for width in widths:
                    image.read(x - width / 2, y - width / 2, width, width, size=size)
        return len(decoded) / len(set(decoded))

    with open_image(slide) as image:
        order = reading_order(image, centres, widths, size)
    assert sorted(order) == list(range(len(centres)))
    assert read(order) < 1.3
    assert read(np.arange(len(centres))) > 2
    assert {level for level, _ in decoded} == {0}


def test_strips_are_read_from_top_to_bottom_and_decoded_once(tmp_path, monkeypatch):
    decoded = count_decoded(monkeypatch)
    for module in ("hyperst.data.reading_order", "hyperst.data.images.tiff"):
        monkeypatch.setattr(f"{module}.CACHE_BYTES", 3 << 20)
    pixels = np.random.default_rng(0).integers(0, 255, (1200, 1500, 3), np.uint8)
    tifffile.imwrite(tmp_path / "strips.tif", pixels, photometric="rgb", rowsperstrip=8)
    centres = np.random.default_rng(1).uniform(100, 1100, (200, 2))
    with open_image(tmp_path / "strips.tif") as image:
        order = reading_order(image, centres, [100.0], 100)
        for x, y in centres[order]:
            image.read(x - 50, y - 50, 100, 100, size=100)
    assert (np.diff(centres[order, 1]) >= 0).all()
    assert len(decoded) == len(set(decoded)) > 100


def test_small_and_whole_images_keep_the_order_of_the_spots(slide, section_paths):
    for path in (slide, section_paths[0].parent / "images" / "S1.png"):
        with open_image(path) as image:
            centres = np.array([[90.0, 90.0], [20.0, 20.0], [50.0, 10.0]])
            assert reading_order(image, centres, [40.0], 32).tolist() == [0, 1, 2]


def test_killed_twice_and_gone_on_with_the_result_is_that_of_an_undisturbed_run(run, slide, in_memory, tmp_path):
    output = tmp_path / "p.h5ad"
    third = -(-in_memory.n_obs // 64) // 3
    for write in (
        2 * third + 3,
        2 * third,
    ):  # the first writes the header too; that of rows, and of a mark, end in the middle
        script = [sys.executable, "-c", KILLED, "predict", run.folder, slide, "-o", output, "--device", "cpu", write]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run([*map(str, script)], env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad.part"]
    told = []
    assert_same(into_file(run, slide, output, on_progress=lambda *count: told.append(count)), in_memory)
    assert told[0][0] == 64 * (2 * third - 1)
    assert [path.name for path in tmp_path.iterdir()] == ["p.h5ad"]


def test_readers_end_with_the_process_that_was_killed(run, slide, tmp_path):
    """So that the same command goes on at once."""
    readers = tmp_path / "readers"
    readers.mkdir()
    arguments = ["predict", run.folder, slide, "-o", tmp_path / "p.h5ad", "--device", "cpu", "--readers", 2, 3, readers]
    script = [sys.executable, "-c", STUCK + KILLED, *map(str, arguments)]
    with (tmp_path / "said.txt").open("w") as said:  # no pipe, which readers that are left keep open
        ended = subprocess.run(
            script, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=said, stderr=said, check=False
        )
    assert ended.returncode == -signal.SIGKILL, (tmp_path / "said.txt").read_text()
    found = [int(path.name) for path in readers.iterdir()]
    assert found
    left = [process for process in psutil.process_iter() if process.pid in found]
    try:
        assert not psutil.wait_procs(left, timeout=60)[1]
    finally:
        for process in left:
            if process.is_running():
                process.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="without os.fork no process holds another's file")
def test_a_forked_process_holds_no_lock(tmp_path):
    arguments = (tmp_path / "x.part", {}, [np.array([0])], {"values": 1})
    part = PartFile(*arguments)
    forked = multiprocessing.get_context("fork")
    here, there = forked.Pipe()
    child = forked.Process(target=lambda: (there.send(part._file.closed), there.recv()))
    child.start()
    try:
        assert here.recv()
        with pytest.raises(BlockingIOError):  # of this process
            PartFile(*arguments)
        part.put(0, {"values": np.array([[1.0]])})
        part.close()
        PartFile(*arguments).remove()
    finally:
        here.send(None)
        child.join()


class Stop(Exception):
    """Ends a prediction."""


def begun(run, slide, output):
    """The path of a prediction that ended after its first batch."""

    def stop(done, total):
        if done:
            raise Stop

    with pytest.raises(Stop):
        into_file(run, slide, output, on_progress=stop)
    return output


def test_what_was_begun_otherwise_is_refused_and_kept(run, slide, tmp_path):
    output = begun(run, slide, tmp_path / "p.h5ad")
    kept = part_path(output).read_bytes()
    for options, name in (({"mpp": 1.3}, "um/px"), ({"min_tissue": 0.9}, "spots"), ({"stain": "match"}, "stain")):
        with pytest.raises(FileExistsError, match=rf"p\.h5ad\.part .* begun with other [^.]*{name}.*remove it"):
            into_file(run, slide, output, **options)
    assert part_path(output).read_bytes() == kept


def test_a_part_file_says_what_it_is(tmp_path):
    path, batches = tmp_path / "x.part", [np.array([1]), np.array([0])]
    arguments = (path, {"run": "a"}, batches, {"values": 2, "summary": 1})
    part = PartFile(*arguments)
    with pytest.raises(BlockingIOError, match="another process predicts the same"):
        PartFile(*arguments)
    part.close()
    assert not path.exists()  # nothing was in it
    part = PartFile(*arguments)
    part.put(1, {"values": np.array([[1.0, 2.0]]), "summary": np.array([3.0])})
    part.put_damage(np.arange(6.0)[None])
    part.close()
    again = PartFile(*arguments)
    assert again.left == [0]
    assert again["values"][np.array([0])].tolist() == [[1.0, 2.0]]
    assert again["summary"][np.array([0])].tolist() == [[3.0]]
    assert again.damage().tolist() == [[0, 1, 2, 3, 4, 5]]
    again.close()
    with pytest.raises(FileExistsError, match="begun with other run"):
        PartFile(path, {"run": "b"}, *arguments[2:])
    content = bytearray(path.read_bytes())
    content[-60] ^= 1  # of a row
    path.write_bytes(content)
    part = PartFile(*arguments)
    assert part.left == [0, 1]
    part.remove()
    whole = len(content) - 48  # without the damaged tile
    cut = [bytes(content[:length]) for length in (20, whole - 24 - 4, whole - 1)]  # in the header, the marks, the rows
    for damaged in (b"something else", bytes(40), *cut):
        path.write_bytes(damaged)
        with pytest.raises(FileExistsError, match="no begun prediction or damaged"):
            PartFile(*arguments)
        assert path.read_bytes() == damaged
    path.write_bytes(b"")
    part = PartFile(*arguments)
    assert part.left == [0, 1]
    part.remove()


def test_a_part_file_that_was_not_begun_whole_is_begun_again(tmp_path, monkeypatch):
    """Killed before its first bytes, or removed by the process that had it while another waited for the lock."""
    path, arguments = tmp_path / "x.part", ({"run": "a"}, [np.array([0])], {"values": 1})
    part = PartFile(path, *arguments)
    part.put(0, {"values": np.array([[1.0]])})
    part.close()
    content = path.read_bytes()
    path.write_bytes(bytes(24) + content[24:])
    again = PartFile(path, *arguments)
    again.put(0, {"values": np.array([[2.0]])})

    def late(descriptor, problem):
        if path.exists() and not again._file.closed:
            again.remove()  # between the opening of the file and its lock
        locks.take(descriptor, problem)

    monkeypatch.setattr("hyperst.part_file.take", late)
    other = PartFile(path, *arguments)
    assert other.left == [0]
    other.put(0, {"values": np.array([[3.0]])})
    assert other["values"][np.array([0])].tolist() == [[3.0]]
    other.remove()
    assert not path.exists()


def test_another_order_of_the_spots_is_refused(run, slide, tmp_path, monkeypatch):
    """As another version of a reader may give, whose tiles have another size."""
    output = begun(run, slide, tmp_path / "p.h5ad")
    monkeypatch.setattr("hyperst.image_batches.reading_order", lambda image, centres, *_: np.arange(len(centres))[::-1])
    with pytest.raises(FileExistsError, match="begun with other order"):
        into_file(run, slide, output)


def test_damaged_tiles_that_other_processes_meet_are_counted(run, slide, in_memory, tmp_path):
    content = bytearray(slide.read_bytes())
    with tifffile.TiffFile(slide) as file:
        page = file.pages[0]
        for tile in (100, 120):
            content[page.dataoffsets[tile] : page.dataoffsets[tile] + page.databytecounts[tile]] = bytes(
                page.databytecounts[tile]
            )
    path = tmp_path / "damaged.tif"
    path.write_bytes(content)
    sharp = replace(
        run, config=replace(run.config, crop=replace(run.config.crop, image_size=80))
    )  # of the finest level
    options = {"skip_damaged": True, "spots": in_memory.obsm["spatial"][::3], "mpp": MPP}
    one, two = (into_file(sharp, path, tmp_path / f"{n}.h5ad", readers=n, **options) for n in (0, 2))
    assert_same(one, two)
    assert one.uns["hyperst"]["damaged_tiles"] == 2
    assert 0 < one.obs["on_damaged_tile"].sum() < one.n_obs


def test_values_on_disk_take_no_memory(tmp_path):
    def peak(n_spots):
        batches = np.split(np.arange(n_spots), range(64, n_spots, 64))
        part = PartFile(tmp_path / "x.part", {}, batches, {"values": 500})
        adata = anndata.AnnData(shape=(n_spots, 500))
        tracemalloc.start()
        for number, batch in enumerate(batches):
            part.put(number, {"values": np.full((len(batch), 500), number)})
        blocks = (part["values"][np.arange(at, min(at + 512, n_spots))] for at in range(0, n_spots, 512))
        write_h5ad_in_blocks(adata, blocks, tmp_path / "x.h5ad")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "x.h5ad").X[:, 7], np.arange(n_spots) // 64)
        part.remove()
        return found

    peak(1000)  # what is imported
    assert peak(8000) - peak(2000) < 0.1 * 6000 * 500 * 4


def test_blocks_of_the_closed_form_are_its_bits(run, sections):
    random = np.random.default_rng(0)
    section = sections[2]
    width = len(run.model.levels) * run.model.backbone.width
    found = {
        "features": random.normal(size=(section.n_spots, width)).astype(np.float32),
        "prediction": random.normal(size=(section.n_spots, len(run.genes))).astype(np.float32),
    }
    whole = with_closed_form(run, section, found)
    np.testing.assert_array_equal(np.concatenate(list(blocks_with_closed_form(run, section, found))), whole)
    assert run.mixture is not None
