"""Builds the wheel and checks that it holds the library and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NEEDED = [
    "wsram_ppl/py.typed",
    "wsram_ppl/objectives/wake_sleep.py",
    "wsram_ppl/studies/report.html.jinja",
    "wsram_ppl/data/digits.npz",
]
LARGEST = 4 * 2**20


def _left_behind(folder: str, names: list[str]) -> set[str]:
    """What is no source: environments, runs, data and earlier builds at the top, caches anywhere."""
    left = {name for name in names if name == "__pycache__" or name.endswith(".egg-info")}
    if Path(folder) == ROOT:
        left |= {name for name in names if name.startswith(".")}
        left |= {"build", "dist", "runs", "studies", "data"} & set(names)
    return left


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        # From a copy: a build leaves files behind, which would get into the wheel of the next.
        source = shutil.copytree(ROOT, Path(folder) / "source", ignore=_left_behind)
        # Not isolated: the build needs only setuptools, which the test extras bring.
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
        built = subprocess.run(command, cwd=source, capture_output=True, text=True)
        if built.returncode:
            print(built.stdout + built.stderr, file=sys.stderr)
            return 1
        (wheel,) = Path(folder).glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        size = wheel.stat().st_size
    stray = [name for name in names if not name.startswith(("wsram_ppl/", "wsram_ppl-"))]
    missing = [name for name in NEEDED if name not in names]
    for problem, found in (("does not belong in", stray), ("is missing from", missing)):
        for name in found:
            print(f"{name} {problem} the wheel", file=sys.stderr)
    if size > LARGEST:
        print(f"the wheel has {size} bytes, more than {LARGEST}", file=sys.stderr)
    print(f"wheel: {len(names)} files, {size / 2**20:.1f} MiB, only wsram_ppl")
    return 1 if stray or missing or size > LARGEST else 0


if __name__ == "__main__":
    sys.exit(main())
