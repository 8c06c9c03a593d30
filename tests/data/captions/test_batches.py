"""How sentences become batches, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsram_ppl.data.captions.batches import EncodedCaptions, LengthBuckets
from wsram_ppl.data.captions.vocabulary import END, START
from wsram_ppl.errors import InputError

captions = st.lists(
    st.lists(st.integers(2, 9), max_size=6).map(lambda words: [START, *words, END]),
    min_size=1,
    max_size=12,
)


@given(captions, st.data())
def test_a_batch_is_its_sentences(sentences: list[list[int]], data: st.DataObject) -> None:
    encoded = EncodedCaptions(sentences)
    places = st.integers(0, len(sentences) - 1)
    rows = data.draw(st.lists(places, min_size=1, max_size=8))
    words, mask = encoded.batch(np.array(rows))
    longest = max(len(sentences[row]) for row in rows)
    assert words.shape == mask.shape == (len(rows), longest)
    assert (str(words.dtype), str(mask.dtype)) == ("torch.int64", "torch.bool")
    for row, said, counts in zip(rows, words.tolist(), mask.tolist(), strict=True):
        own = sentences[row]
        padding = longest - len(own)
        assert said == own + [END] * padding
        assert counts == [False] + [True] * (len(own) - 1) + [False] * padding
    assert len(encoded) == len(sentences)


lengths_of_data = st.lists(st.integers(2, 30), min_size=1, max_size=60).map(np.array)


@settings(deadline=None)
@given(lengths_of_data, st.data())
def test_a_batch_depends_on_its_arguments_alone(lengths: np.ndarray, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(lengths)))
    asked = data.draw(
        st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2)), min_size=1, max_size=10)
    )
    shared = LengthBuckets(lengths, 4)
    for step, seed in asked:
        rows = shared.rows(step, size, seed)
        assert rows.shape == (size,)
        assert np.array_equal(rows, LengthBuckets(lengths, 4).rows(step, size, seed))


@settings(deadline=None)
@given(lengths_of_data, st.data())
def test_every_datum_comes_once_per_epoch(lengths: np.ndarray, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(lengths)))
    order = LengthBuckets(lengths, 4)
    per_pool = min(4, len(lengths) // size)
    pools = data.draw(st.integers(1, 12))
    drawn = np.concatenate([order.rows(step, size, 0) for step in range(pools * per_pool)])
    counts = np.bincount(drawn, minlength=len(lengths))
    assert counts.max() - counts.min() <= 1


def test_batches_are_of_about_equal_length_and_in_no_order() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 30, 5000)
    order = LengthBuckets(lengths)
    batches = [lengths[order.rows(step, 50, 3)] for step in range(100)]
    padding = 1 - sum(b.sum() for b in batches) / sum(b.max() * b.size for b in batches)
    unsorted = rng.permutation(lengths).reshape(100, 50)
    plain = 1 - unsorted.sum() / (unsorted.max(1) * 50).sum()
    assert padding < 0.06 < 0.4 < plain
    means = np.array([batch.mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3
    assert not np.array_equal(order.rows(0, 50, 3), order.rows(0, 50, 4))
    assert len(order.rows(2**40, 50, 3)) == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 2, 0), "the step must be a whole number of at least 0, not -1"),
        ((0, 0, 0), "the batch size must be a whole number of at least 1, not 0"),
        ((0, 2, -5), "the seed must be a whole number of at least 0, not -5"),
        ((0.5, 2, 0), "the step must be a whole number of at least 0, not 0.5"),
        ((0, 6, 0), "a batch of 6 cannot be drawn from 5 training captions; choose a smaller"),
    ],
)
def test_arguments_out_of_range(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LengthBuckets(np.full(5, 9)).rows(*arguments)
