"""Building blocks of Pyro programs: effect handlers, distributions, layers, glimpses."""

from wsram_ppl.primitives.distributions import Categorical
from wsram_ppl.primitives.glimpses import Pyramid, build_pyramid, extract, window
from wsram_ppl.primitives.handlers import (
    DetachSamples,
    Memoize,
    Mode,
    ParticlePlate,
    Substitute,
    memoize,
)
from wsram_ppl.primitives.layers import Linear, affine

__all__ = [
    "Categorical",
    "DetachSamples",
    "Linear",
    "Memoize",
    "Mode",
    "ParticlePlate",
    "Pyramid",
    "Substitute",
    "affine",
    "build_pyramid",
    "extract",
    "memoize",
    "window",
]
