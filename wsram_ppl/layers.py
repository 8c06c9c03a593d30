"""A linear layer that multiplies with oneDNN where torch's own choice of library is the slower one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "affine"]

#: Multiplications below which a call costs more than a faster product saves.
_WORTHWHILE = 2**21


class Linear(nn.Linear):
    """``nn.Linear``, with what usually follows it in the same call; see :func:`affine`.

    Args:
        in_features, out_features, bias: as for ``nn.Linear``, and so are the parameters' names.
        relu: apply a ReLU at the end.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, relu: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.relu = relu

    def forward(self, input: Tensor, plus: Tensor | None = None) -> Tensor:
        """``[..., in_features] -> [..., out_features]``; ``plus`` is added before the ReLU."""
        return affine(input, self.weight, self.bias, plus, relu=self.relu)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", relu=True" if self.relu else "")


def affine(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    plus: Tensor | None = None,
    *,
    relu: bool = False,
) -> Tensor:
    """input @ weight^T + bias + plus, then a ReLU if wanted.

    On a CPU, ``F.linear`` in single precision calls MKL, which uses half of the vector width of an AMD
    processor: oneDNN, which is in torch too, multiplies up to twice as fast there (and no slower on
    Intel's). Large enough products in plain float32 go to it, and their gradients' too; all else
    (other types, mixed precision, devices, compiled code) is ``F.linear``. The result is the same up to
    rounding. ``torch.backends.mkldnn.flags(enabled=False)`` turns it off.

    Args:
        input: ``[..., inputs]``.
        weight: ``[outputs, inputs]``.
        bias: ``[outputs]``.
        plus: broadcastable to the result ``[..., outputs]``, or the other way round.

    Example::

        state = affine(glimpse, weight, bias, plus=recurrent(state), relu=True)
    """
    if _by_onednn(input, weight, bias, plus):
        found: Tensor = _Affine.apply(input, weight, bias, plus, relu)
        return found
    found = F.linear(input, weight, bias)
    if plus is not None:
        found = found + plus
    return torch.relu(found) if relu else found


def _by_onednn(input: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None) -> bool:
    outputs, inputs = weight.shape
    return bool(
        input.numel() * outputs >= _WORTHWHILE
        and input.shape[-1] == inputs
        and (bias is None or bias.shape == (outputs,))
        and all(x is None or x.dtype == torch.float32 for x in (input, weight, bias, plus))
        and input.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left @ right^T + bias by oneDNN; either may be a transposed view, but not the bias."""
    bias = None if bias is None else bias.contiguous()
    found: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return found


class _Affine(torch.autograd.Function):
    """The same as a node of the graph, for matrices that are worth it."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, relu: bool
    ) -> Tensor:
        found = _product(input, weight, bias)
        product_shape = found.shape
        if plus is not None:
            larger = torch.broadcast_shapes(found.shape, plus.shape) != found.shape
            found = found + plus if larger else found.add_(plus)
        if relu:
            found.relu_()  # not oneDNN's own, which hides what is not a number
        ctx.save_for_backward(input, weight, found if relu else None)
        ctx.shapes = product_shape, None if plus is None else plus.shape
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight, found = ctx.saved_tensors
        product_shape, plus_shape = ctx.shapes
        if found is not None:
            grad = torch.ops.aten.threshold_backward(grad, found, 0)
        own = grad.sum_to_size(product_shape).reshape(-1, product_shape[-1])
        # What is asked for to be differentiated once more has to be made of operations that can be.
        product = torch.matmul if torch.is_grad_enabled() else lambda a, b: _product(a, b.t())
        wanted = ctx.needs_input_grad
        return (
            product(own, weight).view(input.shape) if wanted[0] else None,
            product(own.t(), input.reshape(-1, input.shape[-1])) if wanted[1] else None,
            own.sum(0) if wanted[2] else None,
            grad.sum_to_size(plus_shape) if wanted[3] else None,
            None,
        )
