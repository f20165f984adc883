"""From a list of slices to a corpus: truth per slice, one vocabulary, gene tokens as training shards, a manifest at the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from corpus.derived import open_members, write_derived
from corpus.descriptions import file_entry, totals_of, write_descriptions
from corpus.gene_ids import load_gene_tables
from corpus.gene_vocab import GeneConfig, GeneVocab, compute_gene_vocab, read_gene_vocab
from corpus.readers import read_slice, slice_name
from corpus.scales import EmbedCells, ScaleConfig, embedded_records, token_records
from corpus.shards import Shard, deal_records, pack_shard, write_shards, write_view
from corpus.slice import SliceSpec
from corpus.store import CORPUS_KIND, TOKENS, Corpus, gene_scale_of, token_store, truth_path
from corpus.truth import read_truth, truth_of, write_truth
from stofm.config import FrozenModel
from stofm.durable import claim_folder, file_sha256, read_json, sweep, tree_digest, write_json, write_text
from stofm.errors import ConfigError, DataError, located

Track = Callable[[str], AbstractContextManager[None]]  # shows what is being worked on while its block runs
Report = Callable[[str], None]


class CorpusConfig(FrozenModel):
    """`stofm build`: which slices, and how they are read."""

    out: str = Field(description="Folder of the corpus.")
    slices: list[SliceSpec] = Field(min_length=1)
    genes: GeneConfig = Field(default_factory=GeneConfig)
    scales: ScaleConfig = Field(default_factory=ScaleConfig)
    min_share_of_counts: float = Field(0.0, ge=0, le=1, description="Slices with a smaller share of counts on mapped genes are refused.")

    @model_validator(mode="after")
    def _names_differ(self) -> CorpusConfig:
        names = [slice_name(spec) for spec in self.slices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"slice_id {twice[0]!r} is used twice; expected one name per slice. Set `slice_id`.")
        return self


def build_corpus(config: CorpusConfig, *, track: Track = lambda _: nullcontext(), report: Report = lambda _: None) -> Corpus:
    """Build a corpus, or finish one whose build was stopped; a finished one is left as it is.

    Slices that were read before, from the same bytes with the same settings, are not read again. Equal inputs and
    settings give equal bytes.

    Raises
    ------
    ConfigError
        If the folder holds something else, or a corpus of other settings.
    DataError
        If slices are refused; all others are kept for the next try, and no manifest is written.
    """
    folder = Path(config.out)
    settings = config.digest(exclude={"out"})
    claim_folder(folder, CORPUS_KIND)
    if (folder / "manifest.json").is_file():
        if read_json(folder / "manifest.json")["settings"] != settings:
            raise ConfigError(f"output {folder}: found a corpus of other settings; expected these ones. Choose another `out`, or remove it.")
        inputs = {name: input_sha256(spec) for name, spec in _named(config)}
        corpus = Corpus(folder)
        changed = [entry["slice_id"] for entry in corpus.manifest["slices"] if inputs[entry["slice_id"]] != entry["input_sha256"]]
        if changed:
            raise DataError(f"slice {changed[0]!r}: its file changed since corpus {folder} was built. Choose another `out`, or remove it.")
        report(f"corpus {folder} is complete: {len(corpus.slice_ids)} slices")
        return corpus

    sweep(folder)
    write_text(folder / "config.yaml", config.to_yaml())
    commits = _write_truths(config, folder, track, report)
    with track("gene vocabulary"):
        vocab = _find_vocab(config, folder)
        write_text(folder / "gene_vocab.csv", vocab.to_csv())
    entries, stores, n_records = [], {}, {}
    for name, _ in _named(config):
        with track(f"{name}: gene tokens"):
            scale = gene_scale_of(read_truth(truth_path(folder, name)), vocab, config.scales)
            hashes = {"truth_sha256": commits[name]["truth_sha256"], "vocabulary_sha256": vocab.sha256}
            stores[name] = path, made_from = token_store(folder, name, scales=config.scales, **hashes)
            n_records[name] = write_derived(path, token_records(scale, vocab, config.scales.sub_slices), made_from=made_from)
            n_cells = commits[name]["n_cells"]
            files = [file_entry(folder, file) for file in (truth_path(folder, name), path)]
            without_gene = n_cells - len(scale.rows)
            entries.append({**commits[name], "n_cells_without_gene": without_gene, "n_sub_slices": n_records[name], "files": files})
    if not sum(n_records.values()):
        raise DataError("no cell of any slice expresses a gene of the vocabulary; expected some. Check `genes`.")
    view, shards = folder / "views" / TOKENS, []
    for number, members in enumerate(deal_records(n_records, salt=vocab.sha256)):
        with open_members(members, stores) as records:
            shards.append(pack_shard(view, f"shard-{number:05d}", records))
    facts = {entry["slice_id"]: entry["source"] for entry in entries}
    view_id = write_view(view, shards, made_from={"vocabulary": vocab.sha256}, facts=facts)
    manifest = {
        "format": CORPUS_KIND,
        "config": config.model_dump(mode="json", exclude={"out"}),
        "settings": settings,
        "vocabulary_sha256": vocab.sha256,
        "slices": entries,
        "quarantined": [],
        "views": {TOKENS: view_id},
        "files": [file_entry(folder, file) for file in (folder / "gene_vocab.csv", view / "view.json", view / "index.parquet")],
        "totals": totals_of(entries),
    }
    manifest["corpus_id"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    write_descriptions(folder, manifest, read_json(view / "view.json"))
    write_json(folder / "manifest.json", manifest)
    return Corpus(folder)


def embedded_shards(corpus: Corpus, folder: Path, slice_id: str, embed_cells: EmbedCells, *, encoder_id: str) -> list[Shard]:
    """Write the shards of one slice for the SE(2) transformer, unless they stand already; see `embedded_records`."""
    commit = folder / "commits" / f"{slice_id}.json"
    made_from = {"corpus": corpus.corpus_id, "encoder": encoder_id}
    if commit.is_file() and (found := read_json(commit))["made_from"] == made_from:
        return [Shard.from_json(shard) for shard in found["shards"]]
    shards = write_shards(folder, slice_id, embedded_records(corpus.gene_scale(slice_id), embed_cells, corpus.scales))
    write_json(commit, {"made_from": made_from, "shards": [asdict(shard) for shard in shards]})
    return shards


def _write_truths(config: CorpusConfig, folder: Path, track: Track, report: Report) -> dict[str, dict[str, Any]]:
    """Bring every slice into the corpus; returns its commit record by slice."""
    tables = load_gene_tables(config.genes.tables)
    commits: dict[str, dict[str, Any]] = {}
    errors: list[DataError] = []
    for name, spec in _named(config):
        path, commit_path = truth_path(folder, name), folder / "commits" / f"{name}.json"
        try:
            with track(f"{name}: reading"):
                made_from = {"input_sha256": input_sha256(spec), "reader": spec.digest(), "genes": config.genes.tables.digest()}
                if not commit_path.is_file() or not made_from.items() <= read_json(commit_path).items() or not path.is_file():
                    st_slice = read_slice(spec)
                    with located(f"slice {name!r} ({spec.path})"):
                        truth, audit = truth_of(st_slice, tables)
                    write_truth(path, truth)
                    write_json(commit_path, {**made_from, "slice_id": name, "truth_sha256": file_sha256(path), "genes_audit": asdict(audit),
                                             "n_cells": truth.counts.shape[0], "labels": sorted(truth.labels), "source": truth.source})  # fmt: skip
                commits[name] = read_json(commit_path)
                _require_share(name, commits[name]["genes_audit"], config.min_share_of_counts)
        except DataError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        for refusal in errors:
            report(str(refusal))
        raise DataError(f"{len(errors)} of {len(config.slices)} slices were refused (each named above); expected none. Mend or remove them.")
    return commits


def _find_vocab(config: CorpusConfig, folder: Path) -> GeneVocab:
    if config.genes.vocabulary is not None:
        return read_gene_vocab(Path(config.genes.vocabulary))
    truths = (read_truth(truth_path(folder, name)) for name, _ in _named(config))
    return compute_gene_vocab(((t.counts, t.human_ids, t.symbols) for t in truths), min_cells=config.genes.min_cells)


def _require_share(name: str, audit: dict[str, Any], least: float) -> None:
    if audit["share_of_counts_mapped"] < least:
        raise DataError(
            f"slice {name!r}: {audit['share_of_counts_mapped']:.1%} of its counts are on mapped genes "
            f"(unmapped: {', '.join(audit['unmapped_examples'][:5])}); expected at least {least:.1%}. "
            "Check `species` and `gene_id_column`, or lower `min_share_of_counts`."
        )


def _named(config: CorpusConfig) -> list[tuple[str, SliceSpec]]:
    return [(slice_name(spec), spec) for spec in config.slices]


def input_sha256(spec: SliceSpec) -> str:
    """Return the sha256 of the file or folder that a slice is read from."""
    path = Path(spec.path)
    if path.is_dir():
        return tree_digest(path)
    if not path.is_file():
        raise DataError(f"slice {slice_name(spec)!r} ({path}): no such file; expected an AnnData .h5ad or a SpatialData .zarr. Check the path.")
    return file_sha256(path)
