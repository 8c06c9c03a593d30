"""A pass over updates that are compiled for a GPU: what all glimpses add to a gradient is one product.

A weight W that is used K times, h_k = x_k W, has the gradient

    x_1^T g_1 + ... + x_K^T g_K  =  [x_1; ...; x_K]^T [g_1; ...; g_K],

and a bias the sum of all rows of [g_1; ...; g_K]. Automatic differentiation computes the left side: K
small products and K - 1 additions. This pass writes the right side. On a GPU the launch of so small a
product costs more than its work. A CPU is faster with the left side: the operands are in its caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, ops
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

__all__ = ["MergeSums"]

_ADD, _CAT, _MM = ops.aten.add.Tensor, ops.aten.cat.default, ops.aten.mm.default
_PERMUTE, _SUM = ops.aten.permute.default, ops.aten.sum.dim_IntList
_VIEWS = (ops.aten.view.default, ops.aten.reshape.default, ops.aten.squeeze.dims)


class MergeSums(CustomGraphPass):
    """Adds up the gradients of a weight inside one product, and those of a bias inside one sum.

    The results differ by rounding alone.
    """

    def __call__(self, graph: Graph) -> None:
        """Rewrites a graph that has no operations in place, as inductor's passes see it."""
        stacked: dict[tuple[Node, ...], Node] = {}
        for total in [node for node in graph.nodes if _is_sum(node) and not _is_added(node)]:
            products, sums, rest = list[tuple[Node, Node]](), list[Node](), list[Any]()
            for term in _terms(total):
                if product := _product(term):
                    products.append(product)
                elif rows := _row_sum(term):
                    sums.append(rows)
                else:
                    rest.append(term)
            if len(products) < 2 and len(sums) < 2:
                continue
            with graph.inserting_before(total):

                def stack(rows: tuple[Node, ...]) -> Node:
                    if rows not in stacked:
                        stacked[rows] = graph.call_function(_CAT, ([*rows],))
                    return stacked[rows]

                if products:
                    lefts, rights = zip(*products, strict=True)
                    left = graph.call_function(_PERMUTE, (stack(lefts), [1, 0]))
                    rest.append(graph.call_function(_MM, (left, stack(rights))))
                if sums:
                    rest.append(graph.call_function(_SUM, (stack(tuple(sums)), [0])))
                merged = rest.pop()  # a node; other terms may be numbers
                for term in rest:
                    merged = graph.call_function(_ADD, (merged, term))
            total.replace_all_uses_with(merged)
        graph.eliminate_dead_code()

    def uuid(self) -> Any:
        """Of this file: what was compiled with another version of it is compiled again."""
        return get_hash_for_files((__file__,))


def _shape(node: Any) -> tuple[int, ...] | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _is(node: Any, *targets: Any) -> bool:
    return isinstance(node, Node) and node.target in targets


def _is_sum(node: Any) -> bool:
    """Of two terms, without a factor."""
    return _is(node, _ADD) and not node.kwargs


def _is_added(node: Node) -> bool:
    """Whether a sum is only a term of another, larger sum."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return _is_sum(user) and _shape(user) == _shape(node)


def _terms(total: Any) -> Iterator[Any]:
    for term in total.args:
        yield from _terms(term) if _is_sum(term) and _is_added(term) else (term,)


def _product(term: Any) -> tuple[Node, Node] | None:
    """x and g, both [rows, width], of a term x^T g that nothing else needs."""
    while _is(term, _PERMUTE) and _is(term.args[0], _PERMUTE):
        term = term.args[0].args[0]
    if not _is(term, _MM) or len(term.users) > 1:
        return None
    left, right = term.args
    if not _is(left, _PERMUTE) or _is(right, _PERMUTE):
        return None
    return left.args[0], right


def _row_sum(term: Any) -> Node | None:
    """x, [rows, width], of a term that is the sum of its rows and that nothing else needs."""
    wanted = _shape(term)
    while _is(term, *_VIEWS) and len(term.users) == 1:
        term = term.args[0]
    if not _is(term, _SUM) or len(term.users) > 1:
        return None
    rows, dims, *_ = term.args
    shape = _shape(rows)
    alike = shape is not None and len(shape) == 2 and shape[1:] == wanted and list(dims) == [0]
    return rows if alike and not term.kwargs else None
