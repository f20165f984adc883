"""`stofm demo`: the whole path on simulated slices, by the same functions and settings files as a real run."""

from __future__ import annotations

from pathlib import Path

from corpus.build import CorpusConfig
from corpus.scales import ScaleConfig
from corpus.simulate import SimulationConfig, simulate_slices
from corpus.slice import SliceSpec
from corpus.sub_slices import SubSliceConfig
from downstream.embedding import EmbedOptions, write_table
from downstream.evaluate import EvaluateConfig, TaskConfig, evaluate
from pretrain.config import EncoderStageConfig, OptimConfig, PretrainConfig, SE2StageConfig
from stofm.cell_encoder import CellEncoderConfig
from stofm.durable import claim_folder, write_text
from stofm.se2_transformer import SE2TransformerConfig
from tools.build import build_and_report
from tools.console import say, tracking
from tools.embed import run_embed
from tools.heads import run_fit, run_predict
from tools.report import run_report
from tools.specs import slice_specs
from tools.train import train_and_report

DEMO_KIND = "stofm-demo/1"
N_TRAINING = 4  # slices of the corpus; one more is never seen in training


def run_demo(out: Path, *, seed: int) -> None:
    """Simulate, build, train, embed, segment, annotate and evaluate; what is done already is not done again."""
    claim_folder(out, DEMO_KIND)
    world = SimulationConfig(n_slices=N_TRAINING + 1, n_cells=1500, seed=seed)
    paths = [out / "slices" / f"slice_{number}.h5ad" for number in range(world.n_slices)]
    with tracking(f"simulating {world.n_slices} slices of {world.n_cells} cells"):
        for path, table in zip(paths, simulate_slices(world), strict=True):
            if not path.is_file():
                write_table(table, path)
    training, unseen = paths[:-1], paths[-1:]

    corpus = corpus_config(out / "corpus", training)
    _step(out, "build", corpus.to_yaml())
    build_and_report(corpus)

    run = pretrain_config(out / "corpus", out / "run", seed=seed)
    _step(out, "train", run.to_yaml())
    model = train_and_report(run)

    say(f"\nstofm embed {out}/slices/*.h5ad --model {model} --out {out}/embedded")
    embedded = run_embed(slice_specs(paths), model, out / "embedded", options=EmbedOptions(keep_cell_embeddings=True))
    for verb, task in (("segment", "region"), ("annotate", "cell_type")):
        say(f"\nstofm {verb} fit {out}/embedded/slice_[0-{N_TRAINING - 1}].h5ad --out {out}/{task}_head")
        run_fit(embedded[:-1], out / f"{task}_head", task=task, label=task, kind="linear", overwrite=True)  # type: ignore[arg-type]
        say(f"\nstofm {verb} predict {embedded[-1]} --head {out}/{task}_head --out {out}/predicted_{task}")
        run_predict(embedded[-1:], out / f"{task}_head", out / f"predicted_{task}", task=task, overwrite=True)  # type: ignore[arg-type]

    comparison = evaluate_config(model, out / "evaluation", training, unseen)
    _step(out, "evaluate", comparison.to_yaml())
    say(evaluate(comparison, overwrite=True, track=tracking).read_text(encoding="utf-8"))
    say(f"regions of the unseen slice:    {out}/predicted_region/{unseen[0].stem}_region.png")
    say(f"cell types of the unseen slice: {out}/predicted_cell_type/{unseen[0].stem}_cell_type.png")
    say(f"loss curves: {out}/run/losses.png      model: {model}      table: {out}/evaluation/table.md")
    run_report(out / "predicted_region" / unseen[0].name, out / "slice_report.html", genes=[])
    run_report(out / "run", out / "run_report.html", genes=[])


def corpus_config(out: Path, slices: list[Path]) -> CorpusConfig:
    """Settings of the demo's corpus."""
    scales = ScaleConfig(sub_slices=SubSliceConfig(n_cells=500))
    return CorpusConfig(out=str(out), slices=[SliceSpec(path=str(path)) for path in slices], scales=scales)


def pretrain_config(corpus: Path, out: Path, *, seed: int) -> PretrainConfig:
    """Settings of the demo's training: minutes on two cores."""
    return PretrainConfig(
        corpus=str(corpus),
        out=str(out),
        seed=seed,
        cell_encoder=CellEncoderConfig(n_layers=1, width=128, ffn_dim=256),
        encoder_stage=EncoderStageConfig(epochs=1, optim=OptimConfig(lr=1e-4)),
        se2_transformer=SE2TransformerConfig(n_layers=2),
        se2_stage=SE2StageConfig(epochs=8, optim=OptimConfig(lr=1e-3)),
        log_every=1,
    )


def evaluate_config(model: Path, out: Path, training: list[Path], unseen: list[Path]) -> EvaluateConfig:
    """Settings of the demo's comparison."""
    slices = [SliceSpec(path=str(path)) for path in training + unseen]
    return EvaluateConfig(
        model=str(model),
        out=str(out),
        allow_seen=[path.stem for path in training],
        tasks=[TaskConfig(name="region", task="region", slices=slices), TaskConfig(name="cell_type", task="cell_type", slices=slices)],
    )


def _step(out: Path, verb: str, settings: str) -> None:
    """Keep the settings of a step, and show the command that does the same."""
    write_text(out / f"{verb}.yaml", settings)
    say(f"\nstofm {verb} {out}/{verb}.yaml")
