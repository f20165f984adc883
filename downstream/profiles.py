"""Counts of human genes with or without a place: single-cell references, spots and cells as the gene scale sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_matrix

from corpus.gene_ids import GeneTables, audit_genes, human_ids_of
from corpus.gene_vocab import merge_genes
from corpus.rank_value import rank_value_encode
from corpus.readers import slice_name
from corpus.readers.table import find_counts, find_ensembl_ids, find_labels, find_species, provenance_of
from corpus.slice import FloatArray, SliceSpec, StrArray
from downstream.embedding import Embedder
from stofm.cell_encoder import embed_cells
from stofm.errors import DataError, located
from stofm.fields import EMBEDDING_DIM

if TYPE_CHECKING:
    from anndata import AnnData

LEAST_GENES = 20  # shared by two tables; below that an encoder of ranks has little to rank


@dataclass(frozen=True, eq=False)
class Profiles:
    """Expression of cells or spots, in the order of their table.

    Attributes
    ----------
    name : str
    counts : (n, G) CSR float32, molecules
        Genes of equal human id are summed.
    gene_ids : (G,) str
        Human Ensembl ids, sorted.
    gene_names : (G,) str
        As the table spells them; of genes that were summed the first.
    labels : (n,) str
        "" where there is none.
    """

    name: str
    counts: csr_matrix
    gene_ids: StrArray
    gene_names: StrArray
    labels: StrArray

    def of_genes(self, gene_ids: StrArray) -> Profiles:
        """Return the same cells with these genes alone, in this order; a gene that was not measured has no counts."""
        column = {gene: number for number, gene in enumerate(self.gene_ids.tolist())}
        wanted = np.array([column.get(gene, -1) for gene in gene_ids.tolist()], np.int64)
        is_there = np.flatnonzero(wanted >= 0)
        pick = csr_matrix((np.ones(len(is_there), np.float32), (wanted[is_there], is_there)), shape=(len(self.gene_ids), len(gene_ids)))
        names = np.where(wanted >= 0, self.gene_names[wanted], gene_ids) if len(self.gene_ids) else gene_ids
        return replace(self, counts=csr_matrix(self.counts @ pick), gene_ids=gene_ids, gene_names=names)

    def taken(self, rows: np.ndarray) -> Profiles:
        """Return some of the cells."""
        return replace(self, counts=self.counts[rows], labels=self.labels[rows])


def profiles_of(table: AnnData, spec: SliceSpec, tables: GeneTables, *, label: str | None = None) -> Profiles:
    """Read the profiles of a table that needs no coordinates; `label` is an obs column that must exist.

    Raises
    ------
    BadSlice
        If counts or the labelled column are missing, or no gene maps to a human one.
    """
    name = slice_name(spec)
    with located(f"{name!r} ({spec.path})"):
        counts, var, _ = find_counts(table, spec.counts_layer, np.ones(table.n_obs, dtype=bool))
        names, ensembl_ids = var.index.to_numpy().astype(str), find_ensembl_ids(var, spec.gene_id_column)
        species = find_species(spec.species, provenance_of(table.uns).get("species"), ensembl_ids, names)
        human = human_ids_of(names, ensembl_ids, species, tables)
        audit_genes(names, human, np.asarray(counts.sum(axis=0)).ravel(), species=species, release=tables.release, markers=())  # none maps: refused
        merged, gene_ids = merge_genes(counts, human)
        name_of = dict(zip(reversed(human.tolist()), reversed(names.tolist()), strict=True))
        labels = find_labels(table, {"label": label})["label"] if label else np.full(table.n_obs, "")
        return Profiles(name, merged, gene_ids, np.array([name_of[gene] for gene in gene_ids.tolist()]), labels)


def shared_genes(all_profiles: Sequence[Profiles]) -> StrArray:
    """Return the human genes that all tables measure, sorted; `DataError` if they are too few to compare cells by."""
    genes = set.intersection(*(set(one.gene_ids.tolist()) for one in all_profiles))
    if len(genes) < LEAST_GENES:
        names = " and ".join(repr(one.name) for one in all_profiles)
        raise DataError(f"{names}: found {len(genes)} genes in common; expected at least {LEAST_GENES}. Use a reference of the same genes.")
    return np.array(sorted(genes))


def embed_profiles(profiles: Profiles, embedder: Embedder) -> FloatArray:
    """Embed cells or spots by the gene scale alone, (n, 256) float32; NaN rows where no gene of the vocabulary has a count."""
    of_vocab = embedder.vocab.count(profiles.counts, profiles.gene_ids)
    rows = np.flatnonzero(np.diff(of_vocab.indptr) > 0)
    embeddings = np.full((of_vocab.shape[0], EMBEDDING_DIM), np.nan, np.float32)
    if len(rows):
        tokens = rank_value_encode(of_vocab[rows], embedder.vocab.medians, max_tokens=embedder.scales.rank_value.max_tokens)
        embeddings[rows] = embed_cells(embedder.model.cell_encoder, tokens, cls_token=embedder.vocab.cls_token)
    return embeddings


def log_expression(counts: csr_matrix, *, depth: FloatArray | None = None, per: float = 1e4) -> csr_matrix:
    """Return log(1 + counts * per / depth), (n, G) CSR float32; `depth`, (n,), is by default the sum of these counts."""
    of_cell = np.asarray(counts.sum(axis=1)).ravel() if depth is None else depth
    scaled = csr_matrix(counts, dtype=np.float32, copy=True)
    scaled.data = np.log1p(scaled.data * np.repeat(per / np.maximum(of_cell, 1), np.diff(scaled.indptr))).astype(np.float32)
    return scaled
