"""Runs Pyro's own tests of its objectives with the objectives of this package in their place.

    python scripts/pyro_tests.py CHECKOUT [--select EXPRESSION]

CHECKOUT is the source of Pyro 1.9.2 with its tests (which the archive on PyPI lacks). It is only read.
A pytest plugin replaces these names of ``pyro.infer`` before the tests are collected:

    =====================  =========================================================================
    Trace_ELBO             VariationalBound(pathwise=True): reparameterised wherever Pyro would
    TraceGraph_ELBO        the same
    TraceMeanField_ELBO    the same (Pyro's takes some KL divergences in closed form)
    RenyiELBO              ImportanceBound(pathwise=True); any ``alpha`` except 0 is refused
    ReweightedWakeSleep    WakeSleep("adaptive"); no ``num_sleep_particles``, no ``model_has_params``
    =====================  =========================================================================

``num_particles`` (with Pyro's default), ``max_plate_nesting``, ``vectorize_particles``, ``retain_graph``
and ``insomnia`` are passed on; ``strict_enumeration_warning``, ``jit_options``, ``ignore_jit_warnings``
and ``tail_adaptive_beta`` have no meaning here and are dropped. Tests that create none of these objects
are left out: enumeration (``TraceEnum_ELBO``, ``TraceTMC_ELBO``), energy distances, compilation. So is
the one test that expects TraceMeanField_ELBO's own warning.

Every test has one of these results:

    passed    as with Pyro's own objective
    refused   this package raises its own error, saying that this is not supported
    reworded  a program that Pyro refuses is refused here too, with a message that the test does not know
    accepted  a program that Pyro refuses can be trained here
    failed    anything else: a wrong number, a warning, an internal error
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pyro.infer
import pytest

import wsram_ppl
from wsram_ppl.errors import one_line
from wsram_ppl.objectives import ImportanceBound, Objective, VariationalBound, WakeSleep

FILES = ("test_gradient", "test_multi_sample_elbos", "test_valid_models", "test_elbo_mapdata")
OUTCOMES = ("passed", "refused", "reworded", "accepted", "failed")
PASSED_ON = {"num_particles", "max_plate_nesting", "vectorize_particles", "retain_graph", "insomnia"}
DROPPED = {"strict_enumeration_warning", "jit_options", "ignore_jit_warnings", "tail_adaptive_beta"}
#: It expects a warning that Pyro's closed-form divergences need the guide in the model's order.
WITHOUT_MEANING = "test_mean_field_warn"
PATHWISE: dict[str, Any] = {"pathwise": True}
OURS: dict[str, tuple[type[Objective], dict[str, Any]]] = {
    "Trace_ELBO": (VariationalBound, PATHWISE),
    "TraceGraph_ELBO": (VariationalBound, PATHWISE),
    "TraceMeanField_ELBO": (VariationalBound, PATHWISE),
    "RenyiELBO": (ImportanceBound, PATHWISE),
    "ReweightedWakeSleep": (WakeSleep, {"control_variate": "adaptive"}),
}


def stand_in(name: str, ours: type[Objective], options: dict[str, Any]) -> type[Objective]:
    """``ours`` under Pyro's name and with the arguments of Pyro's class."""
    signature = inspect.signature(getattr(pyro.infer, name))

    def __init__(self: Objective, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        handed_on = dict(options)
        for key, value in bound.arguments.items():
            if key in PASSED_ON:
                handed_on[key] = value
            elif key not in DROPPED and value != signature.parameters[key].default:
                raise NotImplementedError(f"{ours.__name__} has no {key}, unlike {name}")
        ours.__init__(self, **handed_on)

    return type(name, (ours,), {"__init__": __init__})


def makes_one(what: Any) -> bool:
    """Whether an argument of a test is a replacement, or a function that calls one by name."""
    named = [what]
    if isinstance(what, FunctionType):
        named = [what.__globals__.get(name) for name in what.__code__.co_names]
    return any(isinstance(each, type) and issubclass(each, Objective) for each in named)


class Gate:
    """The plugin: replaces the objectives, selects the tests that use one, and classifies results."""

    def __init__(self) -> None:
        self.ends: dict[str, tuple[str, str]] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        for name, (ours, options) in OURS.items():
            setattr(pyro.infer, name, stand_in(name, ours, options))

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        left_out = [item for item in items if not self._concerns_us(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]

    def _concerns_us(self, item: pytest.Item) -> bool:
        assert isinstance(item, pytest.Function)
        if item.originalname == WITHOUT_MEANING:
            return False
        arguments = item.callspec.params if hasattr(item, "callspec") else {}
        objectives = [value for name, value in arguments.items() if name == "Elbo"]
        return any(map(makes_one, objectives or [item.function]))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Iterator[None]:
        report: Any = yield
        error = call.excinfo
        if error is None and call.when == "call":
            self.ends[item.nodeid] = ("passed", "")
        elif error is not None and not error.errisinstance(pytest.skip.Exception):
            self.ends[item.nodeid] = (end_of(error), one_line(error.value))
        return report


def end_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The result of a test that did not pass."""
    text = str(error.value)
    if error.errisinstance(pytest.fail.Exception) and text.startswith("DID NOT RAISE"):
        return "accepted"
    if text.startswith("Regex pattern did not match"):
        return "reworded"
    if error.errisinstance(pytest.xfail.Exception):  # raised NotImplementedError
        return "refused"
    home = Path(error.traceback[-1].path)
    ours = Path(__file__), *Path(wsram_ppl.__file__).parent.rglob("*.py")
    if error.errisinstance((ValueError, NotImplementedError)) and home in ours:
        return "refused"
    return "failed"


def run(checkout: Path, select: str = "") -> dict[str, tuple[str, str]]:
    """The result of each test, and the first line of its error.

    Raises:
        SystemExit: a test is missing, or pytest could not run them.
    """
    paths = [checkout / "tests" / "infer" / f"{name}.py" for name in FILES]
    for path in paths:
        if not path.exists():
            raise SystemExit(f"{path} is missing: give a checkout of Pyro's repository with its tests")
    gate = Gate()
    options = ["-c", str(checkout / "setup.cfg"), "--rootdir", str(checkout), "-p", "no:cacheprovider"]
    found = os.getcwd()
    os.chdir(checkout)
    try:
        code = pytest.main(
            [*options, "-qq", "--tb=no", "--no-summary", "-k", select, *map(str, paths)], plugins=[gate]
        )
    finally:
        os.chdir(found)
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"pytest could not run the tests ({code!r})")
    return gate.ends


def main() -> None:
    parser = argparse.ArgumentParser(description="Pyro's tests with the objectives of this package.")
    parser.add_argument("checkout", type=Path, help="Pyro 1.9.2's source with its tests")
    parser.add_argument("--select", default="", help="pytest's -k: only these tests")
    options = parser.parse_args()
    sys.dont_write_bytecode = True  # the checkout is only read
    ends = run(options.checkout.resolve(), options.select)
    print()
    for outcome in OUTCOMES[1:]:
        listed = [(test, cause) for test, (end, cause) in ends.items() if end == outcome]
        for test, cause in listed:
            print(f"{outcome:<9} {test.removeprefix('tests/infer/')}\n{'':<10}{cause}")
    print(f"\n{'':<28}" + "".join(f"{name:>9}" for name in (*OUTCOMES, "all")))
    for name in (*FILES, ""):
        counts = Counter(end for test, (end, _) in ends.items() if f"/{name}" in test)
        row = [counts[outcome] for outcome in OUTCOMES]
        print(f"{name or 'all':<28}" + "".join(f"{count:>9}" for count in (*row, sum(row))))


if __name__ == "__main__":
    main()
