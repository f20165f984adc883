"""The steps of a build, each a function of files that are there: it writes files, then the commit record that says so.

They run in child processes (`corpus.child`), anywhere that sees the corpus folder, and can be run again at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from corpus.commits import QUARANTINE, Commit, task_key
from corpus.faults import Fault, fault_of
from corpus.gene_ids import GeneTableConfig, load_gene_tables
from corpus.gene_vocab import GeneConfig, compute_gene_vocab, read_gene_vocab
from corpus.readers import read_table, slice_name, slice_of
from corpus.scales import ScaleConfig, token_records
from corpus.shards import RecordPlace, write_shards, write_view
from corpus.slice import SliceSpec
from corpus.store import gene_scale_of, truth_path
from corpus.truth import read_truth, truth_of, write_truth
from stofm import __version__
from stofm.durable import file_sha256, read_json, tree_digest, write_json, write_text
from stofm.errors import BadSlice, DataError, located

Record = dict[str, Any]
TRUTH, VOCABULARY, TOKENS, VIEW = "truth", "vocabulary", "tokens", "view"
VERSIONS = {TRUTH: 1, VOCABULARY: 1, TOKENS: 1, VIEW: 1}  # raised when a step makes something else of the same input
WHOLE_CORPUS = "corpus"  # the name under which steps of all slices together keep their record
TOKEN_VIEW = Path("views") / "tokens"


def prepare(tables: GeneTableConfig) -> None:
    """Load what all slice tasks need, once for all children that are forked afterwards."""
    import anndata  # noqa: F401
    import zarr.storage  # noqa: F401

    load_gene_tables(tables)


def truth_key(spec: SliceSpec, input_hash: str, params: Mapping[str, Any]) -> str:
    """Return what decides the truth of a slice: its bytes, how it is read, and how its genes are mapped."""
    return task_key(TRUTH, VERSIONS[TRUTH], {"input": input_hash}, {"reader": spec.digest(), **params})


def make_truth(folder: Path, spec: SliceSpec, tables: GeneTableConfig, params: Mapping[str, Any]) -> Record:
    """Read a slice and keep it as truth, or write down why it cannot be used.

    Returns
    -------
    The commit record, or the quarantine record: that one has a ``code``.
    """
    name = slice_name(spec)
    commit = Commit(folder, name, TRUTH)
    commit.void()
    quarantine_path(folder, name).unlink(missing_ok=True)
    found: Record = {"slice_id": name, "path": spec.path, "input_sha256": None, "n_in": None}
    try:
        found["input_sha256"] = input_sha256(spec)
        table = read_table(spec)
        found["n_in"] = table.n_obs
        st_slice = slice_of(table, spec)
        with located(f"slice {name!r} ({spec.path})"):
            truth, audit = truth_of(st_slice, load_gene_tables(tables))
            _require_share(asdict(audit), params["min_share_of_counts"])
    except DataError as error:
        fault = fault_of(error)
        if fault.kind != "slice":
            raise
        return quarantine(folder, spec, fault, params, found)
    write_truth(truth_path(folder, name), truth)
    found["n_in"] = st_slice.n_cells + sum(st_slice.dropped.values())
    result = {**found, "n_cells": st_slice.n_cells, "dropped": dict(st_slice.dropped), "truth_sha256": file_sha256(truth_path(folder, name)),
              "genes_audit": asdict(audit), "labels": sorted(truth.labels), "source": dict(truth.source)}  # fmt: skip
    return commit.write(truth_key(spec, found["input_sha256"], params), [truth_path(folder, name)], result)


def quarantine(folder: Path, spec: SliceSpec, fault: Fault, params: Mapping[str, Any], found: Mapping[str, Any]) -> Record:
    """Write down why a slice is set aside; it is tried again when its bytes, its settings or our version change."""
    known = found["input_sha256"]
    record = {**found, "code": fault.code, "detail": fault.detail, "versions": {"stofm": __version__},
              "task_key": truth_key(spec, known, params) if known else None}  # fmt: skip
    write_json(quarantine_path(folder, slice_name(spec)), record)
    return record


def standing_quarantine(folder: Path, name: str, key: str | None) -> Record | None:
    """Return the quarantine record of a slice if nothing changed since."""
    path = quarantine_path(folder, name)
    record = read_json(path) if path.is_file() else None
    stands = record is not None and key is not None and record["task_key"] == key and record["versions"] == {"stofm": __version__}
    return record if stands else None


def quarantine_path(folder: Path, name: str) -> Path:
    """Return where a corpus keeps the reason why it does not hold a slice."""
    return folder / QUARANTINE / f"{name}.json"


def make_vocabulary(folder: Path, names: list[str], genes: GeneConfig, key: str) -> Record:
    """Compute the vocabulary from the slices, or copy the one that is set."""
    commit = Commit(folder, WHOLE_CORPUS, VOCABULARY)
    commit.void()
    if genes.vocabulary is not None:
        vocab = read_gene_vocab(Path(genes.vocabulary))
    else:
        truths = (read_truth(truth_path(folder, name)) for name in names)
        vocab = compute_gene_vocab(((t.counts, t.human_ids, t.symbols) for t in truths), min_cells=genes.min_cells)
    write_text(folder / "gene_vocab.csv", vocab.to_csv())
    return commit.write(key, [folder / "gene_vocab.csv"], {"vocabulary_sha256": vocab.sha256, "n_genes": len(vocab.gene_ids)})


def make_tokens(folder: Path, name: str, scales: ScaleConfig, key: str) -> Record:
    """Encode the cells of a slice as gene tokens and write its sub-slices into shards."""
    commit = Commit(folder, name, TOKENS)
    commit.void()
    vocab = read_gene_vocab(folder / "gene_vocab.csv")
    truth = read_truth(truth_path(folder, name))
    scale = gene_scale_of(truth, vocab, scales)
    places = write_shards(folder / TOKEN_VIEW, name, token_records(scale, vocab, scales.sub_slices))
    shards = sorted({folder / TOKEN_VIEW / place.shard for place in places})
    result = {
        "n_cells_without_gene": truth.counts.shape[0] - len(scale.rows),
        "n_sub_slices": len(places),
        "places": [asdict(place) for place in places],
    }
    return commit.write(key, shards, result)


def make_view(folder: Path, names: list[str], vocabulary_sha256: str, key: str) -> Record:
    """Write the index over the shards of all slices."""
    commit = Commit(folder, WHOLE_CORPUS, VIEW)
    commit.void()
    records = [Commit(folder, name, TOKENS).read() for name in names]
    places = [RecordPlace(**place) for record in records if record is not None for place in record["places"]]
    if not places:
        raise DataError("no cell of any slice expresses a gene of the vocabulary; expected some. Check `genes`.")
    write_view(folder / TOKEN_VIEW, places, meta={"vocabulary": vocabulary_sha256})
    files = [folder / TOKEN_VIEW / "index.parquet", folder / TOKEN_VIEW / "view.json"]
    return commit.write(key, files, {"token_view": file_sha256(files[1])})


def input_sha256(spec: SliceSpec) -> str:
    """Return the sha256 of the file or folder that a slice is read from."""
    path = Path(spec.path)
    if path.is_dir():
        return tree_digest(path)
    if not path.is_file():
        message = "no such file; expected an AnnData .h5ad or a SpatialData .zarr. Check the path."
        raise BadSlice("INPUT_MISSING", f"slice {slice_name(spec)!r} ({path}): {message}")
    return file_sha256(path)


def _require_share(audit: Mapping[str, Any], least: float) -> None:
    if audit["share_of_counts_mapped"] < least:
        raise BadSlice(
            "VOCAB",
            f"{audit['share_of_counts_mapped']:.1%} of its counts are on mapped genes "
            f"(unmapped: {', '.join(audit['unmapped_examples'][:5])}); expected at least {least:.1%}. "
            "Check `species` and `gene_id_column`, or lower `min_share_of_counts`.",
        )
