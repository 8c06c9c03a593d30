"""NVIDIA's Multi-Process Service (MPS), with which processes compute on one GPU at the same time.

Without it they take turns. It needs no rights and changes no setting of the GPU: a daemon is started in
folders of our own, and ended with the study. See https://docs.nvidia.com/deploy/mps.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from wsram_ppl.errors import one_line

__all__ = ["multi_process_service"]

_PROGRAM: Final = "nvidia-cuda-mps-control"
_PIPES: Final = "CUDA_MPS_PIPE_DIRECTORY"
_LOGS: Final = "CUDA_MPS_LOG_DIRECTORY"
_GAIN: Final = "six runs on an H200 made 1,570 updates per second with it, 537 without"
#: Seconds for the program to answer.
_PATIENCE: Final = 30.0


@contextmanager
def multi_process_service(note: Callable[[str], None]) -> Iterator[Mapping[str, str]]:
    """Entered while several processes share a GPU.

    One that the user has started is left alone. Where it cannot be started, a note says so, and what it
    would bring.

    Yields:
        The variables by which a process finds the service; none where it is not ours.
    """
    if _PIPES in os.environ:
        note(f"MPS of {_PIPES} = {os.environ[_PIPES]} is used as it is")
        yield {}
        return
    program = shutil.which(_PROGRAM)
    if program is None:
        note(f"the runs take turns on the GPU: NVIDIA's MPS is not there (no {_PROGRAM}; {_GAIN})")
        yield {}
        return
    folder = Path(tempfile.mkdtemp(prefix="wsram-mps-"))
    variables = {_PIPES: str(folder), _LOGS: str(folder)}
    problem = _call([program, "-d"], variables)
    if problem:
        note(f"the runs take turns on the GPU: NVIDIA's MPS did not start ({problem}; {_GAIN})")
        shutil.rmtree(folder, ignore_errors=True)
        yield {}
        return
    try:
        note(f"the runs share the GPU by NVIDIA's MPS, started in {folder} and ended with them")
        yield variables
    finally:
        problem = _call([program], variables, "quit\n")
        if problem:
            end = f"echo quit | {_PIPES}={folder} {_PROGRAM}"
            note(f"NVIDIA's MPS did not end ({problem}): this ends it: {end}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _call(command: list[str], variables: Mapping[str, str], text: str = "") -> str:
    """Runs the program; what went wrong, "" if nothing did."""
    # Into a file: the daemon keeps its output open, and a pipe would wait for it.
    with tempfile.TemporaryFile("w+") as said:
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **variables},
                input=text,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_PATIENCE,
                start_new_session=True,  # Ctrl-C is for this process alone
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return one_line(error)
        if done.returncode == 0:
            return ""
        said.seek(0)
        lines = said.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {done.returncode}"
