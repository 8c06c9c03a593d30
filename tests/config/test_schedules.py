"""Numbers that change over a run."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from wsram_ppl.config.schedules import NonNegativeSchedule, PositiveSchedule, Schedule

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-300, max_value=1e300)
fraction = st.floats(min_value=0.0, max_value=1.0)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.sampled_from(["linear", "cosine", "exponential"]))
    ends = positive if shape == "exponential" else finite
    begin, until = sorted((draw(fraction), draw(fraction)))
    assume(begin < until)
    return {
        "start": draw(ends),
        "end": draw(ends),
        "shape": shape,
        "from": begin,
        "until": until,
    }


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [
        ("linear", 6.5, 5.0),
        ("cosine", 2.0 + 6.0 * (1.0 + math.sqrt(0.5)) / 2.0, 5.0),
        ("exponential", 8.0 * 4.0**-0.25, 4.0),
    ],
)
def test_values(shape: str, quarter: float, half: float) -> None:
    schedule = Schedule.model_validate({"start": 8, "end": 2, "shape": shape, "from": 0.2, "until": 0.6})
    points = [-1.0, 0.0, 0.2, 0.3, 0.4, 0.6, 1.0, 7.0]
    expected = [8.0, 8.0, 8.0, quarter, half, 2.0, 2.0, 2.0]
    assert [schedule.value(point) for point in points] == pytest.approx(expected, rel=1e-12)


def test_linear_over_the_whole_run_by_default() -> None:
    schedule = Schedule(start=0.0, end=1.0)
    assert [schedule.value(p) for p in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.25, 0.5, 1.0]


@given(tables(), fraction, fraction)
def test_between_its_ends_and_monotone(table: dict[str, Any], one: float, two: float) -> None:
    schedule = Schedule.model_validate(table)
    low, high = sorted((schedule.start, schedule.end))
    first, second = schedule.value(min(one, two)), schedule.value(max(one, two))
    assert low <= first <= high and low <= second <= high
    tolerance = 1e-9 * max(abs(low), abs(high))
    assert (second - first) / 2 * (1 if schedule.end >= schedule.start else -1) >= -tolerance
    assert schedule.value(0.0) == schedule.initial == table["start"]
    assert schedule.value(1.0) == table["end"]


@given(tables() | finite | st.integers(-1000, 1000))
def test_round_trip(written: Any) -> None:
    schedule = Schedule.model_validate(written)
    dumped = schedule.model_dump()
    assert isinstance(dumped, float) == schedule.constant
    assert Schedule.model_validate(dumped) == schedule
    assert Schedule.model_validate_json(json.dumps(dumped)) == schedule


@given(finite, st.floats())
def test_constant(value: float, progress: float) -> None:
    schedule = Schedule.model_validate(value)
    assert schedule.constant
    assert schedule.value(progress) == value == schedule.model_dump()


def test_a_constant_has_one_form() -> None:
    table = {"start": 3, "end": 3, "shape": "cosine", "from": 0.5, "until": 0.75}
    assert Schedule.model_validate(table) == Schedule.fixed(3.0)
    assert Schedule.model_validate(table).model_dump() == 3.0


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Schedule.fixed(1.0).start = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "where", "expected"),
    [
        ("0.1", (), "should be a number or a table { start = ..."),
        (True, (), "should be a number or a table"),
        (None, (), "should be a number or a table"),
        ([0.1, 0.2], (), "should be a number or a table"),
        (math.nan, ("start",), "finite"),
        (math.inf, ("start",), "finite"),
        ({"start": 1}, ("end",), "Field required"),
        ({"end": 1}, ("start",), "Field required"),
        ({"start": "1", "end": 2}, ("start",), "valid number"),
        ({"start": True, "end": 2}, ("start",), "valid number"),
        ({"start": 1, "end": 2, "shape": "step"}, ("shape",), "'linear', 'cosine' or"),
        ({"start": 1, "end": 2, "from": -0.1}, ("from",), "greater than or equal to 0"),
        ({"start": 1, "end": 2, "until": 1.1}, ("until",), "less than or equal to 1"),
        ({"start": 1, "end": 2, "from": 0.5, "until": 0.5}, (), "'from' (0.5) should be before"),
        ({"start": 1, "end": 1, "from": 0.5, "until": 0.4}, (), "should be before 'until' (0.4)"),
        ({"start": 1, "end": 0, "shape": "exponential"}, (), "needs start and end above 0"),
        ({"start": -1, "end": 2, "shape": "exponential"}, (), "needs start and end above 0"),
        ({"start": 1, "end": 2, "begin": 0.5}, ("begin",), "Extra inputs are not permitted"),
    ],
)
def test_messages(written: Any, where: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Schedule.model_validate(written)
    problem = caught.value.errors()[0]
    assert problem["loc"] == where
    assert expected in problem["msg"]
    assert "\n" not in problem["msg"]


@pytest.mark.parametrize("ends", [(-0.1, 1.0), (1.0, -0.1)])
def test_both_ends_are_bounded(ends: tuple[float, float]) -> None:
    table = {"start": ends[0], "end": ends[1]}
    with pytest.raises(ValidationError, match="should not be negative at either end"):
        TypeAdapter(NonNegativeSchedule).validate_python(table)
    with pytest.raises(ValidationError, match="should be greater than 0 at both ends"):
        TypeAdapter(PositiveSchedule).validate_python(table)


def test_zero_is_not_negative_and_not_positive() -> None:
    assert TypeAdapter(NonNegativeSchedule).validate_python(0) == Schedule.fixed(0.0)
    with pytest.raises(ValidationError, match="greater than 0"):
        TypeAdapter(PositiveSchedule).validate_python({"start": 1, "end": 0})
