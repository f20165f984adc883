"""One of two "machines" dies and comes back: two network namespaces of this host, joined by a virtual cable, each with its own torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import CONFIGS, environment, steps_logged, wait_for
from test_launch import assert_same_losses, config, never_stopped  # noqa: F401 - fixtures

ADDRESSES = ("10.77.0.1", "10.77.0.2")


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """The names of two namespaces that reach each other; skipped where they cannot be made."""
    tag = uuid.uuid4().hex[:6]
    names = [f"stofm-{tag}-{number}" for number in range(2)]
    commands = [
        *(f"ip netns add {name}" for name in names),
        f"ip link add v{tag}0 type veth peer name v{tag}1",
        *(f"ip link set v{tag}{number} netns {name} name eth0" for number, name in enumerate(names)),
        *(f"ip -n {name} addr add {address}/24 dev eth0" for name, address in zip(names, ADDRESSES, strict=True)),
        *(f"ip -n {name} link set {device} up" for name in names for device in ("lo", "eth0")),
    ]
    try:
        for command in commands:
            try:
                subprocess.run(command.split(), capture_output=True, text=True, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"network namespaces: {command!r} failed ({getattr(error, 'stderr', None) or error}); they need root and iproute2")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def machine(name: str, address: str, settings: Path, run: Path) -> subprocess.Popen:
    """Start the elastic recipe on a machine, in a session of its own so that all of it can be lost at once."""
    env = environment(NODES=2, HOST=ADDRESSES[0], ADDRESS=address, GLOO_SOCKET_IFNAME="eth0")
    command = ["ip", "netns", "exec", name, "bash", str(CONFIGS / "torchrun/elastic.sh"), str(settings), f"out={run}"]
    return subprocess.Popen(command, env=env, start_new_session=True)


def processes_in(name: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    return [int(pid) for pid in found.stdout.split()]


def lose(name: str) -> None:
    """Power off: every process of the machine is gone."""
    for pid in processes_in(name):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.slow
def test_a_run_outlives_the_loss_of_a_machine_and_ends_with_the_same_losses(machines, config, never_stopped):  # noqa: F811
    run = config.parent / "two"
    first, second = (machine(name, address, config, run) for name, address in zip(machines, ADDRESSES, strict=True))
    try:
        wait_for(lambda: steps_logged(run, "encoder") >= 4, seconds=600, process=first)
        lose(machines[1])
        assert second.wait(timeout=60) != 0
        assert first.poll() is None, "the machine that is left waits for the other one"
        second = machine(machines[1], ADDRESSES[1], config, run)
        assert [first.wait(timeout=1200), second.wait(timeout=60)] == [0, 0]
    finally:
        for name in machines:
            lose(name)
    assert_same_losses(run, never_stopped)
