"""Some scenes, how their shapes are described, and which shape a sentence is about."""

from __future__ import annotations

import numpy as np

from wsram_ppl.data.captions.scene_generator import COLOURS, KINDS, SIZES, Scenes, Whole, generate
from wsram_ppl.data.captions.scenes import VOCABULARY
from wsram_ppl.data.captions.vocabulary import END

MANY = generate((5,), 0, 3000)
TWO = np.flatnonzero(MANY.count == 2)
NUMBER = {word: number for number, word in enumerate(VOCABULARY.words)}


def look(scenes: Scenes, scene: int, shape: int) -> str:
    """The phrase that describes a shape."""
    words = SIZES[scenes.size[scene, shape]], list(COLOURS)[scenes.colour[scene, shape]]
    return f"a {words[0]} {words[1]} {KINDS[scenes.kind[scene, shape]]}"


def named_shapes(scenes: Scenes, words: Whole) -> Whole:
    """Which shape each word is about, [B, T + 1]: 0 or 1, or -1 for none.

    A phrase "a SIZE COLOUR KIND" is about the shape of its scene that it describes, all four words; what
    describes no shape of the scene, relations, marks and padding are about none. So it also reads
    sentences that a model made up.

    Args:
        words: [B, T + 1], numbers of the vocabulary, up to the first end mark.
    """
    about = np.full(words.shape, -1)
    looks = [
        np.array([NUMBER[word] for word in known])[values]
        for known, values in (
            (SIZES, scenes.size),
            (tuple(COLOURS), scenes.colour),
            (KINDS, scenes.kind),
        )
    ]
    going = np.cumsum(words == END, 1) == 0
    for t in range(words.shape[1] - 3):
        phrase = words[:, t : t + 4]
        for shape in (0, 1):
            fits = (phrase[:, 0] == NUMBER["a"]) & going[:, t + 3] & (shape < scenes.count)
            for place, own in enumerate(looks, start=1):
                fits = fits & (phrase[:, place] == own[:, shape])
            about[fits, t : t + 4] = shape
    return about
