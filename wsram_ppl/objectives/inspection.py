"""Looks for probable mistakes in a program, once, at an objective's first gradient."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from wsram_ppl.errors import InputError
from wsram_ppl.objectives.particles import Latent, Particles
from wsram_ppl.objectives.sampling import is_reparameterized
from wsram_ppl.objectives.sites import Program, module_of, random_sites
from wsram_ppl.primitives.distributions import innermost, parameters

__all__ = ["inspect"]


class Inspected(Protocol):
    """What must be known of an objective; see :class:`~wsram_ppl.objectives.base.Objective`."""

    pathwise: bool | Sequence[str]
    vectorize_particles: bool

    @property
    def forms_weights(self) -> bool: ...
    @property
    def gradients_differ(self) -> bool: ...
    @property
    def uses_baselines(self) -> bool: ...


def inspect(objective: Inspected, particles: Particles, model: Program, guide: Program) -> None:
    """Warns about everything that this module finds, with the site's name and what to do.

    Raises:
        InputError: a name in ``pathwise`` matches no site although all particles were drawn at once, or
            a site without reparameterised samples.
    """
    found: list[str | None] = [*_check_pathwise(objective, particles)]
    if objective.forms_weights:
        found += [_one_weight(particles), _one_particle(particles)]
    if objective.gradients_differ:
        found.append(_counted_twice(particles))
    if objective.uses_baselines:
        found += [_no_baseline(particles), _unoptimized_baseline(particles, model, guide)]
    for text in found:
        if text is not None:
            warnings.warn(text, stacklevel=3)


def _latents(particles: Particles) -> Iterator[Latent]:
    for draw in particles.draws:
        yield from (*draw.latents, *draw.globals)


def _check_pathwise(objective: Inspected, particles: Particles) -> Iterator[str]:
    if isinstance(objective.pathwise, bool):
        return
    sites = {
        name: site for draw in particles.draws for name, site in random_sites(draw.guide_trace).items()
    }
    for pattern in objective.pathwise:
        fitting = [name for name in sites if fnmatchcase(name, pattern)]
        if not fitting:
            text = f"pathwise names '{pattern}', which matches no latent site: there are {[*sites]}"
            if objective.vectorize_particles:
                raise InputError(text)
            yield f"{text}, unless other runs of the program have it"
        for name in fitting:
            if not is_reparameterized(sites[name]["fn"]):
                raise InputError(
                    f"pathwise names '{pattern}', but the {type(sites[name]['fn']).__name__} of site "
                    f"'{name}' has no reparameterised samples: leave it out, and its score is used"
                )


def _one_weight(particles: Particles) -> str | None:
    plates = particles.draws[0].plates
    if particles.num_particles == 1:
        return None
    if plates.iterated is not None:
        return (
            f"plate '{plates.iterated}' is iterated over, so that all its data share one importance "
            "weight per particle, which needs too many particles: write 'with pyro.plate(...)' in place "
            "of 'for ... in pyro.plate(...)', or use VariationalBound, which needs no weights"
        )
    if plates.misplaced is None:
        return None
    return (
        f"{plates.misplaced}, so that all data share one importance weight per particle, which needs "
        "too many particles: put each site into the plate of its data, or use VariationalBound, which "
        "needs no weights"
    )


def _one_particle(particles: Particles) -> str | None:
    """Guides that draw everything jointly outside the data plates leave nothing to draw inside."""
    draw = particles.draws[0]
    sites = [draw.guide_trace.nodes[site.name] for site in draw.latents]
    if particles.num_particles == 1 or not sites:
        return None
    if not all(isinstance(innermost(site["fn"]), dist.Delta) for site in sites):
        return None
    return (
        f"all local latents of the guide ('{sites[0]['name']}' ...) are Delta, so that the particles of "
        "a datum are all the same: use VariationalBound, or a guide that samples local latents given "
        "the globals (such as AutoNormal)"
    )


def _counted_twice(particles: Particles) -> str | None:
    if particles.shares_parameters or any(site.pathwise for site in _latents(particles)):
        return None  # a value with gradients brings the guide's parameters into the model
    draw = particles.draws[0]
    theirs = random_sites(draw.guide_trace)
    for name, site in random_sites(draw.model_trace).items():
        if name in theirs and _leaves(site["fn"]).keys() & _leaves(theirs[name]["fn"]).keys():
            return (
                f"the guide's density of site '{name}' depends on parameters of the model, whose "
                "gradient then counts twice: if the guide is the model's prior, use Prior(model), "
                "otherwise detach what the guide takes from the model"
            )
    return None


def _leaves(fn: Any) -> dict[int, Tensor]:
    """The parameters that a distribution depends on, by ``id``."""
    found, seen = {}, set()
    rest = [tensor.grad_fn for _, tensor in parameters(fn)]
    while rest:
        node = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        rest += [following for following, _ in node.next_functions]
    return found


def _no_baseline(particles: Particles) -> str | None:
    if any(site.prior_baseline or site.proposal_baseline for site in _latents(particles)):
        return None
    return (
        "this objective uses the baselines that sites declare, and none does: declare one with "
        "infer={'baseline': {'nn_baseline': ..., 'nn_baseline_input': ...}} on each latent site that "
        "should have one, or choose another option"
    )


def _unoptimized_baseline(particles: Particles, model: Program, guide: Program) -> str | None:
    """A declared network that neither SVI nor ``objective(model, guide).parameters()`` would train."""
    known = {id(parameter) for _, parameter in pyro.get_param_store().named_parameters()}
    known |= {id(parameter) for program in (model, guide) for parameter in _parameters(program)}
    for site in _latents(particles):
        for baseline in (site.prior_baseline, site.proposal_baseline):
            own = list(_parameters(baseline.nn_baseline)) if baseline is not None else []
            if own and not any(id(parameter) in known for parameter in own):
                return (
                    f"the baseline network of site '{site.name}' is a submodule of neither model nor "
                    "guide, and pyro.module does not register it, so that nothing may train it: make it "
                    "one of these, unless an optimiser of your own has it"
                )
    return None


def _parameters(program: object) -> Iterable[nn.Parameter]:
    module = module_of(program)
    return module.parameters() if module is not None else ()
