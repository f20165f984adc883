"""`stofm adapt`: a model goes on learning on a user's slices, with a report of what that gained and what it cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from corpus.blocks import held_out_block, write_slice
from corpus.build import CorpusConfig, build_corpus
from corpus.gene_ids import GENE_TABLES, GeneTableConfig
from corpus.gene_vocab import GeneConfig
from corpus.qc import QualityConfig
from corpus.readers import read_slices, slice_name
from corpus.slice import BoolArray, Slice, SliceSpec
from corpus.steps import input_sha256
from corpus.store import Corpus
from corpus.tasks import TaskConfig
from downstream.block_probe import block_probes
from downstream.embedding import Embedder, load_embedder
from pretrain.adapt import AFTER, BEFORE, AdaptConfig, adapt, adapt_config, read_measured
from stofm.config import override_config
from stofm.durable import check_folder, claim_folder, remove, write_json, write_text
from stofm.errors import ConfigError
from tools.adapt_report import markdown_report
from tools.console import progress, say, tracking
from tools.train import training_callbacks

ADAPTATION_KIND = "stofm-adaptation/1"
HELD_OUT, REFERENCE = "held-out blocks", "reference"
Parts = list[tuple[Slice, BoolArray]]  # slices, and True for the cells of the block that is held out


def run_adapt(
    slices: Sequence[SliceSpec], references: Sequence[SliceSpec], model: Path, out: Path, *, lora: bool, merge: bool, overrides: Sequence[str]
) -> None:
    """Adapt a model; started again, it goes on where it stopped."""
    check_folder(out, ADAPTATION_KIND)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(f"launch: found {os.environ['WORLD_SIZE']} processes; expected one. Start it without a launcher.")
    config = override_config(adapt_config("lora" if lora else "full"), overrides, where="--set")
    if merge and config.method != "lora":
        raise ConfigError("--merge: found no --lora; expected both, for all weights were trained and there is nothing to merge. Leave --merge out.")
    if not config.hold_out and not references:
        raise ConfigError("hold_out: found 0 and no --reference; expected something to measure on. Set hold_out, or name a reference slice.")
    embedder = load_embedder(model)
    claim_folder(out, ADAPTATION_KIND)
    parts, measured_on = _parts(slices, config), {}
    training = _corpus(out, "training", [_part(one, ~is_out) for one, is_out in parts], embedder)
    if config.hold_out:
        measured_on[HELD_OUT] = _corpus(out, "held_out", [_part(one, is_out) for one, is_out in parts], embedder)
    reference_parts = _parts(references, config.model_copy(update={"hold_out": config.hold_out or 0.2}))
    if references:
        measured_on[REFERENCE] = _corpus(out, "reference", [one for one, _ in reference_parts], embedder)
    probed = {HELD_OUT: parts if config.hold_out else [], REFERENCE: reference_parts}
    probes = {BEFORE: _probes(probed, embedder, BEFORE)}

    result = out / "model" if config.method == "full" or merge else out / "run" / "merged"
    with training_callbacks() as callbacks:
        inputs = {slice_name(spec): input_sha256(spec) for spec in slices}
        adapt(config, embedder.model, training, measured_on, inputs=inputs, folder=out / "run", result=result, callbacks=callbacks)
    adapted = load_embedder(result)
    probes[AFTER] = _probes(probed, adapted, AFTER)
    report = {"adapted_from": adapted.model.meta.trained_on["adapted_from"], "weights_sha256": adapted.model.weights_sha256,
              "losses": read_measured(out / "run"), "probes": probes, "settings": config.model_dump(mode="json")}  # fmt: skip
    write_json(out / "report.json", report)
    write_text(out / "report.md", markdown_report(report))
    say(markdown_report(report))
    if config.method == "lora":
        say(f"adapters: {out / 'run' / 'adapters'}, for model {report['adapted_from'][:12]}")
    if result == out / "model":
        say(f"model: {result}")
    else:
        remove(result)
        say("model: not written; the same command with --merge writes it")
    say(f"report: {out / 'report.md'}")


def _parts(specs: Sequence[SliceSpec], config: AdaptConfig) -> Parts:
    """Read slices, and choose the block of each that is held out."""
    parts = []
    for spec in specs:
        for one in read_slices(spec):
            is_out = held_out_block(one, share=config.hold_out, seed=config.seed) if config.hold_out else one.source_rows < 0
            parts.append((one, is_out))
    return parts


def _part(one: Slice, is_kept: BoolArray) -> Slice:
    return one.without(~is_kept, "not in this part")


def _corpus(out: Path, name: str, slices: Sequence[Slice], embedder: Embedder) -> Corpus:
    """Build a small corpus of these slices, read as the model reads: its vocabulary, its gene tables, its scales."""
    specs = [write_slice(one, out / "slices" / name / f"{one.slice_id}.h5ad") for one in slices]
    folder = embedder.model.folder
    tables = GeneTableConfig(carried=str(folder / GENE_TABLES)) if (folder / GENE_TABLES).is_file() else GeneTableConfig()
    genes = GeneConfig(vocabulary=str(folder / "gene_vocab.csv"), tables=tables, min_genes=1, min_share_of_genes=0)
    config = CorpusConfig(out=str(out / "corpora" / name), slices=specs, genes=genes, scales=embedder.scales, quality=QualityConfig(min_cells=1),
                          tasks=TaskConfig(n_workers=1), duplicates="keep")  # fmt: skip
    return build_corpus(config, track=progress, report=say)


def _probes(probed: dict[str, Parts], embedder: Embedder, when: str) -> dict[str, dict[str, dict[str, float]]]:
    """Score probes on all slices that are measured on, by what they are."""
    found = {}
    for name, parts in probed.items():
        if parts:
            with tracking(f"{name}: probes {when}"):
                found[name] = block_probes(parts, embedder)
    return found
