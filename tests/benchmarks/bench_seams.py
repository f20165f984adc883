"""Seams between sub-slices on real slices: with overlap and averaging, and without.

Question: how much more do neighbouring cells differ, in embedding and in predicted label, because a border of sub-slices runs between them?

    make bench      runs it on the model of configs/pretrain/real_cpu.yaml, where that run exists, and writes results/seams_cpu_<date>.md
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from report import write_report

from corpus.gene_ids import map_to_human
from corpus.readers import read_slice
from corpus.scales import extract_gene_scale
from corpus.slice import Slice, SliceSpec
from corpus.sub_slices import SubSliceConfig, cut_sub_slices
from downstream.embedding import Embedder, load_embedder
from downstream.heads import most_probable
from downstream.probes import ProbeConfig, fit_probe
from downstream.representation import represent_cells
from downstream.seams import Seams, cosine_difference, label_difference, measure_seams
from stofm.cell_encoder import embed_cells

MODEL = Path("runs/real_cpu/model")
SLICES = {"dlpfc_151673.h5ad": ("region", None), "starmap_mpfc_BZ5.h5ad": ("region", 0.0625), "merfish_mpoa_bp021.h5ad": ("cell_type", None)}
MOST_OF_PLAIN = 0.5


@dataclass(frozen=True)
class Found:
    """Seams of embeddings and of predicted labels, and the share of cells that both tilings label alike."""

    embeddings: Seams
    labels: Seams
    agreement: float


def measure(st_slice: Slice, label: str, embedder: Embedder, shares: tuple[float, ...]) -> dict[float, Found]:
    """Embed a slice by two tilings for every share of context; labels are those of a linear head fitted on the first tiling."""
    ids, _ = map_to_human(st_slice, embedder.tables)
    scale = extract_gene_scale(st_slice.counts, ids, st_slice.coords_um, embedder.vocab, embedder.scales.rank_value)
    embeddings = embed_cells(embedder.model.cell_encoder, scale.tokens, cls_token=embedder.vocab.cls_token)
    found = {}
    for share in shares:
        config = SubSliceConfig(n_cells=embedder.scales.sub_slices.n_cells, context_share=share)
        here = replace(embedder, scales=embedder.scales.model_copy(update={"sub_slices": config}))
        cell_repr = [represent_cells(scale, embeddings, here, is_shifted=is_shifted) for is_shifted in (False, True)]
        owners = [np.empty(len(embeddings), np.int64) for _ in range(2)]
        for owner, is_shifted in zip(owners, (False, True), strict=True):
            for number, one in enumerate(cut_sub_slices(scale.coords_um, scale.keys, config, is_shifted=is_shifted)):
                owner[one.owned] = number
        probe = fit_probe([(cell_repr[0], st_slice.labels[label][scale.rows])], ProbeConfig())
        labels = [most_probable(probe.classes, probe.predict_proba(one)) for one in cell_repr]
        found[share] = Found(
            measure_seams(scale.coords_um, *zip(owners, map(cosine_difference, cell_repr), strict=True)),
            measure_seams(scale.coords_um, *zip(owners, map(label_difference, labels), strict=True)),
            float((labels[0] == labels[1]).mean()),
        )
    return found


def test_bench_runs_tiny(tiny_run, simulated_paths) -> None:
    found = measure(read_slice(SliceSpec(path=str(simulated_paths[0]))), "region", load_embedder(tiny_run / "model", device="cpu"), (0.0, 0.5))
    assert {share: one.embeddings.n_pairs > 0 for share, one in found.items()} == {0.0: True, 0.5: True}
    assert all(np.isfinite(one.embeddings.score) for one in found.values())  # a model of four steps has no seams to speak of


@pytest.mark.slow
def test_overlap_leaves_at_most_half_of_the_seams(shared_data) -> None:
    if not MODEL.is_dir():
        pytest.skip(f"no model {MODEL}; train configs/pretrain/real_cpu.yaml first")
    embedder, usual = load_embedder(MODEL, device="cpu"), SubSliceConfig().context_share
    lines = ["# Seams between sub-slices", "", "Question: how much more do neighbouring cells differ because a border runs between them?", "",
             "| slice | context | embeddings | labels | pairs | both tilings label alike |", "|---|---|---|---|---|---|"]  # fmt: skip
    scores = []
    for file, (label, um_per_unit) in SLICES.items():
        st_slice = read_slice(SliceSpec(path=str(shared_data / "data" / file), um_per_unit=um_per_unit))
        found = measure(st_slice, label, embedder, (0.0, usual))
        lines += [f"| {file} | {share:g} | {one.embeddings.score:.3f} | {one.labels.score:.3f} | {one.embeddings.n_pairs} | {one.agreement:.3f} |"
                  for share, one in found.items()]  # fmt: skip
        scores.append((found[0.0].embeddings.score, found[usual].embeddings.score))
    write_report("seams", lines, work=embedder.model.weights_sha256[:12], packages=("numpy", "torch", "scipy"))
    assert all(overlapping <= MOST_OF_PLAIN * plain for plain, overlapping in scores), scores
