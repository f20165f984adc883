"""`stofm train`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.config import PretrainConfig
from stofm.config import load_config
from tools.console import is_main_process, say, step_bar, tracking

if TYPE_CHECKING:
    from pretrain.callbacks import Callbacks


def run_train(path: Path, overrides: Sequence[str]) -> None:
    """Run or finish the pretraining that a configuration describes."""
    train_and_report(load_config(PretrainConfig, path, overrides))


def train_and_report(config: PretrainConfig) -> Path:
    """Pretrain under a progress bar, draw the loss curves, and say where the model is; returns its folder."""
    from downstream.plots import plot_losses
    from pretrain.run_log import read_run_log
    from pretrain.train import train

    with training_callbacks() as callbacks:
        model = train(config, callbacks)
    if is_main_process():
        curves = Path(config.out) / "losses.png"
        plot_losses(read_run_log(Path(config.out) / "losses.jsonl"), curves)
        say(f"model: {model}")
        say(f"loss curves: {curves}")
    return model


@contextmanager
def training_callbacks() -> Iterator[Callbacks]:
    """What a person sees while a model is trained: a progress bar, or a few lines a stage where there is no terminal."""
    from pretrain.callbacks import Callbacks, Progress
    from tools.frozen_probe import probe_validation

    with step_bar() as bar:
        tasks = {}

        def on_step(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bar.add_task(f"{progress.stage} stage", total=progress.n_steps, losses="")
            losses = "  ".join(f"{name} {value:.4f}" for name, value in progress.losses.items())
            bar.update(tasks[progress.stage], completed=progress.step, losses=losses)
            if progress.step % max(1, progress.n_steps // 5) == 0 and not bar.console.is_terminal:
                say(f"  {progress.stage} stage, step {progress.step} of {progress.n_steps}: {losses}")

        yield Callbacks(on_step=on_step, track=tracking, report=say, probe=probe_validation)
