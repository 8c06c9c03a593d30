"""Inference networks as Pyro guides; importing this package registers them by name."""

from guides.captions import CaptionInferenceNetwork
from guides.inference import InferenceNetwork
from guides.prior import Prior

__all__ = ["CaptionInferenceNetwork", "InferenceNetwork", "Prior"]
