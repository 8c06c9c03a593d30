"""A seeded split takes its share of each class, and every datum once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsram_ppl.data.images.splitting import draw_split


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=80),
    st.lists(st.floats(0.01, 0.45), min_size=1, max_size=2),
    st.integers(0, 2**40),
)
def test_every_class_is_split_alike(labels: list[int], shares: list[float], seed: int) -> None:
    given_ = np.array(labels)
    parts = draw_split(given_, tuple(shares), 1, seed)
    assert len(parts) == 1 + len(shares)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert all((np.diff(part) > 0).all() for part in parts)
    for label, count in zip(*np.unique(given_, return_counts=True), strict=True):
        train, *held_out = (int((given_[part] == label).sum()) for part in parts)
        assert train >= 1
        left = count - 1
        for share, found in zip(shares, held_out, strict=True):
            assert found == min(max(1, round(share * count)), left)
            left -= found


def test_the_seed_decides() -> None:
    labels = np.repeat([0, 1], 100)
    one, again, other = (draw_split(labels, (0.1, 0.1), seed) for seed in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(one, again, strict=True))
    assert not np.array_equal(one[1], other[1])
    assert [len(part) for part in one] == [160, 20, 20]
