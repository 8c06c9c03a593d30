"""Linear layers with what follows them: the plain torch expression, and torch's own layer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsram_ppl.primitives.layers import Linear, affine


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("plus", [None, (), (7,), (3, 1), (2, 3, 7)])
@pytest.mark.parametrize("other", [None, (3,), (2, 3), (2, 1)])
def test_value_and_gradients_are_those_of_the_plain_expression(
    other: tuple[int, ...] | None, plus: tuple[int, ...] | None, bias: bool, relu: bool
) -> None:
    given: dict[str, Tensor] = {"input": normal(3, 6, seed=1), "weight": normal(7, 6, seed=2)}
    if bias:
        given["bias"] = normal(7, seed=3)
    if plus is not None:
        given["plus"] = normal(*plus, seed=4)
    if other is not None:
        given |= {"state": normal(*other, 5, seed=5), "recurrent": normal(7, 5, seed=6)}
    for x in given.values():
        x.requires_grad_()
    also = (given["state"], given["recurrent"]) if other is not None else None
    found = affine(
        given["input"], given["weight"], given.get("bias"), given.get("plus"), also=also, relu=relu
    )
    expected = given["input"] @ given["weight"].T
    for term in (given.get("bias"), given.get("plus")):
        expected = expected if term is None else expected + term
    if also is not None:
        expected = expected + also[0] @ also[1].T
    if relu:
        expected = F.relu(expected)
    torch.testing.assert_close(found, expected)
    for one, own in zip(
        torch.autograd.grad(found.square().sum(), [*given.values()]),
        torch.autograd.grad(expected.square().sum(), [*given.values()]),
        strict=True,
    ):
        torch.testing.assert_close(one, own)


@pytest.mark.parametrize("relu", [False, True])
def test_what_is_not_a_number_stays_so(relu: bool) -> None:
    """Divergence has to be seen."""
    weight = torch.ones(2, 3)
    weight[1, 0] = torch.nan
    found = affine(torch.ones(4, 3), weight, relu=relu)
    assert found[:, 1].isnan().all() and not found[:, 0].isnan().any()


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_starts_as_torchs_own(bias: bool) -> None:
    torch.manual_seed(3)
    own = Linear(12, 7, bias, relu=True)
    own_next = torch.rand(())
    torch.manual_seed(3)
    theirs = nn.Linear(12, 7, bias)
    assert torch.equal(own_next, torch.rand(()))
    assert isinstance(own, nn.Linear)
    assert list(own.state_dict()) == list(theirs.state_dict())
    for a, b in zip(own.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("relu", [False, True])
def test_a_layer_adds_before_its_relu(relu: bool) -> None:
    layer = Linear(6, 7, relu=relu).double()
    x, plus, state = normal(3, 6), normal(3, 7, seed=1), (normal(3, 5, seed=2), normal(7, 5, seed=3))
    expected = affine(x, layer.weight, layer.bias, plus, also=state, relu=relu)
    assert torch.equal(layer(x, plus, state), expected)
    assert bool((expected >= 0).all()) == relu


def test_a_layer_tells_of_its_relu() -> None:
    assert repr(Linear(3, 2)) == "Linear(in_features=3, out_features=2, bias=True)"
    with_relu = Linear(3, 2, bias=False, relu=True)
    assert repr(with_relu) == "Linear(in_features=3, out_features=2, bias=False, relu=True)"
    assert copy.deepcopy(with_relu).relu
