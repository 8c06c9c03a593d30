"""From the traces of a model and a guide to log-densities on ``[particle, *datum]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import Unit
from pyro.infer.util import is_validation_enabled
from pyro.poutine.trace_struct import Trace
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from wsram_ppl.objectives.baselines import Baseline
from wsram_ppl.objectives.particles import Latent, Particles, TraceDraw
from wsram_ppl.objectives.plates import Term, plates_of
from wsram_ppl.objectives.sites import Site, log_density, random_sites, without_masked
from wsram_ppl.primitives.handlers import PARTICLE_PLATE, has_density, is_subsample

__all__ = ["combine", "read_draw"]


def _check(model: Mapping[str, Site], guide: Mapping[str, Site]) -> None:
    """Refuses what Pyro would accept, or only warn about, but these objectives cannot handle."""
    for whose, sites in (("model", model), ("guide", guide)):
        for name, site in sites.items():
            if site["infer"].get("enumerate") or site["infer"].get("_enumerate_dim") is not None:
                raise ValueError(
                    f"site '{name}' of the {whose} is marked for enumeration, but these objectives "
                    "sample: remove config_enumerate, or unmark its sites with "
                    "poutine.infer_config(program, lambda site: {'enumerate': None}) "
                    "(or use pyro.infer.TraceEnum_ELBO)"
                )
    for name, site in guide.items():
        if site["is_observed"]:
            if isinstance(site["fn"], Unit) and site["infer"].get("is_auxiliary"):
                continue
            raise ValueError(
                f"site '{name}' of the guide is observed: a guide can only sample; move it to the "
                "model, or, where the guide runs the model, hide it by "
                "poutine.block(guide, hide_types=['observe'])"
            )
        if name not in model:
            if site["infer"].get("is_auxiliary"):
                continue
            raise ValueError(
                f"the guide samples site '{name}', which the model lacks: remove it, add it to the "
                "model, or mark it with infer={'is_auxiliary': True} if the guide's other sites are "
                "functions of it"
            )
        if model[name]["fn"].event_dim != site["fn"].event_dim:
            continue  # reported below, by Pyro if its validation is on
        theirs = {f.dim: f.name for f in model[name]["cond_indep_stack"] if f.vectorized}
        for frame in site["cond_indep_stack"]:
            other = theirs.get(frame.dim, frame.name)
            if frame.vectorized and frame.name != other:
                raise ValueError(
                    f"site '{name}' lies in plate '{other}' of the model and in plate '{frame.name}' of "
                    "the guide: give them one name, or a datum's weight would be shared by all data"
                )


def _check_events(model: Mapping[str, Site], guide: Mapping[str, Site]) -> None:
    """What Pyro's own check reports if its validation is on."""
    for name in model.keys() & guide.keys():
        ours, theirs = model[name]["fn"].event_dim, guide[name]["fn"].event_dim
        if ours != theirs:
            raise ValueError(
                f"site '{name}' has event_dim {ours} in the model and {theirs} in the guide: make them "
                "agree with .to_event(...)"
            )


def _matched(trace: Trace) -> Trace:
    """The sites for Pyro's check of model against guide: without ``pyro.deterministic``."""
    found = Trace()
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and (has_density(site) or is_subsample(site)):
            found.nodes[name] = site
    return found


def _check_shape(site: Site, log_prob: Tensor, max_plate_nesting: float) -> None:
    """Pyro's check of a log-density's shape, for one particle: all would pass left of its plate."""
    stack = site["cond_indep_stack"]
    for frame in stack:
        if frame.name == PARTICLE_PLATE:
            stack = tuple(f for f in stack if f is not frame)
            max_plate_nesting = float("inf")
            if log_prob.dim() >= -frame.dim:
                log_prob = log_prob.select(frame.dim, 0)
    seen: Any = {**site, "log_prob": log_prob, "cond_indep_stack": stack}
    check_site_shape(seen, max_plate_nesting)  # type: ignore[arg-type]


def _check_order(names: frozenset[str], whose: str, sites: Mapping[str, Site]) -> None:
    """Globals are drawn once, before the particles of the local sites."""
    local = None
    for name, site in sites.items():
        if name not in names and not site["is_observed"]:
            local = name
        elif name in names and local is not None:
            raise ValueError(
                f"the global site '{name}' comes after the local site '{local}' in the {whose}, but "
                "globals are drawn once, followed by several particles of the local sites given them: "
                "sample globals first (or use VariationalBound)"
            )


def _prefix_sizes(model: Sequence[str], guide: Sequence[str]) -> dict[str, int]:
    """For each latent, the size of the smallest common prefix of both orders that contains it.

    With auxiliary sites, which only the guide has, only the complete densities are comparable.
    """
    size = len(guide)
    if len(model) < size:
        return dict.fromkeys(guide, size)
    order = {name: position for position, name in enumerate(guide)}
    last = [-1]  # of the model's first k latents, the last position in the guide
    for name in model:
        last.append(max(last[-1], order[name]))
    sizes = {}
    for n in reversed(range(size)):
        if last[n + 1] == n:
            size = n + 1
        sizes[model[n]] = size
    return sizes


def _size(count: int, shape: Sequence[int], terms: Sequence[Term]) -> tuple[int, ...]:
    """``[particle, *datum]``; a plate of unknown size gets the size of its contents."""
    if -1 not in shape:
        return (count, *shape)
    return tuple(torch.broadcast_shapes((count, *[1] * len(shape)), *(t.total.shape for t in terms)))


def read_draw(
    model_trace: Trace,
    guide_trace: Trace,
    num_particles: int,
    *,
    forms_weights: bool = False,
    max_plate_nesting: float = float("inf"),
) -> TraceDraw:
    """Reads the log-densities of one run from the traces of model and guide.

    Args:
        num_particles: how many particles the run holds (1 unless vectorised).
        forms_weights: whether importance weights are formed, over particles that share the globals.
        max_plate_nesting: including the particles' plate; for Pyro's checks, which run if its
            validation is on.

    Raises:
        ValueError: for anything that the objectives do not support; the message says what to do.
    """
    model = {name: without_masked(site) for name, site in random_sites(model_trace).items()}
    guide = random_sites(guide_trace)
    _check(model, guide)
    if not model:
        raise ValueError("the model has no sample site: there is nothing to train")
    validate = is_validation_enabled()
    if validate and any(guide[name] is not model.get(name) for name in guide):
        matched = _matched(model_trace), _matched(guide_trace)
        check_model_guide_match(*matched, max_plate_nesting)
    _check_events(model, guide)
    plates = plates_of(model, guide)
    if forms_weights:
        if plates.unequal is not None:
            raise ValueError(plates.unequal)
        for whose, sites in (("model", model), ("guide", guide)):
            _check_order(plates.global_names, whose, sites)

    # A site that both have, where the prior proposes, once.
    evaluated = {
        id(s): log_density(s) for s in {id(s): s for s in (*model.values(), *guide.values())}.values()
    }
    if validate:
        for site in (*model.values(), *guide.values()):
            _check_shape(site, evaluated[id(site)], max_plate_nesting)

    def term(site: Site, last_dependency: int) -> Term:
        outside = site["name"] in plates.global_names
        layout = plates.global_layout if outside else plates.layout
        return Term.of(site, evaluated[id(site)], layout, last_dependency, plates.scale)

    order = {name: position for position, name in enumerate(guide)}
    last, names, observations = -1, [], []
    parents: dict[str, tuple[int, int]] = {}
    for name, site in model.items():
        if site["is_observed"]:
            observations.append(term(site, last))
        else:
            names.append(name)
            parents[name] = last, max(last, order[name])
            last = parents[name][1]
    auxiliary = [name for name in guide if name not in model]
    inside = [[n for n in found if n not in plates.global_names] for found in (names, guide)]
    sizes = _prefix_sizes(*inside)
    local: list[Latent] = []
    outside: list[Latent] = []
    for name in (*names, *auxiliary):
        before, upto = parents.get(name, (-1, order[name]))
        prior = term(model[name], upto) if name in model else None
        if prior is not None and guide[name] is model[name]:
            proposal = prior  # the prior as proposal: one density, computed once
        else:
            proposal = term(guide[name], order[name])
        value, fn = guide[name]["value"], guide[name]["fn"]
        if isinstance(fn, Unit):  # a factor of the guide's density, which it defines
            carries_gradients = bool(getattr(fn, "has_rsample", False))
        else:
            carries_gradients = isinstance(value, Tensor) and value.requires_grad
        latent = Latent(
            name,
            prior,
            proposal,
            sizes.get(name, 0),
            before,
            Baseline.declared(name, model[name]["infer"]) if name in model else None,
            Baseline.declared(name, guide[name]["infer"]),
            carries_gradients,
        )
        (outside if name in plates.global_names else local).append(latent)
    return TraceDraw(
        tuple(local),
        tuple(outside),
        tuple(observations),
        plates,
        _size(num_particles, plates.layout.shape, [*observations, *(s.proposal for s in local)]),
        model_trace,
        guide_trace,
    )


def combine(
    draws: Sequence[TraceDraw], shares_parameters: bool, constant: Particles | None = None
) -> Particles:
    """Stacks draws along the particle dimension.

    Raises:
        ValueError: sequential draws disagree about the data plates or the global sites.
    """
    if len({(draw.size[1:], draw.plates.scale, draw.plates.global_names) for draw in draws}) > 1:
        raise ValueError(
            "particles drawn one after another have different data plates "
            f"{sorted({draw.size[1:] for draw in draws})}: the plates that enclose all sample "
            "sites must be the same in every run"
        )
    return Particles(tuple(draws), shares_parameters, constant)
