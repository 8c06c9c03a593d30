"""What a run was made with, for the record: versions, the commit, the machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Final

import numpy as np
import pyro
import torch

import wsram_ppl

__all__ = ["environment"]

_ROOT: Final = Path(wsram_ppl.__file__).resolve().parents[1]


def environment(device: torch.device | None = None) -> dict[str, str]:
    """Versions and the machine.

    Args:
        device: that the work is done on; by default the CPU.

    Returns:
        By name. ``commit`` is there only where the package lies in a git checkout, and ends in
        ``-dirty`` if files in it were changed.
    """
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        usable = os.cpu_count() or 1
    on_gpu = device is not None and device.type == "cuda"
    commit = _commit(_ROOT)
    return {
        "wsram_ppl": wsram_ppl.__version__,
        **({} if commit is None else {"commit": commit}),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "processor": _processor(),
        "cores": str(usable),
    }


@functools.cache
def _commit(root: Path) -> str | None:
    """The commit of a checkout as this process found it first; None for a folder that is none."""
    if not (root / ".git").exists():  # an installed package may lie in a checkout of something else
        return None
    # No lock, so that several processes may ask at once.
    git = ["git", "--no-optional-locks", "-C", str(root)]
    ask = functools.partial(subprocess.run, capture_output=True, text=True, check=True, timeout=30)
    try:
        commit = ask([*git, "rev-parse", "HEAD"]).stdout.strip()
        changed = ask([*git, "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit


@functools.cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
