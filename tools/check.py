"""`stofm check`: prints what `corpus.inspection` finds, for people or for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from corpus.findings import Finding, worst
from corpus.gene_ids import gene_tables_of_model, load_gene_tables
from corpus.gene_vocab import read_gene_vocab
from corpus.inspection import Genes, inspect_slice
from corpus.readers import slice_name
from corpus.slice import SliceSpec
from corpus.store import Corpus
from stofm.durable import require_folder
from stofm.errors import ConfigError, DataError
from stofm.hub import local_folder
from tools.console import console, say, show_error

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
WORDS = {"ok": "can be used", "warn": "can be used, with warnings", "fail": "cannot be used as it is"}


def run_check(specs: Sequence[SliceSpec], *, model: Path | None = None, corpus: Path | None = None, as_json: bool = False) -> None:
    """Check slices one by one; `DataError` at the end if any of them cannot be used."""
    genes = _genes(model, corpus)
    results: dict[str, list[Finding]] = {}
    for spec in specs:
        name = slice_name(spec)
        if as_json:
            results[name] = inspect_slice(spec, genes)
        else:
            with console.status(f"{name}: looking"):
                results[name] = inspect_slice(spec, genes)
            _show(name, results[name])
    if as_json:
        print(json.dumps({"slices": [_as_dict(spec, results[slice_name(spec)]) for spec in specs]}, indent=1))
    refusals = [_refusal(spec, fault) for spec in specs if (fault := _first_fault(results[slice_name(spec)]))]
    if len(specs) == len(refusals) == 1:
        raise refusals[0]
    for refusal in refusals:
        show_error(refusal)
    if refusals:
        raise DataError(f"{len(refusals)} of {len(specs)} slices cannot be used as they are; expected all. See the line of each above.")


def _first_fault(findings: Sequence[Finding]) -> Finding | None:
    return next((one for one in findings if one.verdict == "fail"), None)


def _refusal(spec: SliceSpec, fault: Finding) -> DataError:
    return DataError(f"slice {slice_name(spec)!r} ({spec.path}): {fault.found}. {fault.fix[:1].upper()}{fault.fix[1:]}.")


def _genes(model: Path | None, corpus: Path | None) -> Genes:
    """The genes of a model, of a corpus, or all human ones."""
    if model is not None and corpus is not None:
        raise ConfigError("options: found --model and --corpus; expected one of them. Leave one out.")
    if corpus is not None:
        opened = Corpus(corpus)
        return Genes(opened.gene_tables, opened.vocab)
    if model is None:
        return Genes(load_gene_tables())
    model = local_folder(model)
    require_folder(model, "stofm-model/1", made_by="stofm train CONFIG")
    return Genes(gene_tables_of_model(model), read_gene_vocab(model / "gene_vocab.csv"))


def _show(name: str, findings: Sequence[Finding]) -> None:
    say(f"{name}: {WORDS[worst(findings)]}")
    lines = Table.grid(padding=(0, 2))
    for style in (None, "bold", None):
        lines.add_column(style=style, overflow="fold")
    for one in findings:
        remedy = f"\n-> {one.fix}" if one.fix else ""
        lines.add_row(f"  [{STYLES[one.verdict]}]{one.verdict}[/]", one.subject, escape(one.found + remedy))
    console.print(lines, soft_wrap=False)


def _as_dict(spec: SliceSpec, findings: Sequence[Finding]) -> dict[str, object]:
    return {"slice_id": slice_name(spec), "path": spec.path, "verdict": worst(findings), "findings": [asdict(one) for one in findings]}
