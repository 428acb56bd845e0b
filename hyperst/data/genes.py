"""Which genes to predict, chosen on training sections only, and finding them in any section."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from typing import Literal

import numpy as np
from scipy import sparse

from hyperst.data.readers import reader_of
from hyperst.data.sections import Section

__all__ = ["TooFewGenesError", "align_genes", "common_genes", "gene_columns", "is_excluded", "select_genes"]

_MITOCHONDRIAL = re.compile(r"^mt[-_]", re.IGNORECASE)
_GENOME = re.compile(r"^(GRC[a-z]\d+|hg\d+|mm\d+|rn\d+|mRatBN\d+|T2T|CHM13)[\w.-]*?_+(?=\w)")
_IDENTIFIER = (
    re.compile(  # Ensembl's, Entrez's (numbers), RefSeq's, FlyBase's, WormBase's: nothing tells what such a gene is
        r"ENS[A-Z]{0,6}[GTP]\d{11}(\.\d+)?(_PAR_Y)?|\d+|[NX][MR]_\d+(\.\d+)?|FBgn\d+|WBGene\d+"
    )
)
_ENSEMBL = re.compile(r"ENS[A-Z]{0,6}G\d{11}(\.\d+)?(_PAR_Y)?")
_RIBOSOMAL = re.compile(r"^rp(l|s)\d+[a-z]?(\d+|[lxy]\d*|-.+|p\d+)?$|^rplp\d+$|^rpsa\d*$", re.IGNORECASE)


class TooFewGenesError(ValueError):
    """More genes are asked for than there are; ``usable`` says how many there are."""

    def __init__(self, message: str, usable: int) -> None:
        super().__init__(message)
        self.usable = usable


def is_excluded(gene: str) -> bool:
    """Whether a gene is mitochondrial (MT-CO1, mt-Rnr1) or encodes a cytosolic ribosomal protein (RPL3, Rps27a, RPLP0, RPSA).

    Everything else stays, also genes that merely start alike: MTOR, MT1X, MT2A, RPA1, RPE65, RPS6KA1, MRPL1.

    A genome in front (GRCh38_MT-CO1, mm10___Rpl3) and an Ensembl id beside the symbol (MT-CO1_ENSG00000198804) are passed over.

    >>> [gene for gene in ("MT-CO1", "MTOR", "MT2A", "RPL13A", "RPS6KA1", "RPE65", "MRPL4") if is_excluded(gene)]
    ['MT-CO1', 'RPL13A']
    >>> is_excluded("GRCh38_MT-CO1"), is_excluded("MT-CO1_ENSG00000198804.2"), is_excluded("GRCh38_MTOR")
    (True, True, False)
    """
    gene = _GENOME.sub("", gene)
    gene = _ENSEMBL.sub("", gene).strip("_-|:; ") or gene
    return _MITOCHONDRIAL.match(gene) is not None or _RIBOSOMAL.match(gene) is not None


def common_genes(sections: Sequence[Section]) -> np.ndarray:
    """Sorted names of the genes measured in every section.

    Raises:
        ValueError: no section, or no gene in common (the message shows how each section writes its names).
    """
    if not sections:
        raise ValueError("sections: got none, need at least one")
    common = reduce(np.intersect1d, [section.genes for section in sections])
    if len(common) == 0:
        examples = "; ".join(f"{section.name}: {', '.join(section.genes[:3])} ..." for section in sections)
        raise ValueError(
            f"the {len(sections)} sections have no gene in common ({examples}); "
            "use one species and one kind of gene name (symbols or Ensembl ids) in all of them"
        )
    return common


def select_genes(
    sections: Sequence[Section], n_genes: int = 200, method: Literal["hmhvg", "hvg"] = "hmhvg"
) -> np.ndarray:
    """Choose genes from the training sections, over their common genes, without mitochondrial and ribosomal-protein genes.

    Where a file tells the symbol beside another identifier, the symbol decides what is mitochondrial or ribosomal.

    Args:
        sections: TRAINING sections only.
        n_genes: how many.
        method: "hmhvg", the paper's: the intersection of the top n by mean and the top n by standard deviation of raw
            counts over all spots, n being the smallest that gives n_genes; of genes that enter with the same n, the one
            with the better sum of both ranks comes first. "hvg": variance of ln(1 + counts per 10,000) within each
            section, averaged over sections.

    Returns:
        str (n_genes,), best first; ties are broken by name, so that the result does not depend on the sections' order.

    Raises:
        TooFewGenesError: fewer usable genes than n_genes.
        ValueError: no common gene, an unknown method, or identifiers such as Ensembl's without symbols, of which mitochondrial
            and ribosomal genes cannot be told.
    """
    if n_genes < 1:
        raise ValueError(f"n_genes: got {n_genes}, need at least 1")
    if method not in ("hmhvg", "hvg"):
        raise ValueError(f"method: got {method!r}, need 'hmhvg' or 'hvg'")
    symbols = _symbols(sections)
    common = common_genes(sections)
    unknown = [gene for gene in common if _IDENTIFIER.fullmatch(_GENOME.sub("", gene)) and gene not in symbols]
    if len(unknown) > len(common) / 2:
        raise ValueError(
            f"genes are named by identifiers ({', '.join(unknown[:3])} ...) and no symbols are recorded beside them in "
            f"{' and '.join(_without_symbols(sections))}, so that mitochondrial and ribosomal genes cannot be left out. "
            + _remedy(sections)
        )
    candidates = np.asarray([gene for gene in common if not is_excluded(symbols.get(gene, gene))], dtype=str)
    counts = [section.counts[:, gene_columns(section, candidates)].astype(np.float64) for section in sections]
    score = _hmhvg_score(counts) if method == "hmhvg" else _hvg_score(counts, sections)
    usable = np.sum([np.asarray(matrix.sum(axis=0)).ravel() for matrix in counts], axis=0) > 0
    if usable.sum() < n_genes:
        n = int(usable.sum())
        raise TooFewGenesError(
            f"n_genes: got {n_genes}, but only {n} genes are common to the {len(sections)} sections "
            f"({_some([section.name for section in sections])}), expressed, and neither mitochondrial nor ribosomal; "
            + (f"ask for at most {n} (--n-genes {n})" if n else f"the first genes are {_some(list(common))}"),
            n,
        )
    order = np.argsort(np.where(usable, score, np.inf), kind="stable")  # candidates are sorted by name already
    return candidates[order[:n_genes]]


def gene_columns(section: Section, genes: Sequence[str] | np.ndarray) -> np.ndarray:
    """int64 (gene,): column of each gene in ``section.counts``.

    Raises:
        ValueError: genes that the section has not measured.
    """
    place = {gene: column for column, gene in enumerate(section.genes)}
    missing = [str(gene) for gene in genes if gene not in place]
    if missing:
        wanted = len(genes)
        found = f"{wanted - len(missing)} of the {wanted}" if len(missing) < wanted else f"none of the {wanted}"
        raise ValueError(
            f"section {section.name}: {found} wanted genes are measured; missing {_some(missing)}; the section measured "
            f"{_some(list(section.genes))}. Use the same kind of gene names (--gene-names), or genes common to all sections"
        )
    return np.asarray([place[gene] for gene in genes], dtype=np.int64)


def align_genes(
    section: Section, genes: Sequence[str] | np.ndarray, missing: Literal["error", "zero"] = "error"
) -> np.ndarray:
    """Raw counts of ``genes``, in this order, as float32 (spot gene).

    Args:
        missing: a gene the section has not measured is an "error", or "zero" counts.

    Raises:
        ValueError: genes are missing (with "error"), or all of them are (always).
    """
    if missing not in ("error", "zero"):
        raise ValueError(f"missing: got {missing!r}, need 'error' or 'zero'")
    genes = np.asarray(genes, dtype=str)
    present = np.isin(genes, section.genes)
    if missing == "error" or not present.any():
        present[:] = True
    out = np.zeros((section.n_spots, len(genes)), dtype=np.float32)
    out[:, present] = section.counts[:, gene_columns(section, genes[present])].toarray()
    return out


def _rank(values: np.ndarray) -> np.ndarray:
    """0 for the largest value; equal values keep their order, which is that of the names."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return rank


def _hmhvg_score(counts: list[sparse.csr_array]) -> np.ndarray:
    """Lower is better. A gene is in both top-n lists exactly when the worse of its two ranks is below n."""
    n_spots = sum(matrix.shape[0] for matrix in counts)
    mean = sum(np.asarray(matrix.sum(axis=0)).ravel() for matrix in counts) / n_spots
    square = sum(np.asarray((matrix * matrix).sum(axis=0)).ravel() for matrix in counts) / n_spots
    by_mean, by_deviation = _rank(mean), _rank(np.maximum(square - mean**2, 0))
    worse, total = np.maximum(by_mean, by_deviation), by_mean + by_deviation
    return worse + total / (2.0 * len(mean) + 1)


def _hvg_score(counts: list[sparse.csr_array], sections: Sequence[Section]) -> np.ndarray:
    """Minus the variance of ln(1 + CP10k), averaged over sections."""
    variance = []
    for matrix, section in zip(counts, sections, strict=True):
        library = np.maximum(section.library_size.astype(np.float64), 1)
        scaled = sparse.csr_array(sparse.diags_array(1e4 / library) @ matrix)
        scaled.data = np.log1p(scaled.data)
        mean = np.asarray(scaled.mean(axis=0)).ravel()
        variance.append(np.asarray((scaled * scaled).mean(axis=0)).ravel() - mean**2)
    return -np.mean(variance, axis=0)


def _some(names: Sequence[str], n: int = 5) -> str:
    return ", ".join(map(str, names[:n])) + (" ..." if len(names) > n else "")


def _symbols(sections: Sequence[Section]) -> dict[str, str]:
    """Symbol of each gene that some section tells another name of."""
    found: dict[str, str] = {}
    for section in sections:
        if section.symbols is not None:
            pairs = zip(section.genes, section.symbols, strict=True)
            found |= {str(gene): str(symbol) for gene, symbol in pairs if symbol and symbol not in (gene, "nan")}
    return found


def _without_symbols(sections: Sequence[Section]) -> list[str]:
    """Files of at most three of the sections that tell no symbols beside the names of their genes."""
    files = [str(section.path or section.name) for section in sections if section.symbols is None] or [
        str(section.path or section.name) for section in sections
    ]
    return files[:3] + (["others"] if len(files) > 3 else [])


def _remedy(sections: Sequence[Section]) -> str:
    """How genes get symbols, in the kinds of files that the sections are."""
    ways = {
        "h5ad": "choose the column of var that holds the symbols with --gene-names COLUMN (gene_names= in Python)",
        "table": "write the symbols in place of the identifiers in the first line of the table of counts",
        "spaceranger": "restore the list of genes of Space Ranger, whose second column holds the symbols",
    }
    files = [(section.path, section.kind) for section in sections]
    kinds = {reader_of(path, kind).key if path is not None and path.exists() else "h5ad" for path, kind in files}
    return "To remedy it, " + "; or ".join(way for kind, way in ways.items() if kind in kinds)
