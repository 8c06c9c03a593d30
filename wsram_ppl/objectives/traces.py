"""From the traces of a model and a guide to log-densities on ``[particle, *datum]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyro.poutine.trace_struct import Trace

from wsram_ppl.objectives.baselines import Baseline
from wsram_ppl.objectives.particles import Latent, Particles, TraceDraw
from wsram_ppl.objectives.plates import PlateLayout, Term
from wsram_ppl.objectives.sites import Site, evaluate, log_density, random_sites

__all__ = ["combine", "read_draw"]


def _check(model: Mapping[str, Site], guide: Mapping[str, Site]) -> None:
    for whose, sites in (("model", model), ("guide", guide)):
        for name, site in sites.items():
            if site["infer"].get("enumerate") or site["infer"].get("_enumerate_dim") is not None:
                raise ValueError(
                    f"site '{name}' of the {whose} is marked for enumeration, but these objectives "
                    "sample: remove config_enumerate (or use pyro.infer.TraceEnum_ELBO)"
                )
    for name, site in guide.items():
        if site["is_observed"]:
            raise ValueError(
                f"site '{name}' of the guide is observed (or a factor): a guide can only sample; "
                "move it to the model"
            )
        if name not in model:
            raise ValueError(
                f"the guide samples site '{name}', which the model lacks: remove it, or add it to "
                "the model (auxiliary sites are not supported)"
            )
        if model[name]["fn"].event_dim != site["fn"].event_dim:
            raise ValueError(
                f"site '{name}' has event_dim {model[name]['fn'].event_dim} in the model and "
                f"{site['fn'].event_dim} in the guide: make them agree with .to_event(...)"
            )
        theirs = {f.dim: f.name for f in model[name]["cond_indep_stack"] if f.vectorized}
        for frame in site["cond_indep_stack"]:
            other = theirs.get(frame.dim, frame.name)
            if frame.vectorized and frame.name != other:
                raise ValueError(
                    f"site '{name}' lies in plate '{other}' of the model and in plate '{frame.name}' of "
                    "the guide: give them one name, or a datum's weight would be shared by all data"
                )


def _prefix_sizes(last: Sequence[int]) -> list[int]:
    """For each latent in the model's order, the size of the smallest common prefix that contains it.

    ``last[k]`` is the last position, in the guide, of the model's first k latents: these k come first
    in the guide too just when ``last[k] == k - 1``.
    """
    prefix_sizes, size = [0] * (len(last) - 1), len(last) - 1
    for n in reversed(range(len(prefix_sizes))):
        if last[n + 1] == n:
            size = n + 1
        prefix_sizes[n] = size
    return prefix_sizes


def read_draw(model_trace: Trace, guide_trace: Trace, num_particles: int) -> TraceDraw:
    """Reads the log-densities of one run off the traces of model and guide.

    Args:
        num_particles: how many particles the run holds (1 unless vectorised).

    Raises:
        ValueError: what the objectives do not support; the message says what to do.
    """
    model, guide = random_sites(model_trace), random_sites(guide_trace)
    _check(model, guide)
    if not model:
        raise ValueError("the model has no sample site: there is nothing to train")
    order = {name: position for position, name in enumerate(guide)}
    layout = PlateLayout.of([*model.values(), *guide.values()])

    evaluated = evaluate([*model.values(), *guide.values()], log_density)
    last, names, observations = [-1], [], []
    for name, site in model.items():
        if site["is_observed"]:
            observations.append(Term.of(site, evaluated[id(site)], layout, last[-1]))
        else:
            names.append(name)
            last.append(max(last[-1], order[name]))
    prefix_sizes = _prefix_sizes(last)
    latents = []
    for n, name in enumerate(names):
        prior = Term.of(model[name], evaluated[id(model[name])], layout, last[n + 1])
        if guide[name] is model[name]:  # the prior as proposal: one density, computed once
            proposal = prior
        else:
            proposal = Term.of(guide[name], evaluated[id(guide[name])], layout, order[name])
        latents.append(
            Latent(
                name,
                prior,
                proposal,
                prefix_sizes[n],
                last[n],
                Baseline.declared(name, model[name]["infer"]),
                Baseline.declared(name, guide[name]["infer"]),
            )
        )
    size = (num_particles, *layout.shape)
    return TraceDraw(tuple(latents), tuple(observations), layout, size, model_trace, guide_trace)


def combine(draws: Sequence[TraceDraw], shares_parameters: bool) -> Particles:
    """Stacks draws along the particle dimension.

    Raises:
        ValueError: sequential draws disagree about the data plate.
    """
    if len({(draw.layout.shape, draw.layout.scale) for draw in draws}) > 1:
        raise ValueError(
            "particles drawn one after the other have different data plates "
            f"{sorted({draw.layout.shape for draw in draws})}: the plates that enclose all sample "
            "sites must be the same in every run"
        )
    return Particles(tuple(draws), shares_parameters)
