"""The captioner learns to describe generated scenes, and where to look for it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pyro
import torch

from tests.data.captions.shapes import named_shapes
from wsram_ppl.captions.decoding import Looks, Sentences
from wsram_ppl.captions.evaluation import Decoding, describe
from wsram_ppl.config import parse_config
from wsram_ppl.data.captions.scene_generator import Scenes, Whole
from wsram_ppl.data.captions.scenes import SceneCaptions
from wsram_ppl.training.trainer import Trainer

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "scenes.toml"
SCENES = 200


def train(*overrides: str) -> Trainer:
    trainer = Trainer.start(parse_config(tomllib.loads(EXPERIMENT.read_text()), overrides))
    while trainer.step < trainer.training.steps:
        trainer.update()
    return trainer


def phrases(scenes: Scenes, found: Sentences) -> Whole:
    """Which shape each word names, [B, T]; -1 for none (see ``named_shapes``)."""
    start = torch.zeros(len(found.words), 1, dtype=torch.long)
    return named_shapes(scenes, torch.cat([start, found.words], -1).numpy())[:, 1:]


def on_shape(scenes: Scenes, named: Whole, looks: Looks) -> tuple[float, float]:
    """Of the looks for words of a phrase, the share that overlaps the shape that is named; and that
    overlaps the scene's other shape."""
    b, t = np.nonzero((named >= 0) & (scenes.count == 2)[:, None])
    shape = named[b, t]
    centre, size = looks.centres[0, b, t].numpy(), looks.sizes[0, b, t].numpy()
    shares = []
    for which in (shape, 1 - shape):
        apart = np.abs(centre - scenes.centre[b, which]) - size / 2 - scenes.radius[b, which][:, None]
        shares.append(float((apart.max(-1) < 0).mean()))
    return shares[0], shares[1]


def test_it_learns_to_name_shapes_and_to_look_at_them() -> None:
    """A short training, 20 seconds of one core; sentences are decoded at the most probable looks."""
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False):
        trainer = train(
            "training.steps=220",
            "training.batch_size=32",
            "training.learning_rate=5e-3",
            "exploration.entropy=0.02",
            "model.hidden=64",
        )
        data = trainer.components.data
        assert isinstance(data, SceneCaptions)
        (pictures,) = data.examples(SCENES, SCENES)
        found = describe(trainer.components.model, pictures, Decoding(beam=1, length_penalty=0.0))
    scenes = data.scenes(range(SCENES))
    named = phrases(scenes, found)
    # A phrase at random is right for one in 24 scenes of two shapes, one in 48 of one.
    assert (named[:, 0] >= 0).mean() > 0.8
    # A whole sentence at random is right for one scene in 200 or fewer.
    said = [data.vocabulary.decode(words) for words in found.words.tolist()]
    right = [text in known for text, known in zip(said, pictures.references, strict=True)]
    assert np.mean(right) > 0.08
    # It looks at what it names, not at the other shape.
    assert found.looks is not None
    at_it, at_the_other = on_shape(scenes, named, found.looks)
    assert at_it > 0.4
    assert at_it > 2 * at_the_other
