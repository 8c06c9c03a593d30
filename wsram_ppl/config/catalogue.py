"""The names that an experiment may use for a component, and the classes behind them.

A class is imported when it is needed. Classes that are not listed are named by their import path.
"""

from __future__ import annotations

from typing import Final

from wsram_ppl.registry import Registry

__all__ = ["DATA_SOURCES", "GUIDES", "MODELS", "OBJECTIVES"]

#: Names for ``[data] source``.
DATA_SOURCES: Final = Registry(
    "data source",
    {
        "arrays": "wsram_ppl.data.images.arrays:ArrayImages",
        "flickr8k": "wsram_ppl.data.captions.flickr8k:FlickrCaptions",
        "folder": "wsram_ppl.data.images.folder:FolderImages",
        "mnist": "wsram_ppl.data.digits.source:MNISTDigits",
        "sample": "wsram_ppl.data.digits.source:SampleDigits",
        "scenes": "wsram_ppl.data.captions.scenes:SceneCaptions",
    },
)
#: Names for ``[model] name``.
MODELS: Final = Registry(
    "model",
    {
        "glimpse-captioner": "wsram_ppl.models.captioner:GlimpseCaptioner",
        "glimpse-classifier": "wsram_ppl.models.classifier:GlimpseClassifier",
    },
)
#: Names for ``[guide] name``.
GUIDES: Final = Registry(
    "guide",
    {
        "caption-inference": "wsram_ppl.guides.captioner:CaptionInferenceNetwork",
        "inference": "wsram_ppl.guides.classifier:InferenceNetwork",
        "prior": "wsram_ppl.objectives.prior:Prior",
    },
)
#: Names for ``[objective] name``.
OBJECTIVES: Final = Registry(
    "objective",
    {
        "importance": "wsram_ppl.objectives.importance:ImportanceBound",
        "thermodynamic": "wsram_ppl.objectives.thermodynamic:ThermodynamicBound",
        "variational": "wsram_ppl.objectives.variational:VariationalBound",
        "wake-sleep": "wsram_ppl.objectives.wake_sleep:WakeSleep",
    },
)
