"""The model card: what a model was made from and what it is for, in words, with the head that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping

from corpus.store import Corpus
from pretrain.config import PretrainConfig


def model_card(
    config: PretrainConfig, corpus: Corpus, steps: Mapping[str, int], *, adapted_from: str | None = None, licence: str | None = None
) -> str:
    """Return the model card of a run as Markdown.

    Parameters
    ----------
    steps : {stage: steps taken}
    adapted_from : str, optional
        Hash of the weights that the run went on from.
    licence : str, optional
        Terms of the weights that it went on from, if they are known.
    """
    entries = corpus.manifest["slices"]
    facts = [[str(entry["source"].get(name) or "not stated") for name in ("technology", "species", "license")] for entry in entries]
    sources = "\n".join(f"| {' | '.join(row)} | {facts.count(row)} |" for row in sorted(map(list, {tuple(row) for row in facts})))
    stages = "\n".join(f"| {stage} | {n:,} |" for stage, n in steps.items()) or "| none | 0 |"
    origin = f"These weights were adapted from the weights `{adapted_from}`; what those had seen counts as seen too.\n\n" if adapted_from else ""
    return f"""---
library_name: stofm
license: other
license_name: {"of-the-training-data" if licence is None else "stated-in-the-card"}
tags: [spatial-transcriptomics, single-cell, biology]
---
# SToFM model

Embeds the cells of a spatial transcriptomics slice at three scales: `stofm embed SLICE --model <this folder> --out DIR`.

## Data

{origin}{len(entries)} slices, {sum(entry["n_cells"] for entry in entries):,} cells.

| technology | species | licence | slices |
|---|---|---|---|
{sources}

- corpus `{corpus.corpus_id}`
- vocabulary `{corpus.vocab.sha256}`, {len(corpus.vocab.gene_ids):,} genes

Slices: {", ".join(corpus.slice_ids)}. Scores on any of these slices are not scores on unseen tissue.

## Training

| stage | steps |
|---|---|
{stages}

Seed {config.seed}, precision {"fp32" if config.precision == "no" else config.precision}.
Stages: `encoder` is masked gene modeling and the contrastive loss; `se2` is masked cell
modeling, pairwise distance recovery and tissue context, the encoder frozen; `joint` asks the same and trains both.

## Licence

{licence or "The weights carry no licence of their own: that of the slices they were trained on decides what they may be used for."}

## Limits

Technologies, tissues and species other than those above were not seen.
"""
