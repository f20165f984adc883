"""`stofm model`: published checkpoints in, and what a model is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from corpus.gene_vocab import GeneConfig
from downstream.embedding import Embedder, load_embedder
from downstream.model_import import import_published
from downstream.self_test import MOST_CHANGE, self_test
from stofm.checkpoint import Model
from stofm.config import parse_config
from stofm.errors import CheckpointError
from tools.console import say, tracking

SCHEMES = {
    "tissue": "tissue: micrometres; turning, shifting, mirroring or reordering a slice changes nothing",
    "published": "published: squares, scale and clusters follow the axes of the file; turning or mirroring a slice changes its embeddings",
}


def run_import(se2: Path, config: Path, cell_encoder: Path, out: Path, *, genes: dict[str, Any], licence: str | None) -> None:
    """Write a published checkpoint as a model folder."""
    settings = parse_config(GeneConfig, genes, where="options")
    with tracking(f"{se2}: importing"):
        model = import_published(se2, config, cell_encoder, settings, out, licence=licence, report=say)
    say(f"model: {model}")


def run_push(model: Path, repo: str, *, private: bool) -> None:
    """Put a model on the Hugging Face hub."""
    loaded = Model.from_pretrained(model)
    with tracking(f"{model}: uploading to {repo}"):
        address = loaded.push_to_hub(repo, private=private)
    say(f"model: {repo} ({address}); others use it by that name: stofm embed SLICE --model {repo} --out DIR")


def run_show(folder: Path, *, as_json: bool = False) -> None:
    """Say what a model is and test it; `CheckpointError` at the end if the test failed."""
    embedder = load_embedder(folder, device="cpu")
    changes = self_test(embedder)
    failed = {what: change for what, change in changes.items() if not change <= MOST_CHANGE}
    about = describe(embedder)
    if as_json:
        test = {"most_change": MOST_CHANGE, "changes": {what: None if math.isnan(change) else change for what, change in changes.items()}}
        print(json.dumps({**about, "self_test": {**test, "passed": not failed}}, indent=1))
    else:
        _show(about)
        say(f"  self-test: largest change of a number of a representation, at most {MOST_CHANGE:g} expected")
        for what, change in changes.items():
            say(f"    {what:28}{change:8.1e}  {'FAILED' if what in failed else 'ok'}")
    if failed:
        raise CheckpointError(
            f"model {folder}: the self-test failed for {'; '.join(failed)}; expected changes of at most {MOST_CHANGE:g}. Do not use this model."
        )


def describe(embedder: Embedder) -> dict[str, Any]:
    """Return all that is to be told of a model, for programs."""
    model, bert = embedder.model, embedder.model.cell_encoder.bert.config
    return {
        "folder": str(model.folder),
        "format": model.meta.format,
        "scheme": embedder.scales.scheme,
        "weights_sha256": model.weights_sha256,
        "licence": model.meta.licence,
        "cell_encoder": {
            "n_layers": bert.num_hidden_layers,
            "width": bert.hidden_size,
            "n_heads": bert.num_attention_heads,
            "ffn_dim": bert.intermediate_size,
            "max_tokens": embedder.scales.rank_value.max_tokens,
            "reads_levels": model.cell_encoder.reads_levels,
            "n_parameters": sum(parameter.numel() for parameter in model.cell_encoder.parameters()),
        },
        "se2_transformer": {
            **model.se2_transformer.config.model_dump(mode="json", exclude={"scheme"}),
            "n_parameters": sum(parameter.numel() for parameter in model.se2_transformer.parameters()),
            "pair_bias_error": embedder.bias_error,
        },
        "vocabulary": {
            "n_genes": sum(not gene.startswith("<") for gene in embedder.vocab.gene_ids.tolist()),
            "n_ids": embedder.vocab.n_tokens,
            "sha256": embedder.vocab.sha256,
        },
        "gene_tables": {"release": embedder.tables.release, "sha256": embedder.tables.sha256},
        "scales": embedder.scales.model_dump(mode="json"),
        "trained_on": model.meta.trained_on,
        "files": model.meta.files,
    }


def _show(about: dict[str, Any]) -> None:
    encoder, transformer, trained_on = about["cell_encoder"], about["se2_transformer"], about["trained_on"]
    lines = {
        "scheme": SCHEMES[about["scheme"]],
        "cell encoder": f"{encoder['n_layers']} layers, {encoder['width']} wide, {encoder['n_heads']} heads; reads {encoder['max_tokens']:,} genes "
        f"of a cell{' and their levels' if encoder['reads_levels'] else ''}; {encoder['n_parameters']:,} parameters",
        "SE(2) transformer": f"{transformer['n_layers']} layers, {transformer['n_heads']} heads, {transformer['n_radial']} radial functions; "
        f"{transformer['n_parameters']:,} parameters",
        "pair bias": f"from a table, within {transformer['pair_bias_error']:.1e}" if transformer["pair_bias_error"] else "computed",
        "vocabulary": f"{about['vocabulary']['n_genes']:,} genes, {about['vocabulary']['n_ids']:,} ids; {about['vocabulary']['sha256'][:12]}",
        "gene tables": f"{about['gene_tables']['release']}; {about['gene_tables']['sha256'][:12]}",
        "trained on": _trained_on(trained_on),
        "licence": about["licence"] or "not stated: the terms of what it was trained on",
        "files": f"{len(about['files'])}, each as its hash says",
    }
    say(f"{about['folder']}: {about['format']}, weights {about['weights_sha256'][:12]}")
    for what, text in lines.items():
        say(f"  {what + ':':19}{text}")


def _trained_on(trained_on: dict[str, Any]) -> str:
    if "published_files" in trained_on:
        return "not known here; imported from " + ", ".join(f"{name} {sha256[:12]}" for name, sha256 in trained_on["published_files"].items())
    adapted = f"; adapted from weights {trained_on['adapted_from'][:12]}" if "adapted_from" in trained_on else ""
    return f"{len(trained_on.get('inputs', {}))} slices, corpus {str(trained_on.get('corpus', 'not named'))[:12]}{adapted}"
