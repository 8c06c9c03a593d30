"""Running estimates over minibatches, the only state of an objective."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from wsram_ppl import collectives

__all__ = ["MinibatchMeans", "RunningMeans", "RunningRatio"]

_DECAY = "decay of "


class RunningMeans:
    """Exponential moving averages of scalars, by name.

    A value read during one minibatch was computed from *earlier* ones: read first, then update. Under
    ``torch.distributed`` every process holds the same values: with equal parts of the minibatch they are
    those of a single process, since a mean over data is the mean of the parts' means. A name that occurs
    only in some processes (a site that their programs reached) is averaged over these.

    Example::

        >>> means = RunningMeans()
        >>> means.update({"a": torch.tensor(2.0)}, decay=0.5)
        >>> means.get("a", torch.tensor(0.0))
        tensor(2.)
    """

    def __init__(self) -> None:
        self._means: dict[str, Tensor] = {}

    def get(self, name: str, default: Tensor) -> Tensor:
        """The mean, with the device and dtype of ``default``; ``default`` before any update.

        It may change with the next update: use it now, do not keep it.
        """
        mean = self._means.get(name)
        return default if mean is None else mean.to(default)

    def update(self, values: Mapping[str, Tensor], decay: float | Mapping[str, float]) -> None:
        """Averages in one minibatch's values; the first value of a name is taken unchanged.

        Every process must call it at every update, even without any values.

        Args:
            values: by name.
            decay: one for all means, or one for each.
        """
        fresh = {name: value.detach() for name, value in values.items()}
        if isinstance(decay, Mapping):  # a process that lacks a name does not know its decay either
            fresh |= {_DECAY + name: torch.full_like(fresh[name], decay[name]) for name in values}
        means = collectives.mean_by_name(fresh)
        for name, value in means.items():
            if name.startswith(_DECAY):
                continue
            weight = means[_DECAY + name] if isinstance(decay, Mapping) else decay
            held = self._means.get(name)
            if held is None:
                self._means[name] = value.clone()
                continue
            mixed = torch.lerp(value, held.to(value), weight)
            if (held.device, held.dtype) == (mixed.device, mixed.dtype):
                held.copy_(mixed)  # in place, where a recorded update reads it
            else:
                self._means[name] = mixed

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the means, by name."""
        return {name: mean.clone() for name, mean in self._means.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the means with those of ``state``, in place if they exist."""
        held, self._means = self._means, {}
        for name, mean in state.items():
            place = held.get(name)
            if place is not None and (place.device, place.dtype) == (mean.device, mean.dtype):
                self._means[name] = place.copy_(mean)
            else:
                self._means[name] = mean.clone()


class MinibatchMeans:
    """Values of one minibatch, by name: averaged over its draws, then all added to the means at once.

    So several processes exchange only one message.
    """

    def __init__(self) -> None:
        self._seen: dict[str, list[Tensor]] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Adds the mean of ``value``, a constant."""
        self._seen.setdefault(name, []).append(value.mean().detach())

    def commit(self, running: RunningMeans, decay: float | Mapping[str, float]) -> None:
        """Updates the running means; see :meth:`RunningMeans.update`."""
        running.update({n: torch.stack(seen).mean() for n, seen in self._seen.items()}, decay)


class RunningRatio:
    """c = E[x r] / E[r^2], the coefficient that minimises E[(x - c r)^2], over earlier minibatches.

    Args:
        running: holds the two means.
        name: the prefix of their names.
    """

    def __init__(self, running: RunningMeans, name: str) -> None:
        self._running = running
        self._names = f"{name}/numerator", f"{name}/denominator"

    def value(self, like: Tensor) -> Tensor:
        """c, a scalar with the dtype of ``like``; 0 before the first minibatch."""
        zero = like.new_zeros(())
        numerator, denominator = (self._running.get(name, zero) for name in self._names)
        return torch.where(denominator > 0, numerator / denominator, zero)

    def observe(self, x: Tensor, r: Tensor, means: MinibatchMeans) -> None:
        """Adds a minibatch's values to the means that are updated at its end."""
        for name, value in zip(self._names, (x * r, r.square()), strict=True):
            means.add(name, value)
