"""Generated scenes: sentences are true of the picture, and the maps tell what they should, no more."""

from __future__ import annotations

import itertools
import json

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsram_ppl.config.catalogue import DATA_SOURCES
from wsram_ppl.data import DataSource
from wsram_ppl.data.captions import CaptionSource
from wsram_ppl.data.captions.scenes import (
    COLOURS,
    KINDS,
    LAYER_SHAPES,
    SIZES,
    VOCABULARY,
    SceneCaptions,
    Scenes,
    coverage,
    draw,
    feature_maps,
    generate,
    named_shapes,
    sentences,
)
from wsram_ppl.data.captions.vocabulary import END, START, Vocabulary
from wsram_ppl.errors import InputError

MANY = generate((5,), 0, 3000)
TWO = np.flatnonzero(MANY.count == 2)


def look(scenes: Scenes, scene: int, shape: int) -> str:
    words = SIZES[scenes.size[scene, shape]], list(COLOURS)[scenes.colour[scene, shape]]
    return f"a {words[0]} {words[1]} {KINDS[scenes.kind[scene, shape]]}"


def texts(scenes: Scenes, first: npt.NDArray[np.int64] | None = None) -> list[str]:
    return [VOCABULARY.decode(row) for row in sentences(scenes, first)[0].tolist()]


# ---------------------------------------------------------------- scenes


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**45), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_scene_is_a_function_of_seed_and_number(first: int, count: int, more: int, seed: int) -> None:
    together = generate((seed,), first, count + more)
    parts = [generate((seed,), first, count), generate((seed,), first + count, more)]
    for name in ("count", "size", "colour", "kind", "centre", "radius", "first", "noise"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(getattr(together, name), joined), name
    assert not np.array_equal(generate((seed + 1,), first, count).centre, parts[0].centre)


def test_shapes_are_on_the_picture_and_apart() -> None:
    assert (np.abs(MANY.centre) + MANY.radius[..., None])[TWO].max() <= 1 + 1e-12
    alone = MANY.count == 1
    assert (np.abs(MANY.centre) + MANY.radius[..., None])[alone, 0].max() <= 1 + 1e-12
    distance = np.abs(MANY.centre[TWO, 0] - MANY.centre[TWO, 1])
    # Not even the squares around them meet.
    assert (distance.max(1) - MANY.radius[TWO].sum(1)).min() > 0
    # Which of left and above it is is never in doubt.
    assert (distance.min(1) / distance.max(1)).max() < 0.61
    small = MANY.size == 0
    assert MANY.radius[small].max() <= 0.2 < 0.34 <= MANY.radius[~small].min()


def test_no_two_shapes_of_a_scene_look_alike() -> None:
    assert not any(look(MANY, n, 0) == look(MANY, n, 1) for n in TWO)


def test_everything_occurs_about_equally_often() -> None:
    for values, options in (
        (MANY.size[TWO], 2),
        (MANY.colour[TWO], 6),
        (MANY.kind[TWO], 4),
        (MANY.relation[TWO], 4),
        (MANY.first[TWO], 2),
    ):
        counts = np.bincount(values.ravel(), minlength=options)
        expected = values.size / options
        assert len(counts) == options and np.abs(counts - expected).max() < 5 * expected**0.5
    assert abs(len(TWO) / len(MANY.count) - 0.8) < 0.03
    assert abs(MANY.noise.mean()) < 1e-3 and MANY.noise.std() == pytest.approx(1, abs=1e-3)


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


# ---------------------------------------------------------------- pictures and maps


def test_pictures_show_the_shapes_where_they_are() -> None:
    scenes = generate((6,), 0, 100)
    pictures = draw(scenes, 96)
    assert pictures.shape == (100, 96, 96, 3) and pictures.dtype == np.uint8
    colours = np.array(list(COLOURS.values()))
    for n in range(100):
        mixed = 0
        for shape in range(scenes.count[n]):
            x, y = ((scenes.centre[n, shape] + 1) / 2 * 96).astype(int)
            assert pictures[n, y, x].tolist() == colours[scenes.colour[n, shape]].tolist()
            left, top = (scenes.centre[n, shape] - scenes.radius[n, shape] + 1) * 48
            right, bottom = (scenes.centre[n, shape] + scenes.radius[n, shape] + 1) * 48
            pictures[n, int(top) : int(bottom) + 1, int(left) : int(right) + 1] = 40
            mixed += 1
        assert mixed == scenes.count[n] and (pictures[n] == 40).all(), "paint outside of the shapes"


def test_coverage_adds_up_to_the_area() -> None:
    area = {0: np.pi, 1: 1.8**2, 2: 2.0, 3: 2 * 2 * 0.66 - 0.66**2}
    for cells in (4, 8, 16):
        shares = coverage(MANY, cells, 48 // cells)
        assert shares.min() >= 0 and shares.max() <= 1
        for kind, factor in area.items():
            chosen = (MANY.kind[:, 0] == kind) & (MANY.size[:, 0] == 1)
            found = shares[chosen, 0].sum((1, 2)) * (2 / cells) ** 2
            assert abs((found / (factor * MANY.radius[chosen, 0] ** 2)).mean() - 1) < 0.02
    assert coverage(MANY, 4)[MANY.count == 1, 1].max() == 0


def readable(cells: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """How often a linear classifier, fitted to half of the cells, names the label of the others."""
    targets = np.eye(labels.max() + 1)[labels]
    inputs = np.concatenate((cells, np.ones((len(cells), 1))), 1)
    half = len(cells) // 2
    weights = np.linalg.lstsq(inputs[:half], targets[:half], rcond=None)[0]
    return float(((inputs[half:] @ weights).argmax(1) == labels[half:]).mean())


def test_each_layer_tells_what_it_should_and_no_more() -> None:
    """Colour in both; the kind of small shapes in the fine layer, of large ones in the coarse."""
    maps = feature_maps(MANY, 0.1)
    assert [m.shape[1:] for m in maps] == list(LAYER_SHAPES)
    assert all(m.dtype == np.float32 and m.flags["C_CONTIGUOUS"] for m in maps)
    row = np.arange(len(MANY.count))
    for layer, features in enumerate(maps):
        cells = LAYER_SHAPES[layer][1]
        best = coverage(MANY, cells)[:, 0].reshape(len(row), -1).argmax(1)
        at_shape = features.reshape(len(row), features.shape[1], -1)[row, :, best]
        for size in (0, 1):
            chosen = MANY.size[:, 0] == size
            assert readable(at_shape[chosen], MANY.colour[chosen, 0]) > 0.97
            kind = readable(at_shape[chosen], MANY.kind[chosen, 0])
            if size == layer:
                assert kind > 0.97
            else:
                assert kind < 0.45  # chance is .25; how full a cell is tells a little


def test_a_cell_without_a_shape_is_noise() -> None:
    for layer, features in enumerate(feature_maps(MANY, 0.1)):
        cells = LAYER_SHAPES[layer][1]
        empty = coverage(MANY, cells, 48 // cells).sum(1) == 0
        silent = np.moveaxis(features, 1, -1)[empty]
        assert silent.std() == pytest.approx(0.1, rel=0.01) and abs(silent.mean()) < 1e-3
    assert all((m == 0).any() for m in feature_maps(MANY, 0.0))


# ---------------------------------------------------------------- the source


@pytest.fixture(scope="module")
def source() -> SceneCaptions:
    return SceneCaptions(held_out=50)


def test_it_is_a_source_of_captions(source: SceneCaptions) -> None:
    assert DATA_SOURCES.resolve("scenes") is SceneCaptions
    assert isinstance(source, DataSource) and isinstance(source, CaptionSource)
    assert source.to("cpu") is source
    data = json.loads(json.dumps(source.vocabulary.to_data()))
    assert Vocabulary.from_data(data) == source.vocabulary and len(source.vocabulary) == 21


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
        (lambda s: s.examples(4, split="train"), "unknown split 'train'; held-out splits are dev and"),
        (lambda s: s.look_up(["50"]), "no held-out scene '50'; there are 0 to 49, and test/0 to"),
        (lambda s: s.pictures(["dev/1"]), "no held-out scene 'dev/1'"),
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
