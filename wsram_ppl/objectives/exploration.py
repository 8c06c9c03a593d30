"""The three exploration heuristics of Ba et al. (2015), section 4.5, for any model and objective.

They read the latent sites' distributions from the traces, so models need no code for them:

* ``temperature`` T of the proposal: the guide's distributions are flattened (Normal: variance times
  T; Categorical, Bernoulli: logits over T) while it runs. The tempered density is used in the
  importance weights, so the bound and its gradients are correct for the proposal in use.
* ``entropy``: a bonus with this weight on the entropy of every latent site's conditional distribution,
  in model and guide, summed over sites.
* ``coverage``: a penalty with this weight on how far the minibatch's marginal over each site's choices
  is from uniform (Kullback-Leibler divergence), in the model.

The two weights add to the gradient only; the value of an objective remains the bound.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from wsram_ppl import collectives
from wsram_ppl.objectives.particles import Particles, TraceDraw
from wsram_ppl.objectives.sites import Site
from wsram_ppl.primitives.distributions import innermost, rewrapped, unwrapped

__all__ = ["GRID", "Exploration", "Temper", "in_place", "tempered"]

#: Grid cells per dimension for comparing the marginal of a location in [-1, 1]^d with uniform.
GRID = 8


def in_place(held: float | Tensor, value: float) -> float | Tensor:
    """``value``, written in place if the current value is a tensor, which a recording reads."""
    return held.fill_(value) if isinstance(held, Tensor) else value


class Exploration:
    """Exploration terms for an objective's ``regularizer``; the attributes may change at every step.

    They are numbers, or tensors without dimensions. A tensor may change without notice, so its term is
    always computed.

    Args:
        entropy: weight of the entropy bonus, in nats of bound per nat of entropy; >= 0.
        temperature: T of the proposal; > 0, 1 for no change.
        coverage: weight of the coverage penalty; >= 0.

    Raises:
        ValueError: a number out of range.
        NotImplementedError: in use, for a distribution without entropy, a rule for its temperature,
            or a rule for its marginal; the message names the site.

    Example::

        WakeSleep(num_particles=5, regularizer=Exploration(entropy=0.05))
    """

    def __init__(self, entropy: float = 0.0, temperature: float = 1.0, coverage: float = 0.0) -> None:
        if entropy < 0 or coverage < 0 or temperature <= 0:
            raise ValueError(
                "entropy and coverage must be at least 0 and temperature above 0, not "
                f"{entropy}, {coverage} and {temperature}"
            )
        self.entropy: float | Tensor = entropy
        self.temperature: float | Tensor = temperature
        self.coverage: float | Tensor = coverage

    def set(self, **values: float) -> None:
        """Changes attributes, in place if they are tensors."""
        for name, value in values.items():
            setattr(self, name, in_place(getattr(self, name), value))

    @property
    def changes_proposal(self) -> bool:
        """Whether the temperature differs from 1."""
        return isinstance(self.temperature, Tensor) or self.temperature != 1.0

    def proposal(self) -> AbstractContextManager[Any]:
        """A context for running the guide: tempers the distributions that it samples from."""
        return Temper(self.temperature) if self.changes_proposal else nullcontext()

    def bonus(self, particles: Particles) -> Tensor | None:
        """The entropy bonus and the coverage term, to be maximised; None if both are off."""
        terms = []
        if _is_on(self.entropy):
            for draw in particles.draws:
                terms.append(_entropy(draw.model_trace, draw))
                if not particles.shares_parameters:
                    terms.append(_entropy(draw.guide_trace, draw))
            terms = [self.entropy / particles.num_particles * torch.stack(terms).sum()]
        if _is_on(self.coverage):
            terms.append(-self.coverage * _distance_from_uniform(particles))
        return torch.stack(terms).sum() if terms else None


def _is_on(weight: float | Tensor) -> bool:
    return isinstance(weight, Tensor) or weight > 0


class Temper(Messenger):
    """Flattens the distribution of every latent site by the temperature T (see the module)."""

    def __init__(self, temperature: float | Tensor) -> None:
        super().__init__()
        self.temperature = temperature

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"] and isinstance(msg["fn"], torch.distributions.Distribution):
            msg["fn"] = tempered(msg["fn"], self.temperature, msg["name"])


def tempered(fn: Any, temperature: float | Tensor, site: str) -> Any:
    """The distribution at temperature T: density to the power 1/T, normalised again.

    Raises:
        NotImplementedError: no rule for this distribution.
    """

    def flattened(base: Any) -> Any:
        if isinstance(base, torch.distributions.Normal):
            return dist.Normal(base.loc, base.scale * temperature**0.5)
        if isinstance(base, torch.distributions.Categorical):
            return dist.Categorical(logits=base.logits / temperature)
        if isinstance(base, torch.distributions.OneHotCategorical):
            return dist.OneHotCategorical(logits=base.logits / temperature)
        if isinstance(base, torch.distributions.Bernoulli):
            return dist.Bernoulli(logits=base.logits / temperature)
        raise NotImplementedError(
            f"exploration.temperature has no rule for the {type(base).__name__} of site '{site}': use "
            "1, or a Normal, Categorical, OneHotCategorical or Bernoulli"
        )

    return rewrapped(fn, flattened)


def _entropy_of(site: Site) -> Tensor:
    try:
        found: Tensor = site["fn"].entropy()
    except NotImplementedError:
        raise NotImplementedError(
            f"exploration.entropy needs an entropy, which the {type(site['fn']).__name__} of site "
            f"'{site['name']}' does not have: use 0"
        ) from None
    return found


def _entropy(trace: Trace, draw: TraceDraw) -> Tensor:
    """Entropy of the latent sites' distributions, summed over sites, particles and data."""
    total = torch.zeros_like(draw.log_prior[0]).sum()
    for latent in draw.latents:
        site = trace.nodes.get(latent.name)
        if site is None:
            continue
        entropy = _entropy_of(site)
        if not entropy.requires_grad:
            continue  # a Normal of fixed width, say: a constant
        if site["mask"] is not None:
            entropy = entropy * site["mask"]
        total = total + draw.layout.arrange(entropy).sum()
    return total


def _distance_from_uniform(particles: Particles) -> Tensor:
    """KL(marginal over minibatch and particles || uniform), summed over sites, times the number of data.

    Pools particles drawn one after another, so that they are penalised like those drawn at once.
    """
    chosen: dict[str, Tensor] = {}
    for draw in particles.draws:
        for latent in draw.latents:
            name = latent.name
            site = draw.model_trace.nodes.get(name)
            if site is not None:
                probs = _cell_probabilities(site["fn"], name)
                if site["mask"] is not None:
                    probs = _where(site["mask"], probs)
                counts = probs.reshape(-1, probs.shape[-1]).sum(0)
                chosen[name] = counts + chosen[name] if name in chosen else counts
    everywhere = collectives.sum_by_name(chosen)  # over all processes, each with its part of the data
    divergences = []
    for name, own in chosen.items():
        counts = own + (everywhere[name] - own).detach()
        marginal = counts / counts.sum().clamp_min(1e-12)
        log_ratio = marginal.clamp_min(1e-12).log() + math.log(marginal.shape[0])
        divergences.append((marginal * log_ratio).sum())
    data = math.prod(particles.draws[0].size[1:]) * collectives.count()
    return torch.stack(divergences).sum() * data


def _cell_probabilities(fn: Any, site: str) -> Tensor:
    """``[*batch, cells]``: the probability of each choice; for a location, of each grid cell."""
    if isinstance(fn, MaskedDistribution):
        return _where(fn._mask, _cell_probabilities(fn.base_dist, site))
    base = innermost(fn)
    plain = fn.event_dim == base.event_dim
    probs: Tensor | None = None
    if any(isinstance(each, MaskedDistribution) for each in unwrapped(fn)):
        pass  # inside an event a mask has no rows to leave out
    elif plain and isinstance(
        base, (torch.distributions.Categorical, torch.distributions.OneHotCategorical)
    ):
        probs = base.probs
    elif plain and isinstance(base, torch.distributions.Bernoulli):
        probs = torch.stack([1 - base.probs, base.probs], -1)
    elif fn.event_dim == 1 and isinstance(base, torch.distributions.Normal):
        probs = _grid_probabilities(base)
    if probs is None:
        raise NotImplementedError(
            f"exploration.coverage has no rule for the {type(fn).__name__} of site '{site}': use 0, or "
            "a Categorical, OneHotCategorical, Bernoulli, or Normal(...).to_event(1) in [-1, 1]^d"
        )
    return probs.expand(*fn.batch_shape, probs.shape[-1])


def _grid_probabilities(normal: Any) -> Tensor:
    """``[*batch, d] -> [*batch, GRID ** d]``: the probability of each cell of [-1, 1]^d."""
    edges = torch.linspace(-1, 1, GRID + 1, device=normal.loc.device, dtype=normal.loc.dtype)
    below = torch.special.ndtr((edges - normal.loc.unsqueeze(-1)) / normal.scale.unsqueeze(-1))
    along = below.diff(dim=-1)  # [*batch, dimensions, GRID]
    cells: Tensor = along[..., 0, :]
    for d in range(1, along.shape[-2]):
        cells = (cells.unsqueeze(-1) * along[..., d, :].unsqueeze(-2)).flatten(-2)
    return cells


def _where(mask: Any, probs: Tensor) -> Tensor:
    """``probs [*batch, cells]`` with 0 where the mask (a Boolean, or ``[*batch]``) is not true."""
    if isinstance(mask, bool):
        return probs if mask else torch.zeros_like(probs)
    counted: Tensor = mask.unsqueeze(-1)
    return probs * counted
