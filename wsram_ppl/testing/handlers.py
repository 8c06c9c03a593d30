"""Particles of one's own choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["ForceSamples"]


class ForceSamples(Messenger):
    """Gives chosen latent sites chosen values, wherever else they would have been sampled.

    Enter it around an objective to evaluate the objective on particles of your own: for exact
    enumeration, or to compare estimators on common draws. A value that is a callable is
    called with the site's distribution.
    """

    def __init__(self, values: Mapping[str, Tensor | Callable[[Any], Tensor]]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.values and msg["value"] is None and not msg["is_observed"]:
            value = self.values[msg["name"]]
            msg["value"] = value(msg["fn"]) if callable(value) else value
            msg["done"] = True
