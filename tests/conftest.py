"""What every test starts from: one thread, and nothing left over from another."""

from __future__ import annotations

import logging
import signal
from collections.abc import Generator, Iterator
from typing import Any

import pyro
import pytest
import torch
from hypothesis import HealthCheck, settings

# A busy machine makes no example wrong, nor any too slow to be drawn.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# What a shell leaves in the background is deaf to Ctrl-C, what nohup starts to the end of a terminal,
# and so would be what tests start.
for number, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny tensor operations: several threads on busy cores make them many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def no_fake_devices() -> None:
    """Autograd counts devices at its first use. Were one of a test's fake GPUs among them, it would
    start threads, and no process that is forked later could train."""
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def empty_parameter_store() -> None:
    pyro.clear_param_store()


@pytest.fixture(autouse=True)
def quiet_log() -> Iterator[None]:
    """The command, called within a test, sets up the package's log for its whole process."""
    log = logging.getLogger("wsram_ppl")
    level, handlers = log.level, [*log.handlers]
    yield
    log.setLevel(level)
    log.handlers[:] = handlers


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """What a test says may hold names that are no UTF-8, which pytest-xdist could not send."""
    return encodable((yield))


def encodable(value: Any) -> Any:
    """The same, with escapes in the place of what UTF-8 has no characters for."""
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case dict():
            return {encodable(key): encodable(each) for key, each in value.items()}
        case list() | tuple():
            return type(value)(map(encodable, value))
        case _:
            return value
