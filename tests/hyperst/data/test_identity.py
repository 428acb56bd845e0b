"""One section under another name is found by its content; two sections that only look alike are not."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from hyperst.data import Fingerprint, Grid, Section, check_distinct, fingerprint, read_section, same_section


def made(seed: int, n_spots: int = 400, n_genes: int = 50) -> Section:
    """A section of random counts on random places, without an image."""
    random = np.random.default_rng(seed)
    counts = sparse.csr_array(random.poisson(3.0, (n_spots, n_genes)).astype(np.float32))
    genes = np.array([f"G{number}" for number in range(n_genes)])
    ids = np.array([f"s{number}" for number in range(n_spots)])
    places = random.uniform(0, 10_000, (n_spots, 2))
    library = np.asarray(counts.sum(axis=1), dtype=np.float32).ravel()
    return Section(f"S{seed}", None, counts, genes, ids, places, None, None, None, Grid("none", 100.0), library)


def part(section: Section, spots: np.ndarray, genes: np.ndarray) -> Section:
    """Some spots and genes of a section, in another order and under another name."""
    return replace(
        section,
        name="part",
        counts=sparse.csr_array(section.counts[spots][:, genes]),
        genes=section.genes[genes],
        spot_ids=section.spot_ids[spots],
        spot_px=section.spot_px[spots] * 0.5 + 7,  # on a rescaled image
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0.2, 1.0))
def test_any_fifth_of_a_section_is_found_and_another_section_is_not(seed, share):
    """At a fifth, 64 hashes of each hold 13 shared ones on average, and 3.2 are needed: below that by 3.7 deviations."""
    random = np.random.default_rng(seed)
    whole, other = made(seed % 1000), made(seed % 1000 + 1000)
    some = random.permutation(whole.n_spots)[: round(share * whole.n_spots)]
    copied = part(whole, some, random.permutation(50))
    assert same_section(fingerprint(whole), fingerprint(copied))
    assert not same_section(fingerprint(other), fingerprint(copied))


def test_spots_with_few_genes_are_alike_by_chance_and_are_not_compared():
    whole, other = made(1), made(2)
    for section in (whole, other):
        section.counts = sparse.csr_array(np.eye(400, 50, dtype=np.float32))
    assert fingerprint(whole).counts == ()
    assert not same_section(fingerprint(whole), fingerprint(other))


def test_a_copy_without_some_genes_lies_on_the_same_places_of_the_same_image(section_paths, tmp_path):
    shutil.copy(section_paths[0].parent / "images" / "S1.png", tmp_path / "copy.png")
    adata = anndata.read_h5ad(section_paths[0])[:, 20:]
    adata.write_h5ad(tmp_path / "copy.h5ad")
    one, copied, other = (read_section(path) for path in (section_paths[0], tmp_path / "copy.h5ad", section_paths[1]))
    assert set(fingerprint(one).counts).isdisjoint(fingerprint(copied).counts)
    assert same_section(fingerprint(one), fingerprint(copied))
    assert not same_section(fingerprint(one), fingerprint(other))  # the same grid of positions on another image
    with pytest.raises(ValueError, match=r"S1 \(.*S1\.h5ad\) and copy \(.*copy\.h5ad\) hold the same spots"):
        check_distinct([one, other, copied])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0.4, 1.0), named=st.booleans())
def test_a_copy_of_some_genes_on_another_image_at_other_places_is_found(seed, share, named):
    random = np.random.default_rng(seed)
    whole, other = made(seed % 1000), made(seed % 1000 + 1000)
    copied = part(whole, random.permutation(whole.n_spots), random.permutation(50)[: round(share * 50)])
    if named:
        copied = replace(copied, genes=np.array([f"ENSG{number}" for number in range(len(copied.genes))]))
    if share < 0.9:  # of a spot all genes are left by chance else
        assert set(fingerprint(whole).counts).isdisjoint(fingerprint(copied).counts)
    assert same_section(fingerprint(whole), fingerprint(copied))
    assert not same_section(fingerprint(other), fingerprint(copied))
    assert not set(fingerprint(whole).genes) & set(fingerprint(other).genes)


def test_a_fingerprint_of_an_earlier_version_is_read(sections):
    stored = asdict(fingerprint(sections[0]))
    assert Fingerprint.from_json(stored) == fingerprint(sections[0])
    stored.pop("genes")
    assert same_section(Fingerprint.from_json(stored), fingerprint(sections[0]))
    assert not same_section(Fingerprint.from_json(stored), fingerprint(sections[1]))


def test_two_binnings_of_one_place_are_one_tissue(sections):
    one = sections[0]
    coarse = replace(
        one,
        name="coarse",
        counts=sparse.csr_array(one.counts * 4),
        spot_px=one.spot_px + 9.0,
        library_size=one.library_size * 4,
    )
    with pytest.raises(ValueError, match="lie on the same place of image"):
        check_distinct([one, coarse])
    beside = replace(coarse, spot_px=one.spot_px + np.ptp(one.spot_px[:, 0]) + 200)
    check_distinct([one, beside])  # two sections on one slide


def test_the_real_sections_differ_and_their_tables_do_not(real_data):
    h5ad = [read_section(real_data / "her2st" / "h5ad" / f"{name}.h5ad") for name in ("C2", "C3", "C4", "C5")]
    check_distinct(h5ad)
    table = read_section(real_data / "her2st" / "counts" / "C3.tsv.gz", name="another")
    found = [same_section(fingerprint(table), fingerprint(section)) for section in h5ad]
    assert found == [False, True, False, False]


def test_an_image_is_known_again_wherever_it_lies(sections):
    with tempfile.TemporaryDirectory() as folder:
        moved = shutil.copy(sections[0].image_path, Path(folder) / "moved.png")
        assert fingerprint(replace(sections[0], image_path=Path(moved))) == fingerprint(sections[0])
