"""`stofm plan`: what a run will take on a device, and beside it what it took where it was run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from corpus.store import Corpus
from pretrain.config import PretrainConfig
from pretrain.devices import GB, SHARE, device_named
from pretrain.plan import RunPlan, belongs, disk_gb, facts, plan_run, total_hours
from pretrain.run_log import read_run_log
from stofm.config import load_config
from stofm.errors import ConfigError
from tools.console import console, say


def run_plan(path: Path, overrides: Sequence[str], *, device: str, n_devices: int, share: float | None, as_json: bool) -> None:
    """Print the plan of a run; nothing is started and nothing is written."""
    if share is not None and not 0 < share <= 1:
        raise ConfigError(f"--share: found {share:g}; expected a share of the peak, above 0 and at most 1.")
    if n_devices < 1:
        raise ConfigError(f"--devices: found {n_devices}; expected at least 1.")
    config = load_config(PretrainConfig, path, overrides)
    corpus = Corpus(config.corpus)
    for name, stage in config.stages.items():
        if stage.n_micro_batches % n_devices:
            raise ConfigError(f"{name}.n_micro_batches: found {stage.n_micro_batches} for {n_devices} devices; expected a multiple of their number.")
    hardware = device_named(device, config.precision)
    plan = plan_run(config, corpus, n_devices=n_devices)
    lines = read_run_log(Path(config.out) / "losses.jsonl") if belongs(Path(config.out), corpus) else []
    report = _report(config, plan, facts(lines), hardware, n_devices=n_devices, share=share or SHARE)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        _show(report)


def _report(
    config: PretrainConfig, plan: RunPlan, found: dict[str, dict[str, float]], hardware: Any, *, n_devices: int, share: float
) -> dict[str, Any]:
    per_device = {"precision": config.precision, "n_devices": n_devices}
    stages = [
        asdict(one) | {"hours": one.hours(hardware, share=share, **per_device), "fact": found.get(one.stage)}  # type: ignore[arg-type]
        for one in plan.stages
    ]
    shares = dict.fromkeys((one.stage for one in plan.stages), share)
    out = Path(config.out)
    return {
        "device": asdict(hardware) | {"n": n_devices, "precision": config.precision, "share": share},
        "stages": stages,
        "fits": all(one.memory_gb <= hardware.memory_gb for one in plan.stages),
        "hours": total_hours(plan, hardware, share=shares, **per_device),  # type: ignore[arg-type]
        "disk_gb": plan.disk_gb,
        "disk_gb_free": shutil.disk_usage(next(parent for parent in (out, *out.absolute().parents) if parent.exists())).free / GB,
        "disk_gb_used": disk_gb(out) if found else None,
    }


def _show(report: dict[str, Any]) -> None:
    device = report["device"]
    precision = "fp32" if device["precision"] == "no" else device["precision"]
    peak = f"{device['tflops'][device['precision']]:.3g} TFLOP/s ({precision}; {device['source']})"
    say(f"device: {device['n']} x {device['name']}, {device['memory_gb']:.3g} GB, {peak}; {device['share']:.0%} of it taken to be reached")
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "", "steps", "cells", "tokens", "TFLOP", "memory GB", "hours", "share of peak"):
        table.add_column(column, justify="left" if column in ("stage", "") else "right")
    for one in report["stages"]:
        table.add_row(one["stage"], "plan", f"{one['steps']:,}", _many(one["cells"]), _many(one["tokens"]), f"{one['flops'] / 1e12:.3g}",
                      f"{one['memory_gb']:.2g}", _hours(one["hours"]), f"{device['share']:.2f}")  # fmt: skip
        if (fact := one["fact"]) is not None:
            table.add_row("", "fact", f"{fact['steps']:,}", _many(fact["cells"]), "", "", f"{fact['memory_gb']:.2g}", _hours(fact["hours"]),
                          f"{fact['peak_share']:.2f}")  # fmt: skip
    console.print(table, soft_wrap=False)
    say(f"all stages and embedding the corpus: {_hours(report['hours'])} h")
    used = f", {report['disk_gb_used']:.3g} GB used so far" if report["disk_gb_used"] is not None else ""
    say(f"disk: at most {report['disk_gb']:.3g} GB ({report['disk_gb_free']:.3g} GB free{used})")
    if not report["fits"]:
        say("memory: more than the device has; use fewer cells or sub-slices a micro-batch, or the FSDP recipe in configs/accelerate")
    if report["disk_gb"] > report["disk_gb_free"]:
        say("disk: more than is free; choose another `out`, or keep fewer checkpoints")


def _many(n: float) -> str:
    return f"{n:,.0f}" if n < 1e6 else f"{n / 1e6:,.1f} M"


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours >= 0.01 else f"{hours:.1e}"
