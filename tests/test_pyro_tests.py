"""``scripts/pyro_tests.py``: sorts tests by how they end, and Pyro's own tests pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

#: One test for each way to end, and two that do not concern these objectives.
TESTS = """
import pyro, pytest, torch, warnings
import pyro.distributions as dist
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO

def model():
    z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

def guide():
    pyro.sample("z", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))

def wrong(objective, match=None):
    with pytest.raises(ValueError, match=match):
        objective.loss(model, model)

@pytest.mark.parametrize("Elbo", [Trace_ELBO, TraceEnum_ELBO])
def test_passed(Elbo):
    assert type(Elbo()).__mro__[1].__name__ == "VariationalBound"  # wrong for the one that is left out

def test_left_out():
    TraceEnum_ELBO(num_particles=0)
    assert False

def test_refused():
    RenyiELBO(alpha=0.5)

def test_reworded():
    wrong(Trace_ELBO(strict_enumeration_warning=False), match="something else")

def test_accepted():
    with pytest.raises(ValueError):
        Trace_ELBO(2, vectorize_particles=True).loss(model, guide)

def test_failed():
    Trace_ELBO().loss(model, guide)
    warnings.warn("of this kind")
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PROJECT / "scripts" / "pyro_tests.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)


def counts(output: str, name: str) -> list[int]:
    """A row of the table: passed, refused, reworded, accepted, failed, all."""
    (row,) = re.findall(rf"^{name} +(\d.*)$", output, re.MULTILINE)
    return list(map(int, row.split()))


def test_every_test_ends_in_one_of_five_ways(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "infer"
    folder.mkdir(parents=True)
    (tmp_path / "setup.cfg").write_text("[tool:pytest]\nfilterwarnings = error\n")
    for name in ("gradient", "multi_sample_elbos", "elbo_mapdata"):
        (folder / f"test_{name}.py").write_text("")
    (folder / "test_valid_models.py").write_text(TESTS)
    output = run(tmp_path).stdout
    assert counts(output, "test_valid_models") == counts(output, "all") == [1, 1, 1, 1, 1, 5]
    assert "RenyiELBO" in output and "of this kind" in output and "something else" in output


def test_a_folder_without_the_tests_is_named(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 1
    assert "test_gradient.py is missing: give a checkout of Pyro's repository" in done.stderr


@pytest.mark.skipif(
    "PYRO_SOURCE" not in os.environ, reason="PYRO_SOURCE names no checkout of Pyro 1.9.2"
)
def test_pyros_own_tests_pass() -> None:
    output = run(os.environ["PYRO_SOURCE"]).stdout
    assert counts(output, "all")[3:5] == [0, 0], output  # nothing is accepted wrongly, nothing fails
