"""The first thing that is not finite is named, whichever way it comes about."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from wsram_ppl.objectives import ImportanceBound, Prior
from wsram_ppl.primitives.distributions import parameters
from wsram_ppl.training.divergence import find_cause

DATA = (torch.tensor([0.5, 1.5, -1.0]),)


class Model(nn.Module):
    """Two latent sites, whose parameters can be spoiled."""

    def __init__(self, **bad: float) -> None:
        super().__init__()
        self.bad = bad

    def site(self, name: str, fn: Any, obs: Tensor | None = None) -> Tensor:
        value: Tensor = pyro.sample(name, fn, obs=obs)
        return value

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            scale = torch.tensor(self.bad.get("scale", 1.0))
            a = self.site("a", dist.Normal(torch.zeros(len(x)), scale))
            logits = torch.tensor([0.0, self.bad.get("logit", 0.0), 1.0]).expand(len(x), 3)
            b = self.site("b", dist.Categorical(logits=logits))
            self.site("x", dist.Normal(a + b, self.bad.get("noise", 1.0)), obs=x)


class Guide(Model):
    """The same sites."""

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            weight = torch.tensor([self.bad.get("loc", 0.0), 0.0])
            where = dist.Normal(weight[0].expand(len(x)), 1.0).mask(True)
            self.site("a", where)
            one = torch.tensor(self.bad.get("prob", 0.5))
            self.site("b", dist.Categorical(probs=torch.stack([one, one, 1 - one]).expand(len(x), 3)))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(
    ("model", "guide", "cause"),
    [
        ({}, {}, None),
        ({"logit": -math.inf}, {}, None),  # a choice ruled out
        ({"scale": math.nan}, {}, "the parameter 'scale' of site 'a' in the model"),
        ({"logit": math.inf}, {}, "the parameter 'logits' of site 'b' in the model"),
        ({"noise": math.nan}, {}, "the parameter 'scale' of site 'x' in the model"),
        ({"noise": math.nan}, {"loc": math.inf}, "the parameter 'loc' of site 'a' in the guide"),
        ({"scale": math.nan}, {"prob": math.nan}, "the parameter 'probs' of site 'b' in the guide"),
        ({"scale": math.nan}, None, "the parameter 'scale' of site 'a' in the model"),
        ({}, {"loc": 1e38}, None),  # only infinite, which is a weight of 0
    ],
)
def test_the_first_cause(
    model: dict[str, float],
    guide: dict[str, float] | None,
    cause: str | None,
    vectorize: bool,
    validate: bool,
) -> None:
    program = Model(**model)
    proposal = Prior(program) if guide is None else Guide(**guide)
    objective = ImportanceBound(3, vectorize_particles=vectorize, max_plate_nesting=1)
    with pyro.validation_enabled(validate):
        assert find_cause(objective, program, proposal, DATA) == cause


def test_a_log_density_that_is_not_a_number() -> None:
    """With parameters that are finite: 0 / 0."""

    class Zero(Model):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                self.site("a", dist.Normal(torch.zeros(len(x)), 1.0))
                self.site("x", dist.Normal(x, 0.0), obs=x)

    model = Zero()
    objective = ImportanceBound(3, vectorize_particles=True, max_plate_nesting=1)
    cause = find_cause(objective, model, Prior(model), DATA)
    assert cause == "the log-density of site 'x' in the model"


def test_what_fails_for_another_reason_has_no_cause_here() -> None:
    class Broken(Model):
        def forward(self, x: Tensor) -> None:
            raise RuntimeError("shapes do not fit")

    model = Broken()
    assert find_cause(ImportanceBound(3), model, Guide(), DATA) is None


def test_parameters_of_wrapped_distributions() -> None:
    zero = torch.zeros(3)
    for fn, names in [
        (dist.Normal(zero, 1.0).to_event(1), ["loc", "scale"]),
        (dist.Normal(0.0, 1.0).expand([3]).mask(zero > 1), ["loc", "scale"]),
        (dist.OneHotCategorical(logits=zero), ["logits", "probs"]),
        (dist.Delta(zero), ["v", "log_density"]),
    ]:
        assert sorted(name for name, _ in parameters(fn)) == sorted(names)
