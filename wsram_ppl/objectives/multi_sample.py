"""The common part of objectives with importance weights: several particles per datum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from wsram_ppl import collectives
from wsram_ppl.errors import InputError
from wsram_ppl.objectives import estimators
from wsram_ppl.objectives.base import Objective
from wsram_ppl.objectives.estimators import weighted
from wsram_ppl.objectives.particles import Particles, add
from wsram_ppl.objectives.running import MinibatchMeans
from wsram_ppl.objectives.sites import Program

__all__ = ["MultiSampleObjective"]

_DECAY = 0.9


@dataclass(kw_only=True, eq=False)
class MultiSampleObjective(Objective):
    r"""A bound from M importance weights per datum, given one draw of the global sites.

    With global sites g, outside the data plates (:mod:`~wsram_ppl.objectives.plates`), the bound is

        E_{g ~ q}[ log p(g) - log q(g) + sum_d scale L_M,d(g) ],

    and their guide follows its gradient: through the sample if it is ``pathwise``, else by its score,
    with the whole bound as signal, minus the mean of the other draws of g, or minus a running mean for
    a single draw.

    Args:
        num_global_particles: draws of g per evaluation, each with its own M particles of the local
            sites; at least 1.
    """

    forms_weights: ClassVar[bool] = True

    num_global_particles: int = 1

    def __post_init__(self) -> None:
        if self.num_global_particles < 1:
            raise ValueError(f"num_global_particles must be at least 1, not {self.num_global_particles}")
        super().__post_init__()

    def evaluations(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Particles]:
        first = self.particles(model, guide, *args, **kwargs)
        names = first.draws[0].plates.global_names
        if not names and self.num_global_particles > 1:
            raise InputError(
                "num_global_particles is above 1, but no latent lies outside the data plates: use "
                "num_particles"
            )
        if names and collectives.count() > 1:
            raise InputError(
                f"site '{min(names)}' is global, and several processes would each draw their own: train "
                "such a program in one process"
            )
        rest = range(1, self.num_global_particles)
        return [first, *(self.particles(model, guide, *args, **kwargs) for _ in rest)]

    def global_surrogate(
        self, evaluations: Sequence[Particles], bounds: Sequence[Tensor]
    ) -> Tensor | None:
        if not evaluations[0].draws[0].globals:
            return None
        signal = torch.stack(list(bounds))
        if len(bounds) > 1:
            signal = signal - estimators.leave_one_out_mean(signal)
        else:
            means = MinibatchMeans()
            means.add("global bound", signal)
            signal = signal - self.running.get("global bound", torch.zeros_like(signal[0]))
            means.commit(self.running, _DECAY)
        gains = [self._global_gain(p, s) for p, s in zip(evaluations, signal, strict=True)]
        return add(gains) / len(gains)

    def _global_gain(self, particles: Particles, signal: Tensor) -> Tensor:
        terms = []
        for draw in particles.draws:
            for site in draw.globals:
                if site.prior is not None:
                    terms.append(site.prior.scaled.sum())
                if site.pathwise or particles.shares_parameters:
                    terms.append(-site.proposal.scaled.sum())
                if not site.pathwise:
                    terms.append(weighted(signal, site.proposal.total))
        return add(terms) / len(particles.draws)
