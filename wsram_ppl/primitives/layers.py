"""A linear layer fused with what follows it, with large products by oneDNN."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Linear", "affine"]

#: Multiplications below which a call costs more than a faster product saves.
_WORTHWHILE = 2**21


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

    On a CPU, ``F.linear`` in single precision calls MKL, which does not use the full vector width of
    every processor; oneDNN, also part of torch, does. Large enough products in plain float32, and those
    of their gradients, use oneDNN; all else (other dtypes, mixed precision, devices, compiled code) uses
    ``F.linear``. The result is the same up to rounding.
    ``torch.backends.mkldnn.flags(enabled=False)`` turns it off.

    Args:
        input: ``[..., inputs]``.
        weight: ``[outputs, inputs]``.
        bias: ``[outputs]``.
        plus: broadcastable to the result ``[..., outputs]``, or the other way round.
        also: a second input and its weight, as in a recurrent layer.

    Example::

        state = affine(glimpse, weight, bias, also=(state, recurrent), relu=True)
    """
    if _by_onednn(input, weight, bias, plus):
        terms = [input, weight]
        if also is not None:
            if also[0].shape[:-1] == input.shape[:-1] and _by_onednn(*also, None, None):
                terms += also
            else:  # the same for all particles, for example
                product = F.linear(*also)
                plus = product if plus is None else plus + product
        found: Tensor = _Affine.apply(relu, bias, plus, *terms)
        return found
    found = F.linear(input, weight, bias)
    if also is not None:
        found = found + F.linear(*also)
    if plus is not None:
        found = found + plus
    return torch.relu(found) if relu else found


def _by_onednn(input: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None) -> bool:
    outputs, inputs = weight.shape
    return bool(
        input.numel() * outputs >= _WORTHWHILE
        and input.shape[-1] == inputs
        and input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and (bias is None or (bias.shape == (outputs,) and bias.dtype == torch.float32))
        and (plus is None or plus.dtype == torch.float32)
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_mkldnn_enabled()
        and torch.backends.mkldnn.is_available()
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left @ right^T + bias by oneDNN; either may be a transposed view, but not the bias."""
    bias = None if bias is None else bias.contiguous()
    found: Tensor = torch.ops.mkldnn._linear_pointwise.default(left, right, bias, "none", [], "")
    return found


class _Affine(torch.autograd.Function):
    """The same as one node of the autograd graph, for matrices that are large enough."""

    @staticmethod
    def forward(
        ctx: Any, relu: bool, bias: Tensor | None, plus: Tensor | None, *terms: Tensor
    ) -> Tensor:
        """``terms``: input and weight of one product or of several, all of one shape."""
        found = _product(terms[0], terms[1], bias)
        for input, weight in zip(terms[2::2], terms[3::2], strict=True):
            found.add_(_product(input, weight))
        ctx.product_shape, ctx.plus_shape = found.shape, None
        if plus is not None:
            ctx.plus_shape = plus.shape
            larger = torch.broadcast_shapes(found.shape, plus.shape) != found.shape
            found = found + plus if larger else found.add_(plus)
        if relu:
            found.relu_()  # not oneDNN's own, which hides NaN
        ctx.save_for_backward(found if relu else None, *terms)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        found, *terms = ctx.saved_tensors
        _, with_bias, with_plus, *wanted = ctx.needs_input_grad
        if found is not None:
            grad = torch.ops.aten.threshold_backward.default(grad, found, 0)
        own = grad if grad.shape == ctx.product_shape else grad.sum_to_size(ctx.product_shape)
        own = own.reshape(-1, own.shape[-1])
        # A gradient that will be differentiated again must consist of differentiable operations.
        differentiable = torch.is_grad_enabled()
        product = torch.matmul if differentiable else lambda a, b: _product(a, b.t())
        turned = own.t() if differentiable or not any(wanted[1::2]) else own.t().contiguous()
        gradients: list[Tensor | None] = []
        for input, weight, of_input, of_weight in zip(
            terms[::2], terms[1::2], wanted[::2], wanted[1::2], strict=True
        ):
            rows = input.reshape(-1, input.shape[-1])
            gradients.append(product(own, weight).view(input.shape) if of_input else None)
            gradients.append(product(turned, rows) if of_weight else None)
        return (
            None,
            own.sum(0) if with_bias else None,
            grad.sum_to_size(ctx.plus_shape) if with_plus else None,
            *gradients,
        )
