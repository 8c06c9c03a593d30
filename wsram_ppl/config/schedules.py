"""Numbers that change over a training run: learning rate, entropy weight, width of a policy."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    model_serializer,
    model_validator,
)

__all__ = ["NonNegativeSchedule", "PositiveSchedule", "Schedule"]

# Strict: the string "0.1" and the Boolean true are not numbers.
_Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
_Fraction = Annotated[float, Strict(), Field(ge=0.0, le=1.0)]


class Schedule(BaseModel):
    """A number as a function of progress through the run.

    Written in TOML as a plain number (constant), or as a table::

        location_std = { start = 0.25, end = 0.06, shape = "linear", from = 0.0, until = 1.0 }

    The value is ``start`` before the fraction ``from`` of the run and ``end`` after the fraction
    ``until``. In between, with t the fraction of the way from ``from`` to ``until``:

    * ``linear``: start + (end - start) t
    * ``cosine``: end + (start - end) (1 + cos(pi t)) / 2
    * ``exponential``: start (end / start)^t

    These are fractions, not steps, so that a run of any length anneals fully. The first update has the
    fraction 0, the last one 1; an only one has 0.

    Raises:
        pydantic.ValidationError: not a number or a table as above, or an exponential schedule with
            an end that is not positive.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: _Number
    end: _Number
    shape: Literal["linear", "cosine", "exponential"] = "linear"
    begin: _Fraction = Field(default=0.0, alias="from")
    """The fraction of the run at which the change starts; ``from`` in TOML."""
    until: _Fraction = 1.0
    """The fraction at which it is complete."""

    @classmethod
    def fixed(cls, value: float) -> Schedule:
        """The schedule that is always ``value``."""
        return cls(start=value, end=value)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        if isinstance(data, Schedule | dict):
            return data
        if isinstance(data, int | float) and not isinstance(data, bool):
            return {"start": data, "end": data}
        raise ValueError('should be a number or a table { start = ..., end = ..., shape = "..." }')

    @model_validator(mode="after")
    def _check(self) -> Schedule:
        if self.begin >= self.until:
            raise ValueError(f"'from' ({self.begin}) should be before 'until' ({self.until})")
        if self.shape == "exponential" and min(self.start, self.end) <= 0.0:
            raise ValueError("an exponential schedule needs start and end above 0")
        if self.constant:
            # It is written as a number, and reading that back must give an equal schedule.
            # Through __dict__, since the model is frozen.
            self.__dict__.update(shape="linear", begin=0.0, until=1.0)
        return self

    @model_serializer
    def _write(self) -> float | dict[str, float | str]:
        if self.constant:
            return self.start
        return {
            "start": self.start,
            "end": self.end,
            "shape": self.shape,
            "from": self.begin,
            "until": self.until,
        }

    @property
    def constant(self) -> bool:
        """Whether the value never changes."""
        return self.start == self.end

    @property
    def initial(self) -> float:
        """The value at the start of the run."""
        return self.start

    def value(self, progress: float) -> float:
        """The value at a point of the run, between ``start`` and ``end``.

        Args:
            progress: the fraction of the run that is done; values outside [0, 1] are clamped.
        """
        if not progress > self.begin:
            return self.start
        if progress >= self.until:
            return self.end
        t = (progress - self.begin) / (self.until - self.begin)
        if self.shape == "exponential":
            # Interpolates logarithms, since the ratio itself can overflow.
            value = math.exp((1.0 - t) * math.log(self.start) + t * math.log(self.end))
        else:
            share = t if self.shape == "linear" else (1.0 - math.cos(math.pi * t)) / 2.0
            value = (1.0 - share) * self.start + share * self.end
        # Rounding must not move it past an end: a width or a rate could become negative.
        low, high = sorted((self.start, self.end))
        return min(max(value, low), high)


def _not_negative(schedule: Schedule) -> Schedule:
    if min(schedule.start, schedule.end) < 0.0:
        raise ValueError("should not be negative at either end")
    return schedule


def _positive(schedule: Schedule) -> Schedule:
    if min(schedule.start, schedule.end) <= 0.0:
        raise ValueError("should be greater than 0 at both ends")
    return schedule


#: A schedule whose values are 0 or more.
NonNegativeSchedule: TypeAlias = Annotated[Schedule, AfterValidator(_not_negative)]
#: A schedule whose values are above 0.
PositiveSchedule: TypeAlias = Annotated[Schedule, AfterValidator(_positive)]
