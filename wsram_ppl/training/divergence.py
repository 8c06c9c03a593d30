"""What was the first thing to be not finite, when something is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

from wsram_ppl.objectives import Objective
from wsram_ppl.objectives.base import is_prior
from wsram_ppl.objectives.sites import random_sites


class _Found(Exception):
    """The site and the quantity."""


def parameters(fn: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a distribution was made of, by name."""
    if isinstance(fn, (torch.distributions.Independent, ExpandedDistribution, MaskedDistribution)):
        yield from parameters(fn.base_dist)
        return
    if isinstance(fn, torch.distributions.OneHotCategorical):
        fn = fn._categorical
    for name in getattr(fn, "arg_constraints", {}):
        value = vars(fn).get(name)
        if isinstance(value, Tensor):
            yield name, value


def _is_bad(name: str, value: Tensor) -> bool:
    # A logit may well be -inf: a choice ruled out.
    bad = ~value.isfinite() if name != "logits" else value.isnan() | value.isposinf()
    return bool(bad.any())


class _FirstBad(Messenger):
    """Stops at the first site whose distribution has a parameter that is not finite.

    Args:
        guided: the guide runs before the model, and each site is met twice.
    """

    def __init__(self, guided: bool) -> None:
        super().__init__()
        self._guided = guided
        self._met: set[str] = set()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = str(msg["name"])
        if isinstance(msg["fn"], _Subsample):
            return
        whose = "model"
        if self._guided and not msg["is_observed"]:
            whose = "model" if name in self._met else "guide"
            self._met ^= {name}
        for quantity, value in parameters(msg["fn"]):
            if _is_bad(quantity, value):
                raise _Found(f"the parameter '{quantity}' of site '{name}' in the {whose}")


@torch.no_grad()
def find_cause(
    objective: Objective, model: nn.Module, guide: nn.Module, batch: tuple[Tensor, ...]
) -> str | None:
    """Runs guide and model once more and names the first quantity that is not finite, if any is.

    That is a parameter of a site's distribution or a site's log-density. Uses the global random state.
    """
    try:
        # Validation would stop the run without the name of the site.
        with pyro.validation_enabled(False), _FirstBad(guided=not is_prior(guide, model)):
            draws = objective.particles(model, guide, *batch).draws
    except _Found as found:
        return str(found)
    except (RuntimeError, ValueError):
        return None
    for draw in draws:
        for whose, trace in (("model", draw.model_trace), ("guide", draw.guide_trace)):
            for name, site in random_sites(trace).items():
                if site["fn"].log_prob(site["value"]).isnan().any():
                    return f"the log-density of site '{name}' in the {whose}"
    return None
