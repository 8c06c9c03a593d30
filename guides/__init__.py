"""Inference networks as Pyro guides: ``wsram_ppl.guides``, and ``guides`` in a checkout."""

from wsram_ppl.guides.captioner import CaptionInferenceNetwork
from wsram_ppl.guides.classifier import InferenceNetwork
from wsram_ppl.objectives.prior import Prior

__all__ = ["CaptionInferenceNetwork", "InferenceNetwork", "Prior"]

if __name__ == "guides":
    # Another name for the same objects. Its modules must not be loaded a second time as different ones.
    __path__ = []
