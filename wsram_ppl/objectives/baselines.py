"""Reads Pyro's declaration of a baseline on a sample site, ``infer={"baseline": {...}}``.

The same declaration has two uses. ``VariationalBound(baseline="site")`` subtracts the
prediction from the learning signal (NVIL; Mnih and Gregor 2014); ``WakeSleep(control_variate=
"learned")`` uses it as the state-dependent part of a control variate's coefficient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import detach
from torch import Tensor, nn

__all__ = ["Baseline", "baseline_parameters"]


@dataclass(frozen=True)
class Baseline:
    """The options of one site, with Pyro's names and defaults.

    Args:
        site: the site's name.
        nn_baseline, nn_baseline_input: a network and its input (which is detached).
        use_decaying_avg_baseline, baseline_beta: a running average of the signal, and its decay.
        baseline_value: the prediction itself, a function of the baseline's own parameters alone.
    """

    site: str
    nn_baseline: Callable[[Any], Tensor] | None = None
    nn_baseline_input: Any = None
    use_decaying_avg_baseline: bool = False
    baseline_beta: float = 0.90
    baseline_value: Tensor | None = None

    @classmethod
    def declared(cls, site: str, infer: Mapping[str, Any]) -> Baseline | None:
        """The baseline declared in a site's ``infer``, or None.

        Raises:
            ValueError: an option that Pyro does not know, or two that exclude each other.
        """
        options = infer.get("baseline")
        if not options:
            return None
        known = [name for name in cls.__dataclass_fields__ if name != "site"]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(
                f"Unrecognized baseline options at site '{site}': {unknown}; known are {known}"
            )
        baseline = cls(site, **options)
        if baseline.nn_baseline is not None and baseline.baseline_value is not None:
            raise ValueError(
                f"site '{site}' declares both baseline_value and nn_baseline: give one of them"
            )
        return baseline

    def predict(self, batch_shape: torch.Size, arrange: Callable[[Tensor], Tensor]) -> Tensor | None:
        """The network's output or the given value, ``[particle, *datum, inner]``; None without either.

        Args:
            batch_shape: that of the site.
            arrange: maps the site's batch dimensions to ``[particle, *datum, inner]``.

        Raises:
            ValueError: the prediction does not broadcast to the site's batch shape.
        """
        if self.nn_baseline is not None:
            value = self.nn_baseline(detach(self.nn_baseline_input))
        elif self.baseline_value is not None:
            value = self.baseline_value
        else:
            return None
        try:
            value = value.expand(batch_shape)
        except RuntimeError:
            raise ValueError(
                f"Expected baseline at site '{self.site}' to have the batch shape of the site, "
                f"{list(batch_shape)}, instead got {list(value.shape)}: squeeze a trailing dimension of "
                "size 1 off the network's output"
            ) from None
        return arrange(value)


def baseline_parameters(module: object) -> list[nn.Parameter]:
    """The parameters of the networks that a model or guide declares as baselines.

    They are those of a submodule ``baselines``, where both optimisation and measurement look
    for parameters that are fitted by a separate regression.
    """
    networks = getattr(module, "baselines", None)
    return list(networks.parameters()) if isinstance(networks, nn.Module) else []
