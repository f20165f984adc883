"""The gene vocabulary: which human genes have a token, and the median that their counts are divided by."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydantic import Field, model_validator
from scipy.sparse import csr_matrix

from corpus.gene_ids import MARKERS, GeneTableConfig
from corpus.gene_medians import ValueCounts
from corpus.slice import FloatArray, IntArray, StrArray
from stofm.config import FrozenModel
from stofm.errors import ConfigError, DataError, FormatError
from stofm.fields import N_LEADING_SPECIALS

COUNTS_PER_CELL = 10_000.0  # medians are of counts scaled to this sum, as Geneformer's are
HEADER = ["gene_id", "token", "median", "symbol"]
PAD, MASK, CLS = "<pad>", "<mask>", "<cls>"


class GeneConfig(FrozenModel):
    """Which genes get a token, and how many of a slice's genes must be known for it to be taken."""

    vocabulary: str | None = Field(
        None,
        description="CSV gene_id,token,median[,symbol], or a table gene,token (CSV or pickle) with `medians`; default: computed from the corpus.",
    )
    medians: str | None = Field(None, description="Table gene,median (CSV or pickle) of the genes in `vocabulary`, as Geneformer has it.")
    symbols: str | None = Field(None, description="Table symbol,gene (CSV or pickle) of the genes in `vocabulary`; for people only.")
    min_cells: int = Field(1, ge=1, description="Genes seen in fewer cells of the corpus get no token (computed vocabulary only).")
    memory_mb: float = Field(
        1024, gt=0, exclude=True, description="What computing the medians may take; the rest goes to disk, the result is the same."
    )
    min_genes: int = Field(10, ge=1, description="Slices with fewer detected genes that map to human ones are refused.")
    min_share_of_genes: float = Field(0.3, ge=0, le=1, description="Slices with a smaller share of their detected genes mapped are refused.")
    markers: tuple[str, ...] = Field(MARKERS, description="Human symbols whose loss the audit of a slice names.")
    tables: GeneTableConfig = Field(default_factory=GeneTableConfig, description="Symbols and orthologs.")

    @model_validator(mode="after")
    def _dictionaries_belong_together(self) -> GeneConfig:
        if (self.medians and self.vocabulary is None) or (self.symbols and self.medians is None):
            raise ValueError("found a dictionary alone; expected `medians` beside `vocabulary`, and `symbols` beside both. Set the others.")
        return self


@dataclass(frozen=True, eq=False)
class GeneVocab:
    """Genes with tokens 2, 3, ... in this order; `<pad>` is 0, `<mask>` 1 and `<cls>` the last id.

    A vocabulary that was made elsewhere keeps its tokens: what has a token and is no gene has an entry too, its name in angle
    brackets, and a median of 1. If `<cls>` is among these, its token is that one.

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
        return self.column_of.get(CLS, len(self.gene_ids)) + N_LEADING_SPECIALS

    @property
    def n_tokens(self) -> int:
        """Rows of the token embedding table."""
        return max(self.cls_token + 1, len(self.gene_ids) + N_LEADING_SPECIALS)

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
        tokens = range(N_LEADING_SPECIALS, N_LEADING_SPECIALS + len(self.gene_ids))
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


@dataclass(frozen=True)
class TokenAudit:
    """How much of a slice the vocabulary can say: of its human genes, of their counts, and which markers have no token."""

    n_genes: int
    n_with_token: int
    share_of_counts_with_token: float
    markers_without_token: tuple[str, ...]


def audit_tokens(counts: csr_matrix, human_ids: StrArray, symbols: StrArray, vocab: GeneVocab, markers: Collection[str] = MARKERS) -> TokenAudit:
    """Audit counts, (n_cells, n_genes), of these human genes, (n_genes,), against a vocabulary."""
    has_token = np.array([gene in vocab.column_of for gene in human_ids.tolist()], dtype=bool)
    of_gene = np.asarray(counts.sum(axis=0)).ravel()
    return TokenAudit(
        n_genes=len(human_ids),
        n_with_token=int(has_token.sum()),
        share_of_counts_with_token=round(float(of_gene[has_token].sum() / max(of_gene.sum(), 1)), 6),
        markers_without_token=tuple(sorted(set(markers) & {symbol.upper() for symbol in symbols[~has_token].tolist()})),
    )


def read_gene_vocab(path: Path) -> GeneVocab:
    """Read a vocabulary as `to_csv` writes it; `FormatError` unless its tokens are 2, 3, ... in order and its medians positive."""
    gene_ids, tokens, medians, symbols = read_vocab_rows(path)
    expected = np.arange(N_LEADING_SPECIALS, N_LEADING_SPECIALS + len(tokens))
    if not len(tokens) or not np.array_equal(tokens, expected) or not (np.isfinite(medians) & (medians > 0)).all():
        raise FormatError(f"vocabulary {path}: expected genes with tokens 2, 3, ... in order and positive medians. Write it again.")
    if len(np.unique(gene_ids)) != len(gene_ids):
        raise FormatError(f"vocabulary {path}: found a gene twice; expected each gene once. Drop the second row.")
    return GeneVocab(gene_ids, medians, symbols)


def read_vocab_rows(path: Path) -> tuple[StrArray, IntArray, FloatArray, StrArray]:
    """Read the columns of a vocabulary's CSV, in any order and whatever they hold: (n,) ids, tokens, medians, symbols."""
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
    return np.array([row["gene_id"] for row in rows]), tokens, medians, np.array([row.get("symbol") or "" for row in rows])


def compute_gene_vocab(
    slices: Iterable[tuple[csr_matrix, StrArray, StrArray]], *, min_cells: int, memory_mb: float = 1024, scratch: Path | None = None
) -> GeneVocab:
    """Compute the vocabulary of a corpus in one pass: genes in the order of their ids, each with its exact non-zero median.

    Neither the order of the slices nor the memory changes the result.

    Parameters
    ----------
    slices : iterable of (counts, human_ids, symbols)
        (n_cells, n_genes) CSR molecules, no stored zeros, (n_genes,) human Ensembl ids, unique and not "", (n_genes,)
        symbols; depth is the sum over all columns. Of several symbols of a gene the first in ASCII order is kept, so
        that human spelling goes before that of mouse.
    min_cells : int
        Genes seen in fewer cells are left out.
    memory_mb : float
        What the values may take beside the slice at hand; those beyond it go to `scratch`, by default the system's
        folder for temporary files.
    """
    number_of: dict[str, int] = {}
    symbol_of: dict[str, str] = {}
    with TemporaryDirectory(dir=scratch, prefix=".gene_medians", suffix=".part") as folder:
        values = ValueCounts(Path(folder), memory_mb=memory_mb)
        for counts, human_ids, symbols in slices:
            numbers = np.array([number_of.setdefault(gene, len(number_of)) for gene in human_ids.tolist()], dtype=np.int64)
            symbol_of |= {gene: min(symbol, symbol_of.get(gene, symbol)) for gene, symbol in zip(human_ids.tolist(), symbols.tolist(), strict=True)}
            for block in row_blocks(counts, values.max_keys // 2):
                depth = np.asarray(block.sum(axis=1)).ravel()
                scaled = block.data.astype(np.float64) * COUNTS_PER_CELL / np.repeat(depth, np.diff(block.indptr))
                values.add(numbers[block.indices], scaled.astype(np.float32))
        n_cells = values.n_values(len(number_of))
        genes = np.array(sorted(gene for gene, number in number_of.items() if n_cells[number] >= min_cells))
        if not len(genes):
            raise DataError(f"vocabulary: no gene is seen in {min_cells} cells; expected at least one. Lower `genes.min_cells`.")
        numbers = np.array([number_of[gene] for gene in genes.tolist()])
        medians = values.medians(numbers, n_cells[numbers]).astype(np.float64)
    return GeneVocab(genes, medians, np.array([symbol_of[gene] for gene in genes.tolist()]))


def row_blocks(counts: csr_matrix, max_entries: int) -> Iterator[csr_matrix]:
    """Cut a matrix into blocks of consecutive rows with at most `max_entries` entries, or one row."""
    start = 0
    while start < counts.shape[0]:
        stop = max(start + 1, int(np.searchsorted(counts.indptr, int(counts.indptr[start]) + max_entries, side="right")) - 1)
        yield counts[start:stop]
        start = stop


def merge_genes(counts: csr_matrix, human_ids: StrArray) -> tuple[csr_matrix, StrArray]:
    """Drop the columns without a human id and sum those that share one; genes come back in the order of their ids."""
    genes, columns = np.unique(human_ids[human_ids != ""], return_inverse=True)
    return _sum_columns(counts[:, human_ids != ""], columns, len(genes)), genes


def _sum_columns(counts: csr_matrix, target: np.ndarray, n_targets: int) -> csr_matrix:
    merge = csr_matrix((np.ones(len(target), counts.dtype), (np.arange(len(target)), target)), shape=(len(target), n_targets))
    merged = csr_matrix(counts @ merge)
    merged.sort_indices()
    return merged
