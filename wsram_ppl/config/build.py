"""From a checked config to the components themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from wsram_ppl.config.options import SCHEDULED, Component, component_class, constructor_options
from wsram_ppl.config.parsing import ExperimentConfig
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.interfaces import DataSource
from wsram_ppl.errors import InputError, RunError, one_line
from wsram_ppl.objectives import Objective


@dataclass
class Components:
    """The built components of a config.

    Attributes:
        scheduled: for each option of the model or guide that changes during the run, its schedule;
            the value belongs into the 0-dim buffer of that name.
    """

    model: nn.Module
    guide: nn.Module
    objective: Objective
    data: DataSource
    scheduled: dict[tuple[Literal["model", "guide"], str], Schedule]


def build(config: ExperimentConfig) -> Components:
    """Constructs the components; seed torch before, since the parameters are drawn here.

    A data source may have an attribute ``model_options``: what its data imply for a model, by the name
    of the option, like the number of words. A model that has the option gets the value, unless the
    config sets it.

    Raises:
        InputError: a component does not accept its options, is not of the right kind, or cannot be
            scheduled as asked.
        RunError: a component failed otherwise.
    """
    data = _construct("data", config.data)
    model = _construct("model", config.model, implied=getattr(data, "model_options", {}))
    guide = _construct("guide", config.guide, model)
    objective = _construct("objective", config.objective)
    scheduled: dict[tuple[Literal["model", "guide"], str], Schedule] = {}
    for section, component, module in ("model", config.model, model), ("guide", config.guide, guide):
        for option, schedule in _schedules(section, component).items():
            buffer = dict(module.named_buffers(remove_duplicate=False)).get(option)
            if not isinstance(buffer, Tensor) or buffer.ndim or not buffer.is_floating_point():
                raise InputError(
                    f"{section}.{option} cannot be scheduled: {component.name!r} does not keep it "
                    "in a 0-dim buffer of that name; give a number"
                )
            scheduled["model" if section == "model" else "guide", option] = schedule
    return Components(model, guide, objective, data, scheduled)


def _construct(
    section: str, component: Component, *leading: object, implied: Mapping[str, Any] | None = None
) -> Any:
    cls = component_class(section, component.name)
    known = constructor_options(section, cls).known
    schedules = _schedules(section, component)
    arguments = {name: value for name, value in (implied or {}).items() if name in known}
    for name, value in component.options.items():
        if name in schedules:
            arguments[name] = schedules[name].initial
        elif name not in known:  # by **kwargs
            arguments[name] = value
        elif not known[name].is_default(value):
            arguments[name] = known[name].read(value)
    what = f"{section} {component.name!r}"
    try:
        built = cls(*leading, **arguments)
    except InputError as error:
        raise InputError(f"{what}: {' '.join(str(error).split())}") from error
    except RunError:
        raise
    except (RuntimeError, MemoryError) as error:
        raise RunError(f"{what}: {one_line(error)}") from error
    except Exception as error:
        text = " ".join(str(error).split()) if type(error) is ValueError else one_line(error)
        raise InputError(f"{what}: {text}") from error
    return built


def _schedules(section: str, component: Component) -> dict[str, Schedule]:
    if section not in SCHEDULED:
        return {}
    known = constructor_options(section, component_class(section, component.name)).known
    return {
        name: Schedule.model_validate(value)
        for name, value in component.options.items()
        if isinstance(value, dict) and name in known and known[name].schedulable
    }
