"""Prediction networks as Pyro models; importing this package registers them by name."""

from wsram_ppl.models.captioner import GlimpseCaptioner
from wsram_ppl.models.classifier import GlimpseClassifier

__all__ = ["GlimpseCaptioner", "GlimpseClassifier"]
