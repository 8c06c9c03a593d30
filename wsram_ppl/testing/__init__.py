"""Tools to prove an estimator correct: exact enumeration, and chosen particles.

Nothing here is needed for training. :mod:`~wsram_ppl.testing.enumeration` has small models whose every
expectation is a finite sum, :mod:`~wsram_ppl.testing.variance` the exact variances of wake-sleep's
estimators.
"""

from wsram_ppl.testing.handlers import ForceSamples

__all__ = ["ForceSamples"]
