"""A step traced once and compiled whole: guide, model, objective and derivatives as one program."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from wsram_ppl.config import TrainingSettings
from wsram_ppl.errors import InputError
from wsram_ppl.primitives.undoing import other_randomness, without_a_trace
from wsram_ppl.runs.checkpoints import TrainingState

__all__ = ["CompiledStep", "check_compilable"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class _Compiled:
    """A compiled call.

    Args:
        program: of the arguments and of ``held``, to the leaves of the result.
        held: tensors that the function reads or changes in place, besides its arguments.
        form: structure of the result.
    """

    program: Callable[..., Any]
    held: list[Tensor]
    form: TreeSpec


class CompiledStep(Generic[T]):
    """A function of tensors that is compiled for each shape of arguments.

    Before compiling, the function is called once without it, so that one-time work (warnings, first
    values of running means) is done. That call leaves no trace, unless it initialises a running mean:
    then its result counts. Python does not run afterwards: other inputs of the function must be tensors
    that stay in place, such as parameters, and the outcome of every branch is fixed. Random numbers are
    the ones that the function itself would draw.

    Args:
        function: of tensors.
        state: what the function may change.
        quiet: called before the function is traced; no other work may run during tracing.

    Raises:
        InputError: at the first call, if the function cannot be compiled: it reads the value of a
            tensor, draws random numbers from outside torch, which would be the same every time, or
            replaces a tensor of the state, which would keep its value.
    """

    def __init__(
        self, function: Callable[..., T], state: TrainingState, quiet: Callable[[], None]
    ) -> None:
        self._function, self._state, self._quiet = function, state, quiet
        self._compiled: dict[Any, _Compiled] = {}

    def __call__(self, *arguments: Tensor) -> T:
        arguments = tuple(x.contiguous() for x in arguments)
        key = tuple((x.shape, x.dtype) for x in arguments)
        held = self._compiled.get(key)
        if held is not None:
            return self._run(held, arguments)
        shapes = " and ".join(str(list(x.shape)) for x in arguments)
        _log.info("compiling the update for minibatches of %s: this takes minutes, once", shapes)
        with self._rehearsed() as begun:
            usual = self._function(*arguments)
        try:
            with self._rehearsed():
                held = self._traced(arguments)
        except Exception as error:  # any kind: the function itself has just worked
            why = str(error)
            if not isinstance(error, _Refused):
                why = f"{type(error).__name__}: {' '.join(why.split())[:160]}"
            raise InputError(
                f"training.compile: the update cannot be compiled, since {why}; use compile = false"
            ) from error
        self._compiled[key] = held
        return usual if begun else self._run(held, arguments)

    @contextmanager
    def _rehearsed(self) -> Iterator[list[str]]:
        """Undoes a call's changes of state, unless it initialises some; yields the names of what it did.

        In that case the changes stay.
        """
        begun: list[str] = []
        parts, before = self._state.components, self._state.tensors().keys()
        with without_a_trace(parts.model, parts.guide, parts.objective) as keep:
            yield begun
            begun += self._state.tensors().keys() - before
            if begun:
                keep()

    def _traced(self, arguments: tuple[Tensor, ...]) -> _Compiled:
        self._quiet()
        form: list[TreeSpec] = []

        def flat(*arguments: Tensor) -> list[Any]:
            with _NoValues(), _NoCopies():  # type: ignore[no-untyped-call]
                leaves, found = tree_flatten(self._function(*arguments))
            form.append(found)
            return leaves

        randomness = other_randomness()
        traced = make_fx(flat, _ORDERED, tracing_mode="fake", _allow_non_fake_inputs=True)
        graph = traced(*arguments)
        if other_randomness() != randomness:
            raise _Refused("it draws random numbers from outside torch, which would stay the same")
        for name, tensor in self._state.tensors().items():
            if isinstance(tensor, FakeTensor):
                raise _Refused(f"it puts another tensor in the place of {name}: change that by copy_")
        graph, held = _lift(graph)
        with torch.no_grad():
            program = compile_graph(graph, [*arguments, *held])
        return _Compiled(program, held, form[-1])

    def _run(self, compiled: _Compiled, arguments: tuple[Tensor, ...]) -> T:
        with torch.no_grad():
            leaves = compiled.program(*arguments, *compiled.held)
        result: T = tree_unflatten(leaves, compiled.form)
        return result


def compile_graph(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """The compiled graph, for inputs of the types and shapes of these."""
    from torch import _inductor  # takes a second

    from wsram_ppl.training.merging import MergeSums

    # Draws come from torch's generators, as in the graph and in its order, which older compilers change.
    options: dict[str, Any] = {"fallback_random": True, "reorder_for_locality": False}
    if any(isinstance(x, Tensor) and x.is_cuda for x in inputs):
        # Fewer launches: small operations that are independent share one.
        options |= {"combo_kernels": True, "post_grad_custom_pre_pass": MergeSums()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's, about its own choices
        program: Callable[..., Any] = _inductor.compile(graph, inputs, options=options)
    return program


def check_compilable(training: TrainingSettings, device: torch.device, processes: int) -> None:
    """Checks that an update can be compiled, as far as possible without running it.

    Raises:
        InputError: it cannot.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes a second
    from torch.utils._triton import has_triton_package

    obstacle = ""
    if processes > 1:
        obstacle = "communication between processes cannot be compiled; use devices = 1"
    elif training.validate_sites:
        obstacle = "an update with validation cannot be compiled; set validate = false"
    elif device.type == "cuda" and not has_triton_package():
        obstacle = "on a GPU it needs Triton, which is not installed; pip install triton"
    else:
        try:
            get_cpp_compiler()
        except Exception:
            obstacle = "it needs a C++ compiler, and there is none; install g++ (or name one in CXX)"
    if obstacle:
        raise InputError(f"training.compile: {obstacle}, or compile = false")


def _embedding_gradient(
    gradient: Tensor, indices: Tensor, count: int, padding: int, by_frequency: bool
) -> Any:
    """The gradient of an embedding's weights ``[count, width]``: one_hot(indices)^T gradient.

    The compiler would let threads add up the rows of an index, in whatever order they come.
    """
    if by_frequency:
        return NotImplemented
    rows = indices.flatten()
    one_hot = rows[:, None] == torch.arange(count, device=rows.device)
    if padding >= 0:
        one_hot = one_hot & (rows != padding)[:, None]
    return one_hot.to(gradient.dtype).T @ gradient.reshape(rows.numel(), -1)


#: What is computed differently in a program, so that it gives the same bits every time.
_ORDERED: Final = {torch.ops.aten.embedding_dense_backward.default: _embedding_gradient}


class _Refused(Exception):
    """Why something cannot be compiled. Not a ValueError, since Pyro would add to its text."""


class _NoValues(TorchDispatchMode):
    """Refuses what depends on a tensor's value: reading it, or a shape that follows from it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refused = torch.Tag.data_dependent_output in func.tags
        if func is torch.ops.aten.index.Tensor:
            refused = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        elif torch.Tag.dynamic_output_shape in func.tags:
            refused = True
        if refused:
            raise _Refused(_VALUE.format(func.name()))
        return func(*args, **(kwargs or {}))


class _NoCopies(TorchFunctionMode):
    """Refuses to read all values at once, which is not an operation of torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy, Tensor.__array__):
            raise _Refused(_VALUE.format(func.__name__))
        return func(*args, **(kwargs or {}))


_VALUE = "it asks for a tensor's value or a shape that depends on one ({}: float, if, a mask as index)"


def _lift(traced: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """The graph with its own tensors turned into inputs, and these tensors."""
    graph = traced.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    places: dict[int, Any] = {}
    held: list[Tensor] = []
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(traced, node.target)
        place = places.get(id(tensor))
        if place is None:
            with graph.inserting_after(last):
                place = last = places[id(tensor)] = graph.placeholder(f"held_{len(held)}")
            held.append(tensor.detach())
        node.replace_all_uses_with(place)
        graph.erase_node(node)
    # In a new module: the tensors of the traced one would become inputs again.
    return GraphModule(nn.Module(), graph), held
