"""What a measurement was made on, in one line."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pyro
import torch

#: Instructions that decide how fast float32 matrices are multiplied, by their names in /proc/cpuinfo.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "sve", "asimd")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Its name, which of :data:`INSTRUCTIONS` it has, and how many cores there are to use."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    known = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = (known.get("flags") or known.get("Features") or "").split()
    family = f"family {known['cpu family']} model {known['model']}" if "cpu family" in known else ""
    name = known.get("model name") or platform.processor() or platform.machine()
    found = [flag for flag in INSTRUCTIONS if flag in flags]
    return ", ".join(filter(None, [name, family, " ".join(found), f"{cores()} cores"]))


def describe(device: str) -> str:
    """Versions and processor, and the accelerator where one is used."""
    parts = [f"torch {torch.__version__}", f"Pyro {pyro.__version__}"]
    parts += [f"Python {platform.python_version()}", processor()]
    if device.startswith("cuda"):
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join(parts)
