"""The gene vocabulary: which human genes have a token, and the median that their counts are divided by."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix

from corpus.gene_ids import GeneTableConfig
from corpus.slice import FloatArray, StrArray
from stofm.config import FrozenModel
from stofm.errors import ConfigError, DataError, FormatError
from stofm.fields import N_LEADING_SPECIALS

COUNTS_PER_CELL = 10_000.0  # medians are of counts scaled to this sum, as Geneformer's are
HEADER = ["gene_id", "token", "median", "symbol"]


class GeneConfig(FrozenModel):
    """Which genes get a token."""

    vocabulary: str | None = Field(None, description="CSV gene_id,token,median[,symbol] to use; default: computed from the corpus.")
    min_cells: int = Field(1, ge=1, description="Genes seen in fewer cells of the corpus get no token (computed vocabulary only).")
    tables: GeneTableConfig = Field(default_factory=GeneTableConfig, description="Symbols and orthologs.")


@dataclass(frozen=True, eq=False)
class GeneVocab:
    """Genes with tokens 2, 3, ... in this order; `<pad>` is 0, `<mask>` 1 and `<cls>` the last id.

    Attributes
    ----------
    gene_ids : (G,) str
        Human Ensembl ids.
    medians : (G,) float64
        Non-zero median over the corpus of each gene's counts per 10,000; positive.
    symbols : (G,) str
        For people; "" where unknown.
    """

    gene_ids: StrArray
    medians: FloatArray
    symbols: StrArray

    @property
    def cls_token(self) -> int:
        return len(self.gene_ids) + N_LEADING_SPECIALS

    @property
    def n_tokens(self) -> int:
        """Rows of the token embedding table."""
        return self.cls_token + 1

    @cached_property
    def column_of(self) -> dict[str, int]:
        """Position of each gene in the vocabulary; its token is that plus 2."""
        return {gene: column for column, gene in enumerate(self.gene_ids.tolist())}

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_csv().encode()).hexdigest()

    def to_csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        tokens = range(N_LEADING_SPECIALS, self.cls_token)
        writer.writerows(zip(self.gene_ids, tokens, map(repr, self.medians.tolist()), self.symbols, strict=True))
        return text.getvalue()

    def count(self, counts: csr_matrix, human_ids: StrArray) -> csr_matrix:
        """Sum the counts of a slice's genes into the genes of the vocabulary.

        Parameters
        ----------
        counts : (n_cells, n_genes) CSR, molecules
        human_ids : (n_genes,) str
            Human Ensembl id of each column, "" for none. Columns that share an id are summed.

        Returns
        -------
        (n_cells, G) CSR, molecules
            Columns sorted within each row, no stored zeros.
        """
        columns = np.array([self.column_of.get(gene, -1) for gene in human_ids.tolist()], dtype=np.int64)
        has_token = columns >= 0
        return _sum_columns(counts[:, has_token], columns[has_token], len(self.gene_ids))


def read_gene_vocab(path: Path) -> GeneVocab:
    """Read a vocabulary; `FormatError` unless its tokens are 2, 3, ... in order and its medians positive."""
    if not path.is_file():
        raise ConfigError(f"vocabulary {path}: no such file; expected a CSV {','.join(HEADER)}. Correct `genes.vocabulary`.")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not set(HEADER[:3]) <= set(reader.fieldnames or ()):
                raise FormatError(f"vocabulary {path}: found columns {reader.fieldnames}; expected {','.join(HEADER)}.")
            rows = list(reader)
        tokens = np.array([int(row["token"]) for row in rows])
        medians = np.array([float(row["median"]) for row in rows])
    except (ValueError, TypeError, csv.Error) as error:
        raise FormatError(f"vocabulary {path}: {error}; expected whole tokens and decimal medians, in UTF-8.") from error
    expected = np.arange(N_LEADING_SPECIALS, N_LEADING_SPECIALS + len(rows))
    if not rows or not np.array_equal(tokens, expected) or not (np.isfinite(medians) & (medians > 0)).all():
        raise FormatError(f"vocabulary {path}: expected genes with tokens 2, 3, ... in order and positive medians. Write it again.")
    gene_ids = np.array([row["gene_id"] for row in rows])
    if len(np.unique(gene_ids)) != len(gene_ids):
        raise FormatError(f"vocabulary {path}: found a gene twice; expected each gene once. Drop the second row.")
    return GeneVocab(gene_ids, medians, np.array([row.get("symbol") or "" for row in rows]))


def compute_gene_vocab(slices: Iterable[tuple[csr_matrix, StrArray, StrArray]], *, min_cells: int) -> GeneVocab:
    """Compute the vocabulary of a corpus: genes in the order of their ids, each with its exact non-zero median.

    Parameters
    ----------
    slices : iterable of (counts, human_ids, symbols)
        (n_cells, n_genes) CSR molecules, (n_genes,) human Ensembl ids, unique and not "", (n_genes,) symbols; depth is
        the sum over all columns.
    min_cells : int
        Genes seen in fewer cells are left out.
    """
    values_of: dict[str, list[FloatArray]] = {}
    symbol_of: dict[str, str] = {}
    for counts, human_ids, symbols in slices:
        depth = np.asarray(counts.sum(axis=1)).ravel()
        scaled = csr_matrix((counts.data * COUNTS_PER_CELL / np.repeat(depth, np.diff(counts.indptr)), counts.indices, counts.indptr),
                            shape=counts.shape).tocsc()  # fmt: skip
        for column, (gene, symbol) in enumerate(zip(human_ids.tolist(), symbols.tolist(), strict=True)):
            values_of.setdefault(gene, []).append(scaled.data[scaled.indptr[column] : scaled.indptr[column + 1]].astype(np.float32))
            symbol_of.setdefault(gene, symbol)
    genes = sorted(gene for gene, parts in values_of.items() if sum(map(len, parts)) >= min_cells)
    if not genes:
        raise DataError(f"vocabulary: no gene is seen in {min_cells} cells; expected at least one. Lower `genes.min_cells`.")
    medians = [float(np.median(np.concatenate(values_of[gene]))) for gene in genes]
    return GeneVocab(np.array(genes), np.array(medians), np.array([symbol_of[gene] for gene in genes]))


def merge_genes(counts: csr_matrix, human_ids: StrArray) -> tuple[csr_matrix, StrArray]:
    """Drop the columns without a human id and sum those that share one; genes come back in the order of their ids."""
    genes, columns = np.unique(human_ids[human_ids != ""], return_inverse=True)
    return _sum_columns(counts[:, human_ids != ""], columns, len(genes)), genes


def _sum_columns(counts: csr_matrix, target: np.ndarray, n_targets: int) -> csr_matrix:
    merge = csr_matrix((np.ones(len(target), counts.dtype), (np.arange(len(target)), target)), shape=(len(target), n_targets))
    merged = csr_matrix(counts @ merge)
    merged.sort_indices()
    return merged
