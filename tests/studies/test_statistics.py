"""Means with bootstrap intervals over seeds, and differences paired by seed."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsram_ppl.studies.statistics import (
    Interval,
    Mean,
    bootstrap_interval,
    clear_best,
    paired_difference,
)

numbers = st.floats(-1e3, 1e3)
#: Sums and differences of these are exact.
whole = st.integers(-1000, 1000).map(float)
by_seed = st.dictionaries(st.integers(0, 9), whole, min_size=2, max_size=6)


@given(st.lists(numbers, min_size=2, max_size=8))
def test_mean_and_standard_error(values: list[float]) -> None:
    mean = Mean.of(values)
    assert mean is not None and mean.se is not None
    assert mean.value == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert mean.se == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)


def test_one_seed_has_no_interval() -> None:
    assert Mean.of([3.0]) == Mean(3.0, None, None, 1)
    assert bootstrap_interval([3.0]) is None and bootstrap_interval([]) is None
    assert Mean.of([]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_interval(bad: float) -> None:
    mean = Mean.of([1.0, bad, 2.0])
    assert mean is not None
    assert (mean.se, mean.interval, mean.count) == (None, None, 3)
    assert mean.value == bad or math.isnan(mean.value)


@given(numbers, st.lists(st.floats(0.01, 100), min_size=1, max_size=4))
def test_the_interval_of_symmetric_values_contains_their_mean(middle: float, aside: list[float]) -> None:
    values = [middle + sign * each for each in aside for sign in (-1, 1)]
    interval = bootstrap_interval(values)
    assert interval is not None
    assert interval.low <= middle + 1e-9 and middle - 1e-9 <= interval.high


@given(st.lists(numbers, min_size=2, max_size=8))
def test_the_interval_lies_within_the_values(values: list[float]) -> None:
    interval = bootstrap_interval(values)
    assert interval is not None
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


@given(numbers, st.integers(2, 9))
def test_equal_values_have_an_interval_of_no_width(value: float, count: int) -> None:
    mean = Mean.of([value] * count)
    assert mean == Mean(value, 0.0, Interval(value, value), count)


@given(st.lists(numbers, min_size=2, max_size=3, unique=True))
def test_with_two_or_three_seeds_it_is_their_range(values: list[float]) -> None:
    """Of three draws with replacement all are the least once in 27 times: more than 2.5%."""
    assert bootstrap_interval(values) == pytest.approx(Interval(min(values), max(values)), abs=1e-9)


@given(st.lists(numbers, min_size=2, max_size=8), st.integers(0, 99))
def test_neither_order_nor_another_call_changes_it(values: list[float], seed: int) -> None:
    shuffled = random.Random(seed).sample(values, len(values))
    assert bootstrap_interval(shuffled) == bootstrap_interval(values)


def test_it_is_that_of_many_resamples() -> None:
    """Against the plainest way to compute it, with draws of its own."""
    values = np.array([0.1, 0.4, 0.2, 0.9, 0.5, 0.3])
    draws = np.random.default_rng(7)
    means = [draws.choice(values, len(values)).mean() for _ in range(20_000)]
    expected = np.quantile(means, [0.05, 0.95])
    assert bootstrap_interval(values.tolist(), level=0.9) == pytest.approx(tuple(expected), abs=0.01)


@given(by_seed, whole)
def test_the_difference_to_itself_plus_a_number_is_that_number(
    values: dict[int, float], shift: float
) -> None:
    found = paired_difference({seed: value + shift for seed, value in values.items()}, values)
    assert found is not None
    assert found.mean == Mean(shift, 0.0, Interval(shift, shift), len(values))
    assert (found.agreeing, found.unpaired) == (len(values), ())


@given(by_seed, by_seed)
def test_the_difference_turned_around_has_the_other_sign(
    one: dict[int, float], other: dict[int, float]
) -> None:
    there, back = paired_difference(one, other), paired_difference(other, one)
    assert (there is None) == (back is None) == (not one.keys() & other.keys())
    if there is not None and back is not None:
        assert back.mean.value == pytest.approx(-there.mean.value, abs=1e-9)
        assert back.unpaired == there.unpaired == tuple(sorted(one.keys() ^ other.keys()))
        assert there.mean.count == len(one.keys() & other.keys())
        assert 0 <= there.agreeing <= there.mean.count


def test_seeds_that_one_lacks_are_told_and_do_not_count() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 5: 100.0}, {1: 4.0, 0: 2.0, 3: -100.0})
    assert found is not None
    assert (found.mean.value, found.agreeing, found.unpaired) == (-1.5, 2, (3, 5))
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    unknown = paired_difference({0: 1.0, 1: math.nan}, {0: 2.0, 1: 1.0})
    assert unknown is not None and unknown.agreeing == 0
    alone = paired_difference({0: 1.0, 2: 1.0}, {0: 4.0})
    assert alone is not None and alone.mean == Mean(-3.0, None, None, 1)


def test_how_many_seeds_agree() -> None:
    found = paired_difference({0: 1.0, 1: 1.0, 2: -1.0, 3: 0.0}, dict.fromkeys(range(4), 0.0))
    assert found is not None and found.agreeing == 2


def means(*values: list[float]) -> list[Mean | None]:
    return [Mean.of(each) for each in values]


def test_the_best_is_clear_of_all_others_or_there_is_none() -> None:
    low, middle, high = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [5.5, 7.0, 8.0]
    assert clear_best(means(middle, low, high), lowest=True) == 1
    assert clear_best(means(middle, low, high), lowest=False) is None
    assert clear_best(means(middle, low, [], high), lowest=True) == 1  # one that was not measured
    assert clear_best(means(low, [3.0, 4.0, 5.0]), lowest=True) is None  # they touch
    assert clear_best(means(low), lowest=True) is None  # nothing to be better than
    assert clear_best(means(low, [9.0, 9.0]), lowest=True) is None  # of two seeds
    assert clear_best(means(low, [9.0]), lowest=True) is None
    assert clear_best([], lowest=True) is None


@given(st.lists(st.lists(whole, min_size=3, max_size=4), min_size=2, max_size=4), st.integers(0, 99))
def test_the_order_of_variants_does_not_matter(variants: list[list[float]], seed: int) -> None:
    order = random.Random(seed).sample(range(len(variants)), len(variants))
    here, there = means(*variants), means(*(variants[place] for place in order))
    best = clear_best(here, lowest=True)
    assert clear_best(there, lowest=True) == (None if best is None else order.index(best))
