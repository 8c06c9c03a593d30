"""Running estimates over minibatches: the only state that an objective keeps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor


class RunningMeans:
    """Exponential moving averages of scalars, by name.

    A value read during one minibatch was computed from *earlier* ones: whoever uses it reads first and
    updates after. Under ``torch.distributed`` every process holds the same values.

    Example::

        >>> means = RunningMeans()
        >>> means.update({"a": torch.tensor(2.0)}, decay=0.5)
        >>> means.get("a", torch.tensor(0.0))
        tensor(2.)
    """

    def __init__(self) -> None:
        self._means: dict[str, Tensor] = {}

    def get(self, name: str, default: Tensor) -> Tensor:
        """The mean, on the device and in the type of ``default``; ``default`` before any update."""
        mean = self._means.get(name)
        return default if mean is None else mean.to(default)

    def update(self, values: Mapping[str, Tensor], decay: float) -> None:
        """Mixes one minibatch's values in; the first value of a name is taken as it is."""
        if not values:
            return
        fresh = torch.stack([value.detach() for value in values.values()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(fresh)
            fresh /= torch.distributed.get_world_size()
        for name, value in zip(values, fresh.unbind(), strict=True):
            held = self._means.get(name)
            value = value.clone() if held is None else torch.lerp(value, held.to(value), decay)
            self._means[name] = value

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the means, by name."""
        return {name: mean.clone() for name, mean in self._means.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replaces the means with those of ``state``."""
        self._means = {name: mean.clone() for name, mean in state.items()}
