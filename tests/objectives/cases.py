"""Random problems for hypothesis, and gradients by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from wsram_ppl.testing.enumeration import Problem, random_problem

#: More tuples than this are not enumerated.
MOST_TUPLES = 1300


def examples(count: int) -> settings:
    """How many problems a property is tried on."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=checks)


@st.composite
def cases(
    draw: st.DrawFn,
    least: int = 1,
    most: int = 3,
    any_order: bool = True,
    share: st.SearchStrategy[float] | None = None,
    noisy: bool = True,
) -> tuple[Problem, int]:
    """A problem and a number of particles, small enough that all tuples can be listed.

    Args:
        least, most: particles.
        any_order: whether the guide's order may differ from the model's.
        share: of the posterior in the proposal; by default the prior, the posterior or between.
        noisy: whether the proposal may lie off the line from prior to posterior.
    """
    sizes = draw(st.lists(st.integers(2, 3), min_size=1, max_size=3))
    values = 1
    for size in sizes:
        values *= size
    particles = draw(st.sampled_from([m for m in range(least, most + 1) if values**m <= MOST_TUPLES]))
    order = draw(st.permutations(range(len(sizes)))) if any_order else range(len(sizes))
    observed = draw(st.sets(st.integers(0, len(sizes)), min_size=1))
    if share is None:
        share = st.sampled_from([0.0, 0.3, 0.7, 1.0])
    problem = random_problem(
        sizes,
        order,
        observed,
        draw(share),
        draw(st.sampled_from([0.0, 0.5])) if noisy else 0.0,
        draw(st.sampled_from([0.5, 1.5])),
        draw(st.integers(0, 2**16)),
    )
    return problem, particles


def gradients(value: Tensor, p: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a value in parameters by name; zeros where it does not depend on one."""
    found = torch.autograd.grad(value, list(p.values()), allow_unused=True)
    return {
        name: torch.zeros_like(v) if g is None else g
        for (name, v), g in zip(p.items(), found, strict=True)
    }


def assert_close(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: Iterable[str], tolerance: float
) -> None:
    """Elementwise equality of what is named, absolute or relative."""
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)
