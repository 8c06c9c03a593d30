"""Chosen particles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["ForceSamples"]


class ForceSamples(Messenger):
    """Gives chosen latent sites chosen values instead of sampling them.

    Enter it around an objective to evaluate the objective on your own particles: for exact
    enumeration, or to compare estimators on the same draws. A callable value is called with the
    site's distribution.
    """

    def __init__(self, values: Mapping[str, Tensor | Callable[[Any], Tensor]]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.values and msg["value"] is None and not msg["is_observed"]:
            value = self.values[msg["name"]]
            msg["value"] = value(msg["fn"]) if callable(value) else value
            msg["done"] = True
