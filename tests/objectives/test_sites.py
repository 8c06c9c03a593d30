"""Which sites of a program have a density, and what it is without its handlers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from wsram_ppl.objectives.sites import Site, log_density, random_sites
from wsram_ppl.primitives.distributions import Categorical

STEPS, ROWS, KEPT = 3, 6, 4


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """As in training."""
    with pyro.validation_enabled(False):
        yield


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters() -> dict[str, Tensor]:
    shapes = {"loc": (STEPS, 2), "scale": (STEPS, 2), "logits": (STEPS, 5), "rate": (), "obs": (STEPS,)}
    return {
        name: normal(*shape, seed=seed).requires_grad_()
        for seed, (name, shape) in enumerate(shapes.items())
    }


def program(given: dict[str, Tensor]) -> None:
    """Recurrent choices among whatever else Pyro has sites for."""
    pyro.param("parameter", torch.zeros(()))
    rate = pyro.sample("rate", dist.Gamma(2.0, given["rate"].exp()))
    pyro.sample("other rate", dist.Gamma(3.0, given["rate"].exp()))
    keep = torch.tensor([True, False, True, True])
    with pyro.plate("rows", ROWS, subsample_size=KEPT, dim=-1):
        state = torch.zeros(KEPT, dtype=torch.float64)
        for t in range(STEPS):
            with poutine.scale(scale=2.0), poutine.mask(mask=keep):
                where = pyro.sample(
                    f"where {t}",
                    dist.Normal(given["loc"][t] + state[:, None], given["scale"][t].exp()).to_event(1),
                )
            what = pyro.sample(f"what {t}", Categorical(given["logits"][t] + where[:, :1]))
            state = pyro.deterministic(f"state {t}", torch.tanh(where.sum(-1) + what))
            masked = dist.Normal(state, 1.0).mask(keep)
            pyro.sample(f"masked {t}", masked, obs=given["obs"][t].expand(KEPT))
            pyro.sample(
                f"y {t}", dist.Bernoulli(logits=state * given["obs"][t]), obs=state.gt(0).double()
            )
            pyro.sample(f"wide {t}", dist.Normal(given["obs"][t], 1.0))  # expanded by the plate
        with pyro.plate("columns", 3, dim=-2):
            pyro.sample("table", dist.Normal(state, rate))
            pyro.sample("another table", dist.Normal(-state, rate))
        pyro.factor("energy", -state.square())
    pyro.sample("number", dist.Normal(given["obs"][0], 1.0), obs=torch.tensor(0.5))
    pyro.sample("another number", dist.Normal(given["obs"][1], 1.0), obs=torch.tensor(0.5).double())


def traced(seed: int = 0) -> tuple[dict[str, Tensor], Any]:
    given = parameters()
    torch.manual_seed(seed)
    return given, poutine.trace(program).get_trace(given)


# Which sites have a density.


def test_random_sites_are_those_with_a_density() -> None:
    _, trace = traced()
    expected = ["rate", "other rate"]
    for t in range(STEPS):
        expected += [f"where {t}", f"what {t}", f"masked {t}", f"y {t}", f"wide {t}"]
    expected += ["table", "another table", "energy", "number", "another number"]
    found = random_sites(trace)
    assert list(found) == expected  # in the order of the program
    for name, site in found.items():
        assert site is trace.nodes[name]
    for name in ("rows", "columns", "parameter", "state 0", "_INPUT", "_RETURN"):
        assert name in trace.nodes


def test_a_site_without_infer_is_a_random_site() -> None:
    _, trace = traced()
    trace.nodes["rate"]["infer"] = None
    assert "rate" in random_sites(trace)


def test_the_density_knows_no_mask_and_no_scale_of_a_handler() -> None:
    """But that of the distribution itself: who adds them up multiplies by a handler's."""
    _, trace = traced()
    where, masked = trace.nodes["where 1"], trace.nodes["masked 1"]
    assert where["scale"] == 2.0 * ROWS / KEPT and where["mask"].tolist() == [True, False, True, True]
    expected = torch.distributions.Normal(where["fn"].base_dist.loc, where["fn"].base_dist.scale)
    assert torch.equal(log_density(where), expected.log_prob(where["value"]).sum(-1))
    assert log_density(masked)[1] == 0.0 and log_density(masked).ne(0).sum() == KEPT - 1


def test_what_a_site_is_called_with_goes_to_its_density() -> None:
    class Odd(dist.Normal):
        def log_prob(self, value: Tensor, plus: float = 0.0, *, times: float = 1.0) -> Tensor:
            found: Tensor = super().log_prob(value) * times + plus
            return found

    fn, zero = Odd(torch.zeros(3), torch.ones(3)), torch.zeros(3)
    plain = dist.Normal(zero, 1.0).log_prob(zero)
    for args, kwargs, expected in (((4.0,), {}, plain + 4), ((), {"times": 3.0}, plain * 3)):
        site: Site = {"fn": fn, "value": zero, "args": args, "kwargs": kwargs}
        assert torch.equal(log_density(site), expected)
