"""The launch recipes in `configs/` are run: accelerate and torchrun themselves, Slurm through stand-ins for its programs."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from cli import succeed, write_yaml
from launching import CONFIGS, SCONTROL, SRUN, TRAINER, environment, free_port, programs, steps_logged, wait_for

from pretrain.run_log import read_run_log

WHO = 'echo "$RANK of ${WORLD_SIZE:-1} $ACCELERATE_USE_CPU"'
SBATCH = CONFIGS / "slurm/pretrain.sbatch"


def launch(name: str, *words: object, **more: object) -> list[str]:
    return ["accelerate", "launch", "--config_file", CONFIGS / "accelerate" / f"{name}.yaml", *map(str, words), "--no_python"]


def test_one_process_is_started_by_the_recipe_for_one():
    done = subprocess.run([*launch("one_process"), "bash", "-c", WHO], env=environment(), capture_output=True, text=True, timeout=600, check=True)
    assert "of 1" in done.stdout


def test_several_processes_are_started_by_the_recipe_for_several():
    command = [*launch("many_processes", "--num_processes", 3), "bash", "-c", WHO]
    done = subprocess.run(command, env=environment(ACCELERATE_USE_CPU=1), capture_output=True, text=True, timeout=600, check=True)
    assert sorted(line.split()[0] for line in done.stdout.splitlines() if " of 3" in line) == ["0", "1", "2"]


def test_two_machines_are_one_group_by_the_recipe_for_machines():
    port = free_port()
    machines = [
        subprocess.Popen(
            [*launch("machines", "--machine_rank", rank, "--main_process_port", port), "bash", "-c", WHO],
            env=environment(ACCELERATE_USE_CPU=1), stdout=subprocess.PIPE, text=True,
        ) for rank in range(2)
    ]  # fmt: skip
    assert [machine.communicate(timeout=600)[0].split()[:3] for machine in machines] == [["0", "of", "2"], ["1", "of", "2"]]


class Job:
    """A job of the batch script, started as Slurm starts it; `folder` takes what the stand-ins note."""

    def __init__(self, folder: Path, *words: object, n_tasks: int = 2, trainer: str | None = TRAINER, **more: object) -> None:
        self.folder = folder
        bin_folder = programs(folder / "bin", srun=SRUN, scontrol=SCONTROL, **({"stofm": trainer} if trainer else {}))
        env = environment(bin_folder, STAND_IN=folder, SLURM_JOB_ID=4711, SLURM_JOB_NODELIST="localhost,other", SLURM_NTASKS=n_tasks, **more)
        (folder / "tasks").unlink(missing_ok=True)
        self.process = subprocess.Popen(["bash", SBATCH, *map(str, words)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def signal_tasks(self, which: signal.Signals) -> None:
        """What `--signal` and a preemption do: the processes of the step get it."""
        for task in (self.folder / "tasks").read_text().split():
            os.kill(int(task), which)

    def end(self, *, seconds: float = 60) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, said

    @property
    def was_requeued(self) -> bool:
        return (self.folder / "requeued").is_file()


def test_the_batch_script_starts_a_trainer_per_task_and_hands_all_words_on(tmp_path):
    job = Job(tmp_path, "a config.yaml", "out=/tmp/a b", n_tasks=3, ENDS_WITH=0)
    assert job.end()[0] == 0
    said = [(tmp_path / f"said-{rank}").read_text() for rank in range(3)]
    assert said == [f"{rank}|{rank}|3|localhost|24711|train|a config.yaml|out=/tmp/a b|" for rank in range(3)]
    assert not job.was_requeued


@pytest.mark.parametrize("which", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_is_told_to_stop_is_queued_again(tmp_path, which):
    job = Job(tmp_path, "c.yaml")
    wait_for(lambda: (tmp_path / "said-1").is_file() and (tmp_path / "tasks").is_file(), seconds=30, process=job.process)
    job.process.send_signal(which)  # the script itself gets it too, and outlives it
    job.signal_tasks(which)
    code, said = job.end()
    assert code == 75
    assert (tmp_path / "requeued").read_text() == "4711\n"
    assert "job 4711 is queued again" in said


@pytest.mark.parametrize("code", [1, 2])
def test_a_job_that_fails_is_not_queued_again(tmp_path, code):
    job = Job(tmp_path, "c.yaml", ENDS_WITH=code)
    assert job.end()[0] == code
    assert not job.was_requeued


@pytest.mark.parametrize("recipe", [SBATCH, CONFIGS / "torchrun/elastic.sh"], ids=lambda path: path.name)
def test_a_recipe_without_a_configuration_says_how_it_is_used(recipe):
    done = subprocess.run(["bash", recipe], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


@pytest.fixture(scope="module")
def config(tiny_run_config, tmp_path_factory) -> Path:
    settings = tiny_run_config.model_dump(mode="json") | {"log_every": 1, "save_every": 3}
    for stage in ("encoder_stage", "se2_stage"):
        settings[stage] |= {"max_steps": 12, "epochs": 80.0, "n_micro_batches": 2}
    return write_yaml(tmp_path_factory.mktemp("launch") / "train.yaml", settings)


@pytest.fixture(scope="module")
def never_stopped(config) -> list[dict]:
    """The log of one process that ran to its end."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    succeed("train", config, f"out={config.parent / 'one'}")
    torch.set_num_threads(n_threads)
    return read_run_log(config.parent / "one/losses.jsonl")


def assert_same_losses(run: Path, expected: list[dict]) -> None:
    found = read_run_log(run / "losses.jsonl")
    assert [(line["stage"], line["step"]) for line in found] == [(line["stage"], line["step"]) for line in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["losses"] == pytest.approx(theirs["losses"], abs=1e-5)
    assert (run / "model/model.json").is_file()


@pytest.mark.slow
def test_a_preempted_job_goes_on_when_it_is_started_again(config, never_stopped, tmp_path):
    run = config.parent / "slurm"
    job = Job(tmp_path, config, f"out={run}", trainer=None)
    wait_for(lambda: steps_logged(run, "encoder") >= 4, seconds=600, process=job.process)
    job.signal_tasks(signal.SIGUSR1)
    code, said = job.end(seconds=300)
    assert code == 75, said
    assert job.was_requeued
    assert steps_logged(run, "se2") == 0
    code, said = Job(tmp_path, config, f"out={run}", trainer=None).end(seconds=900)
    assert code == 0, said
    assert_same_losses(run, never_stopped)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many_processes", "machines"])
def test_a_recipe_of_accelerate_trains_what_one_process_trains(name, config, never_stopped):
    run, port = config.parent / name, free_port()
    more = [["--machine_rank", rank, "--main_process_port", port] for rank in range(2)] if name == "machines" else [["--num_processes", 2]]
    launchers = [
        subprocess.Popen([*launch(name, *words), "stofm", "train", config, f"out={run}"], env=environment(ACCELERATE_USE_CPU=1)) for words in more
    ]
    assert [launcher.wait(timeout=900) for launcher in launchers] == [0] * len(launchers)
    assert_same_losses(run, never_stopped)


@pytest.mark.slow
def test_the_recipe_for_models_in_parts_trains_what_one_process_trains(config):
    """At a rate that lets rounding grow little: parts of a model add up the norm of its gradient in another order."""
    rates = [f"{stage}.optim.lr=1e-5" for stage in ("encoder_stage", "se2_stage")]
    one, run = config.parent / "slow", config.parent / "fsdp"
    succeed("train", config, f"out={one}", *rates)
    command = [*launch("fsdp", "--num_processes", 2), "stofm", "train", str(config), f"out={run}", "sharding=fsdp2", *rates]
    subprocess.run(command, env=environment(ACCELERATE_USE_CPU=1), check=True, timeout=900)
    assert_same_losses(run, read_run_log(one / "losses.jsonl"))


@pytest.mark.slow
def test_torchrun_restarts_after_a_process_died_and_ends_with_the_same_losses(config, never_stopped):
    run = config.parent / "elastic"
    env = environment(PROCESSES=2, PORT=free_port())
    launcher = subprocess.Popen(["bash", CONFIGS / "torchrun/elastic.sh", config, f"out={run}"], env=env)
    wait_for(lambda: steps_logged(run, "encoder") >= 4, seconds=600, process=launcher)
    workers = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    assert launcher.wait(timeout=900) == 0
    assert_same_losses(run, never_stopped)
