"""Wake-p and wake-q with their control variates, and sleep-q."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from wsram_ppl.errors import InputError
from wsram_ppl.objectives import estimators
from wsram_ppl.objectives.base import check_choice
from wsram_ppl.objectives.baselines import Baseline
from wsram_ppl.objectives.estimators import weighted
from wsram_ppl.objectives.importance import pathwise_names, through_samples
from wsram_ppl.objectives.multi_sample import MultiSampleObjective
from wsram_ppl.objectives.particles import Particles, TraceDraw
from wsram_ppl.objectives.plates import Term, plates_of
from wsram_ppl.objectives.prior import is_prior
from wsram_ppl.objectives.running import MinibatchMeans, RunningRatio
from wsram_ppl.objectives.sites import Program, log_density, random_sites, values_of
from wsram_ppl.primitives.handlers import DetachSamples, ParticlePlate, Substitute

__all__ = ["ControlVariate", "WakeSleep", "partial_log_ratios"]

#: How the gradient's variance is reduced: see :class:`WakeSleep`.
ControlVariate = Literal["none", "self-normalized", "unnormalized", "adaptive", "learned"]


@dataclass(eq=False)
class WakeSleep(MultiSampleObjective):
    r"""Reweighted wake-sleep with control variates, bound L_M (WS-RAM; sleep-q by ``insomnia``).

    With w = softmax(log w~) over the particles of a datum, r = p(a)/q(a), M = ``num_particles``:

    =====================  =======================================================================
    ``control_variate``    theta (wake-p): sum_m w_m d log p(y|a^m) + the coefficient of d log p(a^m)
    =====================  =======================================================================
    ``"none"``             w_m (eq. 8)
    ``"self-normalized"``  w_m - r_m / sum r (the paper: eq. 16 with 18)
    ``"unnormalized"``     w_m - r_m / M (eq. 16 as printed, with the 1/M of eq. 19)
    ``"adaptive"``         w_m - c r_m / M, c a running E[w r/M] / E[(r/M)^2] of earlier minibatches
    ``"learned"``          w_m - c_n r_{1:n} / M for each d log p(a_n | a_<n), c_n(state) learned
    =====================  =======================================================================

    eta (wake-q): sum_m w_m d log q for ``"none"`` (eq. 14); (w_m - 1/M) for the others (eq. 17), and
    (w_m - c_n(state)) per site for ``"learned"``.

    All but ``"self-normalized"`` have exactly the expectation of ``"none"``: the theta-gradient of
    E[L_M] if q does not depend on theta (an O(1/M)-biased estimate of d log p(y)). The paper's
    choice has that expectation only if q = p. With the prior as proposal r = 1, and theta gets no
    second gradient through the guide.

    ``"learned"`` takes c_n from the baseline network that a site declares with Pyro's
    ``infer={"baseline": {"nn_baseline": ..., "nn_baseline_input": ...}}``: the model's site for theta
    (c_n = running constant + network), the guide's site for eta (c_n = (1 + network) / M). A site
    without a declaration gets the running constant and 1/M. The networks are fitted by least squares,
    E[(w - c_n r_{1:n}/M)^2] and E[(w - c_n)^2], as part of the loss.

    Samples of local sites are constants, except that wake-q of ``pathwise`` sites may be
    ``doubly_reparameterized`` (Tucker et al. 2019): sum_m (w_m - w_m^2) (d log w~_m / d a) d a / d eta,
    with the same expectation. Global sites follow the bound, as in
    :class:`~wsram_ppl.objectives.importance.ImportanceBound`.

    Args:
        control_variate: see the table.
        insomnia: in [0, 1]: the guide's gradient is insomnia * wake-q + (1 - insomnia) * sleep-q.
            Sleep-q trains the guide on fantasies (a, y) ~ p(a, y | I): d log q(a | y, I). The guide
            must then take a keyword ``observations``, a dict from observed site to value, as in
            :class:`pyro.infer.ReweightedWakeSleep`.
        num_particles: M, at least 2; also the number of fantasies per datum.
        decay: of the running averages used by ``"adaptive"`` and ``"learned"``.
        doubly_reparameterized: for local ``pathwise`` sites; model and guide then run twice.
        num_global_particles: see :class:`~wsram_ppl.objectives.multi_sample.MultiSampleObjective`.
        max_plate_nesting, vectorize_particles, pathwise, retain_graph, regularizer: see
            :class:`~wsram_ppl.objectives.base.Objective`.

    Raises:
        ValueError: an unknown control variate, ``insomnia`` or ``decay`` out of range, fewer than 2
            particles; sleep-q with the prior as guide, with a guide that takes no ``observations``,
            or with a model that has factors or global sites; a local ``Delta`` with parameters;
            ``doubly_reparameterized`` without a local pathwise site, or with the prior as guide.
    """

    gradients_differ: ClassVar[bool] = True

    control_variate: ControlVariate = "adaptive"
    _: KW_ONLY
    insomnia: float = 1.0
    num_particles: int = 5
    decay: float = 0.99
    doubly_reparameterized: bool = False

    def __post_init__(self) -> None:
        check_choice(
            "control_variate", self.control_variate, get_args(ControlVariate), type(self).__name__
        )
        if not 0.0 <= self.insomnia <= 1.0:
            raise ValueError(f"insomnia must lie in [0, 1], not {self.insomnia}")
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must lie in [0, 1), not {self.decay}")
        if self.num_particles < 2:
            raise ValueError(
                "WakeSleep needs num_particles of at least 2: the normalised weight of a single "
                "particle is always 1"
            )
        super().__post_init__()

    def bound(self, log_weights: Tensor) -> Tensor:
        return estimators.multi_sample_bound(log_weights)

    @property
    def uses_baselines(self) -> bool:
        return self.control_variate == "learned"

    def held_constant(self, draws: Sequence[TraceDraw]) -> Collection[str]:
        local = [site.name for draw in draws for site in draw.latents if site.pathwise]
        outside = [site.name for draw in draws for site in draw.globals if site.pathwise]
        if self.doubly_reparameterized and outside:
            raise InputError(
                f"doubly_reparameterized=True with the global site '{outside[0]}' pathwise too is not "
                "supported: leave one of them out"
            )
        if self.doubly_reparameterized:
            return pathwise_names(draws)
        if local:
            raise InputError(
                f"site '{local[0]}' is pathwise (or a Delta with parameters), but wake-q follows the "
                "scores of samples that are constants: leave it out of pathwise, or set "
                "doubly_reparameterized=True, or use ImportanceBound"
            )
        return outside

    def surrogate(self, particles: Particles) -> Tensor:
        weights = estimators.normalized_weights(particles.log_weights)
        model, guide = particles, particles
        if particles.constant is not None and self.doubly_reparameterized:
            model = particles.constant
        elif particles.constant is not None:
            guide = particles.constant
        wake_p = weighted(weights, model.log_likelihood)
        if self.control_variate == "learned":
            gain = wake_p + self._learned(model, guide, weights)
        else:
            gain = wake_p + weighted(self._coefficient(particles, weights), model.log_prior)
            if not particles.shares_parameters and self.insomnia > 0.0:
                mean = 0.0 if self.control_variate == "none" else 1.0 / particles.num_particles
                gain = gain + self.insomnia * weighted(weights - mean, guide.log_score)
        if particles.constant is None:
            return gain
        if self.doubly_reparameterized:
            return gain + self.insomnia * through_samples(weights - weights.square(), particles)
        # The bound's gradient through what the guide's local sites take from global samples.
        signal = estimators.vimco_signal(particles.log_weights) - weights
        gain = gain + weighted(signal, particles.log_proposal)
        return gain - weighted(signal, particles.constant.log_proposal)

    def _coefficient(self, particles: Particles, weights: Tensor) -> Tensor:
        """The coefficient of d log p(a), ``[particle, *datum]``."""
        log_ratio = particles.log_ratio
        if self.control_variate == "none":
            return weights
        if self.control_variate == "self-normalized":
            return weights - estimators.normalized_weights(log_ratio)
        scaled = estimators.ratio(log_ratio) / particles.num_particles
        if self.control_variate == "unnormalized":
            return weights - scaled
        constant, means = RunningRatio(self.running, "c"), MinibatchMeans()
        constant.observe(weights, scaled, means)
        coefficient = weights - constant.value(weights) * scaled
        means.commit(self.running, self.decay)
        return coefficient

    def _learned(self, model: Particles, guide: Particles, weights: Tensor) -> Tensor:
        """Every term of log p(a) and log q(a) with its own control variate (see the class).

        Args:
            model, guide: the same particles, from which the terms of each are taken.
        """
        m = model.num_particles
        means = MinibatchMeans()
        total, one = weights.new_zeros(()), weights.new_ones(())
        wake_q = not model.shares_parameters and self.insomnia > 0.0
        for (draw, rows), other in zip(model.rows(), guide.draws, strict=True):
            # In units of 1/M, so that coefficients are of order one.
            target = (m * weights[rows]).unsqueeze(-1)
            log_ratios = partial_log_ratios(draw)
            for site, twin in zip(draw.latents, other.latents, strict=True):
                r = estimators.ratio(log_ratios[site.prefix_size]).unsqueeze(-1)
                if site.prior is not None:
                    constant = RunningRatio(self.running, f"c/{site.name}")
                    constant.observe(target, r, means)
                    c = _plus_network(constant.value(target), site.prior_baseline, site.prior, draw)
                    total = total + _controlled(target, c, r, site.prior)
                if wake_q and not twin.pathwise:
                    c = _plus_network(one, twin.proposal_baseline, twin.proposal, draw)
                    total = total + self.insomnia * _controlled(target, c, one, twin.proposal)
        means.commit(self.running, self.decay)
        return total / m

    # Sleep: the guide learns from the model's fantasies.

    def check(self, model: Program, guide: Program) -> None:
        super().check(model, guide)
        if self.insomnia == 1.0:
            return
        if is_prior(guide, model):
            raise ValueError(
                "insomnia < 1 trains the guide by sleep-q, but the guide is the prior and has "
                "nothing to train: use insomnia=1.0 or an inference network"
            )
        if not _takes_observations(guide):
            raise ValueError(
                "insomnia < 1 needs a guide with a keyword argument 'observations' (a dict from "
                "observed site to the value to infer from), for training on the model's fantasies"
            )

    def guide_surrogate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        if self.insomnia == 1.0:
            return None
        self.check(model, guide)
        if self._global_names:
            raise InputError(
                f"insomnia < 1 draws fantasies of data, but site '{min(self._global_names)}' is global: "
                "use insomnia=1.0"
            )
        if self.particles_in_a_plate:
            plate = ParticlePlate(self.num_particles, -int(self.dimensions))
            model, guide = plate(model), plate(guide)
        runs = 1 if self.vectorize_particles else self.num_particles
        log_q = torch.stack([self._sleep(model, guide, args, kwargs) for _ in range(runs)]).sum()
        return log_q.mul((1.0 - self.insomnia) / self.num_particles)

    def _sleep(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """log q(a | y, I) at fantasies (a, y) ~ p(a, y | I), summed over particles and data."""
        with torch.no_grad(), DetachSamples():
            dream = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
        values, observations = values_of(dream), {}
        for name, site in random_sites(dream).items():
            if site["infer"].get("was_observed"):
                if isinstance(site["fn"], Unit):
                    raise ValueError(
                        f"insomnia < 1 draws fantasies from the model, but its factor '{name}' "
                        "cannot be sampled: use insomnia=1.0, or a sample site instead"
                    )
                observations[name] = values.pop(name)
        with Substitute(values, whose="guide", partial=True):
            trace = poutine.trace(guide).get_trace(*args, **{**kwargs, "observations": observations})
        sites = random_sites(trace)
        unknown = [name for name in sites if name not in values]
        if unknown:
            raise InputError(
                "insomnia < 1 trains the guide on fantasies of the model, which have no value for its "
                f"site '{unknown[0]}': use insomnia=1.0"
            )
        layout = plates_of({}, sites).layout
        terms = [
            Term.of(s, log_density(s), layout, last_dependency=-1).total.sum() for s in sites.values()
        ]
        return torch.stack(terms).sum()


def _takes_observations(guide: Program) -> bool:
    program = getattr(guide, "forward", guide)
    parameters = inspect.signature(program).parameters.values()
    return any(p.name == "observations" or p.kind is p.VAR_KEYWORD for p in parameters)


def partial_log_ratios(draw: TraceDraw) -> list[Tensor]:
    """log r_{1:k} = sum of the first k latents' log p - log q, for k = 0, 1, ..., in the model's order.

    Constants, ``[particle, *datum]``.
    """
    ratios = [torch.zeros_like(draw.log_prior)]
    for site in draw.latents:
        log_q = site.proposal.total
        ratio = -log_q if site.prior is None else site.prior.total - log_q
        ratios.append(ratios[-1] + ratio.detach())
    return ratios


def _plus_network(constant: Tensor, baseline: Baseline | None, term: Term, draw: TraceDraw) -> Tensor:
    """constant + the network declared on the site, if any."""
    if baseline is None:
        return constant
    predicted = baseline.predict(term.log_prob.shape, draw.layout.arrange)
    return constant if predicted is None else constant + predicted


def _controlled(target: Tensor, c: Tensor, r: Tensor, term: Term) -> Tensor:
    """(target - c r) d log-density, and the least-squares fit of c; summed over everything."""
    residual = (target - c * r).expand(term.elements.shape)
    controlled = weighted(residual, term.elements)
    if residual.requires_grad:  # there is a network to fit
        controlled = controlled - estimators.squared_error(residual, term.mask)
    return controlled
