"""Small discrete models whose every expectation is a finite sum.

A :class:`Problem` is a chain of discrete latents with observations in between, given by tables of
logits, with a proposal given by tables in its own order. Everything about it is computed twice:

* from the tables alone (``log_prior``, ``log_likelihood``, ``log_proposal`` over all joint values, and
  ``targets``), without probabilistic programming: this is what the objectives must match;
* through the public API: :class:`TableModel` and :class:`TableGuide` are ordinary Pyro programs.

:class:`Tuples` lists every possible tuple of M particles. Each tuple is one row of the data plate and
has its own copy of the tables, so that one call of an objective gives the gradient estimate for every
tuple; weighted by the tuples' probabilities these add up to the estimator's exact expectation.
"""

from wsram_ppl.testing.enumeration.problems import Problem, Tables, chain, conditionals, random_problem
from wsram_ppl.testing.enumeration.programs import (
    Declare,
    Program,
    StateNetwork,
    TableGuide,
    TableModel,
    arbitrary_running_state,
    estimates,
    expectation,
    force,
    state_of,
)
from wsram_ppl.testing.enumeration.targets import (
    combined_scores,
    expected_bound,
    weighted_scores,
    weights,
)
from wsram_ppl.testing.enumeration.tuples import Gradients, Tuples, assert_equal, gradient

__all__ = [
    "Declare",
    "Gradients",
    "Problem",
    "Program",
    "StateNetwork",
    "TableGuide",
    "TableModel",
    "Tables",
    "Tuples",
    "arbitrary_running_state",
    "assert_equal",
    "chain",
    "combined_scores",
    "conditionals",
    "estimates",
    "expectation",
    "expected_bound",
    "force",
    "gradient",
    "random_problem",
    "state_of",
    "weighted_scores",
    "weights",
]
