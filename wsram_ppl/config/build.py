"""From a checked config to the components themselves."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wsram_ppl.config.options import Component
from wsram_ppl.config.parsing import ExperimentConfig
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.errors import InputError, RunError, one_line

if TYPE_CHECKING:  # reading a config does not need torch
    from torch import nn

    from wsram_ppl.interfaces import DataSource
    from wsram_ppl.objectives import Objective

_Schedules = dict[tuple[Literal["model", "guide"], str], Schedule]


@dataclass
class Components:
    """The built components of a config.

    Attributes:
        scheduled: the schedule of each option of the model or guide that changes during the run;
            its value is written to the 0-dim buffer of that name.
    """

    model: nn.Module
    guide: nn.Module
    objective: Objective
    data: DataSource
    scheduled: _Schedules


def build(config: ExperimentConfig, record: Mapping[str, Any] | None = None) -> Components:
    """Constructs the components. Seed torch before, since the parameters are drawn here.

    A model gets the options that the data imply (:class:`~wsram_ppl.interfaces.InformsModel`).

    Args:
        record: of a run; the data are read as those of that run, if they can be
            (:class:`~wsram_ppl.interfaces.AdoptsRecord`).

    Raises:
        InputError: a component does not accept its options, or cannot be scheduled as asked.
        RunError: a component failed for another reason.
    """
    from wsram_ppl.interfaces import AdoptsRecord, InformsModel

    data = build_data(config)
    if record is not None and isinstance(data, AdoptsRecord):
        data.adopt(record)
    implied = data.model_options if isinstance(data, InformsModel) else {}
    model = build_model(config, implied)
    guide = _construct("guide", config.guide, model)
    objective = _construct("objective", config.objective)
    scheduled = _scheduled("model", config.model, model) | _scheduled("guide", config.guide, guide)
    return Components(model, guide, objective, data, scheduled)


def build_model(config: ExperimentConfig, implied: Mapping[str, Any]) -> nn.Module:
    """Constructs the model alone.

    Args:
        implied: options that follow from the data; those that the model does not have are left out.

    Raises:
        InputError: the config sets one of these to something else.
        InputError, RunError: as for :func:`build`.
    """
    implied = {name: value for name, value in implied.items() if name in config.model.parameters}
    for name, value in implied.items():
        given = config.model.arguments.get(name, value)
        if given != value:
            raise InputError(
                f"model.{name} = {given!r} does not fit the data, which have {value!r}: leave it to them"
            )
    model: nn.Module = _construct("model", config.model, implied=implied)
    return model


def build_data(config: ExperimentConfig) -> DataSource:
    """Constructs the data source alone.

    Raises:
        InputError: its data are missing, or it does not accept its options.
        RunError: it failed for another reason.
    """
    try:
        data: DataSource = _construct("data", config.data)
    except InputError as error:
        raise InputError(f"{error}{_missing_places(config.data, str(error))}") from error
    return data


def _missing_places(data: Component, said: str) -> str:
    """For a message about missing files or folders: which keys name them, and what to do."""
    named = {key: str(data.options[key]) for key in sorted(data.paths) if data.options.get(key)}
    missing = {k: v for k, v in named.items() if v in said and not os.path.exists(os.path.expanduser(v))}
    if not missing:
        return ""
    listed = " and ".join(f"data.{key} = {value!r}" for key, value in missing.items())
    return (
        f"; {listed}: not found, seen from {os.getcwd()}: if it is elsewhere, "
        f"--set data.{next(iter(missing))}=PATH"
    )


def _construct(
    section: str, component: Component, *leading: object, implied: Mapping[str, Any] | None = None
) -> Any:
    what = f"{section} {component.name!r}"
    arguments = {**(implied or {}), **copy.deepcopy(component.arguments)}
    try:
        return component.cls(*leading, **arguments)
    except InputError as error:
        raise InputError(f"{what}: {' '.join(str(error).split())}") from error
    except RunError:
        raise
    except (RuntimeError, MemoryError) as error:
        raise RunError(f"{what}: {one_line(error)}") from error
    except Exception as error:
        text = " ".join(str(error).split()) if type(error) is ValueError else one_line(error)
        raise InputError(f"{what}: {text}") from error


def _scheduled(
    section: Literal["model", "guide"], component: Component, module: nn.Module
) -> _Schedules:
    buffers = dict(module.named_buffers(remove_duplicate=False))
    kept = module.state_dict()
    for option in component.schedules:
        buffer = buffers.get(option)
        if buffer is None or buffer.ndim or not buffer.is_floating_point():
            raise InputError(
                f"{section}.{option} cannot be scheduled: {component.name!r} does not keep it in a "
                "0-dim buffer of that name; give a number"
            )
        if option not in kept:
            raise InputError(
                f"{section}.{option} cannot be scheduled: {component.name!r} keeps it in a buffer that "
                "checkpoints lack; register it with persistent=True, or give a number"
            )
    return {(section, option): schedule for option, schedule in component.schedules.items()}
