"""Files are whole or not there, folders are read without leftovers, and what cannot be written is said first."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperst.data import find_sections
from hyperst.files import atomic_path, distinct_file_names, require_writable, write_text_atomic

FULL = """
import resource, signal, sys, anndata, numpy, hyperst.files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
values = numpy.random.default_rng(0).normal(size=(200, 300)).astype("f4")
try:
    hyperst.files.write_h5ad_atomic(anndata.AnnData(values), sys.argv[1])
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_a_full_disk_gives_one_message_and_no_text_of_hdf5(tmp_path):
    """A limit on the size of files stands for the disk: HDF5 takes both alike, and used to crash on both."""
    command = [sys.executable, "-W", "ignore", "-c", FULL, str(tmp_path / "p.h5ad")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0
    assert found.stderr == ""
    assert found.stdout.startswith(f"the file is too large while writing {tmp_path / 'p.h5ad'}; free some space")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_and_companions_are_no_sections(tmp_path):
    for name in ("A.h5ad", ".p.x1y2.h5ad", "._A.h5ad"):
        (tmp_path / name).write_bytes(b"")
    assert find_sections(tmp_path) == [tmp_path / "A.h5ad"]
    (tmp_path / "A.h5ad").unlink()
    for name in ("A.tsv.gz", "._A.tsv.gz", ".DS_Store"):
        (tmp_path / name).write_bytes(gzip.compress(b"\tACTB\tGAPDH\n1x2\t3\t0\n"))
    assert find_sections(tmp_path) == [tmp_path / "A.tsv.gz"]
    (tmp_path / "A.tsv.gz").unlink()
    for sample in ("one", ".Trash"):
        (tmp_path / sample / "spatial").mkdir(parents=True)
        for name in ("filtered_feature_bc_matrix.h5", "._filtered_feature_bc_matrix.h5"):
            (tmp_path / sample / name).write_bytes(b"")
    (tmp_path / "two" / "spatial").mkdir(parents=True)
    (tmp_path / "two" / "._filtered_feature_bc_matrix.h5").write_bytes(b"")
    assert find_sections(tmp_path) == [tmp_path / "one"]


KILLED = """
import os, pathlib, signal, sys, hyperst.files
with hyperst.files.atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_what_a_killed_process_left_is_never_read_and_goes_with_the_next_try(tmp_path):
    target, other = tmp_path / "p.h5ad", tmp_path / "q.h5ad"
    for path in (target, other):
        subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    left = sorted(tmp_path.iterdir())
    assert [path.name[:3] for path in left] == [".p.", ".q."]
    assert find_sections_or_none(tmp_path) == []
    write_text_atomic(target, "whole")
    assert left[0].exists()  # not an hour old
    with atomic_path(target) as temporary:  # of a process that runs, however old
        for path in (*left, temporary):
            os.utime(path, (0, 0))
        write_text_atomic(target, "whole")
        assert temporary.exists()
        temporary.write_text("again")
    assert sorted(tmp_path.iterdir()) == [left[1], target]  # that of another target stays
    assert target.read_text() == "again"


def find_sections_or_none(folder):
    try:
        return find_sections(folder)
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("stem", ["n" * 240, "組" * 80])
def test_a_long_name_can_be_written(stem, tmp_path):
    path = tmp_path / f"{stem}.json"
    assert write_text_atomic(path, "x").read_text() == "x"
    assert list(tmp_path.iterdir()) == [path]


def test_what_can_be_written_leaves_nothing(tmp_path):
    require_writable(tmp_path / "new" / "folders" / "p.h5ad")
    require_writable("p.h5ad")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="is a folder"):
        require_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"p\.h5ad cannot be written: .*file: it is no folder; .*--output"):
        require_writable(tmp_path / "file" / "p.h5ad")

    def refuse(**options):
        raise PermissionError(
            13, "Permission denied"
        )  # as on a read-only disk; tests may run as root, who may anything

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match="permission denied; choose another place"):
        require_writable(tmp_path / "p.h5ad")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("ab"), st.sampled_from("xy")), max_size=8))
def test_names_become_distinct(parts):
    paths = [Path("/", *part).with_suffix(".h5ad") for part in parts]
    names = [path.stem for path in paths]
    found = distinct_file_names(names, paths)
    assert len(set(found)) == len(found)
    assert all(name.split("_")[0] in new for name, new in zip(names, found, strict=True))
    assert [new for name, new in zip(names, found, strict=True) if names.count(name) == 1] == [
        name for name in names if names.count(name) == 1
    ]
