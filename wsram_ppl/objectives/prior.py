"""The prior as proposal: look where the prediction network itself would look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.poutine.runtime import Message
from torch import nn


def _observed(site: Message[..., Any]) -> bool:
    return site["type"] == "sample" and bool(site["is_observed"])


class Prior(nn.Module):
    """Proposes from the model's own prior; works on any Pyro model and has no parameters.

    Runs the model with its observed sites hidden. Objectives read ``is_prior`` and then take the
    guide's densities from the model's one run, as functions of the same parameters.

    Args:
        model: any Pyro model. It is not made a submodule: its parameters stay its own.

    Example::

        svi = SVI(model, Prior(model), Adam({"lr": 1e-3}), ImportanceBound(num_particles=5))
    """

    is_prior = True

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, lest nn.Module registers it

    @property
    def model(self) -> Callable[..., Any]:
        return self._model[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with poutine.block(hide_fn=_observed):
            return self.model(*args, **kwargs)
