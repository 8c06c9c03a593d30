"""What every test starts from: one thread, and nothing left over in Pyro's parameter store."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pytest
import torch
from hypothesis import settings

# A busy machine makes no example wrong.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


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
