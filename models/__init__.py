"""Prediction networks as Pyro models; importing this package registers them by name."""

from models.digits import GlimpseClassifier

__all__ = ["GlimpseClassifier"]
