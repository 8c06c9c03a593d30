"""Sums of gradients that are merged: the same numbers, fewer operations, and what is left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from wsram_ppl.training.merging import MergeSums

MM, SUM = torch.ops.aten.mm.default, torch.ops.aten.sum.dim_IntList


def check(function: Callable[..., Any], *inputs: Tensor) -> tuple[Counter[Any], Counter[Any]]:
    """Operations before and after; the results are the same, and the graph is sound."""
    traced = make_fx(function, tracing_mode="fake")(*inputs)
    as_inductor = {"decomposition_table": select_decomp_table(), "tracing_mode": "fake"}
    module: GraphModule = make_fx(torch.func.functionalize(traced), **as_inductor)(*inputs)
    expected = module(*inputs)
    before = Counter(node.target for node in module.graph.nodes)
    MergeSums()(module.graph)
    module.graph.lint()
    sums = [node for node in module.graph.nodes if node.target is torch.ops.aten.add.Tensor]
    assert all(isinstance(node.args[0], Node) for node in sums)
    module.recompile()
    torch.testing.assert_close(module(*inputs), expected, rtol=1e-10, atol=1e-10)
    return before, Counter(node.target for node in module.graph.nodes)


def gradient(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """With respect to all inputs."""
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    return list(torch.autograd.grad(loss(*inputs), inputs))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.integers(2, 4), min_size=2, max_size=5),
    width=st.integers(2, 4),
    out=st.integers(2, 4),
)
def test_a_weight_that_is_used_again_and_again(rows: Sequence[int], width: int, out: int) -> None:
    """Its gradient is one product, its bias's one sum, however many rows each use has."""
    inputs = [numbers(n, width) for n in rows]

    def loss(weight: Tensor, bias: Tensor, *inputs: Tensor) -> Tensor:
        hidden = [torch.nn.functional.linear(x, weight, bias).tanh() for x in inputs]
        return torch.stack([h.square().sum() for h in hidden]).sum()

    before, after = check(lambda *all: gradient(loss, *all), numbers(out, width), numbers(out), *inputs)
    assert before[MM] - after[MM] == len(rows) - 1
    assert before[SUM] - after[SUM] == len(rows) - 1


def test_a_recurrent_network() -> None:
    """Three dimensions, several weights, and a state that all steps change."""

    def loss(first: Tensor, again: Tensor, bias: Tensor, inputs: Tensor) -> Tensor:
        state = torch.zeros(2, 3, again.shape[0], dtype=inputs.dtype)
        for x in inputs:
            state = (x @ first + state @ again + bias).relu()
        return state.square().sum()

    weights = numbers(4, 5), numbers(5, 5), numbers(5)
    before, after = check(lambda *all: gradient(loss, *all), *weights, numbers(4, 2, 3, 4))
    assert before[MM] - after[MM] >= 6


@pytest.mark.parametrize(
    "function",
    [
        lambda x, g, w: x.T @ g,  # a single one
        lambda x, g, w: x.T @ g + w,
        lambda x, g, w: g @ w.T + x @ w.T,  # through two weights: joining those would cost
        lambda x, g, w: (x.T @ g).relu() + g.T @ x,
        lambda x, g, w: torch.add(x.T @ g, g.T @ x, alpha=2),
        lambda x, g, w: x.sum(0) + g.sum(1).sum(),
        lambda x, g, w: [y := x.T @ g, y + g.T @ x],  # which is needed itself
    ],
)  # fmt: skip
def test_what_is_left_alone(function: Callable[..., Any]) -> None:
    before, after = check(function, numbers(3, 3), numbers(3, 3), numbers(3, 3))
    assert before == after


def test_what_else_is_added_stays() -> None:
    """Also a partial sum that something else needs."""
    x, g, w = numbers(4, 3), numbers(4, 3), numbers(3, 3)
    before, after = check(lambda x, g, w: w + x.T @ g + w.exp() + g.T @ x, x, g, w)
    assert before[MM] == 2 and after[MM] == 1
    before, after = check(lambda x, g: 0.5 + x.T @ g + g.T @ x, x, g)
    assert before[MM] == 2 and after[MM] == 1
    before, after = check(lambda x, g, w: [y := x.T @ g + g.T @ x, y + g.T @ g], x, g, w)
    assert before[MM] == 3 and after[MM] == 2
