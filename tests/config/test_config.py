"""Experiment configs: reading, overriding, checking, writing, building."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import PositiveFloat, PositiveInt
from pyro.nn import PyroModule
from torch import Tensor, nn

from wsram_ppl.config import (
    ExperimentConfig,
    ExplorationSettings,
    TrainingSettings,
    build,
    load_config,
    parse_config,
)
from wsram_ppl.config.catalogue import DATA_SOURCES, GUIDES, MODELS, OBJECTIVES
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.errors import InputError, RunError
from wsram_ppl.objectives import ImportanceBound

if TYPE_CHECKING:
    from elsewhere import OnlyForTypeCheckers  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[1]


class Net(PyroModule):
    """A model with an option of every kind."""

    def __init__(
        self,
        hidden: PositiveInt = 8,
        *,
        location_std: Schedule | float = 0.25,
        width: PositiveFloat = 1,
        spread: PositiveFloat | Schedule = 1.0,
        scales: tuple[PositiveInt, ...] = (1, 2, 4),
        mode: Literal["soft", "hard"] = "hard",
        folder: Path | None = None,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        layer: nn.Module | None = None,
        hint: OnlyForTypeCheckers = None,
        anything=(1, 2),  # type: ignore[no-untyped-def]
    ) -> None:
        super().__init__()
        if hidden == 13:
            raise ValueError("hidden must not\nbe 13")
        if hidden == 14:
            raise InputError("hidden must not be 14")
        if hidden == 15:
            raise RuntimeError("no memory")
        if hidden == 16:
            raise KeyError("sixteen")
        self.arguments = {key: value for key, value in locals().items() if key != "self"}
        self.register_buffer("location_std", torch.tensor(float(location_std)))
        self.register_buffer("spread", torch.ones(2))


class Scheduled(PyroModule):
    """A model whose own default changes during the run."""

    def __init__(self, noise: Schedule | float = Schedule(start=1.0, end=0.5)) -> None:  # noqa: B008
        super().__init__()
        assert isinstance(noise, float)
        self.register_buffer("noise", torch.tensor(noise))


class Anything(PyroModule):
    """A model that takes what it gets."""

    def __init__(self, depth: int = 1, **kwargs: object) -> None:
        super().__init__()
        self.arguments = {"depth": depth, **kwargs}


class Required(PyroModule):
    """A model with an option that must be given."""

    def __init__(self, vocabulary: PositiveInt) -> None:
        super().__init__()


class NeedsModule(PyroModule):
    """A model that no config can build."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()


class Proposal(nn.Module):
    """A guide."""

    def __init__(self, model: OnlyForTypeCheckers, *, layers: PositiveInt = 2, tau: float = 0.5):
        super().__init__()
        self.layers, self.tau = layers, tau
        self.model = model
        self.register_buffer("tau_", torch.tensor(tau))


class Alone(nn.Module):
    """A guide that forgets the model."""

    def __init__(self, *, layers: int = 1) -> None:
        super().__init__()


class Bound(ImportanceBound):
    """An objective."""

    def __init__(
        self,
        num_particles: PositiveInt = 5,
        vectorize_particles: bool = False,
        max_plate_nesting: float = math.inf,
        control_variate: Literal["none", "self-normalized"] = "none",
    ) -> None:
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
        )
        self.control_variate = control_variate


class Plain(ImportanceBound):
    """An objective without options."""

    def __init__(self) -> None:
        super().__init__()


class Ones:
    """A data source."""

    def __init__(self, count: PositiveInt = 3) -> None:
        self.count = count

    def training_batch(self, step: int, size: int, seed: int) -> tuple[Tensor, ...]:
        return (torch.ones(size, self.count),)

    def evaluation_batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Tensor, ...]]:
        yield self.training_batch(0, size, 0)

    def to(self, device: torch.device | str) -> Self:
        return self


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """The classes above, by names that only these tests see."""
    with pytest.MonkeyPatch.context() as patch:
        for registry, classes in (
            (MODELS, {"test-net": Net, "test-scheduled": Scheduled, "test-anything": Anything,
                      "test-required": Required, "test-needs-module": NeedsModule}),
            (GUIDES, {"test-proposal": Proposal, "test-alone": Alone}),
            (OBJECTIVES, {"test-bound": Bound, "test-plain": Plain}),
            (DATA_SOURCES, {"test-ones": Ones}),
        ):  # fmt: skip
            for name, cls in classes.items():
                patch.setitem(registry._classes, name, cls)
        yield


def tables(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "data": {"source": "test-ones"},
        "model": {"name": "test-net"},
        "guide": {"name": "test-proposal"},
        "objective": {"name": "test-bound"},
    }
    for section, table in changes.items():
        base[section] = {**base.get(section, {}), **table} if isinstance(table, dict) else table
    return base


def config(*overrides: str, **changes: Any) -> ExperimentConfig:
    return parse_config(tables(**changes), overrides)


def message(function: Callable[..., object], *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


# ---------------------------------------------------------------- reading


def test_defaults() -> None:
    found = config()
    assert found.model.options == {
        "hidden": 8,
        "location_std": 0.25,
        "width": 1.0,
        "spread": 1.0,
        "scales": [1, 2, 4],
        "mode": "hard",
        "anything": [1, 2],
    }
    assert found.guide.options == {"layers": 2, "tau": 0.5}
    # In a config particles are vectorised unless it says otherwise.
    assert found.objective.options["vectorize_particles"] is True
    assert found.objective.options["num_particles"] == 5
    assert "vectorize_particles" not in config(objective={"name": "test-plain"}).objective.options
    assert not config("objective.vectorize_particles=false").objective.options["vectorize_particles"]
    assert (found.exploration, found.training) == (ExplorationSettings(), TrainingSettings())
    assert found.training.learning_rate == Schedule(start=3e-3, end=3e-5, shape="cosine")
    assert found.notes == ()


def test_what_zero_and_none_mean() -> None:
    off = config(
        "training.gradient_clip=0",
        "training.eval_examples=0",
        "training.guide_learning_rate=none",
        training={"guide_learning_rate": 0.5, "eval_examples": 10},
    ).training
    assert (off.gradient_clip, off.eval_examples, off.guide_learning_rate) == (None, None, None)
    assert config("training.gradient_clip=none").training.gradient_clip is None
    on = config(training={"gradient_clip": 2, "eval_examples": 7, "guide_learning_rate": 0}).training
    assert (on.gradient_clip, on.eval_examples) == (2.0, 7)
    assert on.guide_learning_rate == Schedule.fixed(0.0)
    assert config("training.validate=true", "training.compile=true").training.validate_sites


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices(device: str) -> None:
    assert parse_config(tables(), device=device).training.device == device


def test_the_given_tables_are_not_changed() -> None:
    given_tables = tables(model={"scales": [3]})
    before = copy.deepcopy(given_tables)
    parse_config(given_tables, ["model.scales=[5]", "training.seed=3"])
    assert given_tables == before


# ---------------------------------------------------------------- overrides and shorthands


@pytest.mark.parametrize(
    ("text", "section", "key", "value"),
    [
        ("model.hidden=256", "model", "hidden", 256),
        (" model . hidden = 256 ", "model", "hidden", 256),
        ("model.scales=[1, 8]", "model", "scales", [1, 8]),
        ("model.mode=soft", "model", "mode", "soft"),
        ('model.mode="soft"', "model", "mode", "soft"),
        ("model.folder=a=b", "model", "folder", "a=b"),
        ("model.folder=2020-01-01", "model", "folder", "2020-01-01"),
        ("model.folder=", "model", "folder", ""),
        ("model.anything={ a = 1 }", "model", "anything", {"a": 1}),
        ("model.anything.b=2", "model", "anything", {"b": 2}),
        ("objective.max_plate_nesting=inf", "objective", "max_plate_nesting", math.inf),
        ("objective.control_variate=self-normalized", "objective", "control_variate",
         "self-normalized"),
    ],
)  # fmt: skip
def test_overrides(text: str, section: str, key: str, value: Any) -> None:
    assert getattr(config(text), section).options[key] == value


def test_the_last_override_wins_and_shorthands_add_up() -> None:
    found = parse_config(
        tables(),
        ["training.steps=5", "training.steps=6", "model.location_std={start=1,end=2}",
         "model.location_std.end=3"],
        objective="test-bound", guide="test-proposal", model="test-net",
        control_variate="self-normalized", device="cuda", seed=7,
    )  # fmt: skip
    assert found.training.steps == 6
    assert found.model.options["location_std"]["end"] == 3.0
    assert found.objective.options["control_variate"] == "self-normalized"
    assert (found.training.device, found.training.seed) == ("cuda", 7)


def test_shorthand_against_override() -> None:
    assert parse_config(tables(), ["training.seed=7"], seed=7).training.seed == 7
    assert message(parse_config, tables(), ["training.seed=8"], seed=7) == (
        "training.seed is given twice: 8 by --set, and 7"
    )
    with pytest.raises(TypeError, match="unknown shorthand 'sed'"):
        parse_config(tables(), sed=7)


def test_another_component_drops_the_files_options_and_says_so() -> None:
    given_tables = tables(guide={"name": "some-network", "width": 64, "layers": 3, "a b": 1})
    for found in (
        parse_config(given_tables, guide="test-proposal"),
        parse_config(given_tables, ["guide.name=test-proposal"]),
    ):
        assert found.guide.options == {"layers": 3, "tau": 0.5}
        assert found.notes == (
            "guide.width of 'some-network' is left out: 'test-proposal' has no such key",
            "guide.'a b' of 'some-network' is left out: 'test-proposal' has no such key",
        )
    # Notes are no part of the config's identity.
    assert found == parse_config(tables(guide={"layers": 3}))


def test_options_set_by_hand_are_never_dropped() -> None:
    given_tables = tables(guide={"name": "some-network", "width": 64})
    text = message(parse_config, given_tables, ["guide.width=3"], guide="test-proposal")
    assert text == "unknown key guide.width; valid keys: layers, tau"
    whole = 'guide={name="test-proposal", width=3}'
    assert "unknown key guide.width" in message(parse_config, given_tables, [whole])
    text = message(parse_config, tables(), objective="test-plain", control_variate="self-normalized")
    assert text == "unknown key objective.control_variate; valid keys: none"


def test_nothing_is_dropped_when_the_component_stays() -> None:
    given_tables = tables(guide={"width": 64})
    assert "unknown key guide.width" in message(parse_config, given_tables, guide="test-proposal")
    # Without a name in the file, its options can only be meant for the one that is chosen.
    del given_tables["guide"]["name"]
    assert "unknown key guide.width" in message(parse_config, given_tables, guide="test-proposal")


# ---------------------------------------------------------------- schedules


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


# ---------------------------------------------------------------- messages

STEPS = "{start=1, end=2}"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["modle.hidden=3"], "unknown key modle; did you mean 'model'? valid keys: data, model, "
         "guide, objective, exploration, training"),
        (["model.hiden=3"], "unknown key model.hiden; did you mean 'hidden'? valid keys: hidden, "
         "location_std, width, spread, scales, mode, folder, activation, anything"),
        (["training.step=3"], "unknown key training.step; did you mean 'steps'? valid keys: "),
        (["training.validate_sites=true"], "unknown key training.validate_sites; did you mean "
         "'validate'?"),
        (["exploration.x y=3"], "unknown key exploration.'x y'; valid keys: entropy, temperature, "
         "coverage"),
        (["training.learning_rate={start=1, end=2, form=3}"],
         "unknown key training.learning_rate.form; did you mean 'from'? valid keys: start, end,"),
        (["model.location_std={strat=1, end=2}"], "model.location_std.start is missing; unknown "
         "key model.location_std.strat; did you mean 'start'?"),
        (["model.name=test-nets"], "model.name: unknown model 'test-nets'; did you mean "
         "'test-net'?"),
        (["guide.name=no_such_module:Guide"], "guide.name: guide 'no_such_module:Guide': there is "
         "no module 'no_such_module'"),
        (["data.source=nist"], "data.source: unknown data source 'nist'; did you mean 'mnist'?"),
        (["model.name=5"], "model.name = 5: should be a string"),
        (["model=test-net"], "model = 'test-net': should be a table [model]"),
        (["training=3"], "training = 3: should be a table [training]"),
        (["model.name=builtins:int"], "model.name: 'builtins:int' is not a torch.nn"),
        (["objective.name=pyro.infer:Trace_ELBO"], "'pyro.infer:Trace_ELBO' is not a "
         "wsram_ppl.objectives"),
        (["data.source=torch.nn:Linear"], "'torch.nn:Linear' lacks methods of wsram_ppl.data"),
        (["guide.name=test-alone"], "Alone': its constructor should take the model as first"),
        (["model.name=test-required"], "model.vocabulary is missing"),
        (["model.name=test-needs-module"], "model.encoder is required, but its type has no form"),
        (["model.layer=3"], "model.layer cannot be set: its type has no form in TOML"),
        (["model.hint=3"], "model.hint cannot be set: its type has no form in TOML"),
        (["model.hidden=0"], "model.hidden = 0: should be greater than 0"),
        (["model.hidden=2.0"], "model.hidden = 2.0: should be a valid integer"),
        (["model.hidden=true"], "model.hidden = true: should be a valid integer"),
        (['model.hidden="8"'], "model.hidden = '8': should be a valid integer"),
        ([f"model.hidden={STEPS}"], "model.hidden = {'start': 1, 'end': 2}: should be a valid int"),
        (["model.scales=[1,'a',0]"], "model.scales[1] = 'a': should be a valid integer; "
         "model.scales[2] = 0: should be greater than 0"),
        (["model.mode=sofd"], "model.mode = 'sofd': should be 'soft' or 'hard'; did you mean "
         "'soft'?"),
        (["model.width={start=1, end=0}"], "model.width.end = 0.0: should be greater than 0"),
        (["model.location_std=nan"], "model.location_std = nan: should be a string, a 64-bit"),
        (["model.anything=9223372036854775808"], "should be a string, a 64-bit integer"),
        (["model.anything=0x" + "f" * 5000], "model.anything = an integer beyond all bounds"),
        (["model.anything=\udcff"], "should be valid Unicode"),
        (["model.\udcff=1"], "should be valid Unicode"),
        (["training.steps=0"], "training.steps = 0: should be greater than 0"),
        (["training.steps=-5"], "training.steps = -5: should be greater than 0"),
        (["training.steps=many"], "training.steps = 'many': should be a valid integer"),
        (["training.batch_size=0"], "training.batch_size = 0: should be greater than 0"),
        (["training.learning_rate=-1"], "training.learning_rate = -1: should not be negative at"),
        (["training.learning_rate=inf"], "training.learning_rate = inf: should be a finite number"),
        (["training.learning_rate.end=1"], "training.learning_rate.start is missing"),
        (["training.learning_rate={start=1,end=2,shape='cosin'}"],
         "training.learning_rate.shape = 'cosin': should be 'linear', 'cosine' or 'exponential'; "
         "did you mean 'cosine'?"),
        (["training.guide_learning_rate=-1"], "training.guide_learning_rate = -1: should not be"),
        (["training.optimizer=adm"], "should be 'adam', 'adamw' or 'sgd'; did you mean 'adam'?"),
        (["training.weight_decay=-0.1"], "training.weight_decay = -0.1: should be greater than or"),
        (["training.gradient_clip=-1"], "training.gradient_clip = -1: should be greater than 0"),
        (["training.gradient_clip=false"], "training.gradient_clip = false: should be a valid"),
        (["training.seed=-1"], "training.seed = -1: should be greater than or equal to 0"),
        (["training.seed=4294967296"], "training.seed = 4294967296: should be less than"),
        (["training.log_every=0"], "training.log_every = 0: should be greater than 0"),
        (["training.eval_every=-1"], "training.eval_every = -1: should be greater than or equal"),
        (["training.eval_examples=-1"], "training.eval_examples = -1: should be greater than 0"),
        (["training.eval_samples=0"], "training.eval_samples = 0: should be greater than 0"),
        (["training.checkpoint_every=-1"], "training.checkpoint_every = -1: should be greater"),
        (["training.threads=-1"], "training.threads = -1: should be greater than or equal to 0"),
        (["training.device=gpu"], "training.device = 'gpu': should be auto, cpu, cuda, cuda:N or"),
        (["training.precision=16"], "training.precision = 16: should be '32-true', '64-true' or"),
        (["training.compile=1"], "training.compile = 1: should be a valid boolean"),
        (["exploration.entropy=-1"], "exploration.entropy = -1: should not be negative"),
        (["exploration.coverage={start=1,end=-1}"], "'end': -1}: should not be negative at either"),
        (["exploration.temperature=0"], "exploration.temperature = 0: should be greater than 0 at"),
        (["exploration.entropy=x"], "exploration.entropy = 'x': should be a number or a table"),
        (["training.steps"], "--set 'training.steps': write table.key=value"),
        (["=3"], "--set '=3': write table.key=value"),
        (["training..steps=3"], "write table.key=value"),
        (["training.steps.x=3", "training.steps=3", "training.steps.x=3"],
         "training.steps.x cannot be set: training.steps is 3, not a table"),
        (["a." * 30 + "b=3"], "nested too deeply"),
        (["training.steps=0", "model.hidden=0"], "model.hidden = 0: should be greater than 0; "
         "training.steps = 0: should be greater than 0"),
    ],
)  # fmt: skip
def test_messages(overrides: list[str], expected: str) -> None:
    assert expected in message(parse_config, tables(), overrides)


def test_an_empty_spec_says_what_to_choose() -> None:
    text = message(parse_config, {})
    for key in ("data.source", "model.name", "guide.name", "objective.name"):
        assert f"{key} is missing; available: " in text
    assert "test-net" in text and "or an import path package.module:Name" in text


def test_one_problem_is_told_once() -> None:
    assert message(config, "training.learning_rate=inf") == (
        "training.learning_rate = inf: should be a finite number"
    )


def test_long_values_are_cut() -> None:
    text = message(parse_config, tables(), ["training.device=" + "x" * 10_000])
    assert len(text) < 200


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[model]\nname = \n", "experiment.toml: not valid TOML: Invalid value (at line 2"),
        (b"[model]\nname", "(at line 2, the last)"),
        (b"a = 1\na = 2\n", "experiment.toml: not valid TOML: Cannot overwrite a value"),
        (b"\xff\xfe", "experiment.toml': UnicodeDecodeError"),
        (b"a = " + b"[" * 100_000, "experiment.toml: nested too deeply"),
        (b"a = " + b"9" * 5_000, "experiment.toml: not valid TOML"),
        (b"a = " + b"[" * 30 + b"]" * 30, "nested too deeply"),
        (b"[training]\nseed = 2020-01-01\n", "training.seed = datetime.date(2020, 1, 1): should"),
        (b"", "model.name is missing"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_bytes(content)
    assert expected in message(load_config, path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert message(load_config, tmp_path / "no.toml").startswith("there is no file '")
    assert "Is a directory" in message(load_config, tmp_path)
    assert "cannot read" in message(load_config, "a\0b")


# ---------------------------------------------------------------- writing

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
numbers = st.floats(0.001, 1000.0) | st.integers(1, 1000)
schedules = numbers | st.fixed_dictionaries(
    {"start": numbers, "end": numbers},
    optional={
        "shape": st.sampled_from(["linear", "cosine", "exponential"]),
        "from": st.floats(0.0, 0.4),
        "until": st.floats(0.6, 1.0),
    },
)
counts = st.integers(1, 10**6)
configs = st.fixed_dictionaries(
    {
        "data": st.just({"source": "test-ones"}),
        "model": st.fixed_dictionaries(
            {"name": st.just("test-net")},
            optional={
                "hidden": counts,
                "location_std": schedules,
                "width": schedules,
                "scales": st.lists(counts, max_size=3),
                "folder": texts,
                "anything": plain,
            },
        )
        | st.fixed_dictionaries(
            {"name": st.just("test-anything")}, optional={"depth": counts, "other": plain}
        ),
        "guide": st.just({"name": "test-proposal"}),
        "objective": st.just({"name": "test-bound"}),
    },
    optional={
        "exploration": st.fixed_dictionaries(
            {}, optional={"entropy": schedules, "temperature": schedules, "coverage": schedules}
        ),
        "training": st.fixed_dictionaries(
            {},
            optional={
                "steps": counts,
                "learning_rate": schedules,
                "guide_learning_rate": schedules | st.just("none"),
                "gradient_clip": st.floats(0.0, 10.0) | st.just("none"),
                "eval_examples": st.integers(0, 10),
                "device": st.sampled_from(["auto", "cuda:3"]),
                "validate": st.booleans(),
            },
        ),
    },
)


@settings(deadline=None, max_examples=60)
@given(configs)
def test_what_is_written_is_read_back(given_tables: dict[str, Any]) -> None:
    found = parse_config(given_tables)
    text = found.to_toml()
    again = parse_config(tomllib.loads(text))
    assert again == found
    assert again.to_toml() == text
    assert again.fingerprint() == found.fingerprint()
    for section in ("model", "training"):
        assert given_tables.get(section, {}).keys() - {"guide_learning_rate"} <= set(
            tomllib.loads(text)[section]
        )


def test_what_is_written_is_read_back_from_a_file(tmp_path: Path) -> None:
    found = config("model.folder=é\u2028\\", "model.location_std={start=1,end=2}")
    path = tmp_path / "config.toml"
    path.write_text(found.to_toml(), encoding="utf-8")
    assert load_config(path) == found
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors on Windows do
    assert load_config(str(path)) == found


def test_the_written_spec_has_every_option() -> None:
    written = tomllib.loads(config().to_toml())
    assert list(written) == ["data", "model", "guide", "objective", "exploration", "training"]
    expected = {info.alias or name for name, info in TrainingSettings.model_fields.items()}
    assert set(written["training"]) == expected - {"guide_learning_rate"}
    assert written["data"] == {"source": "test-ones", "count": 3}


@pytest.mark.parametrize(
    "same",
    ["training.device=cuda", "training.devices=2", "training.num_nodes=2", "training.strategy=ddp",
     "training.threads=3", "training.log_every=1", "training.eval_every=0",
     "training.eval_examples=5", "training.eval_samples=9", "training.checkpoint_every=7",
     "model.hidden=8", "model.width=1", "model.location_std={start=0.25,end=0.25}"],
)  # fmt: skip
def test_fingerprint_stays(same: str) -> None:
    assert config(same).fingerprint() == config().fingerprint()


def test_fingerprint_stays_when_a_setting_is_added() -> None:
    class Later(TrainingSettings):
        momentum: float = 0.9

    known = config().training.model_dump(by_alias=True)
    later = replace(config(), training=Later(**known))
    assert later.fingerprint() == config().fingerprint()
    later = replace(config(), training=Later(**known, momentum=0.5))
    assert later.fingerprint() != config().fingerprint()


def test_fingerprint_is_of_values_not_of_how_they_are_written() -> None:
    assert config("model.width=2").fingerprint() == config("model.width=2.0").fingerprint()
    one = config(model={"name": "test-anything", "a": 1, "b": {"c": 1, "d": 2}})
    two = config(model={"name": "test-anything", "b": {"d": 2, "c": 1}, "a": 1})
    assert one.fingerprint() == two.fingerprint()


@pytest.mark.parametrize(
    "other",
    ["training.steps=5", "training.seed=1", "training.precision=64-true", "training.validate=true",
     "training.guide_learning_rate=1e-3", "exploration.entropy=0.1", "model.hidden=9",
     "model.location_std=0.3", "guide.layers=3", "objective.num_particles=6", "data.count=4"],
)  # fmt: skip
def test_fingerprint_changes(other: str) -> None:
    assert config(other).fingerprint() != config().fingerprint()


def test_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "import json, sys\n"
        "from tests import test_spec as t\n"
        "from wsram_ppl.config.catalogue import *\n"
        "from wsram_ppl.config import parse_config\n"
        "MODELS.register('test-net')(t.Net); GUIDES.register('test-proposal')(t.Proposal)\n"
        "OBJECTIVES.register('test-bound')(t.Bound); DATA_SOURCES.register('test-ones')(t.Ones)\n"
        "print(parse_config(json.loads(sys.argv[1])).fingerprint())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(tables())],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == config().fingerprint()


# ---------------------------------------------------------------- building


def test_build_passes_every_option() -> None:
    found = config(
        model={"hidden": 3, "width": 2, "scales": [5], "mode": "soft", "folder": "somewhere"},
        guide={"layers": 4},
        objective={"num_particles": 6, "control_variate": "self-normalized"},
        data={"count": 9},
    )
    experiment = build(found)
    assert experiment.model.arguments.items() >= {
        "hidden": 3, "location_std": 0.25, "width": 2.0, "scales": (5,), "mode": "soft",
        "folder": Path("somewhere"), "activation": torch.relu, "layer": None, "anything": (1, 2),
    }.items()  # fmt: skip
    assert type(experiment.model.arguments["width"]) is float
    assert experiment.guide.model is experiment.model
    assert (experiment.guide.layers, experiment.guide.tau) == (4, 0.5)
    assert (experiment.objective.num_particles, experiment.objective.vectorize_particles) == (6, 1)
    assert experiment.objective.control_variate == "self-normalized"
    assert experiment.data.count == 9
    assert experiment.scheduled == {}


def test_a_constructor_with_kwargs_gets_anything() -> None:
    found = config(model={"name": "test-anything", "some": {"deep": [1, "a"]}, "depth": 2})
    assert build(found).model.arguments == {"depth": 2, "some": {"deep": [1, "a"]}}


def test_true_is_not_taken_for_the_default_one() -> None:
    (first, _) = build(config("model.anything=[true, 2]")).model.arguments["anything"]
    assert first is True


@pytest.mark.parametrize(
    ("hidden", "kind", "expected"),
    [
        (13, InputError, "model 'test-net': hidden must not be 13"),
        (14, InputError, "model 'test-net': hidden must not be 14"),
        (15, RunError, "model 'test-net': RuntimeError: no memory"),
        (16, InputError, "model 'test-net': KeyError: 'sixteen'"),
    ],
)
def test_a_constructor_that_raises(hidden: int, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        build(config(f"model.hidden={hidden}"))
    assert str(caught.value) == expected


THEIRS = '''
from __future__ import annotations
from typing import Annotated
import torch
from pydantic import Field
from torch import nn

class Model(nn.Module):
    """Theirs."""
    def __init__(self, *, size: Annotated[int, Field(ge=2)] = 2, noise: float = 0.5) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("noise", torch.tensor(noise))

class Guide(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
'''


def test_a_users_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_spec_classes.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "their_spec_classes", None)
    monkeypatch.delitem(sys.modules, "their_spec_classes")
    path = tmp_path / "experiment.toml"
    path.write_text(
        '[data]\nsource = "test-ones"\n[model]\nname = "their_spec_classes:Model"\nsize = 3\n'
        'noise = { start = 1.0, end = 0.1 }\n[guide]\nname = "their_spec_classes:Guide"\n'
        '[objective]\nname = "test-bound"\n'
    )
    experiment = build(load_config(path))
    assert (experiment.model.size, float(experiment.model.noise)) == (3, 1.0)
    assert experiment.guide.model is experiment.model
    assert list(experiment.scheduled) == [("model", "noise")]
    assert "model.size = 1: should be greater than or equal to 2" in message(
        load_config, path, ["model.size=1"]
    )


def test_the_shipped_experiment() -> None:
    import wsram_ppl.guides
    import wsram_ppl.models  # noqa: F401

    found = load_config(ROOT / "experiments" / "digits.toml")
    assert found.notes == ()
    assert parse_config(tomllib.loads(found.to_toml())) == found
    experiment = build(found)
    assert ("model", "location_std") in experiment.scheduled
    images, labels = experiment.data.training_batch(0, 2, 0)
    assert (images.shape, labels.shape) == ((2, 100, 100), (2,))


# ---------------------------------------------------------------- fuzz

keys = st.sampled_from(
    ["data", "model", "guide", "objective", "exploration", "training", "name", "source", "hidden",
     "location_std", "scales", "learning_rate", "steps", "start", "end", "from", "gradient_clip"]
) | texts  # fmt: skip
values = (
    st.sampled_from(["test-net", "test-proposal", "test-bound", "test-ones", "test-anything"])
    | st.text(max_size=8)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
)
anything = st.recursive(
    values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
wild_tables = st.dictionaries(keys, anything, max_size=6) | st.builds(
    lambda section, options: tables(**{section: options}),
    st.sampled_from(["data", "model", "guide", "objective", "exploration", "training"]),
    anything,
)
wild_overrides = st.text(max_size=20) | st.builds(
    lambda path, value: ".".join(path) + "=" + value,
    st.lists(keys, min_size=1, max_size=3),
    st.sampled_from(["1", "-1", "[1", "{start=1,end=2}", "nan", "1979-05-27", '"', "true", "\n[x]"])
    | st.text(max_size=8),
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(wild_tables, st.lists(wild_overrides, max_size=2))
def test_whatever_is_given_is_read_or_refused_in_one_line(
    given_tables: dict[str, Any], overrides: list[str]
) -> None:
    try:
        found = parse_config(given_tables, overrides)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert parse_config(tomllib.loads(found.to_toml())) == found


@settings(deadline=None, max_examples=60)
@given(wild_overrides)
def test_any_override_of_a_good_spec(override: str) -> None:
    try:
        parse_config(tables(), [override]).to_toml().encode()
    except InputError as error:
        assert len(str(error).splitlines()) == 1


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode(errors="replace")))
def test_any_bytes_as_a_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wild.toml"
    path.write_bytes(content)
    message(load_config, path)
