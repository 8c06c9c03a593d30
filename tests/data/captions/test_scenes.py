"""Captions of generated scenes: sentences are true of the picture, and batches keep the contract."""

from __future__ import annotations

import itertools
import json

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.data.captions.shapes import MANY, TWO, look, named_shapes
from wsram_ppl.config.catalogue import DATA_SOURCES
from wsram_ppl.data.captions.batches import CaptionSource
from wsram_ppl.data.captions.scene_generator import COLOURS, KINDS, SIZES, Scenes, draw, generate
from wsram_ppl.data.captions.scenes import VOCABULARY, SceneCaptions, sentences
from wsram_ppl.data.captions.vocabulary import END, START, Vocabulary
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import DataSource


def texts(scenes: Scenes, first: npt.NDArray[np.int64] | None = None) -> list[str]:
    return [VOCABULARY.decode(row) for row in sentences(scenes, first)[0].tolist()]


# ---------------------------------------------------------------- sentences


def test_sentences_are_true() -> None:
    """Read back from the words, without the generator's notion of a relation."""
    where = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
    for shape in (0, 1):
        said = texts(MANY, np.full(len(MANY.count), shape))
        for n, text in enumerate(said):
            if MANY.count[n] == 1:
                assert text == look(MANY, n, shape) or shape == 1
                continue
            here, there = look(MANY, n, shape), look(MANY, n, 1 - shape)
            assert text.startswith(here + " ") and text.endswith(" " + there)
            axis, sign = where[text[len(here) + 1 : -len(there) - 1]]
            apart = MANY.centre[n, shape] - MANY.centre[n, 1 - shape]
            assert np.sign(apart[axis]) == sign and np.abs(apart).argmax() == axis


def test_words_and_mask_keep_the_contract() -> None:
    words, mask = sentences(MANY)
    assert (words.dtype, mask.dtype) == (np.int64, np.bool_)
    assert words.shape == mask.shape == (3000, 12)
    for said, counts, text in zip(words, mask, texts(MANY), strict=True):
        encoded = VOCABULARY.encode(text)
        assert said.tolist() == encoded + [END] * (12 - len(encoded))
        assert counts.tolist() == [False] + [True] * (len(encoded) - 1) + [False] * (12 - len(encoded))
    assert sorted({int(n) for n in mask.sum(1)}) == [5, 10, 11]
    # No wider than the longest of the batch.
    alone = next(n for n in range(100) if MANY.count[n] == 1)
    assert sentences(generate((5,), alone, 1))[0].shape == (1, 6)


def test_which_shape_a_word_is_about() -> None:
    first = MANY.first
    words, mask = sentences(MANY)
    about = named_shapes(MANY, words)
    for n in range(len(words)):
        length = mask[n].sum()
        if MANY.count[n] == 1:
            expected = [-1, 0, 0, 0, 0, -1] + [-1] * 6
        else:
            middle = [-1] * (length - 9)
            expected = [-1, *[first[n]] * 4, *middle, *[1 - first[n]] * 4, -1] + [-1] * (11 - length)
        assert about[n].tolist() == expected


def test_made_up_sentences_are_about_what_they_describe() -> None:
    scene = generate((5,), int(TWO[0]), 1)
    zero, one = look(scene, 0, 0), look(scene, 0, 1)
    other = next(
        phrase
        for phrase in map(
            "a {} {} {}".format, *zip(*itertools.product(SIZES, COLOURS, KINDS), strict=True)
        )
        if phrase not in (zero, one)
    )
    for text, expected in (
        (f"{one} {one}", [1] * 8),
        (f"left {other} above {zero}", [-1] * 6 + [0] * 4),
        (f"{zero[2:]} {zero[:-2]}", [-1] * 6),
    ):
        row = VOCABULARY.encode(text)
        about = named_shapes(scene, np.array([row + VOCABULARY.encode(zero)]))[0].tolist()
        assert about[1 : 1 + len(expected)] == expected
        assert set(about[len(row) - 1 :]) == {-1}, "words after the end mark are not said"


# ---------------------------------------------------------------- the source


@pytest.fixture(scope="module")
def source() -> SceneCaptions:
    return SceneCaptions(held_out=50)


def test_it_is_a_source_of_captions(source: SceneCaptions) -> None:
    assert DATA_SOURCES.resolve("scenes") is SceneCaptions
    assert isinstance(source, DataSource) and isinstance(source, CaptionSource)
    assert source.to("cpu") is source
    data = json.loads(json.dumps(source.vocabulary.to_data()))
    assert Vocabulary(data["words"]) == source.vocabulary and len(source.vocabulary) == 21


def test_a_training_batch(source: SceneCaptions) -> None:
    words, mask, fine, coarse = batch = source.training_batch(3, 32, 7)
    assert [part.dtype for part in batch] == [torch.int64, torch.bool, torch.float32, torch.float32]
    assert words.shape == mask.shape == (32, 12)
    assert fine.shape == (32, *source.layer_shapes[0]) and coarse.shape == (32, *source.layer_shapes[1])
    assert (words[:, 0] == START).all()
    again = SceneCaptions(held_out=50).training_batch(3, 32, 7)
    assert all(map(torch.equal, batch, again))
    for other in (source.training_batch(4, 32, 7), source.training_batch(3, 32, 8)):
        assert not torch.equal(other[2], fine)
    # Batches of other sizes go through the same endless row.
    assert torch.equal(source.training_batch(6, 16, 7)[2], fine[:16])


def test_held_out_scenes_are_fixed_and_apart(source: SceneCaptions) -> None:
    batches = list(source.evaluation_batches(20))
    assert [len(batch[0]) for batch in batches] == [20, 20, 10]
    maps = torch.cat([batch[2] for batch in batches])
    assert torch.equal(maps[:7], torch.cat([b[2] for b in source.evaluation_batches(3, 7)]))
    assert len(torch.cat([b[2] for b in source.evaluation_batches(9, 1000)])) == 50
    test = torch.cat([b[2] for b in source.evaluation_batches(50, split="test")])
    trained = source.training_batch(0, 50, 0)[2]
    other = next(iter(SceneCaptions(held_out=50, test_seed=1).evaluation_batches(50)))[2]
    for apart in (test, trained, other):
        assert not any(torch.equal(a, b) for a in maps for b in apart)


def test_examples_have_every_true_caption(source: SceneCaptions) -> None:
    (examples,) = source.examples(50)
    scenes = source.scenes(range(50))
    assert examples.names == [str(n) for n in range(50)]
    assert [len(own) for own in examples.references] == scenes.count.tolist()
    batch = next(iter(source.evaluation_batches(50)))
    for row, own in zip(batch[0].tolist(), examples.references, strict=True):
        assert VOCABULARY.decode(row) in own
    assert all(map(torch.equal, batch[2:], examples.maps))
    found = source.look_up(["7", "test/3"])
    assert torch.equal(found.maps[0][0], examples.maps[0][7])
    assert found.references[0] == examples.references[7]
    assert next(source.examples(4, split="test")).references[3] == found.references[1]
    pictures = source.pictures(["7", "test/3"])
    assert np.array_equal(pictures[0], draw(scenes)[7]) and pictures[1].shape == (96, 96, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.training_batch(-1, 4, 0), "the step must be a whole number of at least 0"),
        (lambda s: s.training_batch(0, 0, 0), "the batch size must be a whole number of at least 1"),
        (lambda s: s.training_batch(0, 4, -1), "the seed must be a whole number of at least 0"),
        (lambda s: s.evaluation_batches(0), "the batch size must be"),
        (lambda s: s.examples(4, 0), "the number of held-out scenes must be"),
        (
            lambda s: s.examples(4, split="train"),
            "unknown split 'train'; held-out splits are validation",
        ),
        (lambda s: s.look_up(["50"]), "no held-out scene '50'; there are 0 to 49, and test/0 to"),
        (lambda s: s.pictures(["validation/1"]), "no held-out scene 'validation/1'"),
        (lambda s: s.look_up([]), "name at least one scene"),
        (lambda s: SceneCaptions(noise=-1.0), "noise = -1.0: should be a number of at least 0"),
        (lambda s: SceneCaptions(held_out=0), "held_out must be a whole number of at least 1"),
        (lambda s: SceneCaptions(test_seed=-1), "test_seed must be a whole number of at least 0"),
    ],
)
def test_out_of_range(source: SceneCaptions, call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(InputError, match=message):
        call(source)
