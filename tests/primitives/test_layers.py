"""Linear layers by oneDNN: the numbers of the plain expression, to the bit where no rounding is.

Most tests take small integers as numbers: sums and products of these are exact in any order, so that
value and gradients must be equal in every bit to those of the plain torch expression in float64.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wsram_ppl.primitives import layers
from wsram_ppl.primitives.layers import Linear, affine

FEW = settings(max_examples=60, deadline=None)

#: float32's unit of rounding.
ROUNDING = 2.0**-24

Expression = Callable[..., Tensor]


def plain(
    input: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, *, relu: bool
) -> Tensor:
    found = F.linear(input, weight, bias)
    if plus is not None:
        found = found + plus
    return torch.relu(found) if relu else found


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Whole numbers from -2 to 2."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).float()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@contextmanager
def all_sizes(onednn: bool = True) -> Iterator[None]:
    """oneDNN for every product that is not empty, or for none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "_WORTHWHILE", 1 if onednn else 2**62)
        yield


def is_onednn(found: Tensor) -> bool:
    """Whether a result (of something that requires a gradient) comes from oneDNN."""
    assert found.grad_fn is not None
    names, seen = [], [found.grad_fn]
    while seen:
        node = seen.pop()
        names.append(node.name())
        seen += [parent for parent, _ in node.next_functions if parent is not None]
    return any("_Affine" in name for name in names)


class Case:
    """Arguments of ``affine`` in float32, which of them are differentiated, and weights of the results.

    Args:
        leading: the leading dimensions of the input.
        plus: the shape of ``plus``; None for none.
        wanted: which of input, weight, bias and plus require a gradient.
    """

    def __init__(
        self,
        leading: tuple[int, ...],
        inputs: int,
        outputs: int,
        bias: bool = True,
        plus: tuple[int, ...] | None = None,
        relu: bool = False,
        wanted: tuple[bool, ...] = (True,) * 4,
        numbers: Callable[..., Tensor] = integers,
    ) -> None:
        self.arguments: list[Tensor | None] = [
            numbers(*leading, inputs, seed=1),
            numbers(outputs, inputs, seed=2),
            numbers(outputs, seed=3) if bias else None,
            None if plus is None else numbers(*plus, seed=4),
        ]
        self.relu = relu
        self.wanted = wanted
        shape = torch.broadcast_shapes((*leading, outputs), plus or ())
        self.weights = numbers(*shape, seed=5)

    def leaves(self, dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
        return [
            None if x is None else x.to(dtype, copy=True).requires_grad_(wanted)
            for x, wanted in zip(self.arguments, self.wanted, strict=True)
        ]

    def value(self, of: Expression, dtype: torch.dtype = torch.float32) -> Tensor:
        return of(*self.leaves(dtype), relu=self.relu)

    def value_and_gradients(
        self, of: Expression, dtype: torch.dtype = torch.float32
    ) -> list[Tensor | None]:
        leaves = self.leaves(dtype)
        found = of(*leaves, relu=self.relu)
        assert found.dtype == dtype
        if found.requires_grad:
            (found * self.weights.to(dtype)).sum().backward()
        return [found.detach(), *(None if x is None else x.grad for x in leaves)]

    def second_derivatives(
        self, of: Expression, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, ...]:
        """Of sum(weights result^2), along fixed directions, to all that is differentiated."""
        leaves = self.leaves(dtype)
        weights = self.weights.to(dtype).requires_grad_()
        variables = [x for x in leaves if x is not None and x.requires_grad]
        if not variables:
            return ()
        total = (of(*leaves, relu=self.relu).square() * weights).sum()
        first = torch.autograd.grad(total, variables, create_graph=True)
        directions = [integers(*g.shape, seed=6 + n).to(dtype) for n, g in enumerate(first)]
        along = [(g * d).sum() for g, d in zip(first, directions, strict=True)]
        return torch.autograd.grad(
            torch.stack(along).sum(), [weights, *variables], materialize_grads=True
        )


def assert_same(found: object, expected: object) -> None:
    """Equal in every bit, as the expected float64 are numbers of float32 too; None where None is."""
    assert isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == torch.float32
            torch.testing.assert_close(a.to(b.dtype), b, atol=0, rtol=0, equal_nan=True)


@st.composite
def cases(draw: st.DrawFn, most: int = 20, longest: int = 4) -> Case:
    leading = tuple(draw(st.lists(st.integers(0, longest), max_size=3)))
    inputs, outputs = draw(st.integers(1, most)), draw(st.integers(1, most))
    plus = None
    if draw(st.booleans()):
        # Leave out dimensions on the left, make some one, or more than the product has.
        whole = (*leading, outputs)
        kept = list(whole[draw(st.integers(0, len(whole))) :])
        for n, size in enumerate(kept):
            if draw(st.booleans()):
                kept[n] = draw(st.integers(1, 3)) if size == 1 else 1
        if len(kept) == len(whole):
            kept = [*draw(st.lists(st.integers(1, 3), max_size=2)), *kept]
        plus = tuple(kept)
    wanted = tuple(draw(st.tuples(*[st.booleans()] * 4)))
    return Case(leading, inputs, outputs, draw(st.booleans()), plus, draw(st.booleans()), wanted)


# Value and gradients.


@FEW
@given(cases(), st.booleans())
def test_value_and_gradients_are_those_of_the_plain_expression(case: Case, onednn: bool) -> None:
    with all_sizes(onednn):
        found = case.value_and_gradients(affine)
    assert_same(found, case.value_and_gradients(plain, torch.float64))


SHAPES = {
    "none": None,
    "a number": (),
    "a row": (128,),
    "a column": (192, 1),
    "the same": (3, 192, 128),
    "once for three": (192, 128),
    "larger": (2, 3, 192, 128),
    "larger, with ones": (2, 1, 1, 128),
}


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("plus", SHAPES)
def test_large_products_as_they_are_used(plus: str, bias: bool, relu: bool) -> None:
    """With the threshold as it is."""
    case = Case((3, 192), 64, 128, bias, SHAPES[plus], relu)
    assert layers._WORTHWHILE < 3 * 192 * 64 * 128
    assert is_onednn(case.value(affine))
    found = case.value_and_gradients(affine)
    assert_same(found, case.value_and_gradients(plain, torch.float64))


def test_a_small_product_plus_what_belongs_to_many() -> None:
    """The product of a state that all particles share; what is added has one row for each."""
    case = Case((1, 6), 5, 7, plus=(5, 6, 7), relu=True)
    with all_sizes():
        found = case.value_and_gradients(affine)
    assert found[0] is not None and found[0].shape == (5, 6, 7)
    assert_same(found, case.value_and_gradients(plain, torch.float64))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("relu", [False, True])
def test_all_digits_of_single_precision_are_right(relu: bool, precision: str) -> None:
    """|error| <= n u sum of |terms|, the bound of a sum of n terms in any order.

    A half-precision product misses it by far. "medium" allows one, which a CPU with AMX then makes:
    of ``F.linear`` too.
    """
    if precision == "medium" and torch.cpu._is_amx_tile_supported():
        pytest.skip("this CPU multiplies in bfloat16 when precision is 'medium', as is asked for")
    case = Case((4, 64), 96, 112, plus=(64, 112), relu=relu, numbers=normal)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = case.value_and_gradients(affine)
        assert is_onednn(case.value(affine))
    finally:
        torch.set_float32_matmul_precision(before)
    x, w, b, p = (x.double() for x in case.arguments if x is not None)
    value, *gradients = (x.double() for x in found if x is not None)

    def assert_near(number: Tensor, expected: Tensor, terms: int, size: Tensor) -> None:
        assert bool(((number - expected).abs() <= (terms + 3) * ROUNDING * size).all())

    assert_near(value, plain(x, w, b, p, relu=relu), 96, x.abs() @ w.abs().T + b.abs() + p.abs())
    # The ReLU's mask is a function of the rounded value: given that, gradients are sums of products.
    g = (case.weights.double() * (value > 0) if relu else case.weights.double()).flatten(0, 1)
    rows = x.flatten(0, 1)
    assert_near(gradients[0].flatten(0, 1), g @ w, 112, g.abs() @ w.abs())
    assert_near(gradients[1], g.T @ rows, len(rows), g.abs().T @ rows.abs())
    assert_near(gradients[2], g.sum(0), len(rows), g.abs().sum(0))
    assert_near(gradients[3], g.view(4, 64, 112).sum(0), 4, g.abs().view(4, 64, 112).sum(0))


@FEW
@given(cases(most=8, longest=3))
def test_second_derivatives_are_those_of_the_plain_expression(case: Case) -> None:
    with all_sizes():
        found = case.second_derivatives(affine)
    assert_same(found, case.second_derivatives(plain, torch.float64))


@pytest.mark.parametrize("relu", [False, True])
def test_second_derivatives_of_a_large_product_of_data(relu: bool) -> None:
    """All but those to the input, as of a network's first layer."""
    case = Case((4, 32), 128, 128, plus=(32, 128), relu=relu, wanted=(False, True, True, True))
    assert is_onednn(case.value(affine))
    found = case.second_derivatives(affine)
    assert_same(found, case.second_derivatives(plain, torch.float64))


@pytest.mark.parametrize("relu", [False, True])
def test_second_derivatives_of_a_large_product(relu: bool) -> None:
    case = Case((4, 32), 128, 128, plus=(32, 128), relu=relu)
    assert is_onednn(case.value(affine))
    found = case.second_derivatives(affine)
    assert_same(found, case.second_derivatives(plain, torch.float64))


def test_the_graph_can_be_gone_through_twice() -> None:
    case = Case((8,), 4, 5, relu=True)
    with all_sizes():
        input, weight, bias, _ = case.leaves()
        assert input is not None and weight is not None and bias is not None
        found = affine(input, weight, bias, relu=True)
        once = torch.autograd.grad(found.sum(), (input, weight, bias), retain_graph=True)
        assert_same(torch.autograd.grad(found.sum(), (input, weight, bias)), once)


def test_results_may_be_changed_in_place_behind_a_relu() -> None:
    """As torch does: what the ReLU needs for its gradient has changed, and that is said."""
    weight = integers(5, 4).requires_grad_()
    with all_sizes():
        found = affine(integers(8, 4), weight, plus=integers(2, 8, 5), relu=True)
    with torch.no_grad():
        found.detach().mul_(-1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


@pytest.mark.parametrize("plus", [None, (5,)])
def test_results_may_be_changed_in_place(plus: tuple[int, ...] | None) -> None:
    """As those of F.linear: a product does not need its own value."""
    case = Case((8,), 4, 5, plus=plus)

    def doubled(of: Expression) -> Expression:
        return lambda *arguments, relu: of(*arguments, relu=relu).mul_(2.0)

    with all_sizes():
        found = case.value_and_gradients(doubled(affine))
    assert_same(found, case.value_and_gradients(doubled(plain), torch.float64))


def test_what_is_given_stays_as_it_was() -> None:
    """The product is made in place: nobody else's memory may be."""
    case = Case((8,), 4, 5, plus=(8, 5), relu=True)
    leaves = case.leaves()
    with all_sizes():
        of: Expression = affine
        of(*leaves, relu=True).sum().backward()
    assert_same([None if x is None else x.detach() for x in leaves], case.arguments)


# What is not a number.


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["input", "weight", "bias", "plus"])
@pytest.mark.parametrize("relu", [False, True])
def test_what_is_not_a_number_stays_so(relu: bool, where: str, number: float) -> None:
    """Divergence has to be seen; oneDNN's own ReLU makes 0 of NaN."""
    case = Case((40,), 30, 20, plus=(40, 20), relu=relu)
    changed = case.arguments[["input", "weight", "bias", "plus"].index(where)]
    assert changed is not None
    changed[3] = number
    with all_sizes():
        found = case.value_and_gradients(affine)
    expected = case.value_and_gradients(plain, torch.float64)
    assert_same(found, expected)
    assert found[0] is not None
    if number != number:
        assert bool(found[0].isnan().any()) and not bool(found[0].isnan().all())


def test_a_gradient_that_is_not_a_number_stays_so() -> None:
    case = Case((40,), 30, 20, relu=True)
    case.weights[3] = torch.nan
    with all_sizes():
        found = case.value_and_gradients(affine)
    assert_same(found, case.value_and_gradients(plain, torch.float64))
    assert found[1] is not None and bool(found[1][3].isnan().any())


# Which products go to oneDNN.


def product(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """rows x 2^14 multiplications."""
    weight = torch.ones(128, 128, dtype=dtype, requires_grad=True)
    return affine(torch.ones(rows, 128, dtype=dtype), weight)


def test_products_from_two_million_multiplications_on_go_to_onednn() -> None:
    assert layers._WORTHWHILE == 128 * 2**14
    assert torch.backends.mkldnn.is_available()  # in every wheel of torch for these machines
    assert is_onednn(product(128))
    assert is_onednn(product(1000))
    assert not is_onednn(product(127))
    assert not is_onednn(product(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_do_not(dtype: torch.dtype) -> None:
    found = product(128, dtype)
    assert found.dtype == dtype and not is_onednn(found)


def test_mixed_types_are_refused_as_by_torch() -> None:
    for types in itertools.permutations([torch.float32, torch.float64]):
        input, weight = (torch.ones(128, 128, dtype=dtype) for dtype in types)
        with pytest.raises(RuntimeError, match="same dtype"):
            affine(input, weight)


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
def test_onednn_can_be_turned_off() -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        assert not is_onednn(product(128))
    assert is_onednn(product(128))


def test_compiled_code_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not is_onednn(product(128))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("plus", [None, torch.bfloat16, torch.float32])
def test_mixed_precision_is_torchs_own(plus: torch.dtype | None, relu: bool) -> None:
    case = Case((128,), 128, 128, relu=relu)
    input, weight, bias, _ = case.leaves()
    assert input is not None and weight is not None
    added = None if plus is None else integers(128, 128).to(plus)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = affine(input, weight, bias, added, relu=relu)
        expected = plain(input, weight, bias, added, relu=relu)
    assert not is_onednn(found)
    assert found.dtype == expected.dtype == (torch.float32 if plus == torch.float32 else torch.bfloat16)
    assert torch.equal(found, expected)
    with torch.autocast("cpu", enabled=False):
        assert is_onednn(affine(input, weight, bias, relu=relu))


def test_what_is_added_may_be_of_double_precision() -> None:
    input, weight, plus = integers(128, 128), integers(128, 128), integers(128, 128).double() / 3
    assert affine(input, weight, None, plus).dtype == F.linear(input, weight).add(plus).dtype


# What needs no gradient.


def test_nothing_is_computed_for_what_needs_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    multiply = layers._product

    def counted(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
        found = multiply(left, right, bias)
        calls.append(tuple(found.shape))
        return found

    monkeypatch.setattr(layers, "_product", counted)
    shapes = {0: (9, 4), 1: (5, 4)}  # products for the gradients to input and weight
    for wanted in itertools.product([False, True], repeat=4):
        case = Case((9,), 4, 5, plus=(5,), relu=True, wanted=wanted)
        calls.clear()
        with all_sizes():
            _, *gradients = case.value_and_gradients(affine)
        assert [g is not None for g in gradients] == list(wanted)
        assert calls == [(9, 5), *(shape for n, shape in shapes.items() if wanted[n])]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_without_gradients(inference: bool, relu: bool) -> None:
    case = Case((192,), 128, 128, plus=(192, 128), relu=relu)
    with torch.inference_mode() if inference else torch.no_grad():
        found = case.value(affine)
        assert found.grad_fn is None and not found.requires_grad
        assert found.is_inference() == inference
        assert_same([found], [case.value(plain, torch.float64)])


# How numbers lie in memory.


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


def offset(x: Tensor) -> Tensor:
    """Not at the start of its memory, and not at a multiple of four numbers."""
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


def expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


LAYOUTS = (transposed, strided, offset, expanded)


@pytest.mark.parametrize(
    ("lay", "argument"),
    [(lay, n) for lay in LAYOUTS for n in range(4)],
)
def test_numbers_may_lie_anywhere_in_memory(lay: Callable[[Tensor], Tensor], argument: int) -> None:
    for leading in ((40,), (2, 3, 40)):
        case = Case(leading, 30, 20, plus=(*leading, 20), relu=True)

        def laid(of: Expression) -> Expression:
            def expression(*arguments: Tensor, relu: bool) -> Tensor:
                given = list(arguments)
                given[argument] = lay(given[argument])
                return of(*given, relu=relu)

            return expression

        with all_sizes():
            found = case.value_and_gradients(laid(affine))
        assert_same(found, case.value_and_gradients(laid(plain), torch.float64))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("lay", LAYOUTS)
def test_gradients_may_lie_anywhere_in_memory(lay: Callable[[Tensor], Tensor], relu: bool) -> None:
    """A sum's gradient is one number, seen from everywhere."""
    case = Case((40,), 30, 20, relu=relu)

    def gradients(of: Expression, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x for x in case.leaves(dtype) if x is not None]
        found = of(*leaves, None, relu=relu)
        return torch.autograd.grad(found, leaves, lay(case.weights).to(dtype))

    with all_sizes():
        found = gradients(affine, torch.float32)
    assert_same(found, gradients(plain, torch.float64))


# The layer.


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


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_takes_the_numbers_of_torchs_own(bias: bool) -> None:
    own, theirs = Linear(128, 128, bias), nn.Linear(128, 128, bias)
    own.load_state_dict(theirs.state_dict())
    for rows in (1, 256):
        x = normal(rows, 128)
        assert is_onednn(own(x)) == (rows == 256)
        torch.testing.assert_close(own(x), theirs(x), atol=1e-5, rtol=1e-5)
    theirs.load_state_dict(own.state_dict())


@pytest.mark.parametrize("rows", [4, 256])
@pytest.mark.parametrize("relu", [False, True])
def test_a_layer_adds_before_its_relu(relu: bool, rows: int) -> None:
    layer = Linear(128, 96, relu=relu)
    with torch.no_grad():
        layer.weight.copy_(integers(96, 128))
        assert layer.bias is not None
        layer.bias.copy_(integers(96, seed=1))
    x, plus = integers(rows, 128, seed=2), integers(rows, 96, seed=3)
    for added in (None, plus):
        assert torch.equal(layer(x, added), plain(x, layer.weight, layer.bias, added, relu=relu))
    assert bool((layer(x, plus) >= 0).all()) == relu


def test_a_layer_tells_of_its_relu() -> None:
    assert repr(Linear(3, 2)) == "Linear(in_features=3, out_features=2, bias=True)"
    with_relu = Linear(3, 2, bias=False, relu=True)
    assert repr(with_relu) == "Linear(in_features=3, out_features=2, bias=False, relu=True)"
    assert copy.deepcopy(with_relu).relu


def test_a_layer_learns_what_torchs_own_learns() -> None:
    """Ten steps of descent, with numbers that are exact: no gradient is lost or counted twice."""
    own = nn.Sequential(Linear(16, 8, relu=True), Linear(8, 4))
    theirs = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    for a, b in zip(own.parameters(), theirs.parameters(), strict=True):
        with torch.no_grad():
            a.copy_(normal(*a.shape) / 4)
            b.copy_(a)
    x = normal(32, 16, seed=1)
    with all_sizes():
        for _ in range(10):
            for network, numbers in ((own, x), (theirs, x.double())):
                network.zero_grad()
                network(numbers).square().mean().backward()
                with torch.no_grad():
                    for parameter in network.parameters():
                        assert parameter.grad is not None
                        parameter.sub_(0.1 * parameter.grad)
    for a, b in zip(own.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-6, rtol=1e-5)


# A second product, as a recurrent layer has.


def plain_pair(
    input: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, *also: Tensor, relu: bool
) -> Tensor:
    other = F.linear(*also)
    return plain(input, weight, bias, other if plus is None else other + plus, relu=relu)


def affine_pair(
    input: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, *also: Tensor, relu: bool
) -> Tensor:
    return affine(input, weight, bias, plus, also=(also[0], also[1]), relu=relu)


def pair(leading: tuple[int, ...], other: tuple[int, ...], plus: tuple[int, ...] | None) -> list[Tensor]:
    """Arguments for a layer of 6 and 5 inputs and 7 outputs."""
    summed = [] if plus is None else [integers(*plus, seed=4)]
    return [
        integers(*leading, 6, seed=1),
        integers(7, 6, seed=2),
        integers(7, seed=3),
        *summed,
        integers(*other, 5, seed=5),
        integers(7, 5, seed=6),
    ]


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("plus", [None, (7,), (2, 3, 7)])
@pytest.mark.parametrize(
    ("leading", "other"),
    [((3,), (3,)), ((2, 3), (2, 3)), ((2, 3), (3,)), ((3,), (2, 3)), ((2, 1), (1, 3)), ((), ())],
)
def test_a_second_product_is_added(
    leading: tuple[int, ...],
    other: tuple[int, ...],
    plus: tuple[int, ...] | None,
    relu: bool,
    onednn: bool,
) -> None:
    """Of the same rows, or of those that all particles share: value, gradients, their gradients."""
    arguments, found = pair(leading, other, plus), []
    for of, dtype in ((affine_pair, torch.float32), (plain_pair, torch.float64)):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in arguments]
        given = leaves if plus is not None else [*leaves[:3], None, *leaves[3:]]
        with all_sizes(onednn):
            value = of(*given, relu=relu)  # type: ignore[arg-type]
            first = torch.autograd.grad(value.square().sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([value, *first, *second])
    for one, expected in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), expected, rtol=1e-5, atol=1e-3)


def test_two_products_of_the_same_rows_are_one_node() -> None:
    arguments = [x.requires_grad_() for x in pair((4,), (4,), None)]
    with all_sizes():
        found = affine_pair(*arguments[:3], None, *arguments[3:], relu=True)
    assert found.grad_fn is not None and "_Affine" in found.grad_fn.name()
    parents = {node.name() for node, _ in found.grad_fn.next_functions if node is not None}
    assert parents == {"struct torch::autograd::AccumulateGrad"} or len(parents) == 1


def test_what_is_not_wanted_of_a_second_product_is_not_computed() -> None:
    arguments = pair((4,), (4,), None)
    arguments[4].requires_grad_()  # the second weight
    with all_sizes():
        affine_pair(*arguments[:3], None, *arguments[3:], relu=False).sum().backward()
    assert arguments[4].grad is not None
    assert all(x.grad is None for n, x in enumerate(arguments) if n != 4)
