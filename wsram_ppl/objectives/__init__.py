"""Objectives for models with discrete or otherwise non-differentiable latents.

Each is a Pyro ELBO: a bound on log p(y | I) and an estimator of its gradient, with importance weights
per datum. See :class:`VariationalBound`, :class:`ImportanceBound`, :class:`WakeSleep`,
:class:`ThermodynamicBound`; the guide :class:`Prior`; and :class:`Exploration`, for use with any.
"""

from wsram_ppl.objectives.base import Objective
from wsram_ppl.objectives.exploration import Exploration
from wsram_ppl.objectives.importance import ImportanceBound
from wsram_ppl.objectives.prior import Prior
from wsram_ppl.objectives.thermodynamic import ThermodynamicBound
from wsram_ppl.objectives.variational import VariationalBound
from wsram_ppl.objectives.wake_sleep import WakeSleep

__all__ = [
    "Exploration",
    "ImportanceBound",
    "Objective",
    "Prior",
    "ThermodynamicBound",
    "VariationalBound",
    "WakeSleep",
]
