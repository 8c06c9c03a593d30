"""A lean categorical, and operations on distributions: parameters, wrappers, rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent
from torch.distributions.utils import lazy_property

__all__ = [
    "ELEMENTWISE",
    "Categorical",
    "NoRule",
    "given_parameters",
    "innermost",
    "parameters",
    "rewrapped",
    "select_rows",
    "unwrapped",
]


class Categorical(dist.Categorical):
    """:class:`pyro.distributions.Categorical` on logits, for the many small choices of attention models.

    The same distribution with fewer operations: logits are normalised once, and a choice is the winner
    of a race of exponential clocks, as in ``torch.multinomial`` but without that function's check of
    its input (which ends the process on an accelerator). The entropy's gradient is finite even if
    choices are ruled out.

    Args:
        logits: ``[..., choices]``, with any normalisation; -inf rules a choice out.
        validate_args: as for Pyro's distributions.

    Raises:
        ValueError: logits without dimensions; with validation, NaN logits.
    """

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        if logits.dim() < 1:
            raise ValueError("logits need at least one dimension, that of the choices")
        self.logits = self._param = torch.log_softmax(logits, -1)
        self._num_events = logits.shape[-1]
        torch.distributions.Distribution.__init__(self, logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Categorical:
        if _instance is None and torch.Size(batch_shape) == self.batch_shape:
            return self  # the usual case when a plate expands
        new = self.__new__(type(self)) if _instance is None else _instance
        return super().expand(batch_shape, new)  # type: ignore[no-any-return, no-untyped-call]

    @lazy_property
    def probs(self) -> Tensor:
        return self.logits.exp()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = (*self._extended_shape(torch.Size(sample_shape)), self._num_events)
            # In half precision a clock may be 0.
            precision = torch.promote_types(self.probs.dtype, torch.float32)
            clocks = self.probs.new_empty(shape, dtype=precision).exponential_()
            return (self.probs / clocks).argmax(-1)

    def entropy(self) -> Tensor:
        logits = self.logits.masked_fill(self.probs == 0, 0.0)
        return -(self.probs * logits).sum(-1)


#: Distributions that treat the elements of a batch alike and independently, given by their parameters:
#: exactly these classes, since a subclass may be constructed differently.
ELEMENTWISE = frozenset(
    (
        dist.Normal,
        dist.Uniform,
        dist.Laplace,
        dist.Exponential,
        dist.Bernoulli,
        dist.Categorical,
        Categorical,
    )
)


class NoRule(Exception):
    """A kind of distribution whose rows cannot be chosen; the text is its name."""


def unwrapped(fn: Any) -> Iterator[Any]:
    """A distribution and what it wraps (``to_event``, ``expand``, ``mask``), from outside to inside."""
    yield fn
    while isinstance(fn, (Independent, ExpandedDistribution, MaskedDistribution)):
        fn = fn.base_dist
        yield fn


def innermost(fn: Any) -> Any:
    """The distribution inside every ``to_event``, ``expand`` and ``mask``."""
    *_, found = unwrapped(fn)
    return found


def rewrapped(fn: Any, change: Callable[[Any], Any]) -> Any:
    """``change`` of the innermost distribution, wrapped as it was."""
    if isinstance(fn, Independent):
        return rewrapped(fn.base_dist, change).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, ExpandedDistribution):
        return rewrapped(fn.base_dist, change).expand(fn.batch_shape)
    if isinstance(fn, MaskedDistribution):
        return rewrapped(fn.base_dist, change).mask(fn._mask)
    return change(fn)


def parameters(fn: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a distribution holds, by name, including derived ones."""
    fn = innermost(fn)
    if isinstance(fn, torch.distributions.OneHotCategorical):
        fn = fn._categorical
    for name in getattr(fn, "arg_constraints", {}):
        value = vars(fn).get(name)
        if isinstance(value, Tensor):
            yield name, value


def select_rows(fn: Any, dim: int, rows: Tensor) -> Any:
    """The distribution with the given rows, in order, along a batch dimension; a mask is dropped.

    Args:
        dim: negative.
        rows: ``[n]``, int64.

    Raises:
        NoRule: for this kind of distribution.
    """
    if isinstance(fn, Independent):
        inner = fn.reinterpreted_batch_ndims
        return select_rows(fn.base_dist, dim - inner, rows).to_event(inner)
    if isinstance(fn, MaskedDistribution):
        return select_rows(fn.base_dist, dim, rows)
    if isinstance(fn, ExpandedDistribution):
        base = fn.base_dist
        own = list(base.batch_shape)
        if len(own) >= -dim and own[dim] == fn.batch_shape[dim]:
            base = select_rows(base, dim, rows)
        shape = list(fn.batch_shape)
        shape[dim] = len(rows)
        return base.expand(torch.Size(shape))
    if isinstance(fn, torch.distributions.OneHotCategorical):
        return type(fn)(logits=fn.logits.index_select(dim - 1, rows), validate_args=False)
    # Their samplers use the same number of random numbers whatever the parameters. (A Gamma's rejection
    # sampler does not.)
    if type(fn) not in ELEMENTWISE:
        raise NoRule(type(fn).__name__)
    chosen = {
        name: value.index_select(dim - fn.arg_constraints[name].event_dim, rows)
        for name, value in given_parameters(fn).items()
    }
    return type(fn)(**chosen, validate_args=False)


def given_parameters(fn: Any) -> dict[str, Tensor]:
    """The parameters that one of the :data:`ELEMENTWISE` distributions was constructed from, by name."""
    given = {name: fn.__dict__[name] for name in fn.arg_constraints if name in fn.__dict__}
    if len(given) > 1 and hasattr(fn, "_param"):  # logits and probabilities: the one given
        given = {name: value for name, value in given.items() if value is fn._param}
    return given
