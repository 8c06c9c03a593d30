"""The variational bound F and its gradient, by score functions or through the samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from wsram_ppl.objectives import estimators
from wsram_ppl.objectives.base import Objective, aside, check_choice, is_recorded
from wsram_ppl.objectives.baselines import Baseline
from wsram_ppl.objectives.dependence import dependencies
from wsram_ppl.objectives.estimators import weighted
from wsram_ppl.objectives.particles import Latent, Particles, TraceDraw, add
from wsram_ppl.objectives.plates import Frames, PlateLayout, surrounding
from wsram_ppl.objectives.running import MinibatchMeans
from wsram_ppl.objectives.sites import Program

__all__ = ["VariationalBaseline", "VariationalBound", "downstream_signals"]

#: What may be subtracted from the learning signal.
VariationalBaseline = Literal["none", "leave-one-out", "site"]

#: For each latent of a guide, the latents that it depends on.
Upstream = Mapping[str, frozenset[str]]

#: Why a baseline is valid: it may use anything that is known before a_n is drawn.
_TOO_LATE = (
    "the baseline of site '{}' is declared in the model, but there it may depend on latents that "
    "the guide draws later: declare it on the guide's site"
)


@dataclass(eq=False)
class VariationalBound(Objective):
    r"""Variational bound F = E_q[log w~] by score functions (VAR; NVIL for the guide).

    With particles a^m ~ q and F_m = log p(a^m, y) - log q(a^m), averaged over m:

    * theta (model): d log p(y, a^m); with the prior as proposal this is eq. 5 of Ba et al. (2015),
      d log p(y|a) + log p(y|a) d log p(a);
    * eta (guide): (signal - baseline) d log q(a^m). The term -d log q has mean zero and is left out.
      For ``pathwise`` sites, d F_m through their values instead, as in
      :class:`pyro.infer.Trace_ELBO`.

    A site's signal is the part of F_m in its own plates: an element of a plate does not see the terms of
    its neighbours (unless a later latent of the guide, outside the plate, depends on all of them),
    and global latents, outside the data plates, see all. Sites may be scaled
    (:func:`pyro.poutine.scale`) and plates subsampled freely.

    Exactly unbiased for the gradient of E[F] with every baseline.

    Args:
        baseline: what is subtracted from the learning signal.
            ``"none"``: nothing.
            ``"leave-one-out"``: the mean signal of the other particles (needs ``num_particles`` >= 2).
            ``"site"``: per site, what Pyro's ``infer={"baseline": {...}}`` declares on it (nothing
            if there is no declaration), fitted by least squares within this objective; and the signal
            of a site leaves out every term that is known before the site is drawn.
        num_particles, max_plate_nesting, vectorize_particles, pathwise, retain_graph, regularizer: see
            :class:`~wsram_ppl.objectives.base.Objective`.

    Raises:
        ValueError: an unknown baseline; leave-one-out with a single particle.

    Example::

        svi = SVI(model, guide, Adam({"lr": 1e-3}), VariationalBound("leave-one-out", num_particles=5))
    """

    baseline: VariationalBaseline = "none"
    _: KW_ONLY

    def __post_init__(self) -> None:
        check_choice("baseline", self.baseline, get_args(VariationalBaseline), type(self).__name__)
        if self.baseline == "leave-one-out" and self.num_particles < 2:
            raise ValueError("baseline 'leave-one-out' needs num_particles of at least 2")
        super().__post_init__()

        self._upstream: Upstream | None = None

    @property
    def uses_baselines(self) -> bool:
        return self.baseline == "site"

    def evaluations(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Particles]:
        found = super().evaluations(model, guide, args, kwargs)
        draws = found[0].draws
        unclear = any(d.plates.nested and own_plates(d, None) != plates_of_latents(d) for d in draws)
        # Anew each time, since it may change; what is recorded does what was done when it last ran.
        if unclear and torch.is_grad_enabled() and not is_recorded():
            with aside():
                self._upstream = dependencies(guide, args, kwargs)
        return found

    def bound(self, log_weights: Tensor) -> Tensor:
        return estimators.variational_bound(log_weights)

    def surrogate(self, particles: Particles) -> Tensor:
        each = torch.ones_like(particles.log_weights)
        direct = weighted(each, particles.log_likelihood) + weighted(each, particles.log_prior)
        if particles.shares_parameters:
            direct = direct - weighted(each, particles.log_proposal)
        elif particles.log_pathwise is not None:
            direct = direct - weighted(each, particles.log_pathwise)
        for site in (site for draw in particles.draws for site in draw.globals):
            if site.prior is not None:
                direct = direct + site.prior.scaled.sum()
            if site.pathwise or particles.shares_parameters:
                direct = direct - site.proposal.scaled.sum()
        score = self._score_per_site(particles) if self.baseline == "site" else self._score(particles)
        return (direct + score) / particles.num_particles

    def _score(self, particles: Particles) -> Tensor:
        """The same signal for all latents in the same plates."""
        if not any(draw.plates.nested for draw in particles.draws):
            return self._scored(particles.log_weights, particles.log_score)
        members = [own_plates(draw, self._upstream) for draw in particles.draws]
        scores = []
        for plates in {plates: None for names in members for plates in names.values()}:
            layout = PlateLayout.of(plates)
            signal = torch.cat([_signal(draw, layout) for draw in particles.draws])
            log_score = torch.cat(
                [
                    add(
                        [
                            layout.total(site.proposal.log_prob)
                            for site in _scores(draw)
                            if names[site.name] == plates
                        ],
                        signal.new_zeros(()),
                    ).expand(draw.size[0], *signal.shape[1:])
                    for draw, names in zip(particles.draws, members, strict=True)
                ]
            )
            scores.append(self._scored(signal, log_score))
        return add(scores, particles.log_weights.new_zeros(()))

    def _scored(self, signal: Tensor, log_score: Tensor) -> Tensor:
        if self.baseline == "leave-one-out":
            signal = signal - estimators.leave_one_out_mean(signal)
        return weighted(estimators.finite(signal), log_score)

    def _score_per_site(self, particles: Particles) -> Tensor:
        total, means = particles.log_weights.new_zeros(()), MinibatchMeans()
        decays: dict[str, float] = {}
        for draw in particles.draws:
            plates = own_plates(draw, self._upstream) if draw.plates.nested else {}
            signals: dict[Frames | None, list[Tensor]] = {}
            for site in _scores(draw):
                own = plates.get(site.name)
                layout = draw.layout if own is None else PlateLayout.of(own)
                if own not in signals:
                    signals[own] = downstream_signals(draw, layout)
                signal = signals[own][site.proposal.last_dependency].unsqueeze(-1)
                log_prob = site.proposal.arranged(layout)
                declared = _declared(site)
                if declared is None:
                    total = total + weighted(signal, log_prob)
                    continue
                baseline = signal.new_zeros(())
                if declared.use_decaying_avg_baseline:
                    name = f"baseline/{site.name}"
                    baseline = self.running.get(name, baseline)
                    means.add(name, signal)
                    decays[name] = declared.baseline_beta
                predicted = declared.predict(site.proposal.log_prob.shape, layout.arrange)
                if predicted is not None:
                    baseline = baseline + predicted
                    error = (signal - baseline).expand(log_prob.shape)
                    mask = site.proposal.arranged_mask(layout)
                    total = total - estimators.squared_error(error, mask)
                total = total + weighted(signal - baseline, log_prob)
        means.commit(self.running, decays)
        return total


def _scores(draw: TraceDraw) -> Iterator[Latent]:
    """The latents whose scores train the guide."""
    return (site for site in (*draw.latents, *draw.globals) if not site.pathwise)


def own_plates(draw: TraceDraw, upstream: Upstream | None) -> dict[str, Frames]:
    """For each latent, the plates (and the particles') whose elements do not see each other's terms.

    These are its own plates, except one through which a later latent of the guide, outside it, may
    carry the choice of one element to the terms of others.

    Args:
        upstream: what each latent of the guide depends on; None if that is not known.
    """
    frames = plates_of_latents(draw)
    found = dict(frames)
    if upstream is None or not frames.keys() <= upstream.keys():  # not known, or of other sites
        follows: Frames | None = None
        for name in reversed(frames):
            if follows is not None and follows is not frames[name]:
                found[name] = frames[name] & follows
            follows = found[name]
        return found
    for later, own in frames.items():
        for name in upstream[later]:
            if frames[name] is not own:
                found[name] = found[name] & own
    return found


def plates_of_latents(draw: TraceDraw) -> dict[str, Frames]:
    """The plates of each latent, with the particles', in the guide's order."""
    names = {site.name for site in (*draw.latents, *draw.globals)}
    sites = {name: site for name, site in draw.guide_trace.nodes.items() if name in names}
    stacks = surrounding(sites.values())
    vectorized = {id(stack): frozenset(f for f in stack if f.vectorized) for stack in stacks}
    return {name: vectorized[id(stack)] for name, stack in zip(sites, stacks, strict=True)}


def _signal(draw: TraceDraw, layout: PlateLayout) -> Tensor:
    """log w~ of the elements of some plates, ``[particle, *plates]``; a constant."""
    sites = (*draw.latents, *draw.globals)
    ratio = add(
        [site.prior.summed_to(layout) for site in sites if site.prior is not None]
        + [-site.proposal.summed_to(layout) for site in sites]
    )
    total = add([ratio, *(term.summed_to(layout) for term in draw.observations)]).detach()
    return total.expand(draw.size[0], *layout.shape)


def _declared(site: Latent) -> Baseline | None:
    """The baseline of a site: the guide's, or the model's if that is known early enough."""
    if site.proposal_baseline is not None or site.prior_baseline is None:
        return site.proposal_baseline
    if site.last_parent >= site.proposal.last_dependency:
        raise ValueError(_TOO_LATE.format(site.name))
    return site.prior_baseline


def downstream_signals(draw: TraceDraw, layout: PlateLayout) -> list[Tensor]:
    """For each latent in the guide's order, the part of log w~ that it can still influence.

    A term is left out of the signal of site n when everything that it may depend on is drawn before
    n in the guide: its product with d log q(a_n) has mean zero. ``[particle, *plates]`` each, constants.

    Args:
        layout: that of the plates whose elements have signals.
    """
    latents = (*draw.latents, *draw.globals)
    buckets: list[list[Tensor]] = [[] for _ in latents]
    for site in latents:
        if site.prior is not None:
            buckets[site.prior.last_dependency].append(site.prior.summed_to(layout).detach())
        buckets[site.proposal.last_dependency].append(-site.proposal.summed_to(layout).detach())
    for term in draw.observations:
        if term.last_dependency >= 0:  # otherwise it depends on no latent at all
            buckets[term.last_dependency].append(term.summed_to(layout).detach())
    shape = (draw.size[0], *(max(size, 1) for size in layout.shape))
    signals, later = [], draw.log_likelihood.new_zeros(shape)
    for bucket in reversed(buckets):
        later = sum(bucket, start=later)
        signals.append(estimators.finite(later))
    return signals[::-1]
