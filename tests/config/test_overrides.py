"""``--set``, the shorthands, and what they drop."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.config.components import config, message, tables
from wsram_ppl.config import parse_config


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
