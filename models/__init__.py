"""Prediction networks as Pyro models; importing this package registers them by name."""

from models.captions import GlimpseCaptioner
from models.digits import GlimpseClassifier

__all__ = ["GlimpseCaptioner", "GlimpseClassifier"]
