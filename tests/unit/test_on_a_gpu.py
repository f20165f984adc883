"""On a GPU as on a CPU: every form of the pair state, gradients, embeddings under any budget, and training."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_embedding import SMALL, embedder_of, made_up
from synth import pairs_of_tokens, random_record

from corpus.readers import read_slice
from corpus.slice import SliceSpec
from downstream.embedding import SliceEmbedding, embed_slice, load_embedder
from pretrain.config import JointStageConfig, PretrainConfig
from pretrain.run_log import read_run_log
from stofm.batch import SubSliceBatch, collate
from stofm.cell_encoder import TOKENS_PER_BATCH, CellEncoder
from stofm.distance_bias import TABLE_ERROR
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
SIZES = {"n_layers": 3, "n_heads": 8, "ffn_dim": 64, "n_radial": 16, "n_neighbors": 12, "dropout": 0.0}
FORMS = {"concatenated": 2e-5, "in_place": 2e-5, "fused": 2 * TABLE_ERROR}  # largest error in float32
MOST_COSINE = {torch.float32: 1e-6, torch.bfloat16: 1e-3}


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of float32 in float32, whatever the machine's default is."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.fixture
def model() -> SE2Transformer:
    torch.manual_seed(0)
    return SE2Transformer(SE2TransformerConfig(**SIZES)).eval()


@pytest.fixture
def batch() -> SubSliceBatch:
    return collate([random_record(number, n_cells) for number, n_cells in enumerate((300, 1, 130, 517))])


def read(model: SE2Transformer, batch: SubSliceBatch, form: str, precision: torch.dtype = torch.float32):
    model.form = form
    with torch.no_grad(), torch.autocast("cuda", precision, enabled=precision == torch.bfloat16):
        found = model(batch, wanted=pairs_of_tokens(batch))
    return found.cell_repr.double().cpu()[~batch.is_padding.cpu()], found.pair_repr.double().cpu()


def in_float64(model: SE2Transformer, batch: SubSliceBatch):
    """What a CPU computes in 64 bits, places and embeddings those of the batch."""
    numbers = {name: value.double() for name, value in vars(batch).items() if torch.is_tensor(value) and value.is_floating_point()}
    return read(deepcopy(model).double(), SubSliceBatch(**{**vars(batch), **numbers}), "in_place")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_formula_in_64_bits(model, batch, form):
    (cells, pairs), (true_cells, true_pairs) = read(deepcopy(model).cuda(), batch.to("cuda"), form), in_float64(model, batch)
    torch.testing.assert_close(cells, true_cells, atol=FORMS[form], rtol=0)
    torch.testing.assert_close(pairs, true_pairs, atol=FORMS[form], rtol=0)


@pytest.mark.parametrize("form", ["concatenated", "fused"])
def test_half_precision_comes_close(model, batch, form):
    cells, _ = read(deepcopy(model).cuda(), batch.to("cuda"), form, torch.bfloat16)
    true, _ = in_float64(model, batch)
    assert 1 - torch.nn.functional.cosine_similarity(cells, true, dim=-1).min() < MOST_COSINE[torch.bfloat16]


@pytest.mark.parametrize("form", ["concatenated", "in_place"])
def test_every_gradient_is_that_of_a_cpu(model, batch, form):
    def gradients(model: SE2Transformer, batch: SubSliceBatch, form: str) -> dict[str, torch.Tensor]:
        model.form = form
        found = model(batch, wanted=pairs_of_tokens(batch))
        weights = torch.linspace(-1, 1, found.cell_repr.shape[-1], device=found.cell_repr.device)
        (found.cell_repr[~batch.is_padding] @ weights).square().mean().add(found.pair_repr.square().mean()).backward()
        return {name: parameter.grad.cpu() for name, parameter in model.named_parameters() if parameter.grad is not None}

    true, found = gradients(deepcopy(model), batch, "in_place"), gradients(deepcopy(model).cuda(), batch.to("cuda"), form)
    assert found.keys() == true.keys()
    for name, value in true.items():
        assert (found[name] - value).norm() <= 1e-3 * value.norm() + 1e-7, name


def farthest(first: SliceEmbedding, second: SliceEmbedding) -> float:
    """The largest cosine distance of a cell's representations."""
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (found.cell_repr.astype(np.float64) for found in (first, second)))
    return float((1 - (one * other).sum(axis=1)).max())


def test_a_slice_is_embedded_as_on_a_cpu(tiny_run, simulated_paths):
    st_slice = read_slice(SliceSpec(path=str(simulated_paths[0])))
    one, other = (embed_slice(st_slice, load_embedder(tiny_run / "model", device=device)) for device in ("cpu", "cuda"))
    assert farthest(one, other) < MOST_COSINE[torch.float32]


def test_where_memory_of_the_gpu_runs_out_batches_shrink_and_nothing_else_changes(monkeypatch):
    st_slice, vocab = made_up(5_000, 300)
    embedder, sizes, forward = embedder_of(vocab, *SMALL, device="cuda"), [], CellEncoder.forward
    whole = embed_slice(st_slice, embedder)

    def counted(self: CellEncoder, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        return forward(self, tokens)

    monkeypatch.setattr(CellEncoder, "forward", counted)
    monkeypatch.setitem(TOKENS_PER_BATCH, "gpu", 10_000_000)  # all cells at once, 20 MB an array
    torch.cuda.empty_cache()
    room = 100e6
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / torch.cuda.get_device_properties(0).total_memory)
    try:
        found = embed_slice(st_slice, embedder)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert sizes[0] == 5_000 > sizes[-1]
    assert farthest(whole, found) < MOST_COSINE[torch.float32]


def losses(config: PretrainConfig, **environment: str) -> list[dict[str, float]]:
    """Those of every step, of a run in a process of its own."""
    Path(config.out).with_suffix(".yaml").write_text(config.to_yaml(), encoding="utf-8")
    words = [sys.executable, "-c", "from tools.cli import main; main()", "train", Path(config.out).with_suffix(".yaml")]
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line["losses"] for line in read_run_log(Path(config.out) / "losses.jsonl")]


@pytest.mark.parametrize(("precision", "within"), [("no", {"rel": 0.01, "abs": 1e-3}), ("bf16", {"rel": 0.05, "abs": 5e-3})])
def test_training_starts_as_on_a_cpu_and_comes_to_its_end(tiny_run_config, tmp_path, precision, within):
    """Later steps are left out: first steps of AdamW go as far for gradients next to nothing as for others, and runs part."""
    no_dropout = tiny_run_config.se2_transformer.model_copy(update={"dropout": 0.0})  # devices draw other numbers
    every_stage = {"joint_stage": JointStageConfig(max_steps=4), "se2_transformer": no_dropout}
    config = tiny_run_config.model_copy(update={"precision": precision, "log_every": 1, **every_stage})
    on_cpu = losses(config.model_copy(update={"out": str(tmp_path / "cpu")}), CUDA_VISIBLE_DEVICES="")
    on_gpu = losses(config.model_copy(update={"out": str(tmp_path / "gpu")}))
    assert len(on_gpu) == len(on_cpu) == 12
    for step in (0, 4):  # the first of the encoder stage and of the SE(2) stage
        assert on_gpu[step] == pytest.approx(on_cpu[step], **within)
    assert np.isfinite([value for step in on_gpu for value in step.values()]).all()
