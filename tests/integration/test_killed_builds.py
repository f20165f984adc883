"""A build killed with SIGKILL at any moment, and started again, ends with the bytes of a build that was never stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli import contents, write_yaml
from synth import corpus_config


def kill_and_finish(config: Path, out: Path, n_kills: int) -> tuple[int, int]:
    """Kill a build this many times, then let it end; returns kills that hit, and how many states of the folder they left."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed_builds.py"), config, out, str(n_kills), "0"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    n_hits, n_states = map(int, done.stdout.split())
    return n_hits, n_states


@pytest.mark.parametrize("n_kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_a_build_killed_at_random_moments_ends_with_the_same_bytes(n_kills, simulated_paths, tmp_path):
    spoilt = tmp_path / "spoilt.h5ad"
    spoilt.write_bytes(simulated_paths[0].read_bytes()[:5000])
    settings = corpus_config([*simulated_paths, spoilt], tmp_path / "killed")
    config = write_yaml(tmp_path / "build.yaml", settings.model_dump(mode="json"))
    n_hits, n_states = kill_and_finish(config, tmp_path / "killed", n_kills)
    assert n_hits >= n_kills
    assert n_states > 1
    whole, killed = contents(tmp_path / "killed-whole"), contents(tmp_path / "killed")
    assert {name: digest for name, digest in killed.items() if name != "config.yaml"} == {
        name: digest for name, digest in whole.items() if name != "config.yaml"
    }
