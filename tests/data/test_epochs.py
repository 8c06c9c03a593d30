"""Shuffled epochs behind each other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsram_ppl.data.epochs import Epochs, generator


@given(
    count=st.integers(1, 6),
    asked=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20), st.integers(0, 1)), max_size=8),
)
def test_a_span_is_that_of_the_permutations_behind_each_other(
    count: int, asked: list[tuple[int, int, int]]
) -> None:
    """Within an epoch and across several; whatever was asked for before."""
    epochs = Epochs(count, generator)
    for first, size, seed in asked:
        order = np.concatenate([generator(seed, epoch).permutation(count) for epoch in range(60)])
        assert np.array_equal(epochs.span(first, size, seed), order[first : first + size])
