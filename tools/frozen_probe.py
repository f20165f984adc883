"""The frozen-embedding probe of a training run: how well labels of validation slices can be read off what the model makes of them now."""

from __future__ import annotations

from pathlib import Path

from corpus.blocks import held_out_block
from corpus.slice import Slice
from corpus.store import Corpus
from downstream.block_probe import TASKS, block_probes
from downstream.embedding import Embedder
from stofm.cell_encoder import CellEncoder
from stofm.checkpoint import MODEL_KIND, Model, ModelMeta
from stofm.se2_transformer import SE2Transformer

HELD_OUT = 0.3  # of every slice, in one block: what the probe is scored on


def probe_validation(corpus: Corpus, encoder: CellEncoder, transformer: SE2Transformer) -> dict[str, float]:
    """Return macro-F1 as {"region/cell_repr": ...}; empty where no validation slice has labels. Fitted outside of a block, scored in it."""
    chosen = [entry["slice_id"] for entry in corpus.manifest["slices"] if entry.get("split") == "validation"]
    truths = [truth for truth in map(corpus.truth, chosen) if set(truth.labels) & set(TASKS)]
    slices = [Slice(one.slice_id, one.counts, one.symbols, one.human_ids, one.coords_um, "human", dict(one.labels)) for one in truths]
    if not slices:
        return {}
    meta = ModelMeta(format=MODEL_KIND, se2_transformer=transformer.config, files={}, trained_on={})
    model = Model(Path(corpus.folder), encoder, transformer, "in training", meta)
    embedder = Embedder(model, corpus.vocab, corpus.gene_tables, corpus.scales)
    scores = block_probes([(one, held_out_block(one, share=HELD_OUT, seed=0)) for one in slices], embedder)
    return {f"{task}/{features}": score for task, of_task in scores.items() for features, score in of_task.items()}
