"""Prediction networks as Pyro models: ``wsram_ppl.models``, and ``models`` in a checkout."""

from wsram_ppl.models.captioner import GlimpseCaptioner
from wsram_ppl.models.classifier import GlimpseClassifier

__all__ = ["GlimpseCaptioner", "GlimpseClassifier"]

if __name__ == "models":
    # Another name for the same objects. Its modules must not be loaded a second time as different ones.
    __path__ = []
