"""The model card: what a model was made from and what it is for, in words."""

from __future__ import annotations

from corpus.store import Corpus
from pretrain.config import PretrainConfig


def model_card(config: PretrainConfig, corpus: Corpus) -> str:
    """Return the model card of a run as Markdown."""
    entries = corpus.manifest["slices"]
    sources = sorted({(str(entry["source"]["technology"]), str(entry["source"]["species"])) for entry in entries})
    stages = [f"- encoder adaptation: {config.encoder_stage.epochs:g} epochs" if config.encoder_stage else "- encoder: not trained"]
    stages.append(f"- SE(2) transformer (masked cell modeling, pairwise distance recovery, tissue context): {config.se2_stage.epochs:g} epochs")
    return f"""# SToFM model

Embeds the cells of a spatial transcriptomics slice at three scales: `stofm embed SLICE --model <this folder> --out DIR`.

## Trained on

{len(entries)} slices, {sum(entry["n_cells"] for entry in entries):,} cells, {len(corpus.vocab.gene_ids):,} genes; corpus `{corpus.corpus_id[:12]}`.

| technology | species |
|---|---|
{"".join(f"| {technology} | {species} |{chr(10)}" for technology, species in sources)}
Slices: {", ".join(corpus.slice_ids)}. Scores on any of these slices are not scores on unseen tissue.

## Training

{chr(10).join(stages)}
- seed {config.seed}, precision {"fp32" if config.precision == "no" else config.precision}

## Limits

Technologies, tissues and species other than those above were not seen. The weights carry no licence of their own: that
of the slices they were trained on decides what they may be used for.
"""
