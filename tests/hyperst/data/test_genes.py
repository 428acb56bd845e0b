"""Genes: what is mitochondrial or ribosomal under every way to write it, and what a message says of missing ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperst.data import align_genes, select_genes
from hyperst.data.genes import is_excluded
from hyperst.data.readers.table import unique_names

LEFT_OUT = ["MT-CO1", "mt-Nd1", "MT-RNR2", "RPL3", "Rps27a", "RPLP0", "RPSA", "RPL13A"]
KEPT = ["MTOR", "MT1X", "MT2A", "RPA1", "RPE65", "RPS6KA1", "MRPL1", "ACTB", "HSP90AA1", "mm", "HG19", "GRCH"]
WRITTEN = [
    "{}",
    "GRCh38_{}",
    "GRCh38-2020-A_{}",
    "hg19_{}",
    "mm10___{}",
    "GRCm39_{}",
    "{}_ENSG00000198804",
    "ENSG00000198804.2_{}",
]


@given(gene=st.sampled_from(LEFT_OUT + KEPT), written=st.sampled_from(WRITTEN))
def test_a_genome_in_front_or_an_id_behind_change_nothing(gene, written):
    assert is_excluded(written.format(gene)) == (gene in LEFT_OUT)


def test_genes_are_chosen_by_the_symbol_a_file_tells(sections):
    section = sections[0]
    ids = np.array([f"ENSG{number:011d}" for number in range(len(section.genes))])
    symbols = np.array(["MT-CO1", "RPL3", *section.genes[2:]])
    told = replace(section, genes=ids, symbols=symbols)
    chosen = set(select_genes([told], len(ids) - 2))
    assert chosen == set(ids[2:])
    with pytest.raises(ValueError, match="--gene-names COLUMN"):
        select_genes([replace(told, symbols=None)], 5)


def test_a_message_counts_what_is_measured_and_names_what_is_not(sections):
    wanted = [*sections[0].genes[:11], "NOPE"]
    with pytest.raises(
        ValueError, match=r"S1: 11 of the 12 wanted genes are measured; missing NOPE; the section measured GENE000"
    ):
        align_genes(sections[0], wanted)
    with pytest.raises(ValueError, match=r"none of the 2 wanted genes are measured; missing NO, NOPE;"):
        align_genes(sections[0], ["NO", "NOPE"])


def test_shared_names_get_their_id():
    names = np.array(["A", "A", "B", "", "nan"])
    assert list(unique_names(names, np.array(["1", "2", "3", "4", "5"]))) == ["A_1", "A_2", "B", "4", "5"]
