"""The keys that are read from sources are those of the classes."""

from __future__ import annotations

import pytest

from tests.config.components import message
from wsram_ppl.config import parse_config
from wsram_ppl.config.checking import table_keys
from wsram_ppl.config.keys import written_keys
from wsram_ppl.config.options import (
    COMPONENTS,
    check_names,
    component_class,
    constructor,
    name_key,
    read_component,
)

SHIPPED = [
    (section, name)
    for section, registry in COMPONENTS.items()
    for name, found in registry.classes.items()
    if isinstance(found, str)
]


@pytest.mark.parametrize(("section", "name"), SHIPPED)
def test_the_source_tells_what_the_class_does(section: str, name: str) -> None:
    """Of everything that is shipped, in order, and which options have no form in TOML."""
    path = COMPONENTS[section].find(name)
    assert isinstance(path, str)
    written = written_keys(path, leading=1 if section == "guide" else 0)
    takes = constructor(section, component_class(section, name))  # type: ignore[arg-type]
    assert written is not None
    assert list(written.keys) == table_keys(takes.model)
    assert written.parameters == takes.parameters
    table = {name_key(section): name, "hiden": 1, "model": 2, "sacle": 3}
    early = message(check_names, section, table, table, set())
    assert early == message(read_component, section, table, table, set(), [])
    assert early.startswith(f"unknown key {section}.hiden;")


@pytest.mark.parametrize(
    "path",
    [
        "own:Net",  # the user's
        "torch.nn:Linear",
        "wsram_ppl.models.classifier:Missing",
        "wsram_ppl.missing:Net",
        "wsram_ppl.files:locked",  # no class
        "wsram_ppl.objectives:Missing",
        "wsram_ppl.models.captioner_network:CaptionerNetwork.inner",
        "wsram_ppl.distributed.processes:Processes:three",
    ],
)
def test_of_all_else_it_tells_nothing(path: str) -> None:
    """The class has the last word, also on whether it is one."""
    assert written_keys(path) is None


def test_a_name_that_a_package_hands_on() -> None:
    assert written_keys("wsram_ppl.objectives:WakeSleep") == written_keys(
        "wsram_ppl.objectives.wake_sleep:WakeSleep"
    )


def test_all_names_that_are_wrong_are_told_together() -> None:
    tables = {
        "data": {"source": "sample", "canvsa": 3},
        "model": {"name": "glimpse-classifier", "hiden": 1, "hidden": -1},
        "guide": {"name": "prio"},
        "objective": {"name": "wake-sleep", "regularizer": 1, "decayy": 2},
        "training": {"stepz": 1},
    }
    said = message(parse_config, tables)
    parts = [
        "unknown key training.stepz; did you mean 'steps'?",
        "; unknown key data.canvsa; did you mean 'canvas'? valid keys: scale, canvas, test_seed, cl",
        "; unknown key model.hiden; did you mean 'hidden'? valid keys: hidden, num_glimpses, patch, ",
        "; guide.name: unknown guide 'prio'; did you mean 'prior'? available: ",
        "; unknown key objective.decayy; did you mean 'decay'? valid keys: control_variate, num_part",
    ]
    places = [said.index(part) for part in parts]
    assert places == sorted(places) and places[0] == 0
    assert "-1" not in said and "regularizer" not in said  # values are the classes' own to check
