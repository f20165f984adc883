"""Devices that a run can be planned for: memory, and the peak of their matrix products as their makers state it, without sparsity."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from pretrain.telemetry import peak_flops
from stofm.errors import ConfigError

THIS_CPU = "cpu"
GB, TERA = 1e9, 1e12
SHARE = 0.3  # of the peak that training is taken to reach, where nobody measured it; a run's log says what it reached


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes
    ----------
    memory_gb : float
    tflops : {precision: 10^12 operations a second}
        "no" is float32 proper (torch leaves TF32 off), "bf16" with float32 sums; a device without bf16 has "no" alone.
    source : str
    """

    name: str
    memory_gb: float
    tflops: dict[str, float]
    source: str


DEVICES = {
    device.name: device
    for device in (
        Device("t4", 16, {"no": 8.1}, "NVIDIA T4 data sheet, 2019"),
        Device("v100", 32, {"no": 15.7}, "NVIDIA V100 SXM2 data sheet, 2020"),
        Device("rtx3090", 24, {"no": 35.6, "bf16": 71}, "NVIDIA Ampere GA102 white paper, 2021"),
        Device("rtx4090", 24, {"no": 82.6, "bf16": 165.2}, "NVIDIA Ada white paper, 2023"),
        Device("l4", 24, {"no": 30.3, "bf16": 121}, "NVIDIA L4 data sheet, 2023; half of what it states with sparsity"),
        Device("l40s", 48, {"no": 91.6, "bf16": 362}, "NVIDIA L40S data sheet, 2023"),
        Device("a100-40gb", 40, {"no": 19.5, "bf16": 312}, "NVIDIA A100 data sheet, 2021"),
        Device("a100-80gb", 80, {"no": 19.5, "bf16": 312}, "NVIDIA A100 data sheet, 2021"),
        Device("h100", 80, {"no": 67, "bf16": 989}, "NVIDIA H100 SXM data sheet, 2023; half of what it states with sparsity"),
        Device("h200", 141, {"no": 67, "bf16": 989}, "NVIDIA H200 SXM data sheet, 2024; half of what it states with sparsity"),
    )
}


def device_named(name: str, precision: str) -> Device:
    """Return a device of the table, or this machine's CPU, whose peak is measured by a short matrix product.

    Raises
    ------
    ConfigError
        If there is no such device, or it knows no such precision.
    """
    if name == THIS_CPU:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
        peak = peak_flops(torch.device("cpu"), dtype) / TERA
        return Device(THIS_CPU, memory, {precision: peak}, f"a product of matrices on {torch.get_num_threads()} threads, measured now")
    if name not in DEVICES:
        raise ConfigError(f"--device: found {name!r}; expected one of {', '.join([THIS_CPU, *DEVICES])}.")
    if precision not in DEVICES[name].tflops:
        raise ConfigError(f"--device: {name} has no {precision}; expected a precision that it has. Set `precision: no`, or take another device.")
    return DEVICES[name]
