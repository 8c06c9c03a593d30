"""Constructors as tables of options."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass
from enum import Enum
from functools import partialmethod
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import nn

from tests.config.components import Net, config, message
from wsram_ppl.config import build
from wsram_ppl.config.catalogue import MODELS, OBJECTIVES
from wsram_ppl.config.options import constructor
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.objectives import ImportanceBound, ThermodynamicBound, VariationalBound, WakeSleep

# Schedules.


def test_scheduled_options() -> None:
    found = config(model={"location_std": {"start": 0.25, "end": 0.06, "until": 0.5}})
    assert found.model.options["location_std"] == {
        "start": 0.25, "end": 0.06, "shape": "linear", "from": 0.0, "until": 0.5,
    }  # fmt: skip
    experiment = build(found)
    assert experiment.model.arguments["location_std"] == 0.25
    schedule = experiment.scheduled["model", "location_std"]
    assert schedule == Schedule.model_validate({"start": 0.25, "end": 0.06, "until": 0.5})


def test_a_constant_schedule_is_a_number() -> None:
    found = config(model={"location_std": {"start": 1, "end": 1, "shape": "cosine"}})
    assert found == config("model.location_std=1")
    assert build(found).scheduled == {}


def test_a_default_may_be_a_schedule() -> None:
    experiment = build(config(model={"name": "test-scheduled"}))
    assert experiment.model.noise == 1.0
    assert experiment.scheduled == {("model", "noise"): Schedule(start=1.0, end=0.5)}
    assert build(config("model.noise=0.25", model={"name": "test-scheduled"})).scheduled == {}


def test_guide_options_are_scheduled_too() -> None:
    found = config("guide.tau={start=1, end=2}")
    assert message(build, found) == (
        "guide.tau cannot be scheduled: 'test-proposal' does not keep it in a 0-dim buffer of "
        "that name; give a number"
    )


def test_what_cannot_be_scheduled() -> None:
    no_buffer, two_numbers = (
        config("model.width={start=1,end=2}"),
        config("model.spread={start=1,end=2}"),
    )
    assert "model.width cannot be scheduled" in message(build, no_buffer)
    assert "model.spread cannot be scheduled" in message(build, two_numbers)
    # A schedule among the types must not weaken the bounds of the number.
    assert message(config, "model.spread=-1") == "model.spread = -1: should be greater than 0"
    assert message(config, "data.count={start=1,end=2}").startswith("data.count = {'start': 1")


def test_a_buffer_that_checkpoints_lack_cannot_be_scheduled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads the run would have the schedule's start."""
    passing = partialmethod(nn.Module.register_buffer, persistent=False)
    monkeypatch.setattr(Net, "register_buffer", passing)
    assert message(build, config("model.location_std={start=1,end=2}")).endswith(
        "keeps it in a buffer that checkpoints lack; register it with persistent=True, or give a number"
    )


# Types.

reads: list[int] = []


def count(value: int) -> int:
    reads.append(value)
    return value


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Incomplete(BaseModel):
    """What pydantic cannot check, since its own annotation leads nowhere."""

    inner: NowhereToBeFound  # type: ignore[name-defined]  # noqa: F821


class Odd(nn.Module):
    """A model with options of rarer kinds."""

    def __init__(
        self,
        first: int = 1,
        *,
        copy: int = 2,  # pydantic's models have a method of that name
        model_dump: int = 3,
        _private: int = 4,
        option_first: int = 5,
        spread: float | tuple[float, ...] = 1.0,
        rate: float | None = None,
        colour: Colour = Colour.RED,
        counted: Annotated[int, AfterValidator(count)] = 6,
        at_odds: PositiveInt = 0,
        steady: Schedule | float = 0.5,
        table: Inner | None = None,
        incomplete: Incomplete | None = None,
        incomplete_too: list[Incomplete] = [],  # noqa: B006
    ) -> None:
        super().__init__()
        self.arguments = {key: value for key, value in locals().items() if key != "self"}
        for name in ("spread", "rate"):
            self.register_buffer(name, torch.tensor(0.0))


class Inner(BaseModel):
    """A table of its own."""

    model_config = ConfigDict(extra="forbid")
    alpha: float = 0.5


class Settable(nn.Module):
    """A model that changes what it is given."""

    def __init__(self, sizes: list[int] = [1], **others: Any) -> None:  # noqa: B006
        super().__init__()
        sizes.append(2)
        others.get("deep", [[]])[0].append(3)
        self.sizes, self.others = sizes, others


@pytest.fixture(autouse=True)
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.classes, "test-odd", Odd)
    monkeypatch.setitem(MODELS.classes, "test-settable", Settable)


def arguments(**options: Any) -> dict[str, Any]:
    found: dict[str, Any] = build(config(model={"name": "test-odd", **options})).model.arguments
    return found


def test_rarer_kinds_of_options() -> None:
    # The default at odds with its annotation is the constructor's own business.
    assert config(model={"name": "test-odd"}).model.options == {
        "first": 1, "copy": 2, "model_dump": 3, "_private": 4, "option_first": 5, "spread": 1.0,
        "colour": "red", "counted": 6, "steady": 0.5,
    }  # fmt: skip
    given = {"first": 7, "copy": 8, "model_dump": 9, "_private": 10, "option_first": 11, "at_odds": 12}
    assert arguments(**given).items() >= given.items()
    assert arguments(spread=[1, 2.5])["spread"] == (1.0, 2.5)
    assert arguments(colour="blue")["colour"] is Colour.BLUE
    assert arguments()["colour"] is Colour.RED
    assert arguments()["incomplete_too"] == []


def test_whole_numbers_count_as_the_fractions_that_they_stand_for() -> None:
    """Two ways to write a config are one config, at any depth."""
    for option in ({"spread": [1, 2]}, {"table": {"alpha": 1}}):
        floats = json.loads(json.dumps(option), parse_int=float)
        one, other = (config(model={"name": "test-odd", **each}) for each in (option, floats))
        assert one.fingerprint() == other.fingerprint()


def test_an_unknown_key_of_a_table_of_ones_own() -> None:
    """Its valid keys are not those of a schedule."""
    found = message(arguments, table={"alpha": 1.0, "gamma": 2})
    assert found == "unknown key model.table.gamma"


def test_a_union_may_hold_a_schedule_too() -> None:
    found = build(config(model={"name": "test-odd", "spread": {"start": 1, "end": 2}, "rate": 3}))
    assert (found.model.arguments["spread"], found.model.arguments["rate"]) == (1.0, 3.0)
    assert found.scheduled == {("model", "spread"): Schedule(start=1.0, end=2.0)}
    found = build(config(model={"name": "test-odd", "rate": {"start": 3, "end": 1, "from": 0.5}}))
    assert [schedule.begin for schedule in found.scheduled.values()] == [0.5]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"incomplete": {"inner": 1}}, "model.incomplete cannot be set: TOML cannot express its type"),
        ({"incomplete_too": []}, "model.incomplete_too cannot be set: TOML cannot express its type"),
        ({"at_odds": 0}, "model.at_odds = 0: should be greater than 0"),
        ({"colour": "green"}, "model.colour = 'green': should be 'red' or 'blue'"),
        ({"spread": "x"}, "model.spread = 'x': should be a valid number or should be a valid array"),
        ({"spread": [1, "x"]}, "model.spread[1] = 'x': should be a valid number"),
        ({"steady": {"start": 1}}, "model.steady.end is missing"),
        ({"steady": {"start": 1, "end": 2, "stop": 1}}, "valid keys: start, end, shape, from, until"),
        ({"table": {"alpha": 1.0, "gamma": 2}}, "unknown key model.table.gamma"),
    ],
)
def test_messages_on_rarer_kinds(options: dict[str, Any], expected: str) -> None:
    assert expected in message(arguments, **options)


def test_a_value_is_checked_once() -> None:
    constructor.cache_clear()
    reads.clear()
    given = config(model={"name": "test-odd", "counted": 7})
    build(given)
    build(given)
    assert reads == [6, 7]  # the default with the signature, and the value with the config
    reads.clear()
    build(config(model={"name": "test-odd", "counted": 8}))
    assert reads == [8]


def test_components_do_not_share_their_arguments() -> None:
    given = config(model={"name": "test-settable", "sizes": [5], "deep": [[]]})
    for _ in range(2):
        model = build(given).model
        assert (model.sizes, model.others) == ([5, 2], {"deep": [[3]]})
    assert given.model.options == {"sizes": [5], "deep": [[]]}
    config(model={"name": "test-settable"}).model.options["sizes"].append(9)
    assert config(model={"name": "test-settable"}).model.options == {"sizes": [1]}


def test_a_config_can_be_copied() -> None:
    given = config("model.location_std={start=1,end=2}")
    again = copy.deepcopy(given)
    assert again == given
    assert build(again).scheduled == build(given).scheduled


# Dataclasses.


@dataclass(eq=False)
class Annealed(WakeSleep):
    """A user's own objective."""

    heat: PositiveFloat = 1.0


WAKE_SLEEP = {"control_variate": "adaptive", "insomnia": 1.0, "decay": 0.99,
              "num_global_particles": 1, "doubly_reparameterized": False}  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "own"),
    [
        (WakeSleep, WAKE_SLEEP),
        (VariationalBound, {"baseline": "none"}),
        (ImportanceBound, {"num_global_particles": 1, "guide_gradient": "vimco", "ovis_gamma": 0.0,
                           "doubly_reparameterized": False}),
        (ThermodynamicBound, {"num_global_particles": 1, "num_temperatures": 5,
                              "first_temperature": 0.08}),
        (Annealed, WAKE_SLEEP | {"heat": 1.0}),
    ],
)  # fmt: skip
def test_objectives(cls: type, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """All fields of the bases are options, though their annotations are names of other modules."""
    monkeypatch.setitem(OBJECTIVES.classes, "test-objective", cls)
    found = config(objective={"name": "test-objective"})
    assert found.objective.options == {
        **own, "num_particles": 5, "max_plate_nesting": float("inf"), "vectorize_particles": True,
        "pathwise": [],
    }  # fmt: skip
    objective = build(
        config("objective.retain_graph=true", objective={"name": "test-objective"})
    ).objective
    assert type(objective) is cls and objective.retain_graph
    assert message(config, "objective.regularizer=1", objective={"name": "test-objective"}) == (
        "objective.regularizer cannot be set: TOML cannot express its type"
    )


def test_choices_of_a_base_are_known_where_its_names_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_objective.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "import wsram_ppl.objectives as library\n"
        "@dataclass(eq=False)\n"
        "class Own(library.WakeSleep):\n"
        "    heat: float = 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "their_objective", raising=False)
    chosen = {"name": "their_objective:Own", "control_variate": "adaptve"}
    assert "did you mean 'adaptive'?" in message(config, objective=chosen)
    assert (
        config("objective.control_variate=adaptive", objective=chosen).objective.options["heat"] == 1.0
    )
