"""Configs as a whole: reading, checking, writing, telling apart."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.config.components import ROOT, config, message, tables
from wsram_ppl.config import (
    ExplorationSettings,
    TrainingSettings,
    experiment_path,
    load_config,
    parse_config,
)
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.errors import InputError


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


def test_the_given_tables_are_not_changed() -> None:
    given_tables = tables(model={"scales": [3]})
    before = copy.deepcopy(given_tables)
    parse_config(given_tables, ["model.scales=[5]", "training.seed=3"])
    assert given_tables == before


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
        (["data.source=torch.nn:Linear"], "'torch.nn:Linear' lacks methods of wsram_ppl.interfaces"),
        (["guide.name=test-alone"], "Alone': its constructor should take the model as first"),
        (["model.name=test-required"], "model.vocabulary is missing"),
        (["model.name=test-needs-module"], "model.encoder is required, but TOML cannot express its"),
        (["model.layer=3"], "model.layer cannot be set: TOML cannot express its type"),
        (["model.hint=3"], "model.hint cannot be set: TOML cannot express its type"),
        (["model.hidden=0"], "model.hidden = 0: should be greater than 0"),
        (["model.hidden=2.0"], "model.hidden = 2.0: should be a valid integer"),
        (["model.hidden=true"], "model.hidden = true: should be a valid integer"),
        (['model.hidden="8"'], "model.hidden = '8': should be a valid integer"),
        ([f"model.hidden={STEPS}"], "model.hidden = {'start': 1, 'end': 2}: should be a valid int"),
        (["model.scales=[1,'a',0]"], "model.scales[1] = 'a': should be a valid integer; "
         "model.scales[2] = 0: should be greater than 0"),
        (["model.mode=sofd"], "model.mode = 'sofd': should be 'soft' or 'hard'; did you mean "
         "'soft'?"),
        (["model.width={start=1, end=0}"], "model.width.end = 0: should be greater than 0"),
        (["model.location_std=nan"], "model.location_std = nan: should be a string, a 64-bit"),
        (["model.anything=9223372036854775808"], "should be a string, a 64-bit integer"),
        (["model.anything=0x" + "f" * 5000], "model.anything = an enormous integer"),
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
        (["training.steps=0", "exploration.entropy=-1", "model.hidden=0", "modell.hidden=0"],
         "did you mean 'model'? valid keys: data, model, guide, objective, exploration, training; "
         "exploration.entropy = -1: should not be negative at either end; training.steps = 0: should"),
        (["model.hidden=0", "model.layer=1", "model.'a b'=2", "model.mode=5"],
         "model.layer cannot be set: TOML cannot express its type; model.hidden = 0: should be greater "
         "than 0; model.mode = 5: should be 'soft' or 'hard'; unknown key model.\"'a b'\"; valid"),
    ],
)  # fmt: skip
def test_messages(overrides: list[str], expected: str) -> None:
    assert expected in message(parse_config, tables(), overrides)


def test_an_empty_config_says_what_to_choose() -> None:
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


def test_a_file_that_is_not_there_is_told_without_torch() -> None:
    code = (
        "import sys\n"
        "from wsram_ppl.config import load_config\n"
        "try: load_config('no.toml')\n"
        "except ValueError as error: print(error, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "there is no file 'no.toml' False\n", done.stderr


# ---------------------------------------------------------------- shipped experiments


def test_a_shipped_experiment_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = experiment_path("digits")
    assert shipped.samefile(ROOT / "experiments" / "digits.toml")
    assert load_config("digits") == load_config(Path("digits")) == load_config(shipped)
    assert experiment_path("figure2").name == "figure2.toml"  # a study
    (tmp_path / "digits").mkdir()  # a folder of results, say
    assert experiment_path("digits") == shipped


def test_a_file_goes_before_a_shipped_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").write_text("[training]\nsteps = 3\n")
    assert experiment_path("digits") == Path("digits")
    assert "data.source is missing" in message(load_config, "digits")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "scenes").write_text("")
    assert experiment_path("scenes", "below") == Path("below", "scenes")
    assert experiment_path("digits", "below").suffix == ".toml"
    assert experiment_path("digits.toml", "below") == Path("below", "digits.toml")


@pytest.mark.parametrize("path", ["digits.toml", "./digits", "below/digits", ".", "..", "", "/"])
def test_what_is_no_name_is_a_path(path: str) -> None:
    assert experiment_path(path) == Path(path)


def test_a_name_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message(load_config, "digts").startswith(
        "there is no file 'digts', and no experiment of that name is shipped; did you mean 'digits'? "
        "there are beyond, clutter, cluttered, control_variates, digits, "
    )
    assert "is shipped; there are beyond" in message(experiment_path, "x" * 300)


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


def test_the_written_config_has_every_option() -> None:
    written = tomllib.loads(config().to_toml())
    assert list(written) == ["data", "model", "guide", "objective", "exploration", "training"]
    expected = {info.alias or name for name, info in TrainingSettings.model_fields.items()}
    assert set(written["training"]) == expected - {"guide_learning_rate", "init"}
    assert written["data"] == {"source": "test-ones", "count": 3}


@pytest.mark.parametrize(
    "same",
    ["training.device=cuda", "training.devices=2", "training.num_nodes=2",
     "training.threads=3", "training.loggers=['mlflow']", "training.log_every=1",
     "training.eval_every=0", "training.eval_examples=5", "training.eval_samples=9",
     "training.checkpoint_every=7", "model.hidden=8", "model.width=1",
     "model.location_std={start=0.25,end=0.25}"],
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


def test_fingerprint_stays_when_a_component_gets_an_option() -> None:
    """At its default; at another value it is another config."""
    found = config()
    later = {**found.model.options, "dropout": 0.0}
    known = {**found.model.defaults, "dropout": 0.0}
    same = replace(found, model=replace(found.model, options=later, defaults=known))
    assert same.fingerprint() == found.fingerprint()
    changed = replace(same.model, options={**later, "dropout": 0.1})
    assert replace(same, model=changed).fingerprint() != found.fingerprint()


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
        "from tests.config.components import NAMES\n"
        "from wsram_ppl.config import parse_config\n"
        "for registry, classes in NAMES.items(): registry.classes.update(classes)\n"
        "print(parse_config(json.loads(sys.argv[1])).fingerprint())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(tables())],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == config().fingerprint()


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
def test_any_override_of_a_good_config(override: str) -> None:
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
