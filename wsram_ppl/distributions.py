"""Pyro's distributions where a model that chooses at every step spends its time in them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import lazy_property

__all__ = ["ELEMENTWISE", "Categorical", "given_parameters", "kind", "stack"]

#: Distributions that treat the elements of a batch alike and apart, and are fixed by their parameters.
ELEMENTWISE = (
    torch.distributions.Normal,
    torch.distributions.Uniform,
    torch.distributions.Laplace,
    torch.distributions.Exponential,
    torch.distributions.Bernoulli,
    torch.distributions.Categorical,
)


class Categorical(dist.Categorical):
    """:class:`pyro.distributions.Categorical` on logits, for the many small ones of an attention model.

    The same distribution; normalising takes one operation instead of two, probabilities are not
    normalised a second time, and a choice is the winner of a race of exponential clocks (as it is in
    ``torch.multinomial``, which also checks its input; on an accelerator that check ends the process).
    Drawn and differentiated with its entropy it takes half the time on a CPU.

    Args:
        logits: ``[..., choices]``, in any normalisation; -inf rules a choice out.
        validate_args: as in Pyro.
    """

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = self._param = torch.log_softmax(logits, -1)
        self._num_events = logits.shape[-1]
        torch.distributions.Distribution.__init__(self, logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Categorical:
        new = self.__new__(type(self)) if _instance is None else _instance
        return super().expand(batch_shape, new)  # type: ignore[no-any-return, no-untyped-call]

    @lazy_property
    def probs(self) -> Tensor:
        return self.logits.exp()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = (*self._extended_shape(torch.Size(sample_shape)), self._num_events)
            clocks = self.probs.new_empty(shape).exponential_()
            return (self.probs / clocks).argmax(-1)


def given_parameters(fn: Any) -> dict[str, Tensor]:
    """The parameters that one of the :data:`ELEMENTWISE` distributions was made of, by name."""
    given = {name: fn.__dict__[name] for name in fn.arg_constraints if name in fn.__dict__}
    if len(given) > 1 and hasattr(fn, "_param"):  # logits and probabilities: the one it is made of
        given = {name: value for name, value in given.items() if value is fn._param}
    return given


def kind(fn: Any) -> Hashable | None:
    """The same for distributions that :func:`stack` can join; None for those that it cannot."""
    if isinstance(fn, torch.distributions.Independent):
        base = kind(fn.base_dist)
        return base and (fn.reinterpreted_batch_ndims, base)
    if not isinstance(fn, ELEMENTWISE) or fn._validate_args:
        return None
    return (type(fn), *((name, x.shape, x.dtype) for name, x in given_parameters(fn).items()))


def stack(fns: Sequence[Any]) -> Any:
    """One distribution of batch shape ``[n, *batch]`` for n of one :func:`kind`."""
    first = fns[0]
    if isinstance(first, torch.distributions.Independent):
        joined = stack([fn.base_dist for fn in fns])
        return joined.to_event(first.reinterpreted_batch_ndims)
    given = [given_parameters(fn) for fn in fns]
    parameters = {name: torch.stack([each[name] for each in given]) for name in given[0]}
    return type(first)(**parameters, validate_args=False)
