"""Linear layers with what follows them in one call, dropout for particles, precision after products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "SharedDropout", "affine", "wide"]


class Linear(nn.Linear):
    """``nn.Linear`` fused with what usually follows it; see :func:`affine`.

    Args:
        in_features, out_features, bias: as for ``nn.Linear``, with the same parameter names.
        relu: apply a ReLU at the end.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, relu: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.relu = relu

    def forward(
        self,
        input: Tensor,
        plus: Tensor | None = None,
        also: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """``[..., in_features] -> [..., out_features]``; ``plus`` and ``also`` come before the ReLU."""
        return affine(input, self.weight, self.bias, plus, also=also, relu=self.relu)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", relu=True" if self.relu else "")


class SharedDropout(nn.Dropout):
    """Dropout with one mask for all particles of a datum, so that they differ by their samples alone.

    ``nn.Dropout`` gives each particle a mask of its own: importance weights then compare masks as much
    as samples. Particles that run one after the other (without ``vectorize_particles``) have masks of
    their own still.

    Args:
        p: the share of units that are dropped, in [0, 1].
    """

    def forward(self, input: Tensor) -> Tensor:
        """``[..., datum, units]``, with particles and whatever else is left of the data."""
        if not self.training or self.p == 0:
            return input
        return input * F.dropout(input.new_ones(input.shape[-2:]), self.p)


def affine(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    plus: Tensor | None = None,
    *,
    also: tuple[Tensor, Tensor] | None = None,
    relu: bool = False,
) -> Tensor:
    """input @ weight^T + bias + also[0] @ also[1]^T + plus, then an optional ReLU.

    Args:
        input: ``[..., inputs]``.
        weight: ``[outputs, inputs]``.
        bias: ``[outputs]``.
        plus: broadcastable to the result ``[..., outputs]``, or the other way round.
        also: a second input and its weight, as in a recurrent layer.

    Example::

        state = affine(glimpse, weight, bias, also=(state, recurrent), relu=True)
    """
    found = F.linear(input, weight, bias)
    if also is not None:
        found = found + F.linear(*also)
    if plus is not None:
        found = found + plus
    return torch.relu(found) if relu else found


def wide(x: Tensor) -> Tensor:
    """``x`` in at least float32: products may be in bfloat16, memory and log-densities may not."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
