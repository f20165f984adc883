"""The steps of a build, each a function of files that are there: it writes files, then the commit record that says so.

They run in child processes (`corpus.child`), anywhere that sees the corpus folder, and can be run again at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from corpus.build_config import CorpusConfig
from corpus.commits import QUARANTINE, Commit, task_key
from corpus.derived import MadeFrom, open_members, write_derived
from corpus.duplicates import DuplicatePolicy, SliceFacts, find_duplicates, write_duplicates
from corpus.faults import Fault, fault_of
from corpus.gene_ids import GENE_TABLES, GeneTableConfig, GeneTables, load_gene_tables, read_gene_tables, require_mapped
from corpus.gene_import import import_gene_vocab
from corpus.gene_vocab import GeneConfig, audit_tokens, compute_gene_vocab, read_gene_vocab
from corpus.qc import for_corpus
from corpus.readers import close, open_table, slice_name, slice_of, split_sections
from corpus.scales import ScaleConfig, token_records
from corpus.shards import Shard, pack_shard, write_view
from corpus.sketch import read_sketch, sketch_path, sketch_slice, write_sketch
from corpus.slice import SliceSpec
from corpus.store import TOKENS, gene_scale_of, truth_path
from corpus.truth import SliceTruth, iter_counts, read_genes, read_truth, truth_of, write_truth
from stofm import __version__
from stofm.durable import file_sha256, read_json, tree_digest, write_json, write_text
from stofm.errors import BadSlice, DataError, located

Record = dict[str, Any]
TABLES, SECTIONS, TRUTH, DUPLICATES, VOCABULARY, VIEW = "gene_tables", "sections", "truth", "duplicates", "vocabulary", "view"
VERSION = 1  # raised when a step makes something else of the same input
ALL_SLICES = "@all"  # the name under which steps of all slices together keep their records; no slice can have it
TOKEN_VIEW = Path("views") / TOKENS
DEDUP = "dedup.parquet"


def key_of(step: str, inputs: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """Return the key of a step with these inputs and settings."""
    return task_key(step, VERSION, inputs, params)


@lru_cache(maxsize=1)
def _tables_of(folder: Path, sha256: str) -> GeneTables:
    return read_gene_tables(folder / GENE_TABLES)


def prepare(folder: Path, tables_sha256: str) -> None:
    """Load what all slice tasks need, once for all children that are forked afterwards."""
    import anndata  # noqa: F401
    import zarr.storage  # noqa: F401

    if tables_sha256:
        _tables_of(folder, tables_sha256)


def make_tables(folder: Path, config: GeneTableConfig, key: str) -> Record:
    """Copy the gene tables into the corpus, which carries what it was made with."""
    commit = Commit(folder, ALL_SLICES, TABLES)
    commit.void()
    tables = load_gene_tables(config)
    write_text(folder / GENE_TABLES, tables.to_json())
    return commit.write(key, [folder / GENE_TABLES], {"gene_tables_sha256": file_sha256(folder / GENE_TABLES)})


def find_sections(folder: Path, spec: SliceSpec) -> list[SliceSpec]:
    """Return a specification per section of a file; the given one where they cannot be told apart, so that reading it says why."""
    try:
        return split_sections(spec)
    except DataError as error:
        if fault_of(error).kind != "slice":
            raise
        return [spec]


def truth_key(spec: SliceSpec, input_hash: str, params: Mapping[str, Any]) -> str:
    """Return what decides the truth of a slice: its bytes, how it is read and judged, and how its genes are mapped."""
    return key_of(TRUTH, {"input": input_hash}, {"reader": spec.digest(), **params})


def truth_params(config: CorpusConfig, tables_sha256: str) -> Record:
    """Return the settings that decide the truths of a corpus."""
    genes = config.genes
    return {"tables": tables_sha256, "licenses": config.licenses, "markers": sorted(genes.markers), "quality": config.quality.model_dump(mode="json"),
            "floors": {"min_genes": genes.min_genes, "min_share_of_genes": genes.min_share_of_genes,
                       "min_share_of_counts": config.min_share_of_counts}}  # fmt: skip


def make_truth(folder: Path, spec: SliceSpec, config: CorpusConfig, params: Mapping[str, Any]) -> Record:
    """Read a slice and keep it as truth with its sketch, or write down why it cannot be used.

    Returns
    -------
    The commit record, or the quarantine record: that one has a ``code``.
    """
    name = slice_name(spec)
    commit = Commit(folder, name, TRUTH)
    commit.void()
    quarantine_path(folder, name).unlink(missing_ok=True)
    found: Record = {"slice_id": name, "path": spec.path, "section": spec.section, "input_sha256": None, "n_in": None}
    try:
        found["input_sha256"] = input_sha256(spec)
        _require_same(spec, found["input_sha256"])
        table = open_table(spec)
        try:
            found["n_in"] = table.n_obs if spec.section is None else None
            st_slice = slice_of(table, spec)
        finally:
            close(table)
        with located(f"slice {name!r} ({spec.path})"):
            _require_license(str(st_slice.source["license"]), config.licenses)
            st_slice = for_corpus(st_slice, config.quality)
            truth, audit = truth_of(st_slice, _tables_of(folder, params["tables"]), config.genes.markers)
            require_mapped(audit, **params["floors"])
    except DataError as error:
        fault = fault_of(error)
        if fault.kind != "slice":
            raise
        return quarantine(folder, spec, fault, params, found)
    del st_slice  # the truth has all of it but the genes that nobody knows
    files = [truth_path(folder, name), sketch_path(folder, name)]
    write_truth(files[0], truth)
    write_sketch(files[1], sketch_slice(name, truth.counts, truth.human_ids))
    n_cells, dropped = truth.counts.shape[0], dict(truth.dropped)
    found["n_in"] = n_cells + sum(dropped.values())
    result = {**found, "n_cells": n_cells, "dropped": dropped, "truth_sha256": file_sha256(files[0]),
              "content_id": _content_id(truth), "genes_audit": asdict(audit), "labels": sorted(truth.labels),
              "source": dict(truth.source)}  # fmt: skip
    return commit.write(truth_key(spec, found["input_sha256"], params), files, result)


def quarantine(folder: Path, spec: SliceSpec, fault: Fault, params: Mapping[str, Any], found: Mapping[str, Any]) -> Record:
    """Write down why a slice is set aside; it is tried again when its bytes, its settings or our version change."""
    known = found["input_sha256"]
    record = {**found, "code": fault.code, "detail": fault.detail, "versions": {"stofm": __version__},
              "task_key": truth_key(spec, known, params) if known else None}  # fmt: skip
    write_json(quarantine_path(folder, slice_name(spec)), record)
    return record


def standing_quarantine(folder: Path, name: str, key: str) -> Record | None:
    """Return the quarantine record of a slice if nothing changed since."""
    path = quarantine_path(folder, name)
    record = read_json(path) if path.is_file() else None
    return record if record is not None and record["task_key"] == key and record["versions"] == {"stofm": __version__} else None


def quarantine_path(folder: Path, name: str) -> Path:
    """Return where a corpus keeps the reason why it does not hold a slice."""
    return folder / QUARANTINE / f"{name}.json"


def make_duplicates(folder: Path, facts: Sequence[SliceFacts], policy: DuplicatePolicy, key: str) -> Record:
    """Find the slices that hold the same cells as another one."""
    commit = Commit(folder, ALL_SLICES, DUPLICATES)
    commit.void()
    rows = find_duplicates(facts, [read_sketch(sketch_path(folder, one.slice_id)) for one in facts], policy=policy)
    write_duplicates(folder / DEDUP, rows)
    return commit.write(key, [folder / DEDUP], {"rows": [asdict(row) for row in rows]})


def make_vocabulary(folder: Path, names: Sequence[str], genes: GeneConfig, key: str) -> Record:
    """Compute the vocabulary from the slices, or take the one that is set."""
    commit = Commit(folder, ALL_SLICES, VOCABULARY)
    commit.void()
    if genes.vocabulary is not None:
        vocab = import_gene_vocab(genes)
    else:
        paths = (truth_path(folder, name) for name in names)
        blocks = ((counts, *genes) for path in paths for genes in [read_genes(path)] for counts in iter_counts(path))
        vocab = compute_gene_vocab(blocks, min_cells=genes.min_cells, memory_mb=genes.memory_mb, scratch=folder)
    write_text(folder / "gene_vocab.csv", vocab.to_csv())
    return commit.write(key, [folder / "gene_vocab.csv"], {"vocabulary_sha256": vocab.sha256, "n_genes": len(vocab.gene_ids)})


def make_tokens(folder: Path, name: str, scales: ScaleConfig, markers: Sequence[str], store: tuple[Path, MadeFrom], key: str) -> Record:
    """Encode the cells of a slice as gene tokens and cut it into sub-slices."""
    commit = Commit(folder, name, TOKENS)
    commit.void()
    vocab = read_gene_vocab(folder / "gene_vocab.csv")
    truth = read_truth(truth_path(folder, name))
    audit = audit_tokens(truth.counts, truth.human_ids, truth.symbols, vocab, markers)
    scale = gene_scale_of(truth, vocab, scales)
    n_records = write_derived(store[0], token_records(scale, vocab, scales.sub_slices), made_from=store[1])
    n_without = truth.counts.shape[0] - len(scale.rows)
    result = {"tokens_audit": asdict(audit), "n_cells_without_gene": n_without, "n_cells_cut": scale.n_cut, "n_sub_slices": n_records}
    return commit.write(key, [store[0]], result)


def make_shard(folder: Path, stem: str, members: Sequence[tuple[str, int]], stores: Mapping[str, tuple[Path, MadeFrom]], key: str) -> Record:
    """Pack one shard of the token view."""
    commit = Commit(folder, ALL_SLICES, stem)
    commit.void()
    with open_members(members, stores) as records:
        shard = pack_shard(folder / TOKEN_VIEW, stem, records)
    return commit.write(key, [folder / TOKEN_VIEW / shard.name], {"shard": asdict(shard)})


def make_view(folder: Path, stems: Sequence[str], vocabulary_sha256: str, facts: Mapping[str, Mapping[str, Any]], key: str) -> Record:
    """Write the index over all shards."""
    commit = Commit(folder, ALL_SLICES, VIEW)
    commit.void()
    shards = [Shard.from_json(read_json(Commit(folder, ALL_SLICES, stem).path)["shard"]) for stem in stems]
    view_id = write_view(folder / TOKEN_VIEW, shards, made_from={"vocabulary": vocabulary_sha256}, facts=facts)
    return commit.write(key, [folder / TOKEN_VIEW / "index.parquet", folder / TOKEN_VIEW / "view.json"], {"view_id": view_id})


def input_sha256(spec: SliceSpec) -> str:
    """Return the sha256 of the file or folder that a slice is read from."""
    path = Path(spec.path)
    if path.is_dir():
        return tree_digest(path)
    if not path.is_file():
        message = "no such file; expected an AnnData .h5ad, a SpatialData .zarr or an instrument's folder. Check the path."
        raise BadSlice("INPUT_MISSING", f"slice {slice_name(spec)!r} ({path}): {message}")
    return file_sha256(path)


def _require_same(spec: SliceSpec, found: str) -> None:
    if spec.sha256 not in (None, found):
        raise BadSlice("INPUT_CHANGED", f"slice {slice_name(spec)!r} ({spec.path}): found sha256 {found}; expected {spec.sha256}. "
                       "Fetch it again, or set `sha256` to the one found if the new file is wanted.")  # fmt: skip


def _require_license(found: str, allowed: Sequence[str] | None) -> None:
    if allowed is not None and found not in allowed:
        raise BadSlice("LICENSE", f"found licence {found or 'none stated'!r}; expected one of {', '.join(allowed)}. "
                       "Add it to `licenses`, or leave the slice out.")  # fmt: skip


def _content_id(truth: SliceTruth) -> str:
    """Hash what the corpus keeps of a slice, whatever the slice is called: genes, counts, places."""
    digest = hashlib.sha256("\n".join(truth.human_ids.tolist()).encode())
    for array in (truth.counts.indptr.astype(np.int64), truth.counts.indices, truth.counts.data, truth.coords_um):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
