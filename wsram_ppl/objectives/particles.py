"""From the traces of a model and a guide to log-densities on ``[particle, *datum]``.

A *datum* is one element of the plates that enclose every sample site of model and guide; everything
to the right of that is summed out. With no such plate there is one weight for the whole trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from wsram_ppl.objectives.baselines import Baseline
from wsram_ppl.objectives.sites import Site, evaluate, log_density, random_sites
from wsram_ppl.primitives.handlers import PARTICLE_PLATE


@dataclass(frozen=True)
class Layout:
    """Where the particle and the data plates lie among a site's batch dimensions.

    Args:
        kept: the (negative) dimensions to keep, leftmost first: the particle's, then the data plates'.
        shape: their sizes.
        vectorized: whether the first of them is the particle's.
        scale: the subsampling scale common to all sites (a factor of the finished bound).
    """

    kept: tuple[int, ...]
    shape: tuple[int, ...]
    vectorized: bool
    scale: float

    def arrange(self, x: Tensor) -> Tensor:
        """``[batch dimensions of a site] -> [particle, *datum, inner]``, broadcast where a size is 1."""
        depth = max((-d for d in self.kept), default=0)
        if x.dim() < depth:
            x = x.reshape((1,) * (depth - x.dim()) + x.shape)
        if not self._plain(x):
            x = x.movedim([x.dim() + d for d in self.kept], list(range(len(self.kept))))
        x = x.reshape(*x.shape[: len(self.kept)], -1)
        return x if self.vectorized else x.unsqueeze(0)

    def total(self, x: Tensor) -> Tensor:
        """``[batch dimensions of a site] -> [particle, *datum]``, the rest summed out."""
        if self.vectorized and self._plain(x):
            return x  # the common case, spared the views
        arranged = self.arrange(x)
        return arranged.squeeze(-1) if arranged.shape[-1] == 1 else arranged.sum(-1)

    def _plain(self, x: Tensor) -> bool:
        """Whether the dimensions of ``x`` are those kept, in order."""
        return self.kept == tuple(range(-x.dim(), 0))

    @classmethod
    def of(cls, sites: Sequence[Site]) -> Layout:
        """Finds the plates common to all sites and checks that scales lie on those alone.

        Raises:
            ValueError: a plate that is not common to all sites is subsampled, or sites are scaled
                differently (``poutine.scale``), or by a tensor.
        """
        # Pyro's frames are slow to hash, and most sites lie in the same plates: each stack is read once.
        first: dict[tuple[tuple[object, ...], ...], Site] = {}
        for site in sites:
            key = ((f.name, f.dim, f.size, f.full_size, f.counter) for f in site["cond_indep_stack"])
            first.setdefault(tuple(key), site)
        stacks = [frozenset(site["cond_indep_stack"]) for site in first.values()]
        common = frozenset.intersection(*stacks) if stacks else frozenset()
        scales = set()
        for site in sites:
            if isinstance(site["scale"], Tensor):
                raise ValueError(
                    f"site '{site['name']}' is scaled by a tensor: importance weights need one "
                    "number, the same for all sites; scale the loss instead"
                )
            scales.add(float(site["scale"]))
        for site in first.values():
            for frame in site["cond_indep_stack"]:
                if frame not in common and frame.full_size not in (None, frame.size):
                    raise ValueError(
                        f"plate '{frame.name}' is subsampled but does not enclose every sample site "
                        f"(it encloses '{site['name']}'): a scale inside an importance weight has no "
                        "meaning; subsample only plates that are common to all sites"
                    )
        if len(scales) > 1:
            raise ValueError(
                f"sites have different scales {sorted(scales)}: a scale inside an importance weight "
                "has no meaning; use one poutine.scale around the whole model and the whole guide"
            )
        frames = sorted((f for f in common if f.vectorized), key=lambda f: f.dim)
        particle = [f for f in frames if f.name == PARTICLE_PLATE]
        kept = particle + [f for f in frames if f.name != PARTICLE_PLATE]
        return cls(
            kept=tuple(f.dim for f in kept),
            shape=tuple(f.size for f in kept[len(particle) :]),
            vectorized=bool(particle),
            scale=scales.pop() if scales else 1.0,
        )


@dataclass(frozen=True)
class Term:
    """One log-density and how much of the guide must have run before it is known.

    Args:
        log_prob: in the site's batch dimensions, masked, not scaled, in float32 or better.
        site_mask: where the site counts, broadcastable to ``log_prob``; None for everywhere.
        layout: of these dimensions.
        frontier: position, in the guide's order, of the last latent it may depend on; -1 for none.
    """

    log_prob: Tensor
    site_mask: Tensor | None
    layout: Layout
    frontier: int

    @classmethod
    def of(cls, site: Site, value: Tensor, layout: Layout, frontier: int) -> Term:
        """From a traced site and its log-density as the distribution gives it."""
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        mask = site["mask"]
        value = scale_and_mask(value, 1.0, mask)
        if isinstance(mask, bool):
            mask = None if mask else torch.zeros_like(value, dtype=torch.bool)
        return cls(value, mask, layout, frontier)

    @cached_property
    def elements(self) -> Tensor:
        """``[particle, *datum, inner]``."""
        return self.layout.arrange(self.log_prob)

    @cached_property
    def mask(self) -> Tensor | None:
        """Of the shape of ``elements``."""
        if self.site_mask is None:
            return None
        return self.layout.arrange(self.site_mask.expand(self.log_prob.shape))

    @cached_property
    def total(self) -> Tensor:
        """``[particle, *datum]``."""
        return self.layout.total(self.log_prob)


@dataclass(frozen=True)
class Latent:
    """One latent site: log p(a_n | a_<n, I) and log q(a_n | a_<n, y, I).

    Args:
        name: the site's name.
        prior: its term in the model.
        proposal: its term in the guide.
        closure: how many latents, in the model's order, make the smallest set that contains this
            one and comes first in both programs: the partial ratio up to here is a ratio of two
            normalised densities only over such a set. n + 1 for the n-th when the orders agree.
        parents: position, in the guide's order, of the last latent drawn before this one in the
            model; -1 for none.
        prior_baseline: the baseline declared on the model's site; known before a_n in the model.
        proposal_baseline: the same for the guide's site.
    """

    name: str
    prior: Term
    proposal: Term
    closure: int
    parents: int
    prior_baseline: Baseline | None
    proposal_baseline: Baseline | None


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@dataclass(frozen=True)
class Draw:
    """One run of guide and model: all particles at once, or one of them.

    Args:
        latents: the latent sites in the model's order.
        observations: log-densities of observed sites and factors.
        layout: how site dimensions map to ``[particle, *datum]``.
        size: the shape ``[particle, *datum]`` of this draw.
        model_trace, guide_trace: where it was read.
    """

    latents: tuple[Latent, ...]
    observations: tuple[Term, ...]
    layout: Layout
    size: tuple[int, ...]
    model_trace: Trace
    guide_trace: Trace

    def _total(self, terms: Sequence[Term]) -> Tensor:
        if not terms:
            some = [*self.observations, *(site.prior for site in self.latents)]
            return some[0].elements.new_zeros(self.size)
        return _sum([term.total for term in terms]).expand(self.size)

    @cached_property
    def log_prior(self) -> Tensor:
        return self._total([site.prior for site in self.latents])

    @cached_property
    def log_proposal(self) -> Tensor:
        return self._total([site.proposal for site in self.latents])

    @cached_property
    def log_likelihood(self) -> Tensor:
        return self._total(self.observations)


@dataclass(frozen=True)
class Particles:
    """What every estimator reads: M particles a^m ~ q(a | y, I) of each datum.

    Args:
        draws: one vectorised draw, or one draw per particle (whose sites may then differ: stochastic
            control flow).
        shares_parameters: the guide's density is a function of the model's parameters (the prior
            as proposal), so that gradients of ``log_proposal`` go to theta.
    """

    draws: tuple[Draw, ...]
    shares_parameters: bool

    def _stack(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))

    @property
    def scale(self) -> float:
        """The subsampling scale of the data plate, outside the logarithm."""
        return self.draws[0].layout.scale

    @property
    def num_particles(self) -> int:
        return sum(draw.size[0] for draw in self.draws)

    @cached_property
    def log_prior(self) -> Tensor:
        """log p(a | I), ``[particle, *datum]``."""
        return self._stack([draw.log_prior for draw in self.draws])

    @cached_property
    def log_proposal(self) -> Tensor:
        """log q(a | y, I), ``[particle, *datum]``."""
        return self._stack([draw.log_proposal for draw in self.draws])

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p(y | a, I) of observed sites and factors, ``[particle, *datum]``."""
        return self._stack([draw.log_likelihood for draw in self.draws])

    @cached_property
    def log_ratio(self) -> Tensor:
        """log r = log p(a | I) - log q(a | y, I), a constant; ``[particle, *datum]``."""
        return (self.log_prior - self.log_proposal).detach()

    @cached_property
    def log_weights(self) -> Tensor:
        """log w~ = log r + log p(y | a, I), a constant; ``[particle, *datum]``."""
        return self.log_ratio + self.log_likelihood.detach()

    def rows(self) -> Iterator[tuple[Draw, slice]]:
        """Each draw with the rows of ``[particle, *datum]`` that it fills."""
        start = 0
        for draw in self.draws:
            stop = start + draw.size[0]
            yield draw, slice(start, stop)
            start = stop


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


def _closures(last: Sequence[int]) -> list[int]:
    """For each latent in the model's order, the size of the smallest common prefix that contains it.

    ``last[k]`` is the last position, in the guide, of the model's first k latents: these k come first
    in the guide too just when ``last[k] == k - 1``.
    """
    closures, size = [0] * (len(last) - 1), len(last) - 1
    for n in reversed(range(len(closures))):
        if last[n + 1] == n:
            size = n + 1
        closures[n] = size
    return closures


def read_draw(model_trace: Trace, guide_trace: Trace, num_particles: int) -> Draw:
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
    layout = Layout.of([*model.values(), *guide.values()])

    evaluated = evaluate([*model.values(), *guide.values()], log_density)
    last, names, observations = [-1], [], []
    for name, site in model.items():
        if site["is_observed"]:
            observations.append(Term.of(site, evaluated[id(site)], layout, last[-1]))
        else:
            names.append(name)
            last.append(max(last[-1], order[name]))
    closures = _closures(last)
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
                closures[n],
                last[n],
                Baseline.declared(name, model[name]["infer"]),
                Baseline.declared(name, guide[name]["infer"]),
            )
        )
    size = (num_particles, *layout.shape)
    return Draw(tuple(latents), tuple(observations), layout, size, model_trace, guide_trace)


def combine(draws: Sequence[Draw], shares_parameters: bool) -> Particles:
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
