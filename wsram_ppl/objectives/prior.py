"""The prior as proposal: looks where the prediction network itself would look."""

from __future__ import annotations

from typing import Any

from pyro import poutine
from pyro.poutine.runtime import Message
from torch import nn

from wsram_ppl.objectives.sites import Program


def _observed(site: Message[..., Any]) -> bool:
    return site["type"] == "sample" and bool(site["is_observed"])


class Prior(nn.Module):
    """Proposes from the model's own prior; works on any Pyro model and has no parameters.

    Runs the model with its observed sites hidden. Objectives read ``is_prior`` and then take the
    guide's densities from a single run of the model, as functions of the same parameters.

    Args:
        model: any Pyro model. It does not become a submodule, so the guide has no parameters.

    Example::

        svi = SVI(model, Prior(model), Adam({"lr": 1e-3}), ImportanceBound(num_particles=5))
    """

    is_prior = True

    def __init__(self, model: Program) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that nn.Module does not register it

    @property
    def model(self) -> Program:
        """The program whose prior this is."""
        return self._model[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with poutine.block(hide_fn=_observed):
            return self.model(*args, **kwargs)


def is_prior(guide: Program, model: Program) -> bool:
    """Whether the guide declares (``is_prior = True``) that it is the model's own prior.

    Then every log-density of the guide is the model's, as a function of the same parameters.

    Raises:
        ValueError: it is the prior of another model.
    """
    if not getattr(guide, "is_prior", False):
        return False
    if getattr(guide, "model", None) != model:  # a bound method is another object at each access
        raise ValueError("the guide is the prior of another model: make it from the model in use")
    return True
