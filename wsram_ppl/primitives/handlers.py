"""Effect handlers, which change how a Pyro program runs without changing the program."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

__all__ = [
    "PARTICLE_PLATE",
    "DetachSamples",
    "Memoize",
    "Mode",
    "ParticlePlate",
    "Substitute",
    "constant",
    "evaluating",
    "has_density",
    "is_subsample",
    "memoize",
    "pyro_settings",
]

P = ParamSpec("P")
R = TypeVar("R")


#: The name that Pyro gives the plate around a program that draws all particles at once.
PARTICLE_PLATE = "num_particles_vectorized"


def is_subsample(site: Mapping[str, Any]) -> bool:
    """Whether a sample site is a plate's subsample."""
    return isinstance(site["fn"], _Subsample)


def is_minibatch(site: Mapping[str, Any]) -> bool:
    """Whether a sample site draws some of a plate's data, not all."""
    fn = site["fn"]
    return is_subsample(site) and bool((fn.subsample_size or fn.size) < fn.size)


def has_density(site: Mapping[str, Any]) -> bool:
    """Whether a sample site is random: not a plate's subsample, not ``pyro.deterministic``."""
    return not is_subsample(site) and not (site["infer"] or {}).get("_deterministic")


class ParticlePlate(Messenger):
    """Draws all particles at once: the plate that Pyro's ``ELBO`` puts left of all others.

    A program, its distributions and its trace see ``pyro.plate(PARTICLE_PLATE, size, dim=dim)``, without
    the plate's own site and without expanding distributions that hold all particles already.

    Args:
        size: M, the number of particles.
        dim: their dimension, negative, left of the program's plates.
        shared: names of sites shared by all particles.

    Raises:
        ValueError: a distribution has another size there.
    """

    def __init__(self, size: int, dim: int, shared: Collection[str] = ()) -> None:
        super().__init__()
        self.shared = shared
        self.frame = CondIndepStackFrame(PARTICLE_PLATE, dim, size, counter=0, full_size=size)

    def __enter__(self) -> ParticlePlate:
        # So that no plate of the program takes the dimension.
        _DIM_ALLOCATOR.allocate(PARTICLE_PLATE, self.frame.dim)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _DIM_ALLOCATOR.free(PARTICLE_PLATE, self.frame.dim)  # type: ignore[arg-type]
        super().__exit__(*error)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.shared:
            return
        _, dim, size, _, _ = self.frame
        assert dim is not None
        msg["cond_indep_stack"] = (self.frame, *msg["cond_indep_stack"])
        if not isinstance(msg["fn"], TorchDistributionMixin):
            return
        shape = msg["fn"].batch_shape
        shape = torch.Size([1] * (-dim - len(shape)) + list(shape))
        if shape[dim] == 1:
            msg["fn"] = msg["fn"].expand((*shape[:dim], size, *shape[len(shape) + dim + 1 :]))
        elif shape[dim] != size:
            raise ValueError(
                f"site '{msg['name']}' has {shape[dim]} rows in dimension {dim}, which is that of the "
                f"{size} particles: give the objective a max_plate_nesting that leaves it free"
            )


def constant(value: Tensor) -> Tensor:
    """The value without gradients."""
    found = value.detach()
    relaxed = getattr(value, "_unquantize", None)
    if relaxed is not None:  # Pyro's straight-through distributions evaluate their density there
        found._unquantize = relaxed.detach()  # type: ignore[attr-defined]
    return found


class DetachSamples(Messenger):
    """Makes every latent value a constant *while the program runs*.

    The program and its trace both see the detached value, so a recurrent guide with reparameterised
    (``rsample``) sites has no pathwise gradient from one site to the next. Detaching a finished
    trace would be too late: later sites have used the value by then.

    Must be entered outside the handler that records the trace.

    Args:
        keep: whether the value of a site may carry gradients nevertheless.
    """

    def __init__(self, keep: Callable[[Mapping[str, Any]], bool] | None = None) -> None:
        super().__init__()
        self.keep = keep

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        value = msg["value"]
        if msg["is_observed"] or not isinstance(value, Tensor) or not value.requires_grad:
            return  # a constant stays the same object, as Memoize requires
        if self.keep is None or not self.keep(msg):
            msg["value"] = constant(value)


class Substitute(Messenger):
    """Runs a program on given latent values, keeping the program's own ``infer`` declarations.

    (:func:`pyro.poutine.replay` overwrites ``infer`` with that of the replayed trace, and samples
    the sites that the trace lacks from the program itself, which would leave them out of the weights.)

    Args:
        values: the value of every latent site, and of every plate's subsample, by name.
        whose: the program's name in error messages.
        partial: whether sites without a value are sampled.

    Raises:
        ValueError: a latent site has no value, or a site with a value is observed here.
    """

    def __init__(
        self, values: Mapping[str, Any], whose: str = "model", *, partial: bool = False
    ) -> None:
        super().__init__()
        self.values = values
        self.whose = whose
        self.partial = partial

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if msg["is_observed"]:
            if name in self.values and not is_subsample(msg):
                raise ValueError(
                    f"site '{name}' is observed in the {self.whose} but sampled by the guide: "
                    "hide it in the guide, or pass no observation"
                )
        elif name in self.values:
            if is_subsample(msg):
                self._compare(name, msg["value"])
            msg["value"] = self.values[name]
            msg["done"] = True
        elif is_subsample(msg) or self.partial:
            return
        elif msg["infer"].get("enumerate"):
            raise ValueError(
                f"site '{name}' of the {self.whose} is marked for enumeration, but these objectives "
                f"sample: give the guide a site '{name}' and remove config_enumerate (or use "
                "pyro.infer.TraceEnum_ELBO)"
            )
        else:
            raise ValueError(
                f"the {self.whose} samples site '{name}' but no value was proposed for it: "
                f"give the guide a site '{name}', or observe it in the model"
            )

    def _compare(self, name: str, chosen: Any) -> None:
        """Warns if the program's subsample differs from the proposed one (this waits for the device)."""
        rows = self.values[name]
        if chosen is None or chosen is rows or not is_validation_enabled():
            return
        if len(chosen) != len(rows) or not torch.equal(torch.as_tensor(chosen), torch.as_tensor(rows)):
            warnings.warn(
                f"plate '{name}' has other rows in the guide than the subsample that the {self.whose} "
                f"gives, so data are scored with other rows' latents: pass the guide's plate the same "
                "subsample",
                stacklevel=2,
            )


class Mode(Messenger):
    """Gives every latent site its distribution's mode instead of a sample.

    Raises:
        NotImplementedError: a distribution has no mode.
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or msg["value"] is not None or is_subsample(msg):
            return
        msg["value"] = _mode(msg["fn"])
        msg["done"] = True


def _mode(fn: Any) -> Tensor:
    """The distribution's mode; one of them where there are two."""
    if isinstance(fn, dist.MaskedDistribution | torch.distributions.Independent):
        return _mode(fn.base_dist)
    if isinstance(fn, dist.Delta):
        value: Tensor = fn.v
        return value
    found: Tensor = fn.mode
    return found.nan_to_num(0.0) if isinstance(fn, torch.distributions.Bernoulli) else found


class Memoize(Messenger):
    """Computes each :func:`shared` call once while entered.

    Guide and model of a recurrent attention model run the same recurrence on the same glimpses.
    Entered around both, this handler records what the first run computes and passes it to the second.
    A call is the same when function and arguments are the *same objects* (by identity, as for an
    ``lru_cache`` on tensors): the values proposed to the model are the guide's own tensors, so a
    replayed recurrence hits, and anything that differs is computed afresh.
    """

    def __init__(self) -> None:
        super().__init__()
        self._results: dict[tuple[Any, ...], Any] = {}

    def __enter__(self) -> Memoize:
        self._results = {}
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._results = {}  # also releases the graph
        super().__exit__(*error)

    def call(self, fn: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        """The result of the call, computed now or earlier."""
        names, passed = tuple(kwargs), (*args, *kwargs.values())
        key = (fn, names, torch.is_grad_enabled(), *map(id, passed))
        held = self._results.get(key)
        if held is None:
            # The arguments are kept, so that no identity is reused for another object.
            held = self._results[key] = (fn(*args, **kwargs), passed)
        result: R = held[0]
        return result


def memoize(fn: Callable[P, R]) -> Callable[P, R]:
    """Marks a deterministic function (or method) that guide and model both call.

    Outside :class:`Memoize` it is the plain function. Only the innermost ``Memoize`` takes effect: no
    message goes through the stack of handlers.
    """

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for handler in reversed(_PYRO_STACK):
            if isinstance(handler, Memoize):
                return handler.call(fn, args, kwargs)
        return fn(*args, **kwargs)

    return call


@contextmanager
def pyro_settings(*, validate: bool) -> Iterator[None]:
    """A context in which parameters belong to their modules, and validation is on only if asked for.

    Validation waits for the device, and a module's parameters in Pyro's global store would be shared
    with every other module with parameters of the same names.
    """
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(validate):
        yield


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """A context in which modules are in evaluation mode (no dropout); restores their modes."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
