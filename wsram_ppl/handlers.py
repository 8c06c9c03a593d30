"""Effect handlers: small pieces that change how a Pyro program runs, and leave the program alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _PYRO_STACK, apply_stack
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class ConstantSamples(Messenger):
    """Makes every latent value a constant *while the program runs*.

    The program and its trace both see the detached value, so a recurrent guide with reparameterised
    (``rsample``) sites has no pathwise gradient from one site into the next. Detaching a finished
    trace would come too late: later sites have used the value by then.

    Must be entered outside the handler that records the trace.
    """

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        value = msg["value"]
        if not msg["is_observed"] and isinstance(value, Tensor) and value.requires_grad:
            msg["value"] = value.detach()  # a constant stays the same object, as Reuse wants


class Propose(Messenger):
    """Runs a program on given latent values, keeping the program's own ``infer`` declarations.

    (:func:`pyro.poutine.replay` overwrites ``infer`` with that of the replayed trace, and samples
    the sites that the trace lacks from the program itself, which would leave them out of the weights.)

    Args:
        values: the value of every latent site, and of every plate's subsample, by name.
        whose: how to call the program in an error message.

    Raises:
        ValueError: a latent site has no value, or a site with a value is observed here.
    """

    def __init__(self, values: Mapping[str, Any], whose: str = "model") -> None:
        super().__init__()
        self.values = values
        self.whose = whose

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if msg["is_observed"]:
            if name in self.values and not isinstance(msg["fn"], _Subsample):
                raise ValueError(
                    f"site '{name}' is observed in the {self.whose} but sampled by the guide: "
                    "hide it in the guide, or pass no observation"
                )
        elif name in self.values:
            msg["value"] = self.values[name]
            msg["done"] = True
        elif not isinstance(msg["fn"], _Subsample):
            raise ValueError(
                f"the {self.whose} samples site '{name}' but no value was proposed for it: "
                f"give the guide a site '{name}', or observe it in the model"
            )


class ForceSamples(Messenger):
    """Gives chosen latent sites chosen values, wherever else they would have been sampled.

    Enter it around an objective to evaluate the objective on particles of your own: for exact
    enumeration in tests, or to compare estimators on common draws. A value that is a callable is
    called with the site's distribution.
    """

    def __init__(self, values: Mapping[str, Tensor | Callable[[Any], Tensor]]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.values and msg["value"] is None and not msg["is_observed"]:
            value = self.values[msg["name"]]
            msg["value"] = value(msg["fn"]) if callable(value) else value
            msg["done"] = True


class Mode(Messenger):
    """Gives every latent site its distribution's mode instead of a sample.

    Raises:
        NotImplementedError: a distribution has no mode.
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or msg["value"] is not None or isinstance(msg["fn"], _Subsample):
            return
        msg["value"] = msg["fn"].mode
        msg["done"] = True


class Reuse(Messenger):
    """Computes each :func:`shared` call once while entered.

    Guide and model of a recurrent attention model run the same recurrence on the same glimpses.
    Entered around both, this handler records what the first run computes and gives it to the second.
    A call is the same when function and arguments are the *same objects* (by identity, as for an
    ``lru_cache`` on tensors): the values proposed to the model are the guide's own tensors, so a
    replayed recurrence hits, and anything that differs is computed afresh.
    """

    def __init__(self) -> None:
        super().__init__()
        self._results: dict[tuple[Any, ...], Any] = {}

    def __enter__(self) -> Reuse:
        self._results = {}
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._results = {}  # also lets go of the graph
        super().__exit__(*error)

    @staticmethod
    def _key(msg: dict[str, Any]) -> tuple[Any, ...]:
        arguments = (*msg["args"], *msg["kwargs"].values())
        names = tuple(msg["kwargs"])
        return (id(msg["fn"]), names, torch.is_grad_enabled(), *map(id, arguments))

    def _pyro_shared(self, msg: dict[str, Any]) -> None:
        held = self._results.get(self._key(msg))
        if held is not None:
            msg["value"] = held[0]
            msg["done"] = True

    def _pyro_post_shared(self, msg: dict[str, Any]) -> None:
        # The arguments are kept with the result, so that no identity is used again for another object.
        self._results[self._key(msg)] = (msg["value"], msg["args"], msg["kwargs"])


def shared(fn: Callable[P, R]) -> Callable[P, R]:
    """Marks a deterministic function (or method) that guide and model both call.

    Without :class:`Reuse` entered it is the plain function.
    """

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _PYRO_STACK:
            return fn(*args, **kwargs)
        msg: dict[str, Any] = {
            "type": "shared",
            "name": None,
            "fn": fn,
            "is_observed": False,
            "args": args,
            "kwargs": kwargs,
            "value": None,
            "infer": None,
            "scale": 1.0,
            "mask": None,
            "cond_indep_stack": (),
            "done": False,
            "stop": False,
            "continuation": None,
        }
        apply_stack(msg)  # type: ignore[arg-type]
        result: R = msg["value"]
        return result

    return call
