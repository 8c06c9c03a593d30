"""Tools to prove an estimator right: exact enumeration, and particles of one's own choice.

Nothing here is needed to train. :mod:`~wsram_ppl.testing.enumeration` has small models whose every
expectation is a finite sum, :mod:`~wsram_ppl.testing.variance` the exact variances of wake-sleep's
estimators.
"""

from wsram_ppl.testing.handlers import ForceSamples

__all__ = ["ForceSamples"]
